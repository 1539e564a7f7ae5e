"""The jobs as plain functions: keywords in, the JSON answer out. `ofasearch.find` and its siblings.

Two names are longer than their commands, because `ofasearch.train` and `ofasearch.evaluate` are rooms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from ofasearch.data import SplitName
from ofasearch.jobs.bench import bench
from ofasearch.jobs.export import export
from ofasearch.jobs.find import FindRequest, FindResult
from ofasearch.jobs.find import find as find_events
from ofasearch.jobs.inspect import inspect
from ofasearch.jobs.setup import Budgets, DeviceBudget, Question
from ofasearch.jobs.subnet import evaluate as evaluate_subnet

T = TypeVar("T")


def last(events: Iterator[Any], kind: type[T]) -> T:
    """The result that ends a job's events."""
    result = None
    for event in events:
        result = event
    if not isinstance(result, kind):
        raise TypeError(f"a job must end with {kind.__name__}, but ended with {type(result).__name__}")
    return result


def _question(given: Mapping[str, Any], **more: Any) -> Question:
    """What is searched, from the keywords of a function."""
    also = tuple(DeviceBudget(target=name, latency_ms=limit) for name, limit in (given.get("also") or {}).items())
    budgets = Budgets(**{f.name: given[f.name] for f in fields(Budgets)})
    shared = {f.name: given[f.name] for f in fields(Question) if f.name in given and f.name not in ("also", *more)}
    return Question(budgets=budgets, also=also, **shared, **more)


def _request(kind: Callable[..., T], question: Question, given: Mapping[str, Any]) -> T:
    """A request for a search, from the keywords of a function."""
    shared = {f.name: given[f.name] for f in fields(kind) if f.name in given}  # type: ignore[arg-type]
    return kind(question=question, **shared | {"out": Path(given["out"]) if given["out"] is not None else None})


