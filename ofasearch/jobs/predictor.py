"""Fit and check accuracy predictors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch import zoo
from ofasearch.errors import MismatchError, NotFoundError, UsageError
from ofasearch.jobs.network import parse_codes, space_of
from ofasearch.predictor import Encoder, FitConfig, Pairs, Predictor, check, encoder_of, read_pairs, save_predictor
from ofasearch.predictor.assess import Assessment, FitProgress, assess
from ofasearch.predictor.check import coverage
from ofasearch.records import check_writable, provenance
from ofasearch.space.core import Settings, Space
from ofasearch.space.families import get_space


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRequest:
    """`ofasearch predictor fit`: measured networks of a space, or of a supernet, or a supernet's own measured members."""

    out: Path
    space: str | None = None
    supernet: str | None = None
    pairs: tuple[Path, ...] = ()
    config: FitConfig = field(default_factory=FitConfig)
    notes: tuple[str, ...] = ()  # for the card: where it must not be trusted, say


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """The answer; `record` is the JSON answer and, without the path, the card."""

    record: dict[str, Any]


def fit_predictor(request: FitRequest) -> Iterator[FitProgress | FitResult]:
    """Fit on measured networks and write the predictor with its error on networks it did not see.

    With `supernet` and no pairs: on a random half of its measured members (validation split), judged on the other half.
    Raises UsageError, NotFoundError, FormatError, MismatchError.
    """
    check_writable(request.out)
    space, digest, data, held_out = _measured(request)
    encoder = _encoder(space, data)
    found: Assessment | None = None
    for event in assess(encoder, data, space.name, request.config, digest, held_out=held_out):
        if isinstance(event, Assessment):
            found = event
        else:
            yield event
    assert found is not None  # assess ends with it or raises
    card = _card(request, found)
    save_predictor(request.out, replace(found.predictor, card=card | provenance(seed=request.config.seed, fitted_on=_sources(request))))
    yield FitResult(record={"predictor": str(request.out.absolute()), "space": space.name, **card})


def _measured(request: FitRequest) -> tuple[Space, str | None, Pairs, Pairs | None]:
    """The space, the digest of the weights where they are known, the pairs to fit, and those to judge by where they are apart."""
    if (request.space is None) == (request.supernet is None) or (request.space is not None and not request.pairs):
        raise UsageError("a fit must be given --space with --pairs, --supernet with --pairs, or --supernet alone (its measured members)")
    if request.space is not None:
        space = get_space(request.space)
        pairs = read_pairs(request.pairs, space)
        return space, pairs.supernet_digest, pairs, None
    trained = zoo.load_supernet(str(request.supernet))
    space, digest = trained.weights.space, trained.weights.digest
    if request.pairs:
        pairs = read_pairs(request.pairs, space)
        if pairs.supernet_digest not in (None, digest):
            raise MismatchError(f"the pairs must be measured on the weights of {request.supernet}, but were on others (digests differ)")
        return space, digest, pairs, None
    if trained.members is None:
        raise NotFoundError(
            f"supernet {request.supernet} must come with measured members, but has none; label networks with "
            f"`ofasearch predictor dataset --supernet {request.supernet} --data DIR` and give them by --pairs"
        )
    members = Pairs(space.settings(trained.members.codes), trained.members.top1("validation"))
    order = np.random.default_rng(request.config.seed).permutation(len(members))
    half = len(members) // 2
    return space, digest, members.take(order[:half]), members.take(order[half:])


def _encoder(space: Space, pairs: Pairs) -> Encoder:
    """The encoder of the space at the resolutions that were measured."""
    return encoder_of(space).with_resolutions(tuple(sorted(set(pairs.settings.r.tolist()))))


def _sources(request: FitRequest) -> list[str]:
    return [path.name for path in request.pairs] or [f"measured members of {request.supernet}"]


def _card(request: FitRequest, found: Assessment) -> dict[str, Any]:
    """What is known of the predictor, for JSON."""
    offsets = {name: None if v is None else 100 * v for name, v in zip(found.offsets.files, found.offsets.values, strict=True)}
    return {
        "pairs": found.pairs,
        "networks": found.networks,
        "held_out": asdict(found.held_out),
        "coverage_80": found.coverage,
        "outside_share": found.outside,
        "baselines": {name: asdict(error) for name, error in found.baselines.items()},
        "members": found.predictor.size,
        "activation": found.predictor.activation,
        "weight_decay": found.config.weight_decay,
        **({"learning_curve": asdict(found.curve)} if found.curve is not None else {}),
        **({"label_noise": asdict(found.noise)} if found.noise.std_points is not None else {}),
        **({"offsets_points": offsets} if len(offsets) > 1 else {}),
        **({"notes": list(request.notes)} if request.notes else {}),
    }


def check_predictor(predictor: str, pairs: Sequence[Path]) -> dict[str, Any]:
    """How a predictor's values differ from measured networks."""
    found = zoo.get_predictor(predictor)
    data = read_pairs(pairs, get_space(found.space))
    outside = {"outside_share": float(found.outside(data.settings).mean())} if found.cloud is not None else {}
    inside = {"coverage_80": coverage(found, data)} if found.certainty is not None else {}
    return asdict(check(found, data)) | inside | outside


def predict(predictor: str, subnet: str) -> dict[str, Any]:
    """The predicted top-1 of one subnet; an error bar (half of the 80 % interval) where the predictor carries them."""
    found = zoo.get_predictor(predictor)
    settings = _in_space(found, subnet)
    record: dict[str, Any] = {"predicted_top1": float(found(settings)[0])}
    if found.certainty is not None:
        record["error_bar"] = float(found.with_error(settings)[1][0])
    if found.cloud is not None:
        record["outside"] = bool(found.outside(settings)[0])
    held_out = found.card.get("held_out")
    return record | ({"held_out_rmse": held_out["rmse_points"] / 100} if isinstance(held_out, dict) and "rmse_points" in held_out else {})


def _in_space(found: Predictor, subnet: str) -> Settings:
    """A subnet (an arch id or JSON) of the predictor's space, at any resolution that it knows."""
    named = subnet.partition("@")[0] if "@" in subnet and not subnet.lstrip().startswith("{") else found.space
    space = space_of(subnet, named)
    found.check_space(space)
    unknown = set(found.encoder.resolutions) - set(space.resolutions)
    space = space.with_resolutions([*space.resolutions, *unknown])
    codes = parse_codes(subnet, space)
    if space.resolutions[codes[0] - 1] not in found.encoder.resolutions:
        raise MismatchError(
            f"resolution must be one of {list(found.encoder.resolutions)} for this predictor, but is {space.resolutions[codes[0] - 1]}"
        )
    return space.settings(codes[None])
