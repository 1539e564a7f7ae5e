"""How many probes are enough, and what is gained by measuring layers inside networks? Read off one set of measurements.

Measures (or finds remembered) what `latency build` and `latency validate` measure, then builds tables from parts of it
and compares each with the networks of the validation, which none of them has seen. Beside them stands the usual way:
every layer alone, summed.
    python benchmarks/latency/probes.py --space ofa-mbv3-w1.0 --out benchmarks/results/<machine>/latency/probes.json
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch.deploy.runtime import get_runtime
from ofasearch.jobs import latency as job
from ofasearch.jobs.measuring import NET_RULE, Lab
from ofasearch.latency.memory import Measured
from ofasearch.latency.probes import Probe, Rows, filled_rows, lawful_rows, refined_rows, shared_rows
from ofasearch.latency.table import ANY, LatencyTable, Row
from ofasearch.records import provenance, write_json
from ofasearch.space.core import Blueprint, Space
from ofasearch.space.families import get_space

ALONE = replace(NET_RULE, max_bursts=20)


def main() -> None:
    """Run the benchmark and write its record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="ofa-mbv3-w1.0")
    parser.add_argument("--nets", type=int, default=30)
    parser.add_argument("--sizes", type=int, default=5, help="input sizes probed at most")
    parser.add_argument("--fit", type=int, default=24, help="networks to refine on at most")
    parser.add_argument("--alone", type=int, default=160, help="input size at which layers are also timed alone")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    job.PROBED_RESOLUTIONS, job.FIT_NETS = options.sizes, options.fit  # more than the package takes, to see what they would gain
    space, runtime = get_space(options.space), get_runtime()
    table = next(e for e in job.build_table(space, runtime) if isinstance(e, LatencyTable))
    plan = job.plan_networks(space)
    lab = Lab(runtime, plan.reference)
    probes = [_probe(plan.probes[name], measured) for name, measured in lab.measure(plan.probes, traced=True)]
    fits = [_probe(plan.fit[name], measured) for name, measured in lab.measure(plan.fit)]
    unseen = _unseen(table, space, options.nets, lab)
    rows: list[dict[str, Any]] = []

    def tell(what: str, found: Rows, measured_networks: int) -> None:
        complete = found | filled_rows(found, space.layers())
        made = LatencyTable("trial", runtime.key, complete)
        error = job.agreement([made.latency_ms(b) for b, _ in unseen], [ms for _, ms in unseen])
        rows.append({"table": what, "networks": measured_networks, **error})
        print(line(what, error), f"{measured_networks} networks", flush=True)

    def refined(some: list[Probe], more: list[Probe]) -> Rows:
        found = shared_rows(some)
        return refined_rows(found | filled_rows(found, space.layers()), [*some, *more])

    sizes = sorted({probe.blueprint[0].hw_in for probe in probes})
    for count in range(1, len(sizes) + 1):
        kept = set(job.spread(sizes, count)) if count > 1 else {sizes[len(sizes) // 2]}
        some = [probe for probe in probes if probe.blueprint[0].hw_in in kept]
        tell(f"shares, probes at {count} input sizes, not refined", shared_rows(some), len(some))
        tell(f"shares, probes at {count} input sizes, refined on {len(fits)}", refined(some, fits), len(some) + len(fits))
    for count in (0, 6, 12):
        tell(f"shares, probes at {len(sizes)} input sizes, refined on {count}", refined(probes, fits[:count]), len(probes) + count)
    tell("a law fitted on whole times, no shares", lawful_rows([*probes, *fits]), len(probes) + len(fits))
    tell(
        "a law fitted on whole times, refined",
        refined_rows(_full(lawful_rows([*probes, *fits]), space), [*probes, *fits]),
        len(probes) + len(fits),
    )
    if options.alone in space.resolutions:
        rows += _alone(space.with_resolutions([options.alone]), lab, table)
    write_json(options.out, provenance(space=space.name, rows=rows, machine=table.card["machine"], key=str(runtime.key)))


def line(what: str, error: dict[str, float]) -> str:
    """One row for people."""
    return f"{what:56s} bias {100 * error['bias']:+5.1f} %  MAPE {100 * error['mape']:4.1f} %  tau {error['kendall_tau']:.3f}"


def _probe(blueprint: Blueprint, measured: Measured) -> Probe:
    return Probe(blueprint, measured.timing.p50, measured.timing.p90, measured.timing.n, measured.shares)


def _full(rows: Rows, space: Space) -> Rows:
    return rows | filled_rows(rows, space.layers())


def _unseen(table: LatencyTable, space: Space, nets: int, lab: Lab) -> list[tuple[Blueprint, float]]:
    """The networks of `latency validate`, and what they take."""
    found = next(e for e in job.validate_table(table, space, lab.runtime, nets=nets) if isinstance(e, job.Validation))
    return [(blueprint, ms) for blueprint, ms in zip(found.networks, found.measured_ms, strict=True)]


def _alone(space: Space, lab: Lab, table: LatencyTable) -> list[dict[str, Any]]:
    """Every layer of one input size timed alone; its sums against networks of that size, as they are and corrected by a line."""
    rng = np.random.default_rng(5)
    networks = {str(i): space.blueprint(row) for i, row in enumerate(space.sample(24, rng))}
    real = {name: measured.timing.p50 for name, measured in lab.measure(networks)}
    layers = {str(i): (spec,) for i, spec in enumerate(space.layers())}
    times: dict[str, float] = {}
    names = list(layers)
    for start in range(0, len(names), 8):
        group = {name: partial(lab.runtime.load, layers[name]) for name in names[start : start + 8]}
        times |= {name: m.timing.p50 for name, m in lab.time_now(group, traced=False, rule=ALONE).items()}
        print("alone", start, "of", len(names), flush=True)
    rows: Rows = {(ANY, layers[name][0].shape): Row(ms, ms, 1) for name, ms in times.items()}
    alone = LatencyTable("alone", lab.runtime.key, rows)
    sums = np.array([alone.latency_ms(b) for b in networks.values()])
    measured = np.array([real[name] for name in networks])
    half = len(sums) // 2
    fitted = np.polyfit(sums[:half], measured[:half], 1)
    ours = np.array([table.latency_ms(b) for b in networks.values()])
    size = space.resolutions[0]
    found = []
    for what, predicted, truth in (
        (f"every layer alone, summed, at {size}", sums, measured),
        (f"every layer alone, corrected by a line, at {size}", np.polyval(fitted, sums[half:]), measured[half:]),
        (f"the table, at {size}", ours, measured),
    ):
        error = job.agreement(predicted, truth)
        found.append({"table": what, "layers": len(layers), **error})
        print(line(what, error), flush=True)
    return found


if __name__ == "__main__":
    main()
