"""Photographs in folders: which images are where, how they are cropped, and what happens to a damaged one."""

import os
import threading
import time

import numpy as np
import pytest
from makers import encoded, image_folder
from PIL import Image

from ofasearch.data import IMAGENET, SPLIT_NAMES, ImageSet, Preprocessing, folder, load_data
from ofasearch.data.folder import FolderSet, centre_crop
from ofasearch.errors import FormatError, NotFoundError, UsageError

PLAIN = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), size=32, scale=1.0, crop_pct=0.875)


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """A cache for each test, which no power cut has to spare."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))


def sizes(data):
    return tuple(len(data[name]) for name in SPLIT_NAMES)


def paths(data, *splits):
    """The files of splits, in order."""
    return [str((data[s].root / f).resolve()) for s in splits or SPLIT_NAMES for f in data[s].files]


# -- layouts ---------------------------------------------------------------------------------------------------


def test_imagenet_trains_on_train_and_reports_on_val(tmp_path):
    image_folder(tmp_path / "d" / "train", 70)
    image_folder(tmp_path / "d" / "val", 5)
    data = load_data(str(tmp_path / "d"))
    assert sizes(data) == (181, 8, 21, 15)
    assert (data.name, data.class_names, data.pixels) == ("d", ("ape", "bee", "cat"), None)
    assert all("/d/val/" in path for path in paths(data, "test"))
    assert all("/d/train/" in path for path in paths(data, "train", "calibration", "validation"))
    assert len(set(paths(data))) == 225


def test_a_val_folder_beside_a_test_folder_is_the_validation_split(tmp_path):
    for name, count in (("train", 70), ("val", 5), ("test", 4)):
        image_folder(tmp_path / "d" / name, count)
    data = load_data(str(tmp_path / "d"))
    assert sizes(data) == (202, 8, 15, 12)
    assert {path.split("/d/")[1].split("/")[0] for path in paths(data, "validation")} == {"val"}
    assert {path.split("/d/")[1].split("/")[0] for path in paths(data, "test")} == {"test"}


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_a_val_folder_alone_serves_without_training(tmp_path, name):
    image_folder(tmp_path / "d" / name, 30)
    data = load_data(str(tmp_path / "d"))
    assert sizes(data) == (0, 8, 9, 73)
    assert len(set(paths(data))) == 90


def test_class_folders_alone_are_cut_into_four(tmp_path):
    data = load_data(str(image_folder(tmp_path / "d", 90)))
    assert sizes(data) == (185, 9, 22, 54)
    assert len(set(paths(data))) == 270


def test_a_flat_folder_has_no_labels_and_calibrates(tmp_path):
    (tmp_path / "d").mkdir()
    for n in range(40):
        (tmp_path / "d" / f"{n:02d}.jpg").write_bytes(encoded((40, 30), n, "JPEG"))
    data = load_data(str(tmp_path / "d"))
    assert (data.classes, sizes(data)) == (0, (0, 8, 4, 28))
    assert set(np.concatenate([data[name].labels for name in SPLIT_NAMES])) == {-1}


@pytest.mark.parametrize("kind", ["photographs", "small"])
def test_labels_follow_the_sorted_names_of_the_classes(tmp_path, kind):
    names = ("zebra", "Ant", "bee", "10", "9")
    square = ((16, 16),) if kind == "small" else ((40, 30),)
    data = load_data(str(image_folder(tmp_path / "d", 60, classes=names, sizes=square)))
    assert data.class_names == ("10", "9", "Ant", "bee", "zebra")
    part = data["train"]
    if kind == "photographs":
        assert [data.class_names[label] for label in part.labels] == [file.split("/")[0] for file in part.files]
        return
    known = {np.asarray(Image.open(p)).tobytes(): p.parent.name for p in (tmp_path / "d").rglob("*.png")}
    assert [data.class_names[label] for label in part.labels] == [known[image.tobytes()] for image in part.images]


def test_the_splits_are_the_same_on_every_machine(tmp_path):
    data = load_data(str(image_folder(tmp_path / "d", 90)))
    assert {name: list(data[name].files[:3]) for name in SPLIT_NAMES} == {
        "train": ["ape/081.png", "ape/055.png", "bee/074.png"],
        "calibration": ["bee/084.png", "ape/086.png", "bee/043.png"],
        "validation": ["cat/052.png", "ape/077.png", "ape/047.png"],
        "test": ["bee/045.png", "cat/081.png", "cat/043.png"],
    }


def test_hidden_files_and_other_kinds_are_no_images(tmp_path):
    image_folder(tmp_path / "d", 90)
    before = load_data(str(tmp_path / "d"))
    (tmp_path / "d" / "ape" / "._001.png").write_bytes(b"of another system")
    (tmp_path / "d" / "ape" / "readme.txt").write_text("hello")
    (tmp_path / "d" / ".git").mkdir()
    after = load_data(str(tmp_path / "d"))
    assert paths(after) == paths(before)
    assert after.class_names == before.class_names


def test_a_class_that_train_lacks_is_refused(tmp_path):
    image_folder(tmp_path / "d" / "train", 70)
    image_folder(tmp_path / "d" / "val", 2, classes=("ape", "bee", "cat", "dog"))
    with pytest.raises(FormatError, match=r"val must have the class folders of .*train, but has also dog"):
        load_data(str(tmp_path / "d"))


def test_a_class_that_val_lacks_keeps_the_labels(tmp_path):
    image_folder(tmp_path / "d" / "train", 70)
    image_folder(tmp_path / "d" / "val", 3, classes=("bee", "cat"))
    data = load_data(str(tmp_path / "d"))
    assert sorted(data["test"].labels) == [1, 1, 1, 2, 2, 2]


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(UsageError, match="at least 200 training images and some test images, but has 7 and 2"):
        load_data(str(image_folder(tmp_path / "d", 3)))
    with pytest.raises(UsageError, match="at least 16 images, but has 9"):
        load_data(str(image_folder(tmp_path / "e" / "val", 3).parent))
    (tmp_path / "f" / "ape").mkdir(parents=True)
    with pytest.raises(NotFoundError, match="images in one folder per class"):
        load_data(str(tmp_path / "f"))


# -- small images ----------------------------------------------------------------------------------------------


def test_small_square_images_are_kept_in_memory(tmp_path):
    data = load_data(str(image_folder(tmp_path / "d", 90, sizes=((24, 24),))))
    assert isinstance(data["train"], ImageSet)
    assert (data.pixels, data["train"].images.shape) == (24, (185, 24, 24, 3))
    pixels = {image.tobytes() for name in SPLIT_NAMES for image in data[name].images}
    assert pixels == {np.asarray(Image.open(p)).tobytes() for p in (tmp_path / "d").rglob("*.png")}


def test_small_images_are_decoded_once(tmp_path, monkeypatch):
    source = str(image_folder(tmp_path / "d", 90, sizes=((24, 24),)))
    before = load_data(source)
    monkeypatch.setattr(folder, "decode", lambda _: pytest.fail("decoded again"))
    assert (load_data(source)["train"].images == before["train"].images).all()


@pytest.mark.parametrize("odd", [(25, 25), (24, 25), (400, 300)], ids=str)
@pytest.mark.parametrize("part", ["train", "val"])
def test_one_image_of_another_size_makes_them_photographs(tmp_path, part, odd):
    for name, count in (("train", 100), ("val", 40)):
        image_folder(tmp_path / "d" / name, count, sizes=((24, 24),))
    (tmp_path / "d" / part / "bee" / "001.png").write_bytes(encoded(odd))
    for _ in range(2):  # from the files, then from the cache
        data = load_data(str(tmp_path / "d"))
        assert data.pixels is None
        assert all(isinstance(data[name], FolderSet) for name in SPLIT_NAMES)


def test_a_damaged_small_image_is_named(tmp_path):
    image_folder(tmp_path / "d", 90, sizes=((24, 24),))
    path = tmp_path / "d" / "bee" / "051.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FormatError, match=r"d/bee/051\.png: images must be readable, but one is not"):
        load_data(str(tmp_path / "d"))


# -- inputs ----------------------------------------------------------------------------------------------------


def reference_crop(path, resolution, crop_pct):
    """torchvision's Resize(ceil(resolution / crop_pct)) of the shorter side, then CenterCrop(resolution), by their documents."""
    image = Image.open(path).convert("RGB")
    width, height = image.size
    size = -int(-resolution // crop_pct)
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = size, int(size * long / short)
    new_width, new_height = (new_short, new_long) if width <= height else (new_long, new_short)
    image = image.resize((new_width, new_height), Image.Resampling.BILINEAR)
    top, left = round((new_height - resolution) / 2.0), round((new_width - resolution) / 2.0)
    return np.asarray(image)[top : top + resolution, left : left + resolution]


@pytest.mark.parametrize("resolution", [32, 37, 128])
@pytest.mark.parametrize(
    ("size", "kind", "mode"),
    [
        ((60, 90), "PNG", "RGB"),
        ((91, 60), "JPEG", "RGB"),
        ((73, 73), "JPEG", "RGB"),
        ((500, 41), "JPEG", "RGB"),
        ((3, 2), "PNG", "RGB"),
        ((1, 1), "PNG", "RGB"),
        ((37, 37), "PNG", "RGB"),
        ((55, 44), "JPEG", "L"),
        ((55, 44), "PNG", "RGBA"),
        ((55, 44), "PNG", "LA"),
        ((55, 44), "JPEG", "CMYK"),
        ((55, 44), "PNG", "P"),
        ((55, 44), "PNG", "1"),
        ((55, 44), "BMP", "RGB"),
        ((55, 44), "TIFF", "RGB"),
        ((55, 44), "WEBP", "RGB"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[0]}x{value[1]}",
)
def test_the_crop_is_torchvisions(tmp_path, size, kind, mode, resolution):
    path = tmp_path / f"x.{kind.lower()}"
    path.write_bytes(encoded(size, 1, kind, mode))
    for crop_pct in (0.875, 1.0):
        found = centre_crop(path, resolution, crop_pct)
        assert found.shape == (resolution, resolution, 3)
        assert (found == reference_crop(path, resolution, crop_pct)).all()


def test_a_line_of_pixels_is_not_made_an_image_of_gigabytes(tmp_path):
    (tmp_path / "x.png").write_bytes(encoded((60_000, 2)))
    with pytest.raises(FormatError, match=r"x\.png must have at most 16777216 pixels at 256 pixels a side, but has 60000x2"):
        centre_crop(tmp_path / "x.png", 224, 0.875)


@pytest.fixture
def photographs(tmp_path):
    image_folder(tmp_path / "d", 12, sizes=((40, 30), (30, 50), (300, 200)))
    return folder.list_images(tmp_path / "d", ["ape", "bee", "cat"])


def test_inputs_come_in_order_whatever_the_workers_and_the_batch(photographs):
    expected = np.stack([reference_crop(photographs.root / file, 32, 0.875) for file in photographs.files]).transpose(0, 3, 1, 2)
    for workers in (1, 3, 16):
        for batch in (1, 5, 36, 100):
            images = FolderSet(photographs.root, photographs.files, photographs.labels, workers)
            batches = list(images.inputs(PLAIN, resolution=32, batch=batch))
            assert [len(b) for b in batches] == [min(batch, 36 - start) for start in range(0, 36, batch)]
            assert (np.concatenate(batches) == expected).all()


def test_taken_images_come_in_the_asked_order(photographs):
    index = np.array([30, 2, 2, 17])
    part = photographs.take(index)
    assert part.labels.tolist() == [2, 0, 0, 1]
    (found,) = part.inputs(PLAIN, resolution=32, batch=9)
    (whole,) = photographs.inputs(PLAIN, resolution=32, batch=36)
    assert (found == whole[index]).all()
    assert list(photographs.take(index[:0]).inputs(PLAIN, resolution=32, batch=9)) == []


def test_inputs_have_imagenets_statistics_removed(photographs):
    (plain,) = photographs.inputs(PLAIN, resolution=32, batch=36)
    (found,) = photographs.inputs(IMAGENET, resolution=32, batch=36)
    mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in (IMAGENET.mean, IMAGENET.std))
    assert np.abs(found - (plain / 255 - mean) / std).max() < 1e-5


@pytest.mark.parametrize(
    "spoil", [lambda good: good[:300], lambda good: b"", lambda good: b"<html>not found</html>"], ids=["cut", "empty", "page"]
)
def test_a_damaged_photograph_is_named(photographs, spoil):
    path = photographs.root / photographs.files[20]
    path.write_bytes(spoil(path.read_bytes()))
    batches = photographs.inputs(PLAIN, resolution=32, batch=10)
    next(batches)
    with pytest.raises(FormatError, match=rf"{path} must be a readable image, but it is not: .*; see `ofasearch data check`"):
        list(batches)


def test_a_missing_photograph_is_named(photographs):
    (photographs.root / photographs.files[0]).unlink()
    with pytest.raises(FormatError, match=photographs.files[0]):
        list(photographs.inputs(PLAIN, resolution=32, batch=10))


def test_abandoned_inputs_stop_the_workers(photographs, monkeypatch):
    before, loaded = set(threading.enumerate()), []
    monkeypatch.setattr(folder, "centre_crop", lambda path, r, _: loaded.append(path) or time.sleep(0.01) or np.zeros((r, r, 3), np.uint8))
    images = FolderSet(photographs.root, photographs.files, photographs.labels, 2)
    batches = images.inputs(PLAIN, resolution=32, batch=3)
    next(batches)
    assert set(threading.enumerate()) > before
    batches.close()
    assert set(threading.enumerate()) == before
    assert len(loaded) < len(images)
