"""The weights of once-for-all's published static networks: the torch file `init` beside a `net.config` -> our keys.

A static network's state dict names every layer by its place in the `net.config` (`blocks.3.conv`), whose blocks that only
pass their input on have numbers, too, and the parts of a layer as in a supernet.

Reference: key names as the public once-for-all package writes them (`get_active_subnet().state_dict()`), old and new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ofasearch.errors import MismatchError, NotFoundError
from ofasearch.space.core import Blueprint, Kind
from ofasearch.space.static import Placed, read_placed
from ofasearch.supernet.foreign_keys import MOBILE_INNER, MOBILE_PARTS, RESNET_PARTS
from ofasearch.supernet.torchfile import listed, load_state, spelled
from ofasearch.supernet.weights import Array, array_shapes, check_values, layer_key

INIT = "init"
_PARTS: dict[Kind, Mapping[str, str]] = {  # our first word of an array's name -> theirs, where they differ
    "mbconv": {ours: theirs for theirs, ours in MOBILE_PARTS.items()} | {"se": "depth_conv.se.fc"},
    "bottleneck": {ours: theirs for theirs, ours in RESNET_PARTS.items()},
}


def load_published(config: Path) -> tuple[Blueprint, dict[str, Array]]:
    """The layers of a published network and its weights, keyed `layer<i>.<part>`: its `net.config` and the `init` beside it.

    Raises NotFoundError (one of the files), FormatError (damaged, code, NaN) and MismatchError (missing, unknown and
    misshapen keys), by name.
    """
    placed = read_placed(config)
    init = config.with_name(INIT)
    if not init.is_file():
        raise NotFoundError(
            f"{config.parent} must hold the weights of its {config.name}, as {INIT} (once-for-all's) or subnet.pt (ours), but has neither"
        )
    state = {_today(name): array for name, array in load_state(init, "the weights of a published network").items()}
    names, shapes = their_names(placed), their_shapes(placed)
    _check(init, state, shapes)
    check_values(init, state)
    return tuple(spec for _, spec in placed), {ours: state[theirs] for ours, theirs in names.items()}


def their_names(placed: Sequence[Placed]) -> dict[str, str]:
    """Our key (`layer<i>.<part>`) -> once-for-all's, for every array of a static network."""
    return {
        f"{layer_key(spec, index)}.{name}": f"{place}.{_their_part(spec.kind, name)}"
        for index, (place, spec) in enumerate(placed)
        for name in array_shapes(spec)
    }


def their_shapes(placed: Sequence[Placed]) -> dict[str, tuple[int, ...]]:
    """The arrays of a static network's state dict, counters aside, and their shapes."""
    return {f"{place}.{_their_part(spec.kind, name)}": shape for place, spec in placed for name, shape in array_shapes(spec).items()}


def _their_part(kind: Kind, name: str) -> str:
    part, _, leaf = name.partition(".")
    return f"{_PARTS.get(kind, {}).get(part, part)}.{leaf}"


def _today(name: str) -> str:
    """A key as today's once-for-all names it."""
    today, before = MOBILE_INNER
    return name.replace(f"{before}.", f"{today}.", 1)


def _check(path: Path, state: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise MismatchError unless a state dict has exactly these arrays."""
    misshapen = [name for name, shape in shapes.items() if name in state and state[name].shape != shape]
    kinds = (
        ("lacks", [name for name in shapes if name not in state]),
        ("has the unknown", [name for name in state if name not in shapes]),
        ("has the wrong shape of", [f"{name} ({spelled(state[name].shape)} for {spelled(shapes[name])})" for name in misshapen]),
    )
    problems = [f"it {what} {listed(names)}" for what, names in kinds if names]
    if problems:
        raise MismatchError(f"{path} must hold exactly the weights of the net.config beside it, but {', '.join(problems)}")
