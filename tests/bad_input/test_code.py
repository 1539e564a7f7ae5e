"""Files that hold code: it is never run, and the refusal does not say how to run it."""

import io
import os
import pickle
import zipfile
from itertools import cycle

import pytest
import torch
from damage import DOORS

TORCH = ("subnet", "checkpoint", "tutorial", "published")


class Call:
    """Calls something when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


CALLS = {
    "a file is opened": Call(open, "canary", "w"),
    "a command is run": Call(os.system, "touch canary"),
    "source is run": Call(exec, "open('canary', 'w')"),
    "a method is fetched": Call(getattr, "canary", "upper"),
    "gigabytes of zeros": Call(bytearray, 2 * 2**30),
    "terabytes of zeros": Call(bytearray, 2**42),
    "gigabytes of floats": Call(torch.Tensor, 30_000, 20_000),
}


def archive(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def legacy(content):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def squeezed(content):
    """An archive of the same parts, compressed as torch never does: such a file could hold a thousand times its size."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive(content))) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    return buffer.getvalue()


WRITERS = {"archive": archive, "legacy": legacy, "pickle": pickle.dumps, "newest pickle": lambda content: pickle.dumps(content, 5)}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("kind", "writer"), list(zip(cycle(TORCH), WRITERS, strict=False)))
def test_code_in_a_torch_file_is_never_run(refuses, desk, kind, writer, call):
    name, command = DOORS[kind]
    (desk / name).write_bytes(WRITERS[writer]({"format": CALLS[call]}))
    sentence = refuses(command)
    assert "is damaged or" in sentence
    assert "weights_only" not in sentence  # torch's own text advises to switch the safety off


@pytest.mark.parametrize("kind", TORCH)
def test_a_compressed_archive_is_refused_unread(refuses, desk, kind):
    name, command = DOORS[kind]
    (desk / name).write_bytes(squeezed(torch.load(desk / name, weights_only=True)))
    refuses(command)


@pytest.mark.parametrize("kind", [kind for kind in DOORS if kind not in TORCH])
def test_a_pickle_in_place_of_any_file_is_never_run(refuses, desk, kind):
    name, command = DOORS[kind]
    (desk / name).write_bytes(pickle.dumps(CALLS["a command is run"]))
    refuses(command)
