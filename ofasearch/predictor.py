"""The accuracy predictor: the 3-layer MLP over one-hot settings, in numpy; torch only to fit it.

Legend: n = networks, f = features. Accuracies are top-1 fractions.

Reference: once-for-all, section 3.4 and Appendix A (three hidden layers of 400; one-hot kernels and expand ratios,
zeros for skipped blocks, one-hot resolution). The tutorial's file is the same network without the paper's offset.
"""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from ofasearch.errors import FormatError, MismatchError, NotFoundError, UsageError
from ofasearch.records import write_atomic
from ofasearch.space.core import Settings, Space, Values
from ofasearch.supernet.weights import read_safetensors

if TYPE_CHECKING:
    from torch import Tensor, nn

Matrix = npt.NDArray[np.float32]
FORMAT = "ofasearch-predictor-1"
HIDDEN = 400
VALUE_LIMIT = 10_000  # of a kernel, expand ratio, resolution or number of blocks; larger ones are no network
CHOICE_LIMIT = 1_000  # kernels, expand ratios or resolutions that one encoder tells apart
FINITE = 1e30  # what no feature of any layer may reach
PAIRS_LIMIT = 256 * 2**20  # bytes of one pairs file
TUTORIAL_SPACE = "ofa-mbv3-w1.2"  # what the published acc_predictor.pth was trained for


@dataclass(frozen=True, slots=True)
class Encoder:
    """One-hot settings (n, f): kernels of all blocks, then expand ratios, then the resolution; zeros for skipped blocks."""

    kernels: tuple[int, ...]
    expands: tuple[int, ...]
    resolutions: tuple[int, ...]
    blocks: int

    @property
    def dims(self) -> int:
        """Number of features f."""
        return self.blocks * (len(self.kernels) + len(self.expands)) + len(self.resolutions)

    def encode(self, settings: Settings) -> Matrix:
        """Features (n, f).

        Raises MismatchError when a kernel, expand ratio or resolution is unknown to this encoder.
        """
        parts = []
        for name, values, known in (("ks", settings.ks, self.kernels), ("e", settings.e, self.expands)):
            rows = _one_hot_rows(known)
            valid = values.shape[1] == self.blocks and values.min(initial=0) >= 0 and values.max(initial=0) < len(rows)
            hot = rows[values] if valid else rows[:1]
            if not valid or np.isnan(hot[..., 0]).any():
                raise MismatchError(
                    f"{name} must hold {self.blocks} values of {list(known)} (or 0) for this predictor; use one of the space"
                )
            parts.append(hot.reshape(len(values), -1))
        resolution = settings.r[:, None] == np.array(self.resolutions)[None]
        if not resolution.any(axis=1).all():
            odd = settings.r[~resolution.any(axis=1)][0]
            raise MismatchError(
                f"resolution must be one of {list(self.resolutions)} for this predictor, but got {odd}; narrow --resolutions"
            )
        return np.concatenate([*parts, resolution.astype(np.float32)], axis=1)


@cache
def _one_hot_rows(known: tuple[int, ...]) -> Matrix:
    """Row v is the one-hot code of the value v: zeros for the 0 of a skipped block, NaN for any other value."""
    rows = np.full((max(known) + 1, len(known)), np.nan, dtype=np.float32)
    rows[0] = 0
    rows[list(known)] = np.eye(len(known), dtype=np.float32)
    return rows


def encoder_of(space: Space) -> Encoder:
    """The encoder that knows all that the space can hold."""
    return Encoder(space.kernels, space.expands, space.resolutions, space.blocks)


TUTORIAL_ENCODER = Encoder((3, 5, 7), (3, 4, 6), tuple(range(112, 225, 16)), 20)


