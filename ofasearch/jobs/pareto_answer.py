"""The answer of `pareto`: its record, its files, what is drawn, and the error where nothing keeps what was preferred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch.deploy.runtime import TARGETS
from ofasearch.errors import InfeasibleError
from ofasearch.jobs.axes import AXES, COSTS, prices
from ofasearch.jobs.deliver import settings_json
from ofasearch.jobs.direct import DirectCost
from ofasearch.jobs.fronts import Found
from ofasearch.jobs.pareto_task import EXACT, Task
from ofasearch.jobs.prefer import choose, nearest
from ofasearch.latency.table import least_known
from ofasearch.records import append_line, provenance, write_atomic, write_json
from ofasearch.report import pareto as report
from ofasearch.search.front import knee, regret
from ofasearch.search.run import FRONT_LIMIT
from ofasearch.space.core import Values

FILES = {"csv": "front.csv", "json": "front.json", "plot": "plot.png", "trace_csv": "hypervolume.csv", "trace": "hypervolume.json"}
RESULT, LOG = "result.json", "log.jsonl"
LEVEL = 0.8  # of the error bars
ENOUGH = 0.99  # of the exact hypervolume
MOST_SEEN = 0.5  # of a space: a search that sees more of it says little about larger ones


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoResult:
    """The answer. `record` is the JSON answer; paths in it are absolute."""

    record: dict[str, Any]
    drawing: report.Drawing
    folder: Path


def write_answer(task: Task, found: Mapping[str, Found]) -> ParetoResult:
    """Write all files of the run. Raises WriteError."""
    main, folder = found[task.algorithm], task.folder
    record = _record(task, main) | ({"compare": [_compared(task, f, found[EXACT]) for f in found.values()]} if task.request.compare else {})
    record["notes"] = _notes(task, record)
    files = {name: str((folder / file).absolute()) for name, file in FILES.items()}
    record["files"] = files
    drawing = _drawing(task, record, found)
    traces = [{"algorithm": f.algorithm, "trace": [asdict(point) for point in f.trace]} for f in found.values()]
    front = {key: value for key, value in record.items() if key not in ("files", "compare", "notes")}
    write_atomic(folder / FILES["csv"], report.csv_text(record))
    write_json(folder / FILES["json"], front)
    write_atomic(folder / FILES["trace_csv"], report.trace_csv(traces))
    write_json(folder / FILES["trace"], traces)
    write_atomic(folder / FILES["plot"], report.to_png(drawing))
    write_json(folder / RESULT, record)
    line = provenance(event="pareto", question=asdict(task.request.question), seed=task.request.seed, result=record)
    append_line(folder / LOG, line)
    return ParetoResult(record=record, drawing=drawing, folder=folder.absolute())


def _record(task: Task, main: Found) -> dict[str, Any]:
    """The answer but for its notes and files."""
    request, setup, box = task.request, task.setup, task.box
    front = _front(task, main)
    keys = [axis.key for axis in task.axes]
    record: dict[str, Any] = {
        "space": setup.space.name,
        **({"supernet": setup.supernet.name} if setup.supernet is not None else {}),
        **_sources(task, front),
        "limits": {name: limit for name, limit in asdict(request.question.budgets).items() if limit is not None},
        "objectives": [axis.name for axis in task.axes],
        "objective_fields": keys,
        "algorithm": main.algorithm,
        "exact": main.algorithm == EXACT,
        "points": len(front),
        "evaluations": main.evaluations,
        "search_seconds": main.seconds,
        "seed": request.seed,
        **({} if main.algorithm == EXACT else dict(zip(("population", "generations"), task.effort, strict=True))),
        "hypervolume": main.trace[-1].hypervolume,
        "hypervolume_best": _spelled(task, box.best),
        "hypervolume_reference": _spelled(task, box.reference),
    }
    bend = knee(main.F)
    if bend is not None:
        front[bend]["knee"] = True
        record["knee"] = front[bend]
    if task.wishes:
        record["prefer"] = ", ".join(map(str, task.wishes))
        choice = choose(task.wishes, _values(front), task.axes[1])
        if choice is not None:
            front[choice.row]["preferred"] = True
            record["preferred"] = front[choice.row]
            record["preferred_because"] = f"{choice.rule} of the {choice.keeping} on the front that keep {record['prefer']}"
    return record | {"front": front}


def _sources(task: Task, front: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How accuracies and latencies are known."""
    setup, question = task.setup, task.request.question
    found: dict[str, Any] = {"predicted_top1_source": setup.judge.source}
    if question.predictor is not None:
        found["predictor"] = question.predictor
    if any("error_bar" in point for point in front):
        found["error_bar_level"] = LEVEL
    if setup.devices:
        device = setup.devices[0]
        table = device.table
        key = table.key if table is not None else setup.latency.lab.runtime.key if isinstance(setup.latency, DirectCost) else None
        found |= {"target": device.name, "latency_source": least_known(point["latency_source"] for point in front)}
        found |= {"device": asdict(key)} if key is not None else {}
        found |= {"measure": "direct"} if table is None else {}
        validation = table.card.get("validation") if table is not None else None
        found |= {"latency_validation": validation} if validation else {}
    return found


