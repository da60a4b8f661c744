"""A table of vectors: what is none is told, whatever its ending."""

import pytest

from saccade.base.errors import UserError
from saccade.evaluation.embeddings import read_embeddings


@pytest.mark.parametrize("text", ["file,label\n1.jpg,cat\n", "name,class,v\n1.jpg,cat,3\n", "name\n"])
def test_a_table_of_labels_has_no_vectors(tmp_path, text):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"no vectors|cannot be read as vectors|holds 0 names"):
        read_embeddings(path)
