"""Checkpoints, archives, idx files and images of every bad kind: one sentence, its exit code, nothing run, nothing written."""

import gzip
import io
import json
import os
import pickle
import struct
import tempfile
import zipfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from makers import cifar_files, encoded, idx, image_folder, mnist_files, official_state, python2, tar_gz, write_files

from ofasearch.cli.main import run

CANARY = "/tmp/ofasearch-canary-of-bad-input"


class Runs:
    """Creates a file when it is unpickled."""

    def __reduce__(self):
        return open, (CANARY, "w")


def flipped(content, *positions):
    """One bit turned at each position, a share of the length or an index."""
    changed = bytearray(content)
    for position in positions:
        changed[int(position * len(content)) if isinstance(position, float) else position] ^= 0x20
    return bytes(changed)


def cut(content, share):
    """The beginning of a file."""
    return content[: int(share * len(content))]


def packed_zip(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def others():
    """Files of quite other kinds."""
    return {
        "nothing": b"",
        "one byte": b"\x80",
        "text": b"not what you think\n" * 20,
        "page": b"<!DOCTYPE html><html><body>404</body></html>",
        "noise": np.random.default_rng(0).bytes(3000),
        "zeros": bytes(3000),
        "empty zip": packed_zip({}),
        "another zip": packed_zip({"a.txt": b"hello"}),
        "packed noise": gzip.compress(np.random.default_rng(0).bytes(3000)),
        "json": b'{"state_dict": {}}',
        "code": pickle.dumps(Runs()),
        "code in a dictionary": pickle.dumps({"state_dict": Runs(), b"data": Runs()}, 2),
    }


@cache
def state(space="ofa-mbv3-w1.0"):
    return official_state(space)


@cache
def checkpoint(space="ofa-mbv3-w1.0"):
    return saved({"state_dict": state(space)})


@cache
def legacy():
    """A small file of torch's old form."""
    return saved({name: tensor for name, tensor in state().items() if tensor.ndim == 1}, _use_new_zipfile_serialization=False)


MARKS = {
    "ofa-mbv3-w1.0": (
        "first_conv.conv.weight",
        "final_expand_layer.conv.weight",
        "feature_mix_layer.conv.weight",
        "classifier.linear.weight",
    ),
    "ofa-proxyless-cifar": ("first_conv.conv.weight", "feature_mix_layer.conv.weight", "classifier.linear.weight"),
    "ofa-resnet50-cifar": ("input_stem.0.conv.conv.weight", "input_stem.2.conv.conv.weight", "classifier.linear.linear.weight"),
}


def marked(space, classifier):
    """The tensors by which a checkpoint is known, with another classifier."""
    return saved({name: state(space)[name] for name in MARKS[space]} | {MARKS[space][-1]: classifier})


CLASSIFIERS = {
    "integers": torch.zeros(3, 1280, dtype=torch.int32),
    "sparse": torch.zeros(3, 1280).to_sparse(),
    "scalar classifier": torch.zeros(()),
    "no classes": torch.zeros(0, 1280),
    "a billion classes": torch.zeros(10**9, 0),
    "a part alone": torch.zeros(3, 1280),
}


def checkpoints():
    """What is no once-for-all checkpoint, made when called."""
    yield from ((name, lambda content=content: content) for name, content in others().items())
    yield from ((f"cut at {share}", lambda share=share: cut(checkpoint(), share)) for share in (0.001, 0.5, 0.99, 0.99999))
    for n in (60, 100, 2000, 9000):
        yield f"bit in the pickle at {n}", lambda n=n: flipped(checkpoint(), checkpoint().index(b"data.pkl") + n)
    yield "bit in the directory", lambda: flipped(checkpoint(), checkpoint().rindex(b"PK\x01\x02"))
    yield "bit in the end", lambda: flipped(checkpoint(), checkpoint().rindex(b"PK\x05\x06") + 1)
    yield "bit in a weight", lambda: flipped(checkpoint(), 0.5)
    yield "bit in a legacy file", lambda: flipped(legacy(), 30)
    yield "cut legacy file", lambda: legacy()[:-5000]
    yield "code in a torch file", lambda: saved(Runs())
    yield "code in a legacy torch file", lambda: saved(Runs(), _use_new_zipfile_serialization=False)
    yield "code beside the weights", lambda: saved({"state_dict": state(), "optimizer": Runs()})
    yield "module", lambda: saved(torch.nn.Linear(2, 2))
    yield "list", lambda: saved([torch.zeros(3)])
    yield "number", lambda: saved(3)
    yield "tensor", lambda: saved(torch.zeros(3))
    yield "list of weights", lambda: saved({"state_dict": [torch.zeros(3)]})
    yield "numbers as weights", lambda: saved({"state_dict": dict.fromkeys(state(), 0.5)})
    yield "empty", lambda: saved({})
    yield "numbered", lambda: saved({0: torch.zeros(3)})
    yield "another network", lambda: saved({"layer1.0.conv1.weight": torch.zeros(64, 3, 7, 7)})
    for space in MARKS:
        yield f"{space} cut", lambda space=space: cut(checkpoint(space), 0.7)
        yield f"{space} with a bit in a weight", lambda space=space: flipped(checkpoint(space), 0.6)
        for name, classifier in CLASSIFIERS.items():
            yield f"{name}, {space}", lambda space=space, classifier=classifier: marked(space, classifier)
    yield "scalars", lambda: saved({name: torch.zeros(()) for name in state()})
    yield "empty tensors", lambda: saved({name: torch.zeros(0) for name in state()})
    yield "petabytes", lambda: saved({name: torch.zeros(1).expand(10**15) for name in state()})
    yield "lines and escapes in a name", lambda: saved({"first_conv\n\x1b[2Jconv": torch.zeros(2, dtype=torch.int8)})
    yield "long name", lambda: saved({"x" * 10**6: torch.zeros(2, dtype=torch.int8)})


@cache
def archive():
    return tar({})


def tar(changes):
    """CIFAR-10 with some files changed."""
    with tempfile.TemporaryDirectory() as folder:
        return tar_gz(Path(folder) / "x.tar.gz", cifar_files(10, train=200, test=5) | changes).read_bytes()


def archives():
    """What is no CIFAR archive, made when called."""
    yield from ((name, lambda content=content: content) for name, content in others().items())
    yield from ((f"cut at {share}", lambda share=share: cut(archive(), share)) for share in (0.001, 0.5, 0.999))
    yield from ((f"bit at {position}", lambda position=position: flipped(archive(), position)) for position in (2, 0.3, 0.6, -6))
    yield "bit in a header", lambda: gzip.compress(flipped(gzip.decompress(archive()), 5), 1)
    contents = {
        "code in a batch": pickle.dumps({"data": Runs(), "labels": []}, 2),
        "line break in a name": b"\x80\x04\x8c\x03o\nx\x8c\x03a\nb\x93.",
        "text in a batch": b"hello",
        "list in a batch": pickle.dumps([1]),
        "no labels": python2({"data": np.zeros((20, 3072), np.uint8)}),
        "no images": python2({"labels": [0] * 20}),
        "huge label": pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10**30]}, 2),
    }
    yield from ((name, lambda content=content: tar({"test_batch": content})) for name, content in contents.items())


