"""Folders as people have them: spelled splits, stray images, odd types, links; right values by torchvision's
ImageFolder."""

import os
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from saccade.base.errors import UserError
from saccade.pipelines.data import open_data
from saccade.pipelines.sources import FolderSource, Options, image_size
from saccade.pipelines.sources.decode import decode
from saccade.pipelines.sources.open import find, open_split
from tests.present import present


def put(path, seed: int = 0, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8, 3), seed % 256, np.uint8)).save(path, **options)


def tree(root, classes=("cat", "dog", "eel"), count: int = 4, ending: str = ".jpg") -> None:
    for k, name in enumerate(classes):
        for i in range(count):
            put(root / name / f"{i}{ending}", 40 * k + i)


def as_torchvision(folder) -> list[tuple[str, int]]:
    found = ImageFolder(folder)
    return sorted((os.path.relpath(path, folder), label) for path, label in found.samples)


def labelled(source) -> list[tuple[str, int]]:
    return sorted((source.key_of(i), source.label_of(i)) for i in range(len(source)))


@pytest.mark.parametrize(
    ("train", "val"), [("Train", "Test"), ("TRAIN", "Val"), ("training", "Validation"), ("train", "VALID")]
)
def test_splits_are_found_however_they_are_spelled(tmp_path, train, val):
    tree(tmp_path / train, count=5)
    tree(tmp_path / val, count=2)
    source, other = open_data(str(tmp_path))
    assert labelled(source) == as_torchvision(tmp_path / train)
    assert labelled(other) == as_torchvision(tmp_path / val)


@pytest.mark.parametrize("name", ["train", "val", "Test"])
def test_a_class_that_is_called_like_a_split_stays_a_class_and_is_said(tmp_path, name):
    tree(tmp_path, ("bus", "car", name))
    source, val = open_data(str(tmp_path))
    assert labelled(source) == as_torchvision(tmp_path) and val is None
    assert any("taken for a class" in line for line in source.account.warnings())


def test_folders_beside_splits_are_said_and_refused_where_they_hold_more(tmp_path):
    tree(tmp_path / "train"), tree(tmp_path / "val")
    put(tmp_path / "figures" / "plot.png")
    source, val = open_data(str(tmp_path))
    assert len(source) == len(present(val)) == 12 and any("figures" in line for line in source.account.warnings())
    for i in range(40):
        put(tmp_path / "figures" / f"{i}.png")
    with pytest.raises(UserError, match=r"train, val with 24 images and figures with 41"):
        open_data(str(tmp_path))


@pytest.mark.parametrize("stray", [["preview.jpg"], ["a.png", "b.png", "c.png"]])
def test_stray_images_on_top_drop_no_label(tmp_path, stray):
    tree(tmp_path)
    want = as_torchvision(tmp_path)
    for name in stray:
        put(tmp_path / name)
    source, _ = open_data(str(tmp_path))
    assert labelled(source) == want and source.account.seen == 12 + len(stray)
    assert f"{len(stray)} on top of a class tree" in source.account.line()
    assert any("--labels none" in line for line in source.account.warnings())
    everything, _ = open_data(str(tmp_path), options=Options(labels="none"))
    assert len(everything) == 12 + len(stray) and everything.labels is None


def test_more_images_on_top_than_in_folders_are_no_class_tree(tmp_path):
    tree(tmp_path / "x", ("thumbs",), 2)
    for i in range(9):
        put(tmp_path / "x" / f"{i}.png")
    source, _ = open_data(str(tmp_path / "x"))
    assert len(source) == 11 and source.labels is None and "--labels folders" in source.account.warnings()[0]
    few, _ = open_data(str(tmp_path / "x"), options=Options(labels="folders"))
    assert len(few) == 2 and few.classes == ("thumbs",) and "9 on top of a class tree" in few.account.line()


@pytest.mark.parametrize("above", ["images", "data/images"])
def test_a_tree_one_level_deeper_has_its_own_classes(tmp_path, above):
    tree(tmp_path / "p" / above)
    source, _ = open_data(str(tmp_path / "p"))
    assert source.classes == tuple(ImageFolder(tmp_path / "p" / above).classes)
    assert source.labels.tolist() == ImageFolder(tmp_path / "p" / above).targets
    assert any("its 3 folders are the classes" in line for line in source.account.warnings())


def test_splits_one_level_deeper_are_found(tmp_path):
    tree(tmp_path / "p" / "set" / "train"), tree(tmp_path / "p" / "set" / "val")
    source, val = open_data(str(tmp_path / "p"))
    assert labelled(source) == as_torchvision(tmp_path / "p" / "set" / "train") and len(present(val)) == 12


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "lost+found"])
def test_folders_that_a_system_made_are_no_classes(tmp_path, name):
    tree(tmp_path)
    put(tmp_path / name / "thumb.jpg")
    put(tmp_path / "cat" / name / "thumb.jpg")
    source, _ = open_data(str(tmp_path))
    assert source.classes == ("cat", "dog", "eel") and len(source) == 12
    assert source.account.left_out["folders that a system made"].count == 2


