"""Reading torch files from outside: tensors and plain values only, never code."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ofasearch.errors import FormatError, NotFoundError


class _Skipped:
    """Stands in for what a pickled numpy number is made of: training scripts save their best accuracy so."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


_STAND_INS: list[Any] = [
    (_Skipped, name) for name in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "_codecs.encode")
]


def load_plain(path: Path, what: str) -> dict[Any, Any]:
    """The dictionary in a torch file, tensors on the CPU; `what` says in messages what it should be.

    Numpy numbers in it are read as nothing.

    Raises NotFoundError, FormatError (damaged, another kind of file, or one that holds code).
    """
    import torch

    if not path.is_file():
        raise NotFoundError(f"{path} must be an existing file, {what}, but there is none")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about files that it then refuses
            with torch.serialization.safe_globals(_STAND_INS):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds, and its texts advise to switch the safety off
        code = "Weights only load failed" in str(error) or "weights_only" in str(error)
        why = "it is damaged or holds code, which is never run" if code else "it is damaged or of another kind"
        raise FormatError(f"{path} must be {what}, but it cannot be read: {why}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} must be {what}, but it cannot be read: it holds {type(content).__name__}, not a dictionary")
    return content