@dataclass(frozen=True, slots=True)
class Predictor:
    """Top-1 of networks from their settings. `weights` are (inputs, outputs) matrices, `offset` the mean accuracy.

    `space` is the space it was made for; it serves that space and those that lift into it. `supernet_digest` ties it
    to the weights whose accuracy it predicts, where they are known.
    """

    encoder: Encoder
    weights: tuple[Matrix, ...]
    biases: tuple[Matrix, ...]
    offset: float
    space: str
    supernet_digest: str | None = None
    card: dict[str, Any] = field(default_factory=dict)

    def __call__(self, settings: Settings) -> Values:
        """Predicted top-1 (n,), a fraction."""
        x = self.encoder.encode(settings)  # (n, f)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = x @ weight
            x += bias
            np.maximum(x, 0, out=x)  # (n, 400)
        return (x @ self.weights[-1] + self.biases[-1])[:, 0].astype(np.float64) + self.offset

    def check_space(self, space: Space) -> None:
        """Raise MismatchError unless this predictor speaks of networks of `space`."""
        if self.space not in (space.name, space.parent):
            raise MismatchError(
                f"the predictor must be made for {space.name}, but was made for {self.space}; fit one with `ofasearch predictor fit`"
            )

    def check_supernet(self, digest: str) -> None:
        """Raise MismatchError when the predictor was fitted on accuracies of other weights."""
        if self.supernet_digest is not None and self.supernet_digest != digest:
            raise MismatchError("the predictor must belong to the supernet's weights, but was fitted on others (digests differ)")


# -- files -----------------------------------------------------------------------------------------------------


def save_predictor(path: Path, predictor: Predictor) -> None:
    """Write one safetensors file with its card, atomically."""
    arrays = {
        f"{i}.{part}": a
        for i, pair in enumerate(zip(predictor.weights, predictor.biases, strict=True))
        for part, a in zip("wb", pair, strict=True)
    }
    card = {
        "format": FORMAT,
        "encoder": asdict(predictor.encoder),
        "offset": predictor.offset,
        "space": predictor.space,
        "supernet_digest": predictor.supernet_digest,
        "card": predictor.card,
    }
    write_atomic(path, save({k: np.ascontiguousarray(a) for k, a in arrays.items()}, metadata={"ofasearch": json.dumps(card)}))


def load_predictor(path: Path) -> Predictor:
    """Read our predictor file, or the once-for-all tutorial's `acc_predictor.pth`.

    Raises NotFoundError, FormatError.
    """
    if path.suffix in (".pth", ".pt"):
        return _load_tutorial(path)
    arrays, card = read_safetensors(path, FORMAT)
    try:
        known = card["encoder"]
        kernels, expands, resolutions = (tuple(int(v) for v in known[key]) for key in ("kernels", "expands", "resolutions"))
        encoder = Encoder(kernels, expands, resolutions, int(known["blocks"]))
        count = len(arrays) // 2
        weights, biases = (tuple(arrays[f"{i}.{part}"] for i in range(count)) for part in "wb")
        digest = card["supernet_digest"]
        _ = {name: float(value) for name, value in dict(card["card"].get("held_out") or {}).items()}  # told to users as numbers
        predictor = Predictor(encoder, weights, biases, float(card["offset"]), str(card["space"]), digest, dict(card["card"]))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise FormatError(f"{path} must be a predictor of ofasearch, but its card or arrays are incomplete: {error}") from error
    return _checked(path, predictor)


def _load_tutorial(path: Path) -> Predictor:
    from ofasearch.supernet.torchfile import load_plain

    what = "the once-for-all tutorial's predictor (a plain state_dict)"
    state = load_plain(path, what)
    try:
        tensors = {key: np.asarray(state[key], dtype=np.float32) for i in (0, 2, 4, 6) for key in (f"{i}.weight", f"{i}.bias")}
    except KeyError as error:
        raise FormatError(f"{path} must be {what}, but it cannot be read: it lacks {error}") from error
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise FormatError(f"{path} must be {what}, but it cannot be read: its entries are no plain tensors") from error
    weights = tuple(np.ascontiguousarray(tensors[f"{i}.weight"].T) for i in (0, 2, 4, 6))
    biases = tuple(tensors[f"{i}.bias"] for i in (0, 2, 4, 6))
    return _checked(path, Predictor(TUTORIAL_ENCODER, weights, biases, 0.0, TUTORIAL_SPACE))