def test_a_link_to_a_sibling_is_no_second_class(tmp_path):
    tree(tmp_path)
    (tmp_path / "latest").symlink_to(tmp_path / "dog")
    source, _ = open_data(str(tmp_path))
    assert source.classes == ("cat", "dog", "eel") and "linked folders" in source.account.line()


@pytest.mark.parametrize("ending", [".jfif", ".JPG", ".avif", ".jp2", ".JPEG", ".pbm", ".tga", "", ".weird", ".apng"])
def test_what_pil_reads_is_read_whatever_its_name(tmp_path, ending):
    tree(tmp_path)
    kind = {".avif": "AVIF", ".jp2": "JPEG2000", ".pbm": "PPM", ".tga": "TGA", ".apng": "PNG"}.get(ending, "JPEG")
    for file in sorted(tmp_path.rglob("*.jpg"))[::2]:
        with Image.open(file) as image:
            image.save(file.with_suffix(ending), kind)
        file.unlink()
    source, _ = open_data(str(tmp_path))
    assert len(source) == 12 and not source.account.left_out
    for i in range(12):
        with Image.open(source.folder / source.key_of(i)) as image:
            assert np.array_equal(source.read(i), np.asarray(image.convert("RGB")))


def test_other_files_are_counted_by_their_ending(tmp_path):
    tree(tmp_path)
    for name in ("a.txt", "b.txt", "cat/labels.csv", "film.mp4", "broken", ".hidden.jpg"):
        (tmp_path / name).write_bytes(b"no image")
    os.mkfifo(tmp_path / "dog" / "pipe.jpg")
    (tmp_path / "dog" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    source, _ = open_data(str(tmp_path))
    counts = {reason.split()[0]: entry.count for reason, entry in source.account.left_out.items()}
    assert counts == {".txt": 2, ".csv": 1, ".mp4": 1, "without": 1, "hidden": 1, "that": 2}
    assert len(source) == 12 and source.account.seen == 20


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", [".tif", ".jpg", ".png"])
def test_orientation_is_undone_once(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[0x0112] = orientation
    put(tmp_path / f"x{ending}", exif=exif)
    with Image.open(tmp_path / f"x{ending}") as image:
        image.load()
        from PIL import ImageOps

        want = ImageOps.exif_transpose(image).size[::-1]
    assert decode(tmp_path / f"x{ending}").shape[:2] == image_size(tmp_path / f"x{ending}") == want


def everything(root) -> int:
    """Files below it; a hidden folder, and one that a system made, is one thing."""
    count = 0
    for _, folders, files in os.walk(root):
        closed = [name for name in folders if name[0] in ".@"]
        folders[:] = [name for name in folders if name not in closed]
        count += len(files) + len(closed)
    return count


NAMES = st.sampled_from(["a.jpg", "b.JPG", "c.png", "d.txt", "e", ".f.jpg", "g h.jpg", "ü.png", "i.jpg.bak"])
CLASSES = st.sampled_from(["cat", "dog", "Val", "train", "train/eel", "val/eel", "test/cat", "@eaDir", "x.y", ".git"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(CLASSES, st.sets(NAMES, min_size=1, max_size=4), min_size=1, max_size=4), st.sets(NAMES, max_size=2)
)
def test_any_tree_is_accounted_whole(tmp_path, classes, top):
    root = tmp_path / "t"
    shutil.rmtree(root, ignore_errors=True)
    files = [*(root / name / file for name, inside in classes.items() for file in inside), *(root / f for f in top)]
    for file in files:
        put(file.with_suffix(".jpg") if file.suffix.lower() not in (".jpg", ".png") else file)
        if file.suffix.lower() not in (".jpg", ".png"):
            os.replace(file.with_suffix(".jpg"), file) if file.suffix != ".txt" else file.write_text("x")
            file.with_suffix(".jpg").unlink(missing_ok=True)
    try:
        found = find(str(root))
        sources = [open_split(found, split, Options()) for split in found.splits]
        source = FolderSource(root)
    except UserError:
        return
    seen = sum(split.account.seen for split in sources) - (len(sources) - 1) * found.account.seen
    assert seen == source.account.seen == everything(root)
    assert source.account.taken == len(source)
    assert all(source.read(i).shape == (6, 8, 3) for i in range(len(source)))
    if source.labels is not None:
        parts = [source.key_of(i).split("/") for i in range(len(source))]
        inside = {source.classes[label] for label in source.labels}
        assert inside <= {part for names in parts for part in names[:-1]}


def test_photos_of_phones_are_read_where_pillow_heif_is(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    tree(tmp_path)
    heif.from_pillow(Image.new("RGB", (16, 12), (200, 10, 10))).save(tmp_path / "cat" / "phone.HEIC")
    source, _ = open_data(str(tmp_path))
    at = [source.key_of(i) for i in range(13)].index("cat/phone.HEIC")
    assert source.read(at).shape == (12, 16, 3) and abs(int(source.read(at)[0, 0, 0]) - 200) < 12
