"""Predictions in files: the same classes from every format, matched to images or refused, and nothing in a file is run."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
from makers import image_folder

from ofasearch.data import DataSet, ImageSet, load_data
from ofasearch.errors import FormatError, MismatchError, NotFoundError, UsageError
from ofasearch.evaluate.saved import FORMAT, Labelled, former, labelled, read_saved, write_saved

NAMES = ("ape", "bee", "cat")
LABELS = np.array([0, 1, 2, 2, 1, 0, 1])
PREDICTED = np.array([0, 1, 2, 0, 1, 2, 2])
IMAGES = Labelled(data="zoo", split="test", labels=LABELS, class_names=NAMES)
NETWORK = {"name": "net", "digest": "d1"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


def saved(path, content):
    """Write a file in the way of its suffix."""
    if path.suffix == ".npz":
        np.savez(path, **content)
    elif path.suffix == ".npy":
        np.save(path, content)
    else:
        path.write_text(content)
    return path


def spelled(column, header="predicted"):
    return "\n".join([*([header] if header else []), *map(str, column)]) + "\n"


def names_of(classes):
    return [NAMES[c] for c in classes]


# -- formats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.npz", {"test": PREDICTED.astype(np.uint8)}),
        ("a.npz", {"test": PREDICTED.astype(">i8"), "labels.test": LABELS.astype(np.int16), "validation": PREDICTED[:2], "other": NAMES}),
        ("a.npy", PREDICTED.astype(np.uint64)),
        ("a.npy", PREDICTED.astype(np.int8)),
        ("a.csv", spelled(PREDICTED)),
        ("a.csv", spelled(names_of(PREDICTED))),
        ("a.csv", "\ufeff" + spelled([f" {p} ,x,{n}" for p, n in zip(PREDICTED, names_of(LABELS), strict=True)], "predicted, note, label")),
        ("a.csv", spelled([f'"{n}",{t}' for n, t in zip(names_of(PREDICTED), LABELS, strict=True)], "predicted,label") + "\n\n"),
        ("a.txt", spelled(PREDICTED, "") + "\n\n"),
        ("a.txt", "\r\n".join(names_of(PREDICTED))),
    ],
)
def test_every_format_tells_the_same_classes(tmp_path, file, content):
    found = read_saved(saved(tmp_path / file, content)).predictions(IMAGES)
    assert found.tolist() == PREDICTED.tolist()
    assert found.dtype == np.int64


def test_what_is_written_is_read_and_grows_split_by_split(tmp_path):
    path, validation = tmp_path / "p.npz", Labelled(data="zoo", split="validation", labels=LABELS[::-1], class_names=NAMES)
    write_saved(path, IMAGES, PREDICTED, NETWORK)
    write_saved(path, validation, LABELS, NETWORK)
    write_saved(path, IMAGES, PREDICTED, {**NETWORK, "name": "the same, called otherwise"})
    found = read_saved(path)
    assert found.predictions(IMAGES).tolist() == PREDICTED.tolist()
    assert found.predictions(validation).tolist() == LABELS.tolist()
    assert found.own_labels("validation").tolist() == LABELS[::-1].tolist()
    assert found.card["format"] == FORMAT
    assert (found.card["data"], found.card["classes"]) == ("zoo", list(NAMES))
    with np.load(path, allow_pickle=False) as arrays:  # anybody can
        assert {name: arrays[name].dtype for name in arrays} == dict.fromkeys(
            ("validation", "labels.validation", "test", "labels.test", "card"), np.dtype(np.uint8)
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.npz"]


def test_many_classes_take_wider_numbers(tmp_path):
    images = Labelled(data="large", split="test", labels=np.array([999, 0]), class_names=tuple(map(str, range(1000))))
    write_saved(tmp_path / "p.npz", images, np.array([998, 1]), NETWORK)
    assert read_saved(tmp_path / "p.npz").predictions(images).tolist() == [998, 1]


def test_the_same_predictions_are_the_same_bytes(tmp_path):
    for name in ("a.npz", "b.npz"):
        write_saved(tmp_path / name, IMAGES, PREDICTED, NETWORK)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize(
    ("network", "data", "error", "text"),
    [
        ({"name": "other", "digest": "d2"}, "zoo", MismatchError, "must hold predictions of other to be added to, but holds those of net"),
        (NETWORK, "farm", MismatchError, "must hold predictions of farm to be added to, but holds those of zoo"),
    ],
)
def test_predictions_of_two_networks_or_sets_never_share_a_file(tmp_path, network, data, error, text):
    path = tmp_path / "p.npz"
    write_saved(path, IMAGES, PREDICTED, NETWORK)
    before = path.read_bytes()
    with pytest.raises(error, match=text):
        former(path, data, network)
    with pytest.raises(error, match=text):
        write_saved(path, Labelled(data=data, split="validation", labels=LABELS, class_names=NAMES), PREDICTED, network)
    assert path.read_bytes() == before


def test_only_a_file_of_ours_is_added_to(tmp_path):
    foreign = saved(tmp_path / "p.npz", {"test": PREDICTED})
    with pytest.raises(FormatError, match="must be a file that ofasearch wrote"):
        former(foreign, "zoo", NETWORK)
    with pytest.raises(UsageError, match=r"must be saved as \.npz, but got p\.csv"):
        former(tmp_path / "p.csv", "zoo", NETWORK)
    assert former(tmp_path / "new.npz", "zoo", NETWORK) is None


# -- held against images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "error", "text"),
    [
        ("a.npz", {"validation": PREDICTED}, MismatchError, "must hold predictions of the test split, but holds those of validation"),
        ("a.npz", {"test": PREDICTED[:-1]}, MismatchError, "must hold a prediction for each of the 7 test images of zoo, but holds 6"),
        ("a.npy", np.append(PREDICTED, 0), MismatchError, "but holds 8"),
        ("a.txt", spelled(PREDICTED, "") + "1\n", MismatchError, "but holds 8"),
        ("a.npy", PREDICTED + 1, MismatchError, "must be classes 0 to 2, but one is 3"),
        ("a.npy", PREDICTED - 1, MismatchError, "must be classes 0 to 2, but one is -1"),
        ("a.npy", np.where(PREDICTED == 2, 2**64 - 1, PREDICTED.astype(np.uint64)), MismatchError, "but one is 18446744073709551615"),
        ("a.csv", spelled([*PREDICTED[:-1], 999_999_999]), MismatchError, "but one is 999999999"),
        ("a.npz", {"test": PREDICTED, "labels.test": LABELS[::-1]}, MismatchError, r"labels in .* but 6 of 7 differ; were images"),
        ("a.npz", {"test": PREDICTED, "labels.test": LABELS + 1}, MismatchError, "labels in .* must be classes 0 to 2"),
        ("a.csv", "predicted,label\n" + "0,0\n" * 7, MismatchError, "but 5 of 7 differ"),
        ("a.csv", spelled(["ape"] * 6 + ["dog"]), FormatError, "must be classes, all by number or all by name, but one is 'ape'"),
        ("a.csv", spelled(["1"] * 6 + ["nan"]), FormatError, "but one is 'nan'"),
        ("a.csv", spelled(["1.0"] * 7), FormatError, "but one is '1.0'"),
        ("a.txt", spelled(["1", "", "1", "1", "1", "1", "1"], ""), FormatError, "but one is ''"),
        ("a.txt", spelled(["9" * 5000] * 7, ""), FormatError, "but one is '9999"),
        ("a.csv", "predicted,file\n" + "0,x.png\n" * 7, MismatchError, "name files, but images of zoo have none; leave the column out"),
    ],
)
def test_predictions_of_other_images_are_refused(tmp_path, file, content, error, text):
    found = read_saved(saved(tmp_path / file, content))
    with pytest.raises(error, match=text) as caught:
        found.predictions(IMAGES)
    assert "\n" not in str(caught.value)


def test_names_that_are_other_numbers_are_refused_where_both_would_do(tmp_path):
    images = Labelled(data="floors", split="test", labels=np.zeros(2, dtype=np.int64), class_names=("1", "10", "2"))
    clear = saved(tmp_path / "clear.txt", "10\n2\n")
    assert read_saved(clear).predictions(images).tolist() == [1, 2]  # 10 is no number of a class, but a name
    assert read_saved(saved(tmp_path / "numbers.txt", "0\n2\n")).predictions(images).tolist() == [0, 2]
    for text in ("1\n2\n", "1\n1\n"):
        with pytest.raises(FormatError, match=r"must be clear, but could be numbers or names of classes; save numbers as \.npy"):
            read_saved(saved(tmp_path / "open.txt", text)).predictions(images)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Class folders, of which some images of each are the test split."""
    return load_data(str(image_folder(tmp_path_factory.mktemp("photographs") / "animals", 90, classes=NAMES)))


