"""REG-NAS: the most accurate subnet that breaks least of what a reference gets right, families of such, accuracy's cost in flips."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch.data import SplitName
from ofasearch.evaluate.flips import nfr_matrix
from ofasearch.evaluate.saved import SPLITS, labelled
from ofasearch.jobs.classifier import shipped_images
from ofasearch.jobs.flips import Comparison, write_flips
from ofasearch.jobs.regnas_folder import RUN, opened
from ofasearch.jobs.regnas_hunt import Campaign, Found, as_reference, begin, brief, effort, hunt, labels_of, relation, scores, tested
from ofasearch.jobs.regnas_task import Reference, RegnasRequest
from ofasearch.jobs.searching import FindProgress
from ofasearch.jobs.winner import Delivery, deliver_winner
from ofasearch.ranks import join
from ofasearch.records import append_line, check_writable, provenance, write_atomic, write_json
from ofasearch.report import regnas as report
from ofasearch.search.regnas import Reward


@dataclass(frozen=True, slots=True, kw_only=True)
class RegnasResult:
    """The answer. `record` is the JSON answer; paths in it are absolute."""

    record: dict[str, Any]
    folder: Path


def regnas(request: RegnasRequest) -> Iterator[FindProgress | RegnasResult]:
    """Search, evaluate, prove, export; progress on the way and the result at last.

    Under torchrun the processes share the networks to evaluate, and the first one writes and ends with the result.
    Raises the errors of `find`; UsageError, MismatchError and CalibrationError also for a reference that cannot be compared
    with; InfeasibleError also for a budget below what must be contained, and a cap that no network keeps.
    """
    if request.find.out is not None:
        check_writable(request.find.out / RUN)  # said now, not after long work
    with join() as ranks:
        campaign = yield from begin(request, ranks)
        folder = request.find.out or Path("runs") / f"regnas-{campaign.supernet.weights.space.name}"
        run = _family if campaign.request.family else _sweep if campaign.request.sweep else _one
        with opened(folder, campaign) as asked:
            record = yield from run(campaign, folder)
        if ranks.first:
            write_json(folder / "result.json", record)
            write_json(folder / RUN, asked | {"finished": True})
            append_line(folder / "log.jsonl", provenance(event="regnas", asked=asked["asked"], result=record))
        ranks.wait()
        if ranks.first:
            yield RegnasResult(record=record, folder=folder.absolute())


# -- one network -----------------------------------------------------------------------------------------------


def _one(campaign: Campaign, folder: Path) -> Generator[FindProgress, None, dict[str, Any]]:
    """The answer of one search, with its files and its flips."""
    reference, request = campaign.reference, campaign.request
    assert reference is not None  # or there is a family
    found = yield from hunt(campaign, request.reward, [reference])
    return (yield from _delivered(campaign, found, folder, reference)).record if campaign.ranks.first else {}


def _delivered(campaign: Campaign, found: Found, folder: Path, reference: Reference | None) -> Generator[FindProgress, None, Delivery]:
    """Files and answer of a winner, and what flips against a reference."""
    old = reference.predicted if reference is not None else None
    validation = scores(found.validation, labels_of(campaign, "validation"), old["validation"] if old is not None else None)
    more = told(campaign, found, reference) | effort(found) | {"validation": validation}
    delivery = yield from deliver_winner(found.request, found.setup, found.outcome, campaign.whole, folder, more)
    record = delivery.record
    record["measured"] = {k: v for k, v in record["measured"].items() if not k.startswith("validation")}  # that stands in `validation`
    record["candidates"] = _candidates(record["candidates"], found)
    if reference is not None and delivery.tested is not None:
        comparison = Comparison(
            old_name=reference.name,
            new_name=record["arch_id"],
            old=reference.predicted["test"].astype(np.int64),
            new=delivery.tested.astype(np.int64),
            images=labelled(campaign.data, "test") if campaign.data is not None else shipped_images(campaign.supernet, "test"),
            source=record["measured"]["source"],
        )
        record["measured"] |= scores(comparison.new, comparison.images.labels, comparison.old)
        record["files"] |= write_flips(folder, comparison, campaign.data["test"] if campaign.data is not None else None)
    worth = _worth(found, record) if reference is not None and found.aim.references else []
    record["notes"] = list(dict.fromkeys([*campaign.notes, *worth, *record["notes"]]))
    return delivery


def _worth(found: Found, record: Mapping[str, Any]) -> list[str]:
    """A note where the reference itself, which flips nothing, has a better reward than all that was found."""
    reward = found.aim.reward
    if len(found.aim.references) > 1:
        return []  # the others are flipped by it
    kept = float(reward.of(np.array([[record["validation"]["top1_ref"], 0.0]]))[0])
    best = float(reward.of(found.measured[:1])[0])
    if best >= kept or reward.kind == "r1":  # by flips alone nothing is ever better
        return []
    if reward.kind == "r0":
        return ["no network that was found is more accurate than the reference on the validation split; search with a larger budget"]
    return [
        f"keeping the reference would have the reward {kept:.4f}, more than the {best:.4f} of the best network found: "
        "what it gains does not outweigh what it breaks; lower --lambda2, or search with a larger budget"
    ]


def told(campaign: Campaign, found: Found, reference: Reference | None) -> dict[str, Any]:
    """What was asked of a winner: its reward, its reference, what it had to contain."""
    reward = found.aim.reward
    record: dict[str, Any] = {"reward": reward.kind, "cas": bool(found.aim.contained)}
    if reward.kind == "r2":
        record |= {"lambda1": reward.lambda1, "lambda2": reward.lambda2}
    if reward.nfr_cap is not None:
        record["nfr_cap"] = reward.nfr_cap
    if reference is not None:
        record |= {"reference": reference.to_json(), **relation(campaign, found, reference)}
    record["reward_value"] = float(reward.of(found.measured[:1])[0])
    return record


def _candidates(records: Sequence[dict[str, Any]], found: Found) -> list[dict[str, Any]]:
    """The candidates with their rewards and flip rates (the mean over references) on the validation split."""
    values = found.aim.reward.of(found.measured)
    return [
        record | ({"nfr": float(row[1:].mean())} if len(row) > 1 else {}) | {"reward_value": float(value)}
        for record, row, value in zip(records, found.measured, values, strict=True)
    ]


# -- families --------------------------------------------------------------------------------------------------


def _family(campaign: Campaign, folder: Path) -> Generator[FindProgress, None, dict[str, Any]]:
    """Networks for several budgets, small to large, each rewarded against all smaller ones and containing them.

    Beside them the same budgets searched by accuracy alone. Each network's folder tells what flips against the next smaller one.
    Reference: REG-NAS, supplement, section D. Inferred: the mean of the rates against all smaller ones is the penalty, and the
    smallest network, where none is given, is found by accuracy (as the reference of table 2 is).
    """
    request = campaign.request
    base = [campaign.reference] if campaign.reference is not None else []
    family: list[tuple[Found, Reference]] = []
    plain: list[tuple[Found, Reference]] = []
    for number, limit in enumerate(request.family, start=1):
        name, smaller = f"A{number}", [*base, *(member for _, member in family)]
        yield FindProgress(phase=f"network {number} of {len(request.family)}", done=number - 1, total=len(request.family))
        found = yield from hunt(campaign, request.reward if smaller else Reward(kind="r0"), smaller, macs=limit)
        by_accuracy = (yield from hunt(campaign, Reward(kind="r0"), [], macs=limit)) if smaller else found
        family.append((found, as_reference(found, name)))
        plain.append((by_accuracy, as_reference(by_accuracy, name)))
    if not campaign.ranks.first:
        return {}
    networks, members = [], list(base)
    for (found, member), limit in zip(family, request.family, strict=True):  # written when all were found
        delivery = yield from _delivered(campaign, found, folder / member.name, members[-1] if members else None)
        write_json(folder / member.name / "result.json", delivery.record)
        members.append(member.tested_as(delivery.tested if delivery.tested is not None else tested(campaign, found)))
        networks.append(_budgeted(campaign, found, limit) | {"files": delivery.record["files"]})
    others = [_budgeted(campaign, found, limit) for (found, _), limit in zip(plain, request.family, strict=True)]
    answer = _side(campaign, networks, members[len(base) :])
    answer["plain"] = _side(campaign, others, [member.tested_as(tested(campaign, found)) for found, member in plain])
    answer |= _shared(campaign) | {"reward": request.reward.kind, "cas": campaign.contained}
    if request.reward.kind == "r2":
        answer |= {"lambda1": request.reward.lambda1, "lambda2": request.reward.lambda2}
    return answer | {"files": _plots(folder, "family", report.family_plot, answer)}


def _budgeted(campaign: Campaign, found: Found, limit: float) -> dict[str, Any]:
    """One network of a family."""
    return brief(campaign, found, campaign.reference) | {"budget_macs": limit, "reward": found.aim.reward.kind}


def _side(campaign: Campaign, networks: Sequence[dict[str, Any]], members: Sequence[Reference]) -> dict[str, Any]:
    """A family with its scores, and the flip rates between its networks, on both splits."""
    matrices = {}
    for split in SPLITS:
        labels, rows = labels_of(campaign, split), [member.predicted[split] for member in members]
        for network, row in zip(networks, rows, strict=True):
            network[split] = scores(row, labels, None)
        matrices[split] = nfr_matrix(rows, labels).tolist()
    return {"family": list(networks), "nfr_matrix": matrices}


def _plots(folder: Path, name: str, plot: Callable[[Mapping[str, Any], str], bytes], record: Mapping[str, Any]) -> dict[str, str]:
    """One picture per split; their paths by name."""
    files = {split: folder / f"{name}-{split}.png" for split in report.splits(record)}
    for split, file in files.items():
        write_atomic(file, plot(record, split))
    return {f"plot_{split}": str(file.absolute()) for split, file in files.items()}


def _shared(campaign: Campaign) -> dict[str, Any]:
    """What families and sweeps rest on."""
    record: dict[str, Any] = {
        "space": campaign.supernet.weights.space.name,
        "supernet": campaign.supernet.name,
        "source": "live" if campaign.data is not None else "shipped",
        "seed": campaign.request.find.seed,
        "notes": list(campaign.notes),
    }
    if campaign.request.reward.nfr_cap is not None:
        record["nfr_cap"] = campaign.request.reward.nfr_cap
    if campaign.reference is None:
        return record
    split_scores = {split: scores(predicted, labels_of(campaign, split), None) for split, predicted in campaign.reference.predicted.items()}
    return record | {"reference": campaign.reference.to_json() | split_scores}


# -- what accuracy costs in flips ------------------------------------------------------------------------------


def _sweep(campaign: Campaign, folder: Path) -> Generator[FindProgress, None, dict[str, Any]]:
    """One search per ratio of lambda2 to lambda1. Reference: REG-NAS, supplement, section B and table 1."""
    request, reference = campaign.request, campaign.reference
    assert reference is not None  # or there is a family
    swept: list[dict[str, Any]] = []
    for number, ratio in enumerate(request.sweep):
        yield FindProgress(phase=f"lambda2 / lambda1 = {ratio:g}", done=number, total=len(request.sweep))
        found = yield from hunt(campaign, replace(request.reward, lambda1=1.0, lambda2=ratio), [reference])
        network = {"ratio": ratio, "lambda1": 1.0, "lambda2": ratio, **brief(campaign, found, reference)}
        former = next((row for row in swept if row["arch_id"] == network["arch_id"]), {})
        for split in SPLITS if campaign.ranks.first else ():
            network[split] = former.get(split) or _flipped(campaign, found, reference, split)
        swept.append(network)
    if not campaign.ranks.first:
        return {}
    record = {"sweep": swept, "cas": campaign.contained, **_shared(campaign)}
    return record | {"files": _plots(folder, "sweep", report.sweep_plot, record)}


def _flipped(campaign: Campaign, found: Found, reference: Reference, split: SplitName) -> dict[str, float]:
    """Top-1 and flips of a winner on a split."""
    predicted = found.validation if split == "validation" else tested(campaign, found)
    return scores(predicted, labels_of(campaign, split), reference.predicted[split])