def idx_folders():
    """Folders of idx files of which one is bad."""
    good = mnist_files()[0]
    for part in ("train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        content = good[part]
        plain = gzip.decompress(content)
        for name, bad in (others() | {f"cut at {share}": cut(content, share) for share in (0.01, 0.5, 0.99)}).items():
            yield f"{part}: {name}", good | {part: bad}
        yield f"{part}: bit in the sum", good | {part: flipped(content, len(content) - 6)}
        yield f"{part}: bit in the kind", good | {part: gzip.compress(flipped(plain, 3))}
        yield f"{part}: bit in the count", good | {part: gzip.compress(flipped(plain, 7))}
        yield f"{part}: no pixels", good | {part: gzip.compress(idx(np.zeros((0, 0, 0) if "images" in part else 0, np.uint8)))}


def images():
    """What is no image."""
    for kind, suffix in (("PNG", "png"), ("JPEG", "jpg"), ("BMP", "bmp"), ("TIFF", "tif"), ("WEBP", "webp"), ("PPM", "ppm")):
        good = encoded((40, 30), 1, kind)
        yield f"{kind}: cut", f"x.{suffix}", good[: len(good) // 2]
        yield f"{kind}: bit in the beginning", f"x.{suffix}", flipped(good, 0, 1)
    for name, content in others().items():
        yield name, "x.png", content
    yield "PNG: bit in the data", "x.png", flipped(encoded((40, 30), 1), 0.5)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    def claiming(width, height):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")

    yield "bomb", "x.png", claiming(60_000, 60_000)
    yield "large", "x.png", claiming(5000, 5000)
    yield "PostScript", "x.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) (w) file\n%%EOF\n"
    yield "drawing", "x.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>'


def parquets():
    """What is no Parquet file of images."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"img": [{"bytes": encoded((8, 8), n)} for n in range(250)], "label": [0] * 250}), buffer)
    whole = buffer.getvalue()
    yield from others().items()
    yield from ((f"cut at {share}", cut(whole, share)) for share in (0.1, 0.9, 0.9999))
    for position in (-1, -6):
        yield f"bit at {position}", flipped(whole, position)
    for name, column in (
        ("huge labels", pa.array([2**64 - 1] * 250, pa.uint64())),
        ("infinite labels", pa.array([float("inf")] * 250)),
        ("a billion classes", pa.array([0, 10**9] * 125)),
    ):
        buffer = io.BytesIO()
        pq.write_table(pa.table({"img": [{"bytes": encoded((8, 8), n)} for n in range(250)], "label": column}), buffer)
        yield name, buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bad")


@pytest.fixture
def refuses(folder, capsys, monkeypatch):
    """Runs a command that must fail with 1; gives what it printed, and its sentence."""
    monkeypatch.setenv("OFASEARCH_CACHE", str(folder / "cache"))

    def check(*argv):
        before = snapshot(folder)
        assert run([str(a) for a in argv]) == 1
        out, err = capsys.readouterr()
        assert err.startswith("ofasearch: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        assert len(err) < 2000
        assert err.rstrip("\n").isprintable()
        assert snapshot(folder) == before
        assert not os.path.lexists(CANARY)
        return out, err.removeprefix("ofasearch: ")

    return check


def snapshot(folder):
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def named(cases):
    """Parameters of a test, with the case's name as id."""
    return pytest.mark.parametrize("case", [pytest.param(rest, id=name) for name, *rest in cases])


@named(checkpoints())
def test_a_bad_checkpoint_is_refused(refuses, folder, case):
    path = folder / "model_best_compofa_simple.pth.tar"
    path.write_bytes(case[0]())
    _, sentence = refuses("supernet", "import", path, "-o", folder / "out.safetensors")
    assert str(path) in sentence


@named(archives())
def test_a_bad_archive_is_refused(refuses, folder, case):
    path = folder / "cifar-10-python.tar.gz"
    path.write_bytes(case[0]())
    out, sentence = refuses("data", "check", path, "--quiet")
    assert out == ""
    assert str(path) in sentence


@named(idx_folders())
def test_a_bad_idx_file_is_refused(refuses, folder, case):
    source = write_files(folder / "mnist", case[0])
    out, sentence = refuses("data", "check", source, "--quiet")
    assert out == ""
    assert str(source) in sentence


@named(parquets())
def test_a_bad_parquet_file_is_refused(refuses, folder, case):
    path = folder / "x.parquet"
    path.write_bytes(case[0])
    assert str(path) in refuses("data", "check", path, "--quiet")[1]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("photographs") / "d", 90)


@named(images())
def test_a_bad_image_is_listed(refuses, photographs, case):
    name, content = case
    path = photographs / "bee" / name
    path.write_bytes(content)
    try:
        out, sentence = refuses("data", "check", photographs, "--json")
    finally:
        path.unlink()
    (damaged,) = json.loads(out)["damaged"]
    assert damaged["file"] == str(path)
    assert "1 of its 271 images are damaged" in sentence


def test_a_bad_image_is_named_when_it_is_used(refuses, photographs, folder):
    path = photographs / "bee" / "000.png"
    good = path.read_bytes()
    for content in (good[:100], b"", b"text"):
        path.write_bytes(content)
        out, _ = refuses("eval", "compofa-mbv3-cifar@r32-2-3-2-4-2", "--data", photographs)
        assert out == ""
    path.write_bytes(good)


def test_names_in_a_report_cannot_write_on_the_terminal(refuses, folder):
    path = folder / "x.pth"
    path.write_bytes(saved(state() | {"\x1b[2Jnew\nline": torch.zeros(3)}))
    out, _ = refuses("supernet", "check", path)
    assert "\x1b" not in out
    assert "[2Jnew" in out