@pytest.mark.parametrize("prefix", ["", "./", "animals/", "{root}/"])
def test_rows_find_their_images_by_file(tmp_path, photographs, prefix):
    images = labelled(photographs, "test")
    rng = np.random.default_rng(0)
    expected = rng.integers(0, 3, len(images.labels))
    rows = [f"{prefix.format(root=images.root)}{file},{NAMES[c]}" for file, c in zip(images.files, expected, strict=True)]
    rows += [f"{prefix.format(root=images.root)}{file},ape" for file in labelled(photographs, "validation").files]  # no harm
    path = saved(tmp_path / "p.csv", spelled(rng.permutation(rows), "file,predicted"))
    assert read_saved(path).predictions(images).tolist() == expected.tolist()


def test_labels_are_compared_image_by_image_where_files_are_named(tmp_path, photographs):
    images = labelled(photographs, "test")
    rows = [f"{file},0,{label}" for file, label in zip(images.files, images.labels, strict=True)]
    found = read_saved(saved(tmp_path / "p.csv", spelled(rows[::-1], "file,predicted,label")))
    assert found.predictions(images).tolist() == [0] * len(rows)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda rows: rows[1:], MismatchError, "must have a row for each of the 54 test images of animals, but 1 have none, such as"),
        (lambda rows: [row.replace(".png", ".jpg") for row in rows], MismatchError, "but 54 have none"),
        (lambda rows: [*rows, rows[0]], FormatError, "must name every file once, but 1 rows name one again"),
    ],
)
def test_rows_that_do_not_find_their_images_are_refused(tmp_path, photographs, change, error, text):
    images = labelled(photographs, "test")
    found = read_saved(saved(tmp_path / "p.csv", spelled(change([f"{file},0" for file in images.files]), "file,predicted")))
    with pytest.raises(error, match=text):
        found.predictions(images)


