"""Splits are fixed and disjoint; files that are no image sets are refused in a sentence."""

import gc
import io
import json
import os
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ofasearch.data import SPLIT_NAMES, Preprocessing, channel_statistics, load_data
from ofasearch.errors import FormatError, NotFoundError, UsageError

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def distinct(*parts):
    return {image.tobytes() for part in parts for image in part.images}


def sizes(data):
    return {name: len(data[name]) for name in SPLIT_NAMES}


# -- real data sets --------------------------------------------------------------------------------------------


def test_digits_splits_are_disjoint_and_complete():
    data = load_data("digits")
    assert sizes(data) == {"train": 1236, "calibration": 58, "validation": 144, "test": 359}
    assert len(distinct(*(data[name] for name in SPLIT_NAMES))) == 1797  # all digits differ, so none is in two splits
    assert (data.classes, data.class_names) == (10, tuple("0123456789"))
    assert data["train"].images.shape == (1236, 32, 32, 3)
    assert data["train"].images.dtype == np.uint8


def test_digits_splits_are_the_same_on_every_machine():
    data = load_data("digits")
    first = {name: data[name].labels[:8].tolist() for name in SPLIT_NAMES}
    assert first == {
        "train": [4, 1, 1, 1, 2, 5, 0, 3],
        "calibration": [3, 5, 8, 2, 4, 1, 1, 3],
        "validation": [5, 3, 3, 4, 9, 6, 4, 4],
        "test": [2, 3, 8, 2, 1, 2, 8, 4],
    }


def test_cifar_splits_are_disjoint_and_complete(shared_data):
    data = load_data(str(shared_data / "cifar10"))
    assert sizes(data) == {"train": 43_000, "calibration": 2_000, "validation": 5_000, "test": 10_000}
    assert len(distinct(*(data[name] for name in SPLIT_NAMES))) == 60_000
    assert data.class_names == CIFAR_CLASSES
    assert data["train"].images.shape == (43_000, 32, 32, 3)
    training = np.concatenate([data[name].labels for name in ("train", "calibration", "validation")])
    assert np.bincount(training).tolist() == [5000] * 10
    assert np.bincount(data["test"].labels).tolist() == [1000] * 10


def test_cifar_splits_are_the_same_on_every_machine(shared_data):
    data = load_data(str(shared_data / "cifar10"))
    first = {name: data[name].labels[:8].tolist() for name in SPLIT_NAMES}
    assert first == {
        "train": [4, 5, 9, 0, 0, 5, 0, 0],
        "calibration": [7, 0, 9, 6, 5, 5, 2, 8],
        "validation": [5, 6, 3, 5, 6, 0, 7, 5],
        "test": [0, 1, 9, 1, 8, 3, 7, 3],
    }


# -- Parquet files ---------------------------------------------------------------------------------------------


def png(seed, size=8):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path, images, labels=None, *, columns=("img", "label"), names=None):
    labels = [n % 3 for n in range(len(images))] if labels is None else labels
    table = pa.table({columns[0]: [{"bytes": image, "path": None} for image in images], columns[1]: pa.array(labels)})
    if names:
        card = {"info": {"features": {columns[1]: {"names": names}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(card)})
    pq.write_table(table, path)
    return str(path)


@pytest.fixture(scope="module")
def pngs():
    return [png(seed) for seed in range(400)]


def test_one_file_is_split_into_four(tmp_path, pngs):
    data = load_data(write_parquet(tmp_path / "shapes.parquet", pngs, names=["cat", "dog", "bird"]))
    assert sizes(data) == {"train": 275, "calibration": 13, "validation": 32, "test": 80}
    assert (data.name, data.class_names) == ("shapes", ("cat", "dog", "bird"))
    assert len(distinct(*(data[name] for name in SPLIT_NAMES))) == 400


def test_images_keep_their_pixels_and_labels(tmp_path, pngs):
    data = load_data(write_parquet(tmp_path / "shapes.parquet", pngs))
    known = {np.asarray(Image.open(io.BytesIO(image))).tobytes(): n % 3 for n, image in enumerate(pngs)}
    for part in data.splits.values():
        assert [known[image.tobytes()] for image in part.images] == part.labels.tolist()


def test_a_folder_brings_its_own_test_images(tmp_path, pngs):
    write_parquet(tmp_path / "train-0.parquet", pngs[:150], columns=("image", "fine_label"))
    write_parquet(tmp_path / "train-1.parquet", pngs[150:300], columns=("image", "fine_label"))
    write_parquet(tmp_path / "test-0.parquet", pngs[300:], columns=("image", "fine_label"))
    data = load_data(str(tmp_path))
    assert sizes(data) == {"train": 258, "calibration": 12, "validation": 30, "test": 100}
    assert data.class_names == ("0", "1", "2")
    assert distinct(data["test"]) == {np.asarray(Image.open(io.BytesIO(image))).tobytes() for image in pngs[300:]}


def test_grey_images_become_rgb(tmp_path):
    grey = []
    for seed in range(300):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8)).astype(np.uint8)).save(buffer, "PNG")
        grey.append(buffer.getvalue())
    images = load_data(write_parquet(tmp_path / "grey.parquet", grey))["train"].images
    assert images.shape[1:] == (8, 8, 3)
    assert (images == images[..., :1]).all()


