"""`ofasearch data`: what a data set holds, which files are damaged, where to get one that is not there."""

import hashlib
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from makers import cifar_files, encoded, image_folder, mnist_files, tar_gz, write_files

from ofasearch.cli.main import run
from ofasearch.data.load import KNOWN, Known


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """A cache and a place for named sets, for each test."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OFASEARCH_DATA", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "home"


@pytest.fixture
def checks(capsys):
    """Runs `data check D --json`; gives the exit code, the record and the sentence."""

    def check(source, *options):
        code = run(["data", "check", str(source), "--json", *options])
        out, err = capsys.readouterr()
        assert err.count("\n") == (code != 0), err
        return code, json.loads(out) if out else None, err.removeprefix("ofasearch: ").rstrip("\n")

    return check


def png_rows(path, images, labels):
    pq.write_table(pa.table({"img": [{"bytes": image} for image in images], "label": labels}), path)
    return path


def test_an_image_folder_is_counted(tmp_path, checks):
    image_folder(tmp_path / "d" / "train", 70)
    image_folder(tmp_path / "d" / "val", 6, classes=("ape", "bee"))
    code, record, _ = checks(tmp_path / "d")
    assert code == 0
    assert record == {
        "name": "d",
        "images": 222,
        "classes": ["ape", "bee", "cat"],
        "images_per_class": [70, 76],
        "sizes": {"40x30": 111, "30x50": 111},
        "splits": {"train": 181, "calibration": 8, "validation": 21, "test": 12},
        "damaged": [],
        "published_md5": {},
    }


def test_a_folder_without_labels_is_counted(tmp_path, checks):
    write_files(tmp_path / "d", {f"{n:02d}.png": encoded((20, 10), n) for n in range(20)})
    code, record, _ = checks(tmp_path / "d")
    assert (code, record["images"], record["classes"], record["sizes"]) == (0, 20, [], {"20x10": 20})
    assert sum(record["splits"].values()) == 20


def test_cifar_is_counted(tmp_path, checks):
    path = tar_gz(tmp_path / "cifar-100-python.tar.gz", cifar_files(100))
    folder = write_files(tmp_path / "x" / "cifar-10-batches-py", cifar_files(10))
    for source, classes, per_class in ((path, 100, [2, 3]), (folder, 10, [22, 22]), (folder.parent, 10, [22, 22])):
        _, record, _ = checks(source)
        assert (record["images"], len(record["classes"]), record["images_per_class"]) == (220, classes, per_class)
        assert record["sizes"] == {"32x32": 220}


def test_idx_files_and_digits_are_counted(tmp_path, checks):
    code, record, _ = checks(write_files(tmp_path / "d" / "raw", mnist_files()[0]).parent)
    assert (code, record["images"], record["sizes"], record["images_per_class"]) == (0, 220, {"28x28": 220}, [22, 22])
    code, record, _ = checks("digits")
    assert (code, record["images"], record["sizes"]) == (0, 1797, {"32x32": 1797})


def test_parquet_is_counted_and_its_damaged_rows_are_listed(tmp_path, checks):
    images = [encoded((8, 8), n) for n in range(300)]
    code, record, _ = checks(png_rows(tmp_path / "x.parquet", images, [n % 3 for n in range(300)]))
    assert (code, record["images"], record["classes"], record["images_per_class"]) == (0, 300, ["0", "1", "2"], [100, 100])
    images[7], images[299] = images[7][:50], None
    code, record, sentence = checks(png_rows(tmp_path / "x.parquet", images, [n % 3 for n in range(300)]))
    assert code == 1
    assert [d["file"] for d in record["damaged"]] == ["x.parquet row 7", "x.parquet row 299"]
    assert (record["splits"], record["sizes"]) == ({}, {"8x8": 298})
    assert "must be sound, but 2 of its 300 images are damaged; fetch or remove them" in sentence


def test_damaged_photographs_are_listed(tmp_path, checks, capsys):
    folder = image_folder(tmp_path / "d", 90)
    bad = {folder / "ape" / "003.png": encoded((40, 30))[:99], folder / "bee" / "000.png": b"", folder / "cat" / "089.png": b"<html>"}
    for path, content in bad.items():
        path.write_bytes(content)
    code, record, sentence = checks(folder)
    assert code == 1
    assert {d["file"] for d in record["damaged"]} == set(map(str, bad))
    assert all(d["reason"].startswith("images must be readable, but one is not") for d in record["damaged"])
    assert "3 of its 270 images are damaged" in sentence
    assert run(["data", "check", str(folder), "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert all(str(path) in out for path in bad)
    assert err.count("\n") == 1


def test_people_get_the_counts_in_words(tmp_path, capsys):
    image_folder(tmp_path / "d", 90, sizes=((40, 30), (30, 50), (9, 9), (8, 9), (7, 9), (6, 9)))
    assert run(["data", "check", str(tmp_path / "d"), "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for text in ("270", "3: ape, bee, cat", "40x30 (45)", "and 2 other sizes", "train split", "185", "none"):
        assert text in out
    assert run(["data", "check", str(tmp_path / "d")]) == 0
    assert "decoding images" in capsys.readouterr().err


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
@pytest.mark.parametrize("form", ["name", "archive", "folder"])
def test_a_published_archive_is_compared_with_its_md5(home, checks, monkeypatch, capsys, form, right):
    home.mkdir()
    folder = home / "cifar10"
    folder.mkdir()
    archive = tar_gz(folder / "cifar-10-python.tar.gz", cifar_files(10))
    md5 = hashlib.md5(archive.read_bytes()).hexdigest() if right else "0" * 32
    monkeypatch.setitem(KNOWN, "cifar10", Known("https://example.org", {archive.name: md5}))
    source = {"name": "cifar10", "archive": archive, "folder": folder}[form]
    code, record, sentence = checks(source)
    assert record["published_md5"] == {archive.name: right}
    assert (code, record["images"]) == (0 if right else 1, 220)
    assert right or f"{source} must be sound, but cifar-10-python.tar.gz is not the published file" in sentence
    run(["data", "check", str(source), "--quiet"])
    assert ("NOT as published" in capsys.readouterr().out) is not right


@pytest.mark.parametrize("where", [".", "raw", "MNIST/raw"])
def test_published_idx_files_are_compared_wherever_they_lie(home, checks, monkeypatch, where):
    files = mnist_files()[0]
    write_files(home / "mnist" / where, files)
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    wrong = "t10k-labels-idx1-ubyte.gz"
    monkeypatch.setitem(KNOWN, "mnist", Known("https://example.org", md5 | {wrong: "0" * 32}))
    code, record, sentence = checks("mnist")
    assert record["published_md5"] == {name: name != wrong for name in md5}
    assert code == 1
    assert f"{wrong} is not the published file" in sentence


@pytest.mark.parametrize("name", KNOWN)
def test_an_absent_set_is_told_where_to_get_and_where_to_put(home, checks, name):
    code, record, sentence = checks(name)
    assert (code, record) == (1, None)
    assert f"data set {name} must lie in {home / name}, but is not there; get it from {KNOWN[name].home}" in sentence
    assert f"`ofasearch data check {name}`" in sentence
    assert all(file in sentence for file in KNOWN[name].files)


def test_an_unknown_source_is_refused(tmp_path, checks):
    (tmp_path / "notes.txt").write_text("no images")
    for source, text in (
        (tmp_path / "nowhere", "is none of these"),
        (tmp_path / "notes.txt", "is another kind of file"),
        (tmp_path, "but does not"),
        ("x" * 5000, "can be none"),
    ):
        code, record, sentence = checks(source)
        assert (code, record) == (1, None)
        assert text in sentence


def test_too_few_images_are_wrong_usage(tmp_path, checks):
    code, _, sentence = checks(image_folder(tmp_path / "d", 5))
    assert code == 2
    assert "must have at least 200 training images" in sentence


def test_the_list_tells_what_is_there(home, capsys):
    write_files(home / "mnist", mnist_files()[0])
    assert run(["data", "list", "--json"]) == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["data"]}
    assert list(found) == list(KNOWN)
    assert {name for name, entry in found.items() if entry["there"]} == {"mnist"}
    assert found["cifar10"]["folder"] == str(home / "cifar10")
    assert run(["data", "list"]) == 0
    out = capsys.readouterr().out
    assert all(known.home in out and str(home / name) in out for name, known in KNOWN.items())