def _spelled(task: Task, objectives: Values) -> dict[str, float]:
    """Objectives (m,) as the fields of a network: accuracies are maximised, so their sign changes."""
    return {axis.key: float(-value if axis.rises else value) for axis, value in zip(task.axes, objectives, strict=True)}


def _front(task: Task, main: Found) -> list[dict[str, Any]]:
    """The networks of the front, the most accurate first: what they are, what they cost, and how that is known."""
    setup, codes = task.setup, main.codes
    columns: dict[str, Values] = {"predicted_top1": setup.judge.top1(codes)}
    if setup.judge.error_bar is not None:
        columns["error_bar"] = setup.judge.error_bar(codes)
        columns["lower_bound_top1"] = columns["predicted_top1"] - columns["error_bar"]
    columns |= {COSTS[name].key: price(codes) for name, price in prices(setup).items()}
    elsewhere = {device.name: device.latency(codes) for device in setup.devices}
    outside = setup.judge.outside(codes) if setup.judge.outside is not None else np.zeros(len(codes), dtype=bool)
    found = []
    for row, network in enumerate(codes):
        point: dict[str, Any] = {"arch_id": setup.space.arch(network).id, "arch": settings_json(setup.space, network)}
        point |= {key: _number(key, values[row]) for key, values in columns.items()}
        point |= {"predicted_top1_source": setup.judge.source}
        point |= {"latency_source": setup.devices[0].source_of(setup.space.blueprint(network))} if setup.devices else {}
        point |= {"devices": {name: float(ms[row]) for name, ms in elsewhere.items()}} if len(elsewhere) > 1 else {}
        point |= {"outside_fitted_networks": True} if outside[row] else {}
        found.append(point | {"knee": False, "preferred": False})
    return found


def _number(key: str, value: float) -> float | int:
    return int(value) if key in ("macs", "params", "activation_bytes") else float(value)


def _values(front: Sequence[Mapping[str, Any]]) -> dict[str, Values]:
    """The quantities of the front by the names of axes."""
    return {name: np.array([p[axis.key] for p in front], dtype=float) for name, axis in AXES.items() if axis.key in front[0]}


def _compared(task: Task, found: Found, exact: Found) -> dict[str, Any]:
    """How far a search stays behind the exact front."""
    lost = regret(found.F, exact.F, task.box.reference)
    enough = ENOUGH * exact.trace[-1].hypervolume
    record: dict[str, Any] = {
        "algorithm": found.algorithm,
        "evaluations": found.evaluations,
        "search_seconds": found.seconds,
        "points": len(found.codes),
        "hypervolume": found.trace[-1].hypervolume,
        "hypervolume_share": lost.hypervolume_share,
        "uncovered": lost.uncovered,
    }
    if lost.worst_loss is not None and lost.mean_loss is not None:
        record |= {"worst_loss": lost.worst_loss, "mean_loss": lost.mean_loss}
    reached = next((point.evaluations for point in found.trace if point.hypervolume >= enough), None)
    return record | ({"evaluations_to_99": reached} if reached is not None else {})


