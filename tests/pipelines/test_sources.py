"""Folders, arrays and names: what is read, what is refused, and in which words."""

import shutil

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from saccade.base.errors import UserError
from saccade.pipelines.data import open_data
from saccade.pipelines.sources import FolderSource, decode, image_size
from tests.present import present


def save(path, mode="RGB", size=(20, 12), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(abs(hash(path.name)) % 2**32)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8), mode).save(path, **options)


@pytest.fixture
def photos(tmp_path):
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            for i in range(6):
                save(tmp_path / split / name / f"{i}.jpg")
    return tmp_path


def test_folder_with_classes_and_its_validation_split(photos):
    train, val = open_data(str(photos))
    assert len(train) == len(present(val)) == 12 and train.classes == ("ant", "bee")
    assert train.labels.tolist() == [0] * 6 + [1] * 6
    assert open_data(str(photos / "train"))[1].name.endswith("val")


@pytest.mark.parametrize(
    ("splits", "shown"), [(("train", "val"), "val"), (("train", "test"), "test"), (("train",), "train")]
)
def test_val_data_may_name_the_folder_that_holds_the_splits(tmp_path, photos, splits, shown):
    root = tmp_path / "other"
    for split in splits:
        shutil.copytree(photos / "train", root / split)
    train, val = open_data(str(photos), str(root))
    assert val.name == str(root / shown) and val.classes == train.classes and len(present(val)) == 12


def test_flat_folder_has_no_labels(tmp_path):
    save(tmp_path / "a.jpg"), save(tmp_path / "b.png")
    train, val = open_data(str(tmp_path))
    assert len(train) == 2 and train.labels is None and val is None


def test_validation_labels_follow_the_training_classes_names(photos, tmp_path):
    for file in (photos / "val" / "ant").iterdir():
        file.unlink()
    (photos / "val" / "ant").rmdir()
    assert open_data(str(photos))[1].labels.tolist() == [1] * 6
    (photos / "val" / "bee").rename(photos / "val" / "cat")
    with pytest.raises(UserError, match="cat"):
        open_data(str(photos))


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("L", ".jpg"),
        ("L", ".png"),
        ("RGBA", ".png"),
        ("CMYK", ".jpg"),
        ("RGB", ".webp"),
        ("RGB", ".gif"),
        ("RGB", ".bmp"),
        ("RGB", ".tif"),
    ],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, mode, suffix):
    save(tmp_path / f"x{suffix}", mode)
    pixels = decode(tmp_path / f"x{suffix}")
    assert pixels.shape == (12, 20, 3) and pixels.dtype == np.uint8


@pytest.mark.parametrize(("orientation", "shape"), [(1, (12, 20)), (3, (12, 20)), (6, (20, 12)), (8, (20, 12))])
def test_exif_rotation_is_undone_in_pixels_and_size(tmp_path, orientation, shape):
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "x.jpg", exif=exif)
    assert decode(tmp_path / "x.jpg").shape[:2] == image_size(tmp_path / "x.jpg") == shape


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    assert np.abs(decode(tmp_path / "x.png")[..., 0].astype(int).ravel() - np.arange(256)).max() <= 1


def test_unreadable_images_are_replaced_by_the_next_and_counted(photos):
    files = sorted((photos / "train").rglob("*.jpg"))
    files[3].write_bytes(files[3].read_bytes()[:100])
    source = FolderSource(photos / "train")
    pixels, used = source.read_or_replace(3)
    assert used == 4 and np.array_equal(pixels, source.read(4))
    assert list(source.known_bad) == ["ant/3.jpg"]
    files[5].write_bytes(b"")
    with pytest.raises(UserError, match=r"2 images cannot be read so far, .* all 12; .*ant/3.jpg.*ant/5.jpg"):
        source.read_or_replace(5)


def npz(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


IMAGES = np.zeros((4, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pixels": IMAGES}, "needs `images`.*it has pixels"),
        ({"images": IMAGES.astype(np.complex64)}, "its images are complex64"),
        ({"images": IMAGES[..., :1]}, r"\(4, 8, 8, 1\)"),
        ({"images": IMAGES, "labels": np.zeros(3, int)}, r"labels are int64 \(3,\) for 4 images"),
        ({"images": IMAGES, "labels": np.full(4, 0.5)}, "labels are float64"),
        ({"images": IMAGES, "labels": np.array([0, -2, 0, 0])}, "some negative"),
        ({"images": np.array([{}, {}], dtype=object)}, "cannot be read as .npz"),
    ],
)
def test_a_wrong_npz_is_refused_in_one_sentence(tmp_path, arrays, words):
    with pytest.raises(UserError, match=words) as error:
        open_data(npz(tmp_path / "x.npz", **arrays))
    assert "\n" not in str(error.value)


def test_npz_and_the_split_beside_it(tmp_path):
    npz(tmp_path / "train.npz", images=IMAGES, labels=np.arange(4))
    npz(tmp_path / "test.npz", images=IMAGES[:2])
    train, val = open_data(str(tmp_path / "train.npz"))
    assert train.labels.tolist() == [0, 1, 2, 3] and len(present(val)) == 2 and val.labels is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: str(p / "nowhere"), "no such file or folder"),
        (lambda p: "cifar", "did you mean cifar10"),
        (lambda p: (p / "empty").mkdir() or str(p / "empty"), "is empty"),
        (lambda p: (p / "x").mkdir() or ((p / "x" / "a.txt").write_text("a") and str(p / "x")), "holds no image file"),
        (lambda p: (p / "a.txt").write_text("a") and str(p / "a.txt"), "not a .txt file"),
        (lambda p: (p / "a.npz").write_text("a") and str(p / "a.npz"), "cannot be read as .npz"),
    ],
)
def test_a_wrong_path_is_refused_in_one_sentence(tmp_path, make, words):
    with pytest.raises(UserError, match=words) as error:
        open_data(make(tmp_path))
    assert "\n" not in str(error.value)


def test_a_named_set_that_is_absent_says_where_it_was_looked_for(tmp_path, monkeypatch):
    def no_network(_):
        raise OSError("no network")

    monkeypatch.setattr(CIFAR10, "download", no_network)
    with pytest.raises(UserError, match=f"cifar10 is not in {tmp_path}.*no network"):
        open_data("cifar10", data_dir=str(tmp_path))


def test_linked_class_folders_are_followed_but_not_in_circles(tmp_path):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "set"
    for place in (elsewhere, folder / "cat"):
        place.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(place / "1.png")
    (folder / "dog").symlink_to(elsewhere)
    (folder / "cat" / "up").symlink_to(folder)
    (elsewhere / "round").symlink_to(folder / "cat")
    source = FolderSource(folder)
    assert source.classes == ("cat", "dog")
    assert [str(source.name_of(i)) for i in range(len(source))] == ["cat/1.png", "dog/1.png", "dog/round/1.png"]


def test_unsigned_labels_stay_numbers_that_count(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 8, 8, 3), np.uint8), labels=np.array([0, 1, 2], np.uint64))
    source, _ = open_data(str(tmp_path / "a.npz"))
    assert source.labels.dtype == np.int64 and source.labels.tolist() == [0, 1, 2]