def find(
    *,
    target: str | None = None,
    latency_ms: float | None = None,
    also: Mapping[str, float] | None = None,
    macs: float | None = None,
    params: float | None = None,
    memory_bytes: float | None = None,
    space: str | None = None,
    supernet: str | None = None,
    predictor: str | None = None,
    objective: str = "top1",
    data: str | None = None,
    images: int | None = None,
    calibration_images: int | None = None,
    resolutions: tuple[int, ...] | None = None,
    runtime: str = "ort",
    precision: str = "fp32",
    batch: int = 1,
    threads: int = 1,
    measure: str = "table",
    algorithm: str | None = None,
    population: int | None = None,
    generations: int | None = None,
    seed: int = 0,
    top_k: int = 5,
    out: str | Path | None = None,
    no_bn: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """Search the best subnet within the budgets, check it, export it; the fields of `ofasearch find --json`.

    `also` are further targets with their limits in ms, such as {"note10/": 20.0}; all hold together.
    Raises the errors of `ofasearch.errors`.
    """
    given = locals()
    request = _request(FindRequest, _question(given, objective=objective), given)
    return last(find_events(request), FindResult).record


def regnas(
    *,
    ref: str | Path | None = None,
    reward: str = "r2",
    lambda1: float = 1.0,
    lambda2: float = 1.0,
    nfr_cap: float | None = None,
    cas: bool | None = None,
    family: tuple[float, ...] = (),
    sweep: tuple[float, ...] = (),
    target: str | None = None,
    latency_ms: float | None = None,
    also: Mapping[str, float] | None = None,
    macs: float | None = None,
    params: float | None = None,
    memory_bytes: float | None = None,
    space: str | None = None,
    supernet: str | None = None,
    predictor: str | None = None,
    data: str | None = None,
    images: int | None = None,
    calibration_images: int | None = None,
    resolutions: tuple[int, ...] | None = None,
    runtime: str = "ort",
    precision: str = "fp32",
    batch: int = 1,
    threads: int = 1,
    measure: str = "table",
    algorithm: str | None = None,
    population: int | None = None,
    generations: int | None = None,
    seed: int = 0,
    top_k: int = 5,
    out: str | Path | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Search the best subnet that keeps what a reference gets right; the fields of `ofasearch regnas --json`.

    `nfr_cap` is a fraction, `family` are MACs, `sweep` ratios of lambda2 to lambda1.
    Raises the errors of `ofasearch.errors`.
    """
    given = locals()
    from ofasearch.jobs.regnas import RegnasResult
    from ofasearch.jobs.regnas import regnas as regnas_events
    from ofasearch.jobs.regnas_task import RegnasRequest
    from ofasearch.search.regnas import Reward

    request = RegnasRequest(
        find=_request(FindRequest, _question(given, objective="measured"), given),
        ref=str(ref) if ref is not None else None,
        reward=Reward(kind=reward, lambda1=lambda1, lambda2=lambda2, nfr_cap=nfr_cap),
        cas=cas,
        family=family,
        sweep=sweep,
    )
    return last(regnas_events(request), RegnasResult).record


def pareto(
    *,
    target: str | None = None,
    objectives: tuple[str, ...] | None = None,
    prefer: str | None = None,
    latency_ms: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    memory_bytes: float | None = None,
    space: str | None = None,
    supernet: str | None = None,
    predictor: str | None = None,
    resolutions: tuple[int, ...] | None = None,
    runtime: str = "ort",
    precision: str = "fp32",
    batch: int = 1,
    threads: int = 1,
    measure: str = "table",
    algorithm: str | None = None,
    compare: bool = False,
    population: int | None = None,
    generations: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """The front of accuracy and costs, exact where the space can be listed; the fields of `ofasearch pareto --json`.

    Raises the errors of `ofasearch.errors`.
    """
    given = locals()
    from ofasearch.jobs.pareto import ParetoRequest, ParetoResult
    from ofasearch.jobs.pareto import pareto as pareto_events

    request = _request(ParetoRequest, _question(given), given)
    return last(pareto_events(request), ParetoResult).record


def replay(run: str | Path) -> dict[str, Any]:
    """Repeat a search from its folder without measuring; the fields of `ofasearch replay --json`."""
    from ofasearch.jobs.replay import ReplayResult
    from ofasearch.jobs.replay import replay as replay_events

    return last(replay_events(Path(run)), ReplayResult).record


def train_supernet(
    *,
    space: str,
    data: str,
    out: str | Path,
    strategy: str = "deps",
    options: dict[str, Any] | None = None,
    resolutions: tuple[int, ...] | None = None,
    init: str | Path | None = None,
    teacher: str | None = None,
    resume: bool = False,
    device: str | None = None,
    **config: Any,
) -> dict[str, Any]:
    """Train a supernet; `config` are the fields of `ofasearch.train.loop.TrainConfig` (`epochs` at least).

    What belongs to the method (`Strategy.recipe`) holds where `config` says nothing of it.
    """
    from ofasearch.jobs.train import TrainRequest, TrainResult
    from ofasearch.jobs.train import train as train_events
    from ofasearch.train.loop import TrainConfig
    from ofasearch.train.strategies import STRATEGIES

    recipe = dict(STRATEGIES[strategy]().recipe) if strategy in STRATEGIES else {}
    request = TrainRequest(
        space=space,
        data=data,
        out=Path(out),
        strategy=strategy,
        options=options or {},
        config=TrainConfig(**recipe | config),
        resolutions=resolutions,
        init=Path(init) if init is not None else None,
        teacher=teacher,
        resume=resume,
        device=device,
    )
    result = asdict(last(train_events(request), TrainResult))
    return {name: value for name, value in result.items() if value is not None} | {"supernet": str(result["supernet"])}


def finetune(
    subnet: str | Path,
    *,
    data: str,
    out: str | Path,
    epochs: int = 25,
    supernet: str | None = None,
    teacher: str | None = None,
    focal: float = 0.0,
    ref: str | None = None,
    resume: bool = False,
    evaluate_every: int = 1,
    device: str | None = None,
    **config: Any,
) -> dict[str, Any]:
    """Train a subnet for a few epochs more; the fields of `ofasearch finetune --json`.

    `config` are fields of `ofasearch.train.loop.TrainConfig`; the rate is `ofasearch.jobs.finetune.RATE` where it says none.
    """
    from ofasearch.jobs.finetune import RATE, FinetuneRequest, FinetuneResult
    from ofasearch.jobs.finetune import finetune as finetune_events
    from ofasearch.train.loop import TrainConfig

    request = FinetuneRequest(
        subnet=str(subnet),
        data=data,
        out=Path(out),
        config=TrainConfig(**{"lr": RATE, "warmup_epochs": 0.0} | config, epochs=epochs),
        supernet=supernet,
        teacher=teacher,
        focal=focal,
        ref=ref,
        resume=resume,
        evaluate_every=evaluate_every,
        device=device,
    )
    return last(finetune_events(request), FinetuneResult).record


def bn_check(
    subnet: str | Path,
    *,
    data: str,
    supernet: str | None = None,
    images: int = 2000,
    draws: int = 5,
    tolerance: float = 0.001,
    seed: int = 0,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """How many images batch norm needs; the fields of `ofasearch bn-check --json`. `tolerance` is a fraction."""
    from ofasearch.jobs.bn_check import BnCheckRequest, BnCheckResult
    from ofasearch.jobs.bn_check import bn_check as bn_check_events

    request = BnCheckRequest(
        subnet=str(subnet),
        data=data,
        supernet=supernet,
        images=images,
        draws=draws,
        tolerance=tolerance,
        seed=seed,
        out=Path(out) if out is not None else None,
    )
    return last(bn_check_events(request), BnCheckResult).record


def explain(
    subnet: str, *, target: str | None = None, space: str | None = None, batch: int | None = None, threads: int | None = None
) -> dict[str, Any]:
    """Where the milliseconds and MACs of a network go; the fields of `ofasearch explain --json`."""
    from ofasearch.jobs.explain import ExplainRequest, ExplainResult, Pricing
    from ofasearch.jobs.explain import explain as explain_events

    pricing = Pricing(target=target, space=space, batch=batch, threads=threads)
    return last(explain_events(ExplainRequest(subnet=subnet, pricing=pricing)), ExplainResult).record


def diff(
    a: str, b: str, *, target: str | None = None, space: str | None = None, batch: int | None = None, threads: int | None = None
) -> dict[str, Any]:
    """What leads from network A to network B; the fields of `ofasearch diff --json`."""
    from ofasearch.jobs.explain import DiffRequest, DiffResult, Pricing
    from ofasearch.jobs.explain import diff as diff_events

    pricing = Pricing(target=target, space=space, batch=batch, threads=threads)
    return last(diff_events(DiffRequest(a=a, b=b, pricing=pricing)), DiffResult).record


def flips(
    old: str,
    new: str,
    *more: str,
    data: str | None = None,
    split: SplitName = "test",
    supernet: str | None = None,
    preprocessing: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """What `new` gets wrong that `old` got right; the fields of `ofasearch flips --json`."""
    from ofasearch.jobs.flips import FlipsRequest, FlipsResult
    from ofasearch.jobs.flips import flips as flips_events

    request = FlipsRequest(
        networks=(old, new, *more),
        data=data,
        split=split,
        supernet=supernet,
        preprocessing=preprocessing,
        out=Path(out) if out is not None else None,
        seed=seed,
    )
    return last(flips_events(request), FlipsResult).record


def quantize(
    model: str | Path,
    *,
    out: str | Path,
    data: str,
    supernet: str | None = None,
    preprocessing: str | None = None,
    per_channel: bool | None = None,
    floating: tuple[str, ...] | None = None,
    method: str = "minmax",
    reduce_range: bool = False,
    calibration_images: int = 500,
    images: int | None = None,
    timed: bool = True,
    batch: int | None = None,
    threads: int = 1,
    seconds: float = 2.0,
) -> dict[str, Any]:
    """Write a network in int8 and say what it costs; the fields of `ofasearch quantize --json`.

    `floating` are the parts that stay in float (`ends`, `gates`, `activations`); None: those that help.
    Raises the errors of `ofasearch.errors`.
    """
    given = locals()
    from ofasearch.jobs.quantize import QuantizeRequest, QuantizeResult
    from ofasearch.jobs.quantize import quantize as quantize_events

    request = QuantizeRequest(**given | {"model": str(model), "out": Path(out)})
    return last(quantize_events(request), QuantizeResult).record


__all__ = [
    "bench",
    "bn_check",
    "diff",
    "evaluate_subnet",
    "explain",
    "export",
    "find",
    "finetune",
    "flips",
    "inspect",
    "last",
    "pareto",
    "quantize",
    "regnas",
    "replay",
    "train_supernet",
]
