"""What a process that shares no memory with the tests' does; it imports nothing that it does not need."""

import pickle
from multiprocessing.connection import Connection


def names_and_labels(data: bytes, answer: Connection) -> None:
    source = pickle.loads(data)
    mapped = [not column.flags.writeable for column in (source.index.names.text, source.index.labels)]
    answer.send(([source.index.names[i] for i in range(len(source))], source.labels.tolist(), mapped))
