"""What a front can lie over: accuracy and the costs, by the names of `--objectives` and `--prefer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ofasearch.errors import UsageError
from ofasearch.jobs import quantities
from ofasearch.jobs.setup import Setup, show_bytes, show_count, show_ms
from ofasearch.search.problem import Priced
from ofasearch.space.costs import activation_bytes_of, macs_of, params_of


def show_top1(value: float) -> str:
    """A fraction for people."""
    return f"{100 * value:.2f} %"


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One quantity of a network.

    `key` is its field in JSON and CSV, `limit` the field of `Budgets` that bounds it; `title` and `unit` head a column or an
    axis, where a value times `scale` stands.
    """

    name: str
    key: str
    title: str
    unit: str
    scale: float
    read: Callable[[str], float]
    show: Callable[[float], str]
    limit: str | None = None

    @property
    def rises(self) -> bool:
        """Whether more of it is better."""
        return self.limit is None


def _accuracy(name: str, key: str, title: str) -> Axis:
    return Axis(name=name, key=key, title=title, unit="%", scale=100.0, read=quantities.fraction, show=show_top1)


def _count(name: str, title: str) -> Axis:
    return Axis(name=name, key=name, title=title, unit="M", scale=1e-6, read=quantities.COUNT.parse, show=show_count, limit=name)


_LATENCY = Axis(
    name="latency", key="latency_ms", title="latency", unit="ms", scale=1.0, read=quantities.LATENCY.parse, show=show_ms, limit="latency_ms"
)
_MEMORY = Axis(
    name="memory",
    key="activation_bytes",
    title="activations",
    unit="MB",
    scale=1e-6,
    read=quantities.MEMORY.parse,
    show=show_bytes,
    limit="memory_bytes",
)
ACCURACIES = {a.name: a for a in (_accuracy("top1", "predicted_top1", "top-1"), _accuracy("lcb", "lower_bound_top1", "top-1 lower bound"))}
COSTS = {a.name: a for a in (_LATENCY, _count("macs", "MACs"), _count("params", "parameters"), _MEMORY)}
AXES: Mapping[str, Axis] = {**ACCURACIES, **COSTS}
SYNONYMS: Mapping[str, str] = {"flops": "macs", "top-1": "top1", "parameters": "params"}


def get_axis(name: str, option: str) -> Axis:
    """An axis by its name in `option`, in any case. Raises UsageError."""
    plain = name.strip().lower()
    found = AXES.get(SYNONYMS.get(plain, plain))
    if found is None:
        raise UsageError(f"{option} must name {', '.join(AXES)}, but got '{name.strip()}'")
    return found


def get_axes(names: Sequence[str]) -> tuple[Axis, ...]:
    """The objectives of a front: an accuracy, then one or more costs.

    Raises UsageError (unknown or repeated names, fewer than two, another first).
    """
    axes = tuple(get_axis(name, "--objectives") for name in names)
    given = ",".join(name.strip() for name in names)
    if len({axis.name for axis in axes}) < len(axes):
        raise UsageError(f"--objectives must name each objective once, but got '{given}'")
    if len(axes) < 2 or not axes[0].rises or any(axis.rises for axis in axes[1:]):
        raise UsageError(f"--objectives must be top1 or lcb, then one or more of {', '.join(COSTS)}, but got '{given}'")
    return axes


def prices(setup: Setup) -> dict[str, Priced]:
    """What tells each cost of networks of the space; latency only where there is a target."""
    space = setup.space
    found: dict[str, Priced] = {"latency": setup.latency} if setup.latency is not None else {}
    return found | {"macs": macs_of(space), "params": params_of(space), "memory": activation_bytes_of(space)}


__all__ = ["ACCURACIES", "AXES", "COSTS", "Axis", "get_axes", "get_axis", "prices"]