def _checked(path: Path, predictor: Predictor) -> Predictor:
    if not all(np.isfinite(array).all() for array in (*predictor.weights, *predictor.biases, np.array(predictor.offset))):
        raise FormatError(f"{path} must hold finite numbers, but has NaN or infinity")
    encoder = predictor.encoder
    values = (*encoder.kernels, *encoder.expands, *encoder.resolutions)
    if not (values and min(values) > 0 and max(values) <= VALUE_LIMIT and 0 < encoder.blocks <= VALUE_LIMIT and abs(predictor.offset) <= 1):
        raise FormatError(f"{path} must encode values of 1..{VALUE_LIMIT} and have an offset of at most 1, but it does not")
    choices = (encoder.kernels, encoder.expands, encoder.resolutions)
    if not all(0 < len(c) == len(set(c)) <= CHOICE_LIMIT for c in choices):
        raise FormatError(f"{path} must encode 1..{CHOICE_LIMIT} kernels, expand ratios and resolutions, each once, but it does not")
    if any(array.dtype != np.float32 for array in (*predictor.weights, *predictor.biases)):
        raise FormatError(f"{path} must hold float32 layers, but holds others")
    width, largest = encoder.dims, 1.0  # a one-hot code lies in 0..1
    for weight, bias in zip(predictor.weights, predictor.biases, strict=True):
        if weight.ndim != 2 or weight.shape[0] != width or bias.shape != (weight.shape[1],):
            raise FormatError(f"{path} must hold layers that fit together, but one of shape {weight.shape} follows {width} features")
        width, largest = (
            weight.shape[1],
            largest * float(np.abs(weight).sum(axis=0, dtype=np.float64).max(initial=0)) + float(np.abs(bias).max(initial=0)),
        )
        if not largest < FINITE:
            raise FormatError(f"{path} must hold weights that keep predictions finite, but its predictions could reach {largest:.3g}")
    if width != 1:
        raise FormatError(f"{path} must end in one output, but ends in {width}")
    return predictor


# -- pairs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pairs:
    """Measured networks: settings of n networks and their top-1 fractions (n,)."""

    settings: Settings
    top1: Values

    def __len__(self) -> int:
        return len(self.top1)

    def take(self, index: npt.NDArray[np.int64]) -> Pairs:
        """The pairs at these positions."""
        s = self.settings
        return Pairs(Settings(s.ks[index], s.e[index], s.d[index], s.r[index]), self.top1[index])


def read_pairs(paths: Sequence[Path], space: Space) -> Pairs:
    """Measured networks of `space` from JSON lines (`ks`, `e`, `d`, `r`, `top1`) or DyNAS-T's CSV.

    Values above 1 are percent. Raises NotFoundError, FormatError, ArchError.
    """
    records = [record for path in paths for record in _read_records(path)]
    if not records:
        raise FormatError(f"{', '.join(map(str, paths))} must hold at least one measured network, but hold none")
    try:
        columns = {name: np.array([r[name] for r in records]).astype(np.int64, casting="safe") for name in ("ks", "e", "d")}
        resolutions = np.array([int(_first(r["r"])) for r in records], dtype=np.int64)
        accuracy = np.array([float(r["top1"]) for r in records])
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise FormatError(
            f"every pair must have whole numbers ks, e, d, r of equal lengths and a top1, but one does not: {error}"
        ) from error
    accuracy = np.where(accuracy > 1, accuracy / 100, accuracy)
    if not ((accuracy >= 0) & (accuracy <= 1)).all():
        raise FormatError("every top1 must lie between 0 and 100 percent, but one does not")
    known = space.with_resolutions(sorted({*space.resolutions, *resolutions.tolist()}))
    codes = known.from_settings(Settings(columns["ks"], columns["e"], columns["d"], resolutions))
    return Pairs(known.settings(codes), accuracy)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