def test_a_changed_file_is_read_again(tmp_path, pngs):
    path = tmp_path / "x.parquet"
    before = load_data(write_parquet(path, pngs[:300]))
    after = load_data(write_parquet(path, pngs[:350]))
    assert (sum(sizes(before).values()), sum(sizes(after).values())) == (300, 350)


@pytest.mark.parametrize("spoil", [lambda good: good[:-50], lambda good: b"", lambda good: b"x" * 99], ids=["cut", "empty", "noise"])
def test_a_damaged_cache_is_decoded_again(tmp_path, pngs, monkeypatch, spoil):
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
    source = write_parquet(tmp_path / "x.parquet", pngs)
    before = load_data(source)
    (cached,) = (tmp_path / "cache").rglob("*.npz")
    cached.write_bytes(spoil(cached.read_bytes()))
    assert (load_data(source)["train"].images == before["train"].images).all()
    gc.collect()  # a file left open would warn here, not in a test that happens to come later


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path, pngs, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "file" / "cache"))
    assert len(load_data(write_parquet(tmp_path / "x.parquet", pngs))["train"]) == 275


# -- what is no image set --------------------------------------------------------------------------------------


def test_a_truncated_file_is_refused(tmp_path, pngs):
    path = tmp_path / "x.parquet"
    write_parquet(path, pngs)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(FormatError, match=r"x.parquet must be a readable Parquet image file, but it is not"):
        load_data(str(path))


def test_a_truncated_cifar_is_refused(shared_data, tmp_path):
    path = tmp_path / "x.parquet"
    with (shared_data / "cifar10" / "test-00000-of-00001.parquet").open("rb") as file:
        path.write_bytes(file.read(1_000_000))
    with pytest.raises(FormatError, match=r"x.parquet must be a readable Parquet image file, but it is not"):
        load_data(str(path))


@pytest.mark.parametrize("columns", [("photo", "label"), ("img", "class")])
def test_foreign_columns_are_named(tmp_path, pngs, columns):
    source = write_parquet(tmp_path / "x.parquet", pngs, columns=columns)
    with pytest.raises(FormatError, match=rf"must have columns img \(or image\) and label, but has \['{columns[0]}', '{columns[1]}'\]"):
        load_data(source)


@pytest.mark.parametrize("column", [[1, 2, 3], ["a", "b", "c"], [None, None, None]], ids=str)
def test_an_image_column_without_bytes_is_refused(tmp_path, column):
    pq.write_table(pa.table({"img": column, "label": [0, 1, 2]}), tmp_path / "x.parquet")
    with pytest.raises(FormatError, match=r"x.parquet must be a readable Parquet image file"):
        load_data(str(tmp_path / "x.parquet"))


@pytest.mark.parametrize("labels", [["cat"] * 400, [None] * 400], ids=["text", "nothing"])
def test_labels_must_be_integers(tmp_path, pngs, labels):
    with pytest.raises(FormatError, match=r"x.parquet must be a readable Parquet image file"):
        load_data(write_parquet(tmp_path / "x.parquet", pngs, labels))


