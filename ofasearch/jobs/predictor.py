"""Fit and check accuracy predictors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch import zoo
from ofasearch.errors import MismatchError, NotFoundError
from ofasearch.jobs.network import parse_codes, space_of
from ofasearch.predictor import FitConfig, Pairs, Predictor, check, encoder_of, fit, read_pairs, save_predictor
from ofasearch.records import provenance
from ofasearch.space.families import get_space

HELD_OUT = 0.2  # of the pairs; the stated error is that of a fit that did not see them


def fit_predictor(*, space: str, pairs: Sequence[Path], out: Path, seed: int = 0) -> dict[str, Any]:
    """Fit on measured networks and write the predictor with its error on held-out pairs.

    The error is stated by a first fit on 80 % of the pairs; the written predictor is fitted on all.
    """
    found = get_space(space)
    data = read_pairs(pairs, found)
    encoder = encoder_of(found).with_resolutions(tuple(sorted(set(data.settings.r.tolist()))))
    order = np.random.default_rng(seed).permutation(len(data))
    cut = round(HELD_OUT * len(data))
    config = FitConfig(seed=seed)
    error = check(fit(encoder, data.take(order[cut:]), space, config), data.take(order[:cut]))
    predictor = fit(encoder, data, space, config)
    return _write(out, predictor, {"pairs": len(data), "held_out": asdict(error), **provenance(seed=seed, files=[p.name for p in pairs])})


def fit_members(*, supernet: str, out: Path, seed: int = 0) -> dict[str, Any]:
    """Fit on a random half of a supernet's measured members (validation split); the error is that on the other half.

    Raises NotFoundError when the supernet comes without measured members.
    """
    trained = zoo.load_supernet(supernet)
    if trained.members is None:
        raise NotFoundError(f"supernet {supernet} must come with measured members, but has none; run `ofasearch supernet evaluate` first")
    space = trained.weights.space
    data = Pairs(space.settings(trained.members.codes), trained.members.top1("validation"))
    order = np.random.default_rng(seed).permutation(len(data))
    half = len(data) // 2
    predictor = fit(encoder_of(space), data.take(order[:half]), space.name, FitConfig(seed=seed), trained.weights.digest)
    error = check(predictor, data.take(order[half:]))
    return _write(out, predictor, {"pairs": half, "held_out": asdict(error), **provenance(seed=seed, supernet=trained.name)})


def _write(out: Path, predictor: Predictor, card: dict[str, Any]) -> dict[str, Any]:
    save_predictor(out, replace(predictor, card=card))
    return {"predictor": str(out.absolute()), "space": predictor.space, "pairs": card["pairs"], "held_out": card["held_out"]}


def check_predictor(predictor: str, pairs: Sequence[Path]) -> dict[str, Any]:
    """How a predictor's values differ from measured networks."""
    found = zoo.get_predictor(predictor)
    return asdict(check(found, read_pairs(pairs, get_space(found.space))))


def predict(predictor: str, subnet: str) -> dict[str, Any]:
    """The predicted top-1 of one subnet; no error bar is given where the predictor carries none."""
    found = zoo.get_predictor(predictor)
    named = subnet.partition("@")[0]
    space = space_of(subnet, found.space if subnet.lstrip().startswith("{") else named)
    found.check_space(space)
    unknown = set(found.encoder.resolutions) - set(space.resolutions)
    space = space.with_resolutions([*space.resolutions, *unknown])
    codes = parse_codes(subnet, space)
    if space.resolutions[codes[0] - 1] not in found.encoder.resolutions:
        raise MismatchError(
            f"resolution must be one of {list(found.encoder.resolutions)} for this predictor, but is {space.resolutions[codes[0] - 1]}"
        )
    record: dict[str, Any] = {"predicted_top1": float(found(space.settings(codes[None]))[0])}
    held_out = found.card.get("held_out")
    return record | ({"held_out_rmse": held_out["rmse_points"] / 100} if isinstance(held_out, dict) and "rmse_points" in held_out else {})