def _read_records(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        raise NotFoundError(f"{path} must be an existing pairs file, but there is none")
    if path.stat().st_size > PAIRS_LIMIT:
        raise FormatError(f"{path} must be at most {PAIRS_LIMIT >> 20} MiB, but is larger")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".csv":
            rows = csv.DictReader(text.splitlines())
            return [{**ast.literal_eval(row["Sub-network"]), "top1": row["Top-1 Acc (%)"]} for row in rows]
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError, csv.Error) as error:  # literal_eval raises all
        raise FormatError(f"{path} must be JSON lines or DyNAS-T's CSV, but a line cannot be read: {error}") from error


# -- fitting ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """How the MLP is fitted. The published recipe names no optimiser; this one is Adam with a cosine."""

    steps: int = 3000
    batch_size: int = 128  # pairs
    lr: float = 1e-3
    weight_decay: float = 1e-4
    seed: int = 0


@dataclass(frozen=True, slots=True)
class FitError:
    """How predictions differ from measurements; `_points` are percent points."""

    n: int
    kendall_tau: float
    spearman: float
    mae_points: float
    rmse_points: float
    bias_points: float


def fit(encoder: Encoder, pairs: Pairs, space: str, config: FitConfig, supernet_digest: str | None = None) -> Predictor:
    """Fit the 3-layer, 400-wide MLP to measured networks. Same pairs and seed: same predictor (on CPU).

    The mean accuracy is the offset and the spread is scaled to 1 while fitting, so the user need not care for either
    (once-for-all issue 30: without the offset the published recipe does not converge).
    Raises UsageError for fewer than 8 pairs.
    """
    import torch
    from torch import nn

    if len(pairs) < 8:
        raise UsageError(f"a predictor needs at least 8 measured networks, but got {len(pairs)}")
    offset, scale = float(pairs.top1.mean()), max(float(pairs.top1.std()), 1e-4)
    x = torch.from_numpy(encoder.encode(pairs.settings))
    y = torch.from_numpy((pairs.top1 - offset) / scale).float()[:, None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        sizes = (encoder.dims, HIDDEN, HIDDEN, HIDDEN)
        hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        model = nn.Sequential(*hidden, nn.Linear(HIDDEN, 1))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads fight over products this small, above all on a busy machine
    try:
        _descend(model, x, y, config)
    finally:
        torch.set_num_threads(threads)
    linear = [m for m in model if isinstance(m, nn.Linear)]
    weights = [np.ascontiguousarray(m.weight.detach().numpy().T) for m in linear]
    biases = [m.bias.detach().numpy().copy() for m in linear]
    weights[-1], biases[-1] = weights[-1] * np.float32(scale), biases[-1] * np.float32(scale)
    return Predictor(encoder, tuple(weights), tuple(biases), offset, space, supernet_digest)


def _descend(model: nn.Sequential, x: Tensor, y: Tensor, config: FitConfig) -> None:
    """Minimise the squared error of model(x), (n, f) -> (n, 1), against y (n, 1), in place."""
    import torch
    from torch.nn.functional import mse_loss

    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(config.steps):
        chosen = torch.randint(len(x), (min(config.batch_size, len(x)),), generator=generator)
        optimizer.zero_grad()
        mse_loss(model(x[chosen]), y[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def check(predictor: Predictor, pairs: Pairs) -> FitError:
    """Compare predictions with measured networks that the fit did not see."""
    from scipy.stats import kendalltau, spearmanr

    predicted = predictor(pairs.settings)
    if np.ptp(pairs.top1) == 0 or np.ptp(predicted) == 0:
        raise FormatError("a comparison needs networks of different measured and predicted accuracy, but all are equal; give more pairs")
    error = 100 * (predicted - pairs.top1)
    return FitError(
        n=len(pairs),
        kendall_tau=float(kendalltau(predicted, pairs.top1).statistic),
        spearman=float(spearmanr(predicted, pairs.top1).statistic),
        mae_points=float(np.abs(error).mean()),
        rmse_points=float(np.sqrt((error**2).mean())),
        bias_points=float(error.mean()),
    )
