"""Reading torch files from outside: tensors and plain values only, never code."""

from __future__ import annotations

import io
import pickletools
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ofasearch.errors import FormatError, NotFoundError

FILE_LIMIT = 512 * 2**20  # bytes
VALUE_LIMIT = 200_000  # values in one file, counted as often as they are referred to
DEPTH_LIMIT = 32
NAMED = 5  # keys that a message names; a file of another kind would fill the screen
LEGACY_PICKLES = 5  # magic number, version, byte order, content, storage names; the bytes of the storages follow
STORAGES = ("Bool", "Byte", "Char", "Short", "Int", "Long", "Half", "BFloat16", "Float", "Double")
NAMES = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {kind}Storage" for kind in STORAGES),
}
NUMPY_NUMBERS = {"numpy.core.multiarray scalar", "numpy._core.multiarray scalar", "numpy dtype", "_codecs encode"}


class _Skipped:
    """Stands in for what a pickled numpy number is made of: training scripts save their best accuracy so."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


_STAND_INS: list[Any] = [(_Skipped, name.replace(" ", ".")) for name in sorted(NUMPY_NUMBERS)]


def load_plain(path: Path, what: str) -> dict[Any, Any]:
    """The dictionary in a torch file, tensors on the CPU; `what` says in messages what it should be.

    Numpy numbers in it are read as nothing.

    Raises NotFoundError, FormatError (damaged, another kind of file, one that holds code, or claims more than it holds).
    """
    import torch

    if not path.is_file():
        raise NotFoundError(f"{path} must be an existing file, {what}, but there is none")
    if path.stat().st_size > FILE_LIMIT:
        raise FormatError(f"{path} must be {what} of at most {FILE_LIMIT >> 20} MiB, but is larger")
    code = False
    try:
        code = not _calls(path) <= NAMES | NUMPY_NUMBERS
        if code:
            raise ValueError("it names what is no tensor")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about files that it then refuses
            with torch.serialization.safe_globals(_STAND_INS):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds, and its texts advise to switch the safety off
        code = code or "Weights only load failed" in str(error) or "weights_only" in str(error)
        why = "it is damaged or holds code, which is never run" if code else "it is damaged or of another kind"
        raise FormatError(f"{path} must be {what}, but it cannot be read: {why}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} must be {what}, but it cannot be read: it holds {type(content).__name__}, not a dictionary")
    _check_plain(path, what, content)
    return content


def load_state(path: Path, what: str) -> dict[str, npt.NDArray[np.float32]]:
    """The state dict of a torch file, bare or under `state_dict`: names without `module.` to float32 arrays; counters are left out.

    Raises as `load_plain`, and FormatError for what is no dense floating-point tensor of its own.
    """
    import torch

    content = load_plain(path, what)
    content = content.get("state_dict", content)
    if not isinstance(content, Mapping):
        raise FormatError(f"{path} must hold a state dict, but what it has under 'state_dict' is {type(content).__name__}")
    found: dict[str, npt.NDArray[np.float32]] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise FormatError(f"{path} must hold named tensors only, but {str(key)[:80]!r} is {type(value).__name__}")
        name = key.removeprefix("module.")
        if name.endswith("num_batches_tracked"):
            continue
        if not value.is_floating_point() or value.layout != torch.strided:
            raise FormatError(f"{path} must hold dense floating-point tensors, but '{name}' is {value.dtype}, {value.layout}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():  # a small file that claims a huge tensor
            raise FormatError(f"{path} must hold whole tensors, but '{name}' claims {value.numel()} values and stores fewer")
        found[name] = value.detach().to(torch.float32).numpy()
    return found


def listed(names: Iterable[Any]) -> str:
    """The first few of the names of a foreign file, for a message."""
    known = [str(name)[:120] for name in names]
    more = f" and {len(known) - NAMED} more" if len(known) > NAMED else ""
    return ", ".join(known[:NAMED]) + more


def spelled(shape: tuple[int, ...]) -> str:
    """A shape, for a message."""
    return "x".join(map(str, shape)) or "a scalar"


def _calls(path: Path) -> set[str]:
    """What the pickles of a torch file would call or build.

    torch's own list of harmless names is longer than what tensors need, and with it a file of 100 bytes can ask for any
    amount of memory. Raises ValueError (and what a damaged pickle or archive raises) when parts are compressed or overlap.
    """
    with path.open("rb") as file:
        archived = file.read(4) == b"PK\x03\x04"  # by which torch tells its two formats apart
        file.seek(0)
        if not archived:
            names: set[str] = set()
            for _ in range(LEGACY_PICKLES):
                names |= _names(file)
                if not names <= NAMES:
                    break  # what follows need not even be there
            return names
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(p.file_size for p in parts) > path.stat().st_size:
                raise ValueError("its parts are larger than the file")
            if archive.testzip() is not None:  # torch itself does not compare the sums of the parts
                raise ValueError("a part of it does not have its sum")
            pickles = [part for part in parts if part.filename.endswith(".pkl")]
            return {name for part in pickles for name in _names(io.BytesIO(archive.read(part)))}


def _names(file: BinaryIO | io.BytesIO) -> set[str]:
    """What one pickle names; `torch.save` writes protocol 2, where every name is spelled out."""
    operations = [(operation.name, argument) for operation, argument, _ in pickletools.genops(file)]
    return {str(argument) if name == "GLOBAL" else name for name, argument in operations if name in ("GLOBAL", "INST", "STACK_GLOBAL")}


def _check_plain(path: Path, what: str, content: Any) -> None:
    """Raise FormatError unless all is plain values and dense tensors that fit into the file.

    A tensor may repeat a few bytes along strides of 0, and a list hold one other list many times: a small file could
    then stand for terabytes that appear when they are copied or printed.
    """
    import torch

    left, values, todo = path.stat().st_size, 0, [(content, 0)]
    while todo:
        value, depth = todo.pop()
        values += 1
        if isinstance(value, Mapping):
            todo += [(v, depth + 1) for pair in value.items() for v in pair]
        elif isinstance(value, list | tuple):
            todo += [(v, depth + 1) for v in value]
        elif isinstance(value, torch.Tensor):
            dense = value.layout == torch.strided and value.device.type == "cpu"
            left -= value.numel() * value.element_size() if dense else left + 1
        elif not isinstance(value, str | int | float | _Skipped | None):
            raise FormatError(f"{path} must be {what}, but it cannot be read: it holds {type(value).__name__}, which is no plain value")
        if left < 0 or values + len(todo) > VALUE_LIMIT or depth > DEPTH_LIMIT:
            raise FormatError(f"{path} must be {what}, but it cannot be read: it claims more than it holds")
