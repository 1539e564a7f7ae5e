"""REG-NAS's rewards: accuracy, and as few samples as possible that a reference gets right and the new network wrong.

Legend: n = networks, k = references. Measured quantities come as (n, 1 + k): top-1, then the negative flip rate against each
reference; all are fractions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ofasearch.errors import UsageError
from ofasearch.space.core import Values

REWARDS: Mapping[str, str] = {
    "r0": "top-1 alone",
    "r1": "few negative flips alone",
    "r2": "lambda1 x top-1 - lambda2 x negative flip rate",
}


SAME = 1e-9  # between rates that are one: 35 of 5,000 images are 0.7 %, and 0.007 is a little less


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """What is maximised, and a negative flip rate that no answer may exceed.

    R2 = lambda1 * top-1 - lambda2 * NFR; R0 and R1 are its ends (1, 0) and (0, 1). Against several references the mean of
    their rates counts, and the cap holds for each.

    Reference: REG-NAS, supplement B ("the reward of Eq. 4", lambda1 = lambda2 = 1). Inferred, because the paper's own text
    could not be read: the sign and the common unit of R2, that R0 is top-1 alone (the rows "R0 [OFA]"), R1 = -NFR, and the
    mean over several references. The cap is ours.
    """

    kind: str = "r2"
    lambda1: float = 1.0
    lambda2: float = 1.0
    nfr_cap: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in REWARDS:
            raise UsageError(f"--reward must be one of {', '.join(REWARDS)}, but got '{self.kind}'")
        for name, value in (("lambda1", self.lambda1), ("lambda2", self.lambda2)):
            if not 0 <= value <= 1e6 or math.isnan(value):
                raise UsageError(f"--{name} must be a number from 0 to a million, but got {value:g}")
        if self.kind == "r2" and self.lambda1 == self.lambda2 == 0:
            raise UsageError("--lambda1 and --lambda2 must not both be 0, because then all networks are equal")
        if self.nfr_cap is not None and not 0 <= self.nfr_cap <= 1:
            raise UsageError(f"--nfr-cap must lie between 0 and 100 %, but got {100 * self.nfr_cap:g} %")

    @property
    def weights(self) -> tuple[float, float]:
        """What top-1 and negative flip rate are multiplied by."""
        return {"r0": (1.0, 0.0), "r1": (0.0, 1.0), "r2": (self.lambda1, self.lambda2)}[self.kind]

    def of(self, measured: Values) -> Values:
        """The reward (n,) of measured quantities (n, 1 + k)."""
        of_top1, of_nfr = self.weights
        nfr = measured[:, 1:].mean(axis=1) if measured.shape[1] > 1 else np.zeros(len(measured))
        return np.asarray(of_top1 * measured[:, 0] - of_nfr * nfr)

    def keeps_cap(self, measured: Values) -> npt.NDArray[np.bool_]:
        """Which networks exceed the cap against no reference, (n,)."""
        return np.asarray(self._excess(measured) <= 0)

    def objective(self, measured: Values) -> Values:
        """What a search minimises, (n,): minus the reward; networks above the cap come behind all others, by their excess."""
        excess = self._excess(measured)
        return np.where(excess > 0, sum(self.weights) + 1 + excess, -self.of(measured))

    def _excess(self, measured: Values) -> Values:
        if self.nfr_cap is None:
            return np.full(len(measured), -1.0)
        excess = measured[:, 1:].max(axis=1, initial=0.0) - self.nfr_cap
        return np.where(np.abs(excess) < SAME, 0.0, excess)