def bomb():
    """A PNG of a few bytes that claims 60,000 x 60,000 pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (b"", "images must be readable, but one is not"),
        (b"no image", "images must be readable, but one is not"),
        (png(0)[:60], "images must be readable, but one is not"),
        (None, "images must be readable, but one is not"),
        (bomb(), "images must"),
        (png(0, size=9), "must hold images of one size, but sizes differ"),
    ],
    ids=["empty", "noise", "cut", "nothing", "bomb", "other size"],
)
def test_a_broken_image_is_refused(tmp_path, pngs, broken, message):
    with pytest.raises(FormatError, match=message):
        load_data(write_parquet(tmp_path / "x.parquet", [*pngs[:299], broken]))


def test_a_cut_jpeg_is_refused(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(buffer, "JPEG")
    good = buffer.getvalue()
    load_data(write_parquet(tmp_path / "good.parquet", [good] * 300))
    with pytest.raises(FormatError, match="images must be readable, but one is not"):
        load_data(write_parquet(tmp_path / "x.parquet", [*[good] * 299, good[:-1000]]))


def test_a_huge_image_is_refused_in_one_sentence(tmp_path, pngs):
    buffer = io.BytesIO()
    Image.new("1", (5000, 5000)).save(buffer, "PNG")
    with pytest.raises(FormatError, match=r"^images must have at most 16777216 pixels, but one has 5000x5000$"):
        load_data(write_parquet(tmp_path / "x.parquet", [*pngs, buffer.getvalue()]))


@pytest.mark.parametrize("labels", [[7] * 400, [-1] * 400], ids=["high", "negative"])
def test_labels_must_have_class_names(tmp_path, pngs, labels):
    with pytest.raises(FormatError, match=r"labels in .*x.parquet must be 0\.\.2, but range from"):
        load_data(write_parquet(tmp_path / "x.parquet", pngs, labels, names=["cat", "dog", "bird"]))


def test_too_few_images_are_refused(tmp_path, pngs):
    with pytest.raises(UsageError, match="data set x must have at least 200 training images and some test images, but has 80 and 20"):
        load_data(write_parquet(tmp_path / "x.parquet", pngs[:100]))


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"must hold images, but it is empty"):
        load_data(write_parquet(tmp_path / "x.parquet", [], pa.array([], pa.int64())))


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(
        NotFoundError, match=r"data must be 'digits', an existing file or folder, or one of cifar10, .*, but '/nowhere' is none of these"
    ):
        load_data("/nowhere")
    with pytest.raises(
        NotFoundError, match=r"must hold train\*.parquet, CIFAR batches, idx files, or images in one folder per class .*, but does not"
    ):
        load_data(str(tmp_path))
    (tmp_path / "notes.txt").write_text("no images")
    with pytest.raises(NotFoundError, match=r"notes.txt' is another kind of file"):
        load_data(os.fspath(tmp_path / "notes.txt"))


# -- preprocessing ---------------------------------------------------------------------------------------------


def test_channel_statistics_equal_numpy():
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8) // np.array([1, 2, 3], np.uint8)
    mean, std = channel_statistics(images)
    assert np.allclose(mean, (images / 255).mean((0, 1, 2)), atol=5.1e-5)
    assert np.allclose(std, (images / 255).std((0, 1, 2)), atol=5.1e-5)


def test_preprocessing_round_trips():
    before = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), size=48)
    assert Preprocessing.from_json(json.loads(json.dumps(before.to_json()))) == before


@pytest.mark.parametrize(
    "changes",
    [{"mean": None}, {"std": "wide"}, {"size": "large"}, {"mean": [0.5]}, {"std": [0.5, 0.5, 0.0]}, {"mean": [0.1, 0.2, float("nan")]}],
    ids=str,
)
def test_preprocessing_of_other_form_is_refused(changes):
    good = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "size": 32}
    with pytest.raises(FormatError, match="preprocessing must hold mean, std and size"):
        Preprocessing.from_json({**good, **changes})
