"""Where a search stands after a generation: plain arrays and numbers that a file holds and a later process goes on from."""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofasearch.errors import ArchError, FormatError, MismatchError, NotFoundError, UsageError
from ofasearch.records import parse_json, write_atomic
from ofasearch.space.core import Codes, Space, Values

FORMAT = "ofasearch-search-1"
LIMIT = 512 * 2**20  # bytes of a state file; a search of a million networks takes some 10 MB
DTYPES: Mapping[str, tuple[int, tuple[str, ...]]] = {  # dimensions and types of each array in a file
    "codes": (2, ("<i8",)),
    "F": (2, ("<f8", "<f4")),
    "archive": (2, ("<i8",)),
    "values": (2, ("<f8", "<f4")),
    "known": (1, ("<i8",)),
    "share": (1, ("<f8",)),
    "screen": (1, ("<f8",)),
    "measured": (2, ("<f8", "<f4")),
}
HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<type>[<|][uif][1248])', 'fortran_order': (?P<order>True|False), "
    rb"'shape': \((?P<shape>(\d{1,12}, ?)?(\d{1,12})?)\), \} *\n",
    re.DOTALL,
)
GENERATORS = {"PCG64": np.random.PCG64, "PCG64DXSM": np.random.PCG64DXSM}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """All that a search needs to go on after generation `number` as if it had never stopped.

    `identity` says whose state it is (algorithm, config, space, budgets, number of objectives); the objectives
    themselves are functions, and that they are the same is the caller's promise. What a searcher does not use is empty.
    """

    identity: Mapping[str, Any]  # plain JSON
    number: int
    evaluations: int
    generator: Mapping[str, Any]  # numpy's record of a bit generator, plain JSON
    codes: Codes  # (k, g), the population in its order
    F: Values  # (k, m), its objectives
    archive: Codes  # (a, g), what is reported where that is not the population
    values: Values  # (a, m), its objectives
    known: npt.NDArray[np.int64]  # (h,), hashes of every network handed out, in that order
    share: Values  # (s,), shares of children that kept the budgets
    screen: Values  # (f,), what was learned to expect of each code
    measured: Values  # (k, q), what the objective of each network of the population was made of

    def rng(self) -> np.random.Generator:
        """A generator of its own that draws what the stopped search would have drawn next."""
        bits = GENERATORS[self.generator["bit_generator"]]()
        bits.state = dict(self.generator)
        return np.random.Generator(bits)

    def check(self, identity: Mapping[str, Any], space: Space, shares: int) -> None:
        """Raise MismatchError unless this is a state of that search, FormatError where it is none of any search."""
        for key, value in identity.items():
            if self.identity.get(key) != value:
                raise MismatchError(
                    f"a search goes on from a state of its own {key}, {json.dumps(value)}, but the state's is "
                    f"{json.dumps(self.identity.get(key))}; continue it as it was started, or start anew"
                )
        columns = {self.F.shape[1], self.values.shape[1]}
        if columns != {identity["objectives"]} or len(self.share) != shares or not all(0 < s <= 1 for s in self.share):
            raise FormatError("a search state must hold its objectives and shares, but those of this one are damaged; start anew")
        if len(self.screen) not in (0, int((space.sizes + 1).sum())):
            raise FormatError("a search state must hold what was learned of each code, but in this one that is damaged; start anew")
        if self.measured.size and len(self.measured) != len(self.codes):
            raise FormatError("a search state must hold what was measured of each network, but that of this one is damaged; start anew")
        try:
            for codes in (self.codes, self.archive):
                space.validate(codes)
        except ArchError as error:
            raise FormatError(f"a search state must hold networks of {space.name}, but it is damaged: {error}") from error
        if not len(self.codes) or not len(self.archive):
            raise FormatError("a search state must hold at least one network, but it holds none; start anew")


def generator_record(rng: np.random.Generator) -> Mapping[str, Any]:
    """What `State.generator` holds. Raises UsageError for another bit generator than numpy's default family."""
    record: Mapping[str, Any] = rng.bit_generator.state
    if record["bit_generator"] not in GENERATORS:
        raise UsageError(f"a search that can be continued must draw from {' or '.join(GENERATORS)}, but got {record['bit_generator']}")
    return record