def _notes(task: Task, record: Mapping[str, Any]) -> list[str]:
    """What the user should know."""
    notes = list(task.setup.notes)
    odd = sum("outside_fitted_networks" in point for point in record["front"])
    if odd:
        notes.append(f"{odd} of the {record['points']} networks lie outside those that the predictor was fitted on: trust their top-1 less")
    if record["points"] >= FRONT_LIMIT:
        notes.append(f"the front holds more networks: of those, the {FRONT_LIMIT:,} that lie farthest apart are told")
    seen = [c["algorithm"] for c in record.get("compare", ()) if c["algorithm"] != EXACT and c["evaluations"] > MOST_SEEN * task.size]
    if seen:
        notes.append(
            f"{', '.join(seen)} saw more than half of the {task.size:,} networks, which says little of larger spaces; "
            "compare with fewer --generations or a smaller --population"
        )
    if task.request.question.target in TARGETS and record.get("measure") != "direct":
        notes.append("latencies are those of the table; `ofasearch find` measures the networks of one budget end to end before it chooses")
    return notes


def _drawing(task: Task, record: Mapping[str, Any], found: Mapping[str, Found]) -> report.Drawing:
    """What the pictures show: the first cost and the accuracy."""
    accuracy, cost = task.axes[:2]

    def points(search: Found) -> tuple[report.Point, ...]:
        return tuple((float(f[1]) * cost.scale, -float(f[0]) * accuracy.scale) for f in search.F)

    main = found[task.algorithm]
    own = points(main)
    marked = {name: own[i] for name in ("knee", "preferred") for i, p in enumerate(record["front"]) if p[name]}
    where = f" on {record['target']}" if cost.name == "latency" else ""
    more = f", also by {' and '.join(axis.title for axis in task.axes[2:])}" if len(task.axes) > 2 else ""
    exact, third = found.get(EXACT), task.axes[2] if len(task.axes) > 2 else None
    return report.Drawing(
        title=f"{record['space']}: front of {report.heading(accuracy.key, record)} and {cost.title}{where}{more}",
        cost=f"{report.heading(cost.key, record)}{where}, {cost.unit}",
        accuracy=f"{report.heading(accuracy.key, record)}, {accuracy.unit}",
        front=own,
        name=main.algorithm,
        shade=tuple(float(v) * third.scale for v in main.F[:, 2]) if third is not None else (),
        shade_label=f"{report.heading(third.key, record)}, {third.unit}" if third is not None else "",
        **marked,
        exact=points(exact) if exact is not None and main is not exact else (),
        others={name: points(f) for name, f in found.items() if name not in (main.algorithm, EXACT)},
        traces={name: tuple((float(p.evaluations), p.hypervolume) for p in f.trace) for name, f in found.items()},
        exact_hypervolume=exact.trace[-1].hypervolume if exact is not None else None,
    )


def unkept(task: Task, front: Sequence[Mapping[str, Any]]) -> InfeasibleError:
    """The error for wishes that no network of the front keeps, with the nearest one."""
    point = front[nearest(task.wishes, _values(front))]
    values = ", ".join(f"{wish.axis.name} {wish.axis.show(point[wish.axis.key])}" for wish in task.wishes)
    wishes = " and ".join(map(str, task.wishes))
    return InfeasibleError(
        f"some network of the front must keep {wishes}, but none of {len(front)} does; the nearest is {point['arch_id']} with {values} "
        f"(the front is in {task.folder})"
    )


__all__ = ["RESULT", "ParetoResult", "unkept", "write_answer"]
