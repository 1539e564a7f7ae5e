"""CIFAR's archives and idx files give the published pixels; hostile ones are refused before they cost anything."""

import gzip
import io
import os
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from makers import CIFAR, bytes_keys, cifar_content, cifar_files, idx, mnist_files, python2, python3, tar_gz, write_files
from PIL import EpsImagePlugin

from ofasearch.data import SPLIT_NAMES, load, load_data
from ofasearch.data.formats import decode, read_cifar, read_idx
from ofasearch.errors import FormatError, NotFoundError

WRITERS = {"python 2": python2, "bytes keys": bytes_keys, "protocol 3": python3(3), "protocol 4": python3(4)}


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """A cache for each test, which no power cut has to spare."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))


# -- CIFAR -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "archive"])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_pixels_labels_and_names_are_the_written_ones(tmp_path, classes, writer, form):
    files = cifar_files(classes, WRITERS[writer])
    _, images, labels = cifar_content(classes)
    if form == "folder":
        path = write_files(tmp_path / CIFAR[classes], files)
    else:
        path = tar_gz(tmp_path / "x.tar.gz", {f"{CIFAR[classes]}/{name}": content for name, content in files.items()})
    training, testing, names = read_cifar(path)
    assert names == tuple(f"class {n}" for n in range(classes))
    assert (np.concatenate([training.images, testing.images]) == images).all()
    assert [*training.labels, *testing.labels] == labels
    assert (len(training), len(testing)) == (200, 20)


@pytest.mark.parametrize(("classes", "name"), [(10, "cifar10"), (100, "cifar100")])
def test_every_way_to_name_cifar_gives_the_same_splits(tmp_path, classes, name):
    files = cifar_files(classes)
    folder = write_files(tmp_path / "a" / CIFAR[classes], files)
    (tmp_path / "b").mkdir()
    published = {10: "cifar-10-python.tar.gz", 100: "cifar-100-python.tar.gz"}[classes]
    archive = tar_gz(tmp_path / "b" / published, {f"{CIFAR[classes]}/{n}": content for n, content in files.items()})
    found = [load_data(str(path)) for path in (folder, folder.parent, archive, archive.parent)]
    assert {data.name for data in found} == {name}
    assert {split: len(found[0][split]) for split in SPLIT_NAMES} == {"train": 172, "calibration": 8, "validation": 20, "test": 20}
    for data in found[1:]:
        assert data.class_names == found[0].class_names
        for split in SPLIT_NAMES:
            assert (data[split].images == found[0][split].images).all()
            assert (data[split].labels == found[0][split].labels).all()


def test_an_archive_is_decoded_once_and_again_when_it_changes(tmp_path, monkeypatch):
    path = tar_gz(tmp_path / "cifar-10-python.tar.gz", cifar_files(10))
    first = load_data(str(path))
    calls = []
    monkeypatch.setattr(load, "read_cifar", lambda p: calls.append(p) or read_cifar(p))
    again = load_data(str(path))
    assert calls == []
    assert (again["train"].images == first["train"].images).all()
    tar_gz(path, cifar_files(10, seed=1))
    os.utime(path, ns=(1, 1))
    changed = load_data(str(path))
    assert calls == [path]
    assert (changed["train"].images != first["train"].images).any()


@pytest.mark.parametrize("position", [0.1, 0.5, 0.9, 0.999])
def test_a_bit_flip_in_the_cache_costs_time_alone(tmp_path, position):
    path = tar_gz(tmp_path / "cifar-10-python.tar.gz", cifar_files(10))
    first = load_data(str(path))
    (cached,) = (tmp_path / "cache").rglob("*.npz")
    content = bytearray(cached.read_bytes())
    content[int(position * len(content))] ^= 0x10
    cached.write_bytes(content)
    assert (load_data(str(path))["train"].images == first["train"].images).all()


def spoiled(**changes):
    """CIFAR-10 with entries of its first batch changed."""
    contents = cifar_content(10)[0]
    contents["data_batch_1"] |= changes
    return {name: pickle.dumps(content, 2) for name, content in contents.items()}


ROWS = cifar_content(10)[0]["data_batch_1"]["data"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ROWS.astype(np.int64)}, "its arrays are not of bytes"),
        ({"data": ROWS.astype(np.float32)}, "its arrays are not of bytes"),
        ({"data": ROWS.astype(object)}, "its arrays are not of bytes"),
        ({"data": np.asfortranarray(ROWS)}, "its arrays are not of bytes"),
        ({"data": ROWS[:, :-1].copy()}, "must hold images as rows of 3072 bytes"),
        ({"data": ROWS.reshape(-1, 3, 32, 32)}, "must hold images as rows of 3072 bytes"),
        ({"data": ROWS.tolist()}, "must hold images as rows of 3072 bytes"),
        ({"data": None}, "must hold images as rows of 3072 bytes"),
        ({"data": ROWS[:30]}, "must hold one label for each of its 190 images, but holds 200"),
        ({"data": b"rows"}, "must hold images as rows of 3072 bytes"),
        ({"data": {1, 2}}, "nothing of a file is run"),
        ({"labels": [0] * 39}, "must hold one label for each of its 200 images, but holds 199"),
        ({"labels": [0.5] * 40}, "must hold a list of integer labels"),
        ({"labels": "labels"}, "must hold a list of integer labels"),
        ({"labels": [0] * 39 + [10]}, "must be 0..9, but range from 0 to 10"),
        ({"labels": [0] * 39 + [-1]}, "must be 0..9, but range from -1"),
        ({"labels": [0] * 39 + [2**70]}, "must be 0..9, but range from 0 to 1180591620717411303424"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_entries_of_another_form_are_refused(tmp_path, changes, message):
    with pytest.raises(FormatError) as caught:
        read_cifar(write_files(tmp_path / "x", spoiled(**changes)))
    assert message in str(caught.value)


@pytest.mark.parametrize("missing", ["data_batch_3", "test_batch"])
def test_a_missing_batch_is_named(tmp_path, missing):
    files = cifar_files(10)
    del files[missing]
    with pytest.raises(FormatError, match=rf"must hold {missing}, but it is not there"):
        read_cifar(write_files(tmp_path / "x", files))


def test_other_archives_are_no_cifar(tmp_path):
    with pytest.raises(FormatError, match=r"must hold the python version of CIFAR-10 or CIFAR-100"):
        read_cifar(tar_gz(tmp_path / "x.tar.gz", {"data_batch_1.bin": b"0"}))
    with pytest.raises(FormatError, match=r"batches.meta of .* must name 10 classes"):
        read_cifar(write_files(tmp_path / "x", cifar_files(10) | {"batches.meta": python2({"label_names": ["cat"]})}))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_archive_is_refused(tmp_path, share):
    path = tar_gz(tmp_path / "cifar-10-python.tar.gz", cifar_files(10))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(FormatError, match=r"cifar-10-python.tar.gz must"):
        load_data(str(path))


def test_names_inside_an_archive_lead_nowhere(tmp_path):
    files = cifar_files(10)
    tricks = {f"../../{tmp_path.name}-evil/{name}": content for name, content in files.items()}
    path = tar_gz(tmp_path / "cifar-10-python.tar.gz", tricks | {"/etc/ofasearch-evil": b"x", "../evil": b"x"})
    training, _, _ = read_cifar(path)
    assert len(training) == 200
    assert list(tmp_path.iterdir()) == [path]
    assert not any(p.exists() for p in (tmp_path.parent / f"{tmp_path.name}-evil", tmp_path.parent / "evil", Path("/etc/ofasearch-evil")))


def test_links_in_an_archive_are_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(cifar_files(10)["data_batch_1"])
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in cifar_files(10).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if name == "data_batch_1":
                member.type, member.linkname, member.size = tarfile.SYMTYPE, str(tmp_path / "secret"), 0
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(FormatError, match="must hold the python version of CIFAR-10"):
        read_cifar(path)


# -- hostile pickles -------------------------------------------------------------------------------------------


class Runs:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_batch_is_not_run(tmp_path, protocol):
    canary = tmp_path / "ran"
    files = cifar_files(10) | {"data_batch_2": pickle.dumps({"data": Runs(canary), "labels": []}, protocol)}
    with pytest.raises(FormatError, match=r"data_batch_2 of .*open, and nothing of a file is run"):
        read_cifar(write_files(tmp_path / "x", files))
    assert not canary.exists()


@pytest.mark.parametrize(
    "name",
    ["os\nsystem", "builtins\neval", "numpy\nload", "numpy.core.multiarray\nscalar", "_codecs\ndecode", "ofasearch.records\nwrite_atomic"],
)
def test_only_the_names_of_arrays_are_known(tmp_path, name):
    module, attribute = name.split("\n")
    call = f"c{name}\n".encode() + b"(U\x04echotR."
    with pytest.raises(FormatError, match=rf"asks for {module}\.{attribute}, and nothing of a file is run"):
        read_cifar(write_files(tmp_path / "x", cifar_files(10) | {"data_batch_2": call}))


NESTED = b"".join(b")" if n == 0 else b"q\x00h\x00\x86" for n in range(60))  # tuples of one tuple twice: 2**59 at the bottom
BOMBS = {
    "memo index": b"\x80\x02}r\xff\xff\xff\x7f.",
    "bytes of 2**60": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.",
    "bytes of 2**63": b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b"x.",
    "byte array of 64 GB": b"\x80\x05\x96" + struct.pack("<Q", 2**36) + b"x.",
    "text of 2**60": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"x.",
    "frame of 2**60": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}.",
    "number of 2 GB": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
    "nested key": b"\x80\x02}" + NESTED + b"K\x00s.",
    "nested key in a dictionary": b"\x80\x02(" + NESTED + b"K\x00d.",
    "nested set": b"\x80\x04\x8f(" + NESTED + b"\x90.",
    "nested name of a dtype": b"\x80\x02cnumpy\ndtype\n" + NESTED + b"\x85R.",
    "nested text": b"\x80\x02c_codecs\nencode\n" + NESTED + b"U\x06latin1\x86R.",
    "array of 2**60": b"\x80\x02}U\x04datacnumpy\nndarray\n)R(K\x01\x8a\x08" + struct.pack("<q", 2**60) + b"M\x00\x0c\x86"
    b"cnumpy\ndtype\nU\x02u1\x85R\x89U\x01xtbs.",
    "deep lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
}  # fmt: skip


def test_a_bomb_is_refused_within_little_memory_and_time(tmp_path):
    """In a process of its own, which may take 1 GB: a reader that believes a claim dies there."""
    for n, bomb in enumerate(BOMBS.values()):
        write_files(tmp_path / str(n), cifar_files(10, train=5, test=1) | {"data_batch_2": bomb})
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from ofasearch.data.formats import read_cifar\nfrom ofasearch.errors import FormatError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\nresource.setrlimit(resource.RLIMIT_CPU, (20, 20))\n"
        f"for n in range({len(BOMBS)}):\n"
        "    try: read_cifar(Path(sys.argv[1]) / str(n))\n"
        "    except FormatError as error: print(n, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    names = dict(enumerate(BOMBS))
    refused = {names[int(n)] for n, sentence in found.items() if "data_batch_2 of" in sentence}
    assert refused == set(BOMBS)
    assert not [sentence for sentence in found.values() if "MemoryError" in sentence]


def packed_claim(path, kind, claimed, held):
    """A tar.gz whose first header claims a size and is followed by so many zeros."""
    member = tarfile.TarInfo("data_batch_1")
    member.type, member.size = kind, claimed
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        for _ in range(held >> 20):
            file.write(bytes(2**20))
    return path


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE], ids=["pax", "longname", "member"])
def test_an_archive_that_claims_gigabytes_is_refused(tmp_path, kind):
    path = packed_claim(tmp_path / "cifar-10-python.tar.gz", kind, 2**33, 2**23)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FormatError, match=r"must be a readable tar archive, but it is not: .*claims|unpacks to more than"):
        read_cifar(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB


# -- idx files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("where", [".", "raw", "MNIST/raw", "FashionMNIST/raw"])
def test_idx_files_become_rgb_with_their_labels(tmp_path, where, packed):
    files, grey, labels = mnist_files(packed=packed)
    write_files(tmp_path / "d" / where, files)
    data = load_data(str(tmp_path / "d"))
    assert (data["test"].images == grey[200:, :, :, None]).all()
    assert data["test"].images.shape == (20, 28, 28, 3)
    assert data["test"].labels.tolist() == labels[200:].tolist()
    known = {np.repeat(image[..., None], 3, axis=2).tobytes(): int(label) for image, label in zip(grey[:200], labels[:200], strict=True)}
    for split in ("train", "calibration", "validation"):
        assert [known.pop(image.tobytes()) for image in data[split].images] == data[split].labels.tolist()
    assert known == {}
    assert data.class_names[:2] == (("T-shirt/top", "Trouser") if "Fashion" in where else ("0", "1"))


def test_dotted_names_of_idx_files_are_known(tmp_path):
    files = {name.replace("-idx", ".idx"): content for name, content in mnist_files(packed=False)[0].items()}
    assert len(load_data(str(write_files(tmp_path / "d", files)))["train"]) == 172


def test_a_missing_idx_file_leaves_no_data_set(tmp_path):
    files = mnist_files()[0]
    del files["t10k-labels-idx1-ubyte.gz"]
    with pytest.raises(NotFoundError, match=r"must hold .* idx files"):
        load_data(str(write_files(tmp_path / "d", files)))


GOOD = idx(np.zeros((3, 28, 28), np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "another kind of file"),
        (GOOD[:10], "another kind of file"),
        (b"\x00\x00\x0d\x03" + GOOD[4:], "another kind of file"),
        (b"\x00\x00\x08\x01" + GOOD[4:], "another kind of file"),
        (b"\x1f\x8b" + GOOD[2:], "another kind of file"),
        (GOOD[:-1], "must hold the 2352 bytes that its header promises, but holds 2351"),
        (GOOD + b"x", "must hold the 2352 bytes that its header promises, but holds 2353"),
        (GOOD[:4] + b"\xff" * 12 + GOOD[16:], "must hold the 79228162458924105385300197375 bytes"),
        (GOOD[:4] + struct.pack(">III", 2**32 - 1, 0, 0), "must hold images or labels, but its header says 4294967295x0x0"),
        (GOOD[:4] + struct.pack(">III", 0, 28, 28), "must hold images or labels, but its header says 0x28x28"),
        (idx(np.zeros((3, 28, 14), np.uint8)), "must hold square images, but they have 14x28 pixels"),
        (idx(np.zeros((4, 28, 28), np.uint8)), "must hold one label for each of its 4 images, but holds 3"),
    ],
    ids=[
        "empty", "header cut", "floats", "dimensions", "not packed", "cut", "more", "huge", "no pixels", "no images", "not square",
        "more images",
    ],
)  # fmt: skip
def test_other_idx_files_are_refused(tmp_path, content, message):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.write_bytes(content)
    labels.write_bytes(idx(np.zeros(3, np.uint8)))
    with pytest.raises(FormatError, match=message):
        read_idx(images, labels)


def test_labels_beyond_the_classes_are_refused(tmp_path):
    (tmp_path / "images").write_bytes(GOOD)
    (tmp_path / "labels").write_bytes(idx(np.array([0, 10, 1], np.uint8)))
    with pytest.raises(FormatError, match=r"must be 0\.\.9, but range from 0 to 10"):
        read_idx(tmp_path / "images", tmp_path / "labels")


@pytest.mark.parametrize(
    "content", [gzip.compress(GOOD)[:-20], gzip.compress(GOOD)[:5], GOOD, b""], ids=["cut", "header", "plain", "empty"]
)
def test_a_damaged_packed_file_is_refused(tmp_path, content):
    (tmp_path / "images.gz").write_bytes(content)
    (tmp_path / "labels").write_bytes(idx(np.zeros(3, np.uint8)))
    with pytest.raises(FormatError, match=r"images\.gz must be"):
        read_idx(tmp_path / "images.gz", tmp_path / "labels")


# -- encoded images --------------------------------------------------------------------------------------------


def test_an_image_that_would_start_a_program_is_no_image(monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append(1))
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(FormatError, match="images must be readable, but one is not"):
        decode(text)
    assert started == []
