"""The JSON answer of a search: the winner, what was believed of it, and the candidates it won against."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ofasearch.jobs.choose import Candidate, Outcome
from ofasearch.jobs.deliver import settings_json
from ofasearch.jobs.direct import DirectCost
from ofasearch.jobs.searching import FindRequest
from ofasearch.jobs.setup import Device, Setup
from ofasearch.latency.stopwatch import timing_json
from ofasearch.space.core import Blueprint
from ofasearch.space.costs import costs


def answer_record(request: FindRequest, setup: Setup, outcome: Outcome) -> dict[str, Any]:
    """All that is known of the winner before it is exported; `candidates` are in the order of the choice."""
    codes, winner = outcome.codes[0], outcome.candidates[0]
    blueprint = setup.space.blueprint(codes)
    price = costs(blueprint)
    record: dict[str, Any] = {
        "arch": settings_json(setup.space, codes),
        "arch_id": winner.arch_id,
        "space": setup.space.name,
        "predicted_top1": winner.predicted_top1,
        "predicted_top1_source": setup.judge.source,
        **({"error_bar": winner.error_bar} if winner.error_bar is not None else {}),
        "objective": request.question.objective,
        "algorithm": request.algorithm,
        "macs": price.macs,
        "params": price.params,
        "activation_bytes": price.activation_bytes,
        "evaluations": outcome.tally.evaluations,
        "search_seconds": outcome.tally.seconds,
        "seed": request.seed,
    }
    devices = [_device_record(device, ms, blueprint, winner) for device, ms in zip(setup.devices, winner.latencies_ms, strict=True)]
    if devices:  # what is asked of the first stands at the top as well
        first = {
            key: devices[0][key] for key in ("latency_ms", "latency_source", "target", "device", "latency_validation") if key in devices[0]
        }
        record |= first | {"devices": devices}
    direct = next((device.latency for device in setup.devices if isinstance(device.latency, DirectCost)), None)
    if direct is not None:
        record |= {"measure": "direct", "networks_measured": direct.networks, "measuring_seconds": direct.seconds}
    if setup.supernet is not None:
        record |= {"supernet": setup.supernet.name, "preprocessing": setup.supernet.weights.preprocessing.to_json()}
    record["candidates"] = [_candidate_record(setup, candidate) for candidate in outcome.candidates]
    return record


def _device_record(device: Device, latency_ms: float, blueprint: Blueprint, winner: Candidate) -> dict[str, Any]:
    """The winner on one device."""
    record: dict[str, Any] = {"target": device.name, "latency_ms": latency_ms, "latency_source": device.source_of(blueprint)}
    if device.budget is not None:
        record["limit_ms"] = device.budget.limit
    if device.table is not None:
        validation = device.table.card.get("validation")
        record |= {"device": asdict(device.table.key)} | ({"latency_validation": validation} if validation else {})
    elif isinstance(device.latency, DirectCost):
        record["device"] = asdict(device.latency.lab.runtime.key)
    if device.here and winner.measured is not None:
        record |= {"measured": timing_json(winner.measured), "accepted": winner.accepted}
    return record


def _candidate_record(setup: Setup, c: Candidate) -> dict[str, Any]:
    several = len(setup.devices) > 1
    return {
        "arch_id": c.arch_id,
        "predicted_top1": c.predicted_top1,
        **({"error_bar": c.error_bar} if c.error_bar is not None else {}),
        **({"validation_top1": c.validation_top1} if c.validation_top1 is not None else {}),
        **({"latency_ms": c.latency_ms} if c.latency_ms is not None else {}),
        **({"devices": {d.name: ms for d, ms in zip(setup.devices, c.latencies_ms, strict=True)}} if several else {}),
        **({"measured": timing_json(c.measured), "accepted": c.accepted} if c.measured else {}),
    }