def test_images_without_labels_judge_nothing():
    part = ImageSet(np.zeros((4, 8, 8, 3), dtype=np.uint8), np.full(4, -1))
    for data in (DataSet("bare", (), {"test": part}), DataSet("none", NAMES, {"test": part.take(np.arange(0))})):
        with pytest.raises(MismatchError, match="must have labelled test images"):
            labelled(data, "test")


# -- files from outside ----------------------------------------------------------------------------------------


class Runs:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def zipped(files, kind=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def lying(shape, descr="|u1"):
    """A header without the numbers that it claims."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8)


ARRAYS = {
    "nothing": b"",
    "text": b"0 1 2\n",
    "floats": npy(PREDICTED.astype(float)),
    "nan": npy(np.full(7, np.nan)),
    "booleans": npy(PREDICTED > 0),
    "texts": npy(np.array(NAMES)),
    "logits": npy(np.zeros((7, 3), dtype=np.int64)),
    "no axis": npy(np.int64(3)),
    "no numbers": npy(PREDICTED[:0]),
    "objects": npy(np.array([{}], dtype=object), allow_pickle=True),
    "records": npy(np.zeros(7, dtype=[("a", "i4")])),
    "cut": npy(PREDICTED)[:-3],
    "terabytes": lying((2**42,)),
    "more than all integers": lying((2**70,)),
    "fewer than none": lying((-1,)),
    "nested": lying("(" * 3000 + ")" * 3000),
    "a type of its own": lying((8,), "|Z9"),
    "integers of 16 bytes": lying((1,), "<i16"),
    "version": b"\x93NUMPY\x07\x00" + npy(PREDICTED)[8:],
}


@pytest.mark.parametrize("case", ARRAYS)
def test_an_odd_array_is_refused(tmp_path, case):
    (tmp_path / "p.npy").write_bytes(ARRAYS[case])
    (tmp_path / "p.npz").write_bytes(zipped({"test.npy": ARRAYS[case]}))
    for name in ("p.npy", "p.npz"):
        with pytest.raises(FormatError, match=rf"{name} must hold predicted classes as a \.np. file, but cannot be read"):
            read_saved(tmp_path / name)


def test_code_in_a_file_is_never_run(tmp_path):
    mark = tmp_path / "ran"
    bomb = np.array([Runs(mark)] * 7, dtype=object)
    contents = {
        "object.npy": npy(bomb, allow_pickle=True),
        "pickle.npy": pickle.dumps(Runs(mark)),
        "pickle.npz": pickle.dumps({"test": Runs(mark)}),
        "object.npz": zipped({"test.npy": npy(bomb, allow_pickle=True)}),
        "member.npz": zipped({"test.npy": pickle.dumps(Runs(mark))}),
        "pickle.csv": pickle.dumps(Runs(mark)),
        "pickle.txt": pickle.dumps(Runs(mark)),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match=name):
            read_saved(tmp_path / name).predictions(IMAGES)
        assert not mark.exists()


ARCHIVES = {
    "empty": zipped({}),
    "of another kind": zipped({"a.txt": "hello"}),
    "labels alone": zipped({"labels.test.npy": npy(LABELS)}),
    "more labels than predictions": zipped({"test.npy": npy(PREDICTED), "labels.test.npy": npy(LABELS[:3])}),
    "a bomb": zipped({"test.npy": npy(np.zeros(2**27, dtype=np.uint8))}),
    "packed otherwise": zipped({"test.npy": npy(PREDICTED)}, zipfile.ZIP_LZMA),
    "a card of no JSON": zipped({"test.npy": npy(PREDICTED), "card.npy": npy(np.frombuffer(b"{", np.uint8))}),
    "a card of no text": zipped({"test.npy": npy(PREDICTED), "card.npy": npy(np.frombuffer(b"\xff\xfe", np.uint8))}),
    "cut": zipped({"test.npy": npy(PREDICTED)})[:100],
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_an_odd_archive_is_refused(tmp_path, case):
    (tmp_path / "p.npz").write_bytes(ARCHIVES[case])
    with pytest.raises(FormatError, match=r"p\.npz must hold predicted classes"):
        read_saved(tmp_path / "p.npz")


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("a.csv", "", "must have one column 'predicted', but has none"),
        ("a.csv", "class\n1\n", "must have one column 'predicted', but has class"),
        ("a.csv", "predicted,predicted\n1,1\n", "must have one column 'predicted'"),
        ("a.csv", "predicted\n", "it is empty"),
        ("a.csv", "predicted,label\n1\n", "row 1 has 1 cells, not 2"),
        ("a.csv", 'predicted\n"1\n', "unexpected end of data"),
        ("a.csv", "predicted\n" + "1" * 20_000 + "\n", "of more than 10,000 characters"),
        ("a.txt", "", "it is empty"),
        ("a.txt", "1" * 20_000, "of more than 10,000 characters"),
    ],
)
def test_an_odd_text_is_refused(tmp_path, file, content, text):
    with pytest.raises(FormatError, match=text):
        read_saved(saved(tmp_path / file, content))


def test_too_long_a_text_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("ofasearch.evaluate.saved.ROW_LIMIT", 5)
    with pytest.raises(FormatError, match="more than 5 lines"):
        read_saved(saved(tmp_path / "a.txt", "1\n" * 7))


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.csv", "a.txt"])
def test_a_file_of_terabytes_is_refused_unread(tmp_path, name):
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 2**40)  # sparse: it takes no room
    with pytest.raises(FormatError, match="must be at most 64 MiB of predictions"):
        read_saved(tmp_path / name)


def test_files_that_are_none_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    for name in ("none.npz", "pipe.npy"):
        with pytest.raises(NotFoundError, match=rf"{name} must be an existing file of predictions"):
            read_saved(tmp_path / name)
    with pytest.raises(UsageError, match=r"must be in a \.npz, \.npy, \.csv, \.txt file, but got p\.json"):
        read_saved(tmp_path / "p.json")


@pytest.mark.parametrize("card", ["[]", "3", '{"network": 5, "format": "ofasearch-predictions-1"}', json.dumps({"format": FORMAT})])
def test_a_card_that_says_something_else_does_no_harm(tmp_path, card):
    content = {"test.npy": npy(PREDICTED), "card.npy": npy(np.frombuffer(card.encode(), np.uint8))}
    (tmp_path / "p.npz").write_bytes(zipped(content))
    assert read_saved(tmp_path / "p.npz").predictions(IMAGES).tolist() == PREDICTED.tolist()
    with pytest.raises((FormatError, MismatchError), match="to be added to"):
        former(tmp_path / "p.npz", "zoo", NETWORK)