# -- files -----------------------------------------------------------------------------------------------------


def save_state(path: Path, state: State) -> None:
    """Write a state, whole or not at all. Raises WriteError."""
    plain = {f.name: getattr(state, f.name) for f in fields(state) if f.name not in DTYPES}
    text = json.dumps({"format": FORMAT, **plain}).encode()
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, meta=np.frombuffer(text, dtype=np.uint8), **{name: getattr(state, name) for name in DTYPES})
    write_atomic(path, buffer.getvalue())


def load_state(path: Path) -> State:
    """Read a state file from outside; nothing in it is run and nothing is larger than the file.

    Raises NotFoundError, FormatError (damaged, foreign, too large, not finite).
    """
    if not path.is_file():
        raise NotFoundError(f"{path} must be an existing search state, but there is none")
    try:
        arrays = _arrays(path)
        state = _state(arrays)
        _check_contents(state)
    except (
        ValueError,
        TypeError,
        KeyError,
        OSError,
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        OverflowError,
    ) as error:
        raise FormatError(f"{path} must be a search state of ofasearch, but it cannot be read: {error}") from error
    return state


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The members of the archive, each read only after its size was checked."""
    if path.stat().st_size > LIMIT:
        raise ValueError(f"it is larger than {LIMIT >> 20} MiB")
    expected = {f"{name}.npy" for name in (*DTYPES, "meta")}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) != len(expected) or {m.filename for m in members} != expected:
            raise ValueError("it holds other arrays than a state")
        if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > LIMIT:
            raise ValueError("its arrays are compressed or too large")
        return {m.filename.removesuffix(".npy"): _array(archive.read(m)) for m in members}


def _array(content: bytes) -> npt.NDArray[Any]:
    """One array in numpy's own format; its header must announce as many bytes as there are.

    Numpy reads headers as Python, which a hostile one brings to all kinds of errors; those of our files fit one pattern.
    """
    header = HEADER.match(content)
    if header is None:
        raise ValueError("an array has a header that is not of this format")
    dtype, shape = np.dtype(header["type"].decode()), tuple(int(n) for n in header["shape"].split(b",") if n.strip())
    body = content[header.end() :]
    if len(body) != math.prod(shape) * dtype.itemsize:
        raise ValueError("an array is not as long as it says")
    return np.frombuffer(body, dtype=dtype).reshape(shape, order="F" if header["order"] == b"True" else "C").copy(order="C")


def _state(arrays: Mapping[str, npt.NDArray[Any]]) -> State:
    """The record, its arrays of the right form."""
    for name, (dimensions, types) in DTYPES.items():
        if arrays[name].ndim != dimensions or arrays[name].dtype.str not in types:
            raise ValueError(f"{name} must have {dimensions} dimensions of {' or '.join(types)}")
    if arrays["meta"].dtype != np.uint8 or arrays["meta"].ndim != 1:
        raise ValueError("its description is no text")
    meta = parse_json(arrays["meta"].tobytes().decode())
    if not isinstance(meta, dict) or meta.pop("format", None) != FORMAT:
        raise ValueError(f"it is not of format {FORMAT}")
    parts: dict[str, Any] = {name: arrays[name] for name in DTYPES}
    return State(**meta, **parts)


def _check_contents(state: State) -> None:
    """Raise what `load_state` turns into a sentence."""
    counts = (state.number, state.evaluations)
    if not all(isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 2**53 for count in counts):
        raise ValueError(f"its counts must be whole numbers, but are {counts}")
    if not isinstance(state.identity, dict) or not isinstance(state.generator, dict):
        raise ValueError("its identity and its generator must be objects")
    if len(state.codes) != len(state.F) or len(state.archive) != len(state.values):
        raise ValueError("its networks and objectives differ in number")
    if not all(np.isfinite(values).all() for values in (state.F, state.values, state.share, state.screen, state.measured)):
        raise ValueError("some of its values are not finite")
    if state.rng().bit_generator.state != state.generator:
        raise ValueError("its generator is no record of one")
