"""REG-NAS by hand: all networks of a small space, what each predicts, and the best of them by counting."""

from dataclasses import dataclass

import numpy as np

from ofasearch.space.costs import costs


@dataclass
class Everything:
    """All networks (n, g) of a space with their predictions (n, k) and labels (k,) per split."""

    space: object
    codes: np.ndarray
    predicted: dict
    labels: dict

    def __post_init__(self):
        self.ids = [self.space.arch(row).id for row in self.codes]
        self.macs = np.array([costs(self.space.blueprint(row)).macs for row in self.codes])
        self.settings = self.space.settings(self.codes)

    def row(self, arch_id):
        return self.ids.index(arch_id)

    def right(self, split="validation"):
        return self.predicted[split] == self.labels[split]

    def top1(self, split="validation"):
        return self.right(split).mean(axis=1)

    def nfr(self, old, split="validation"):
        """Of every network (n,), against what `old` (k,) predicts."""
        return ((old == self.labels[split]) & ~self.right(split)).mean(axis=1)

    def containing(self, row):
        """Which networks hold all blocks of one, none with a smaller kernel or fewer channels, (n,)."""
        s, active = self.settings, self.settings.e[row] > 0
        kept = (s.d >= s.d[row]).all(axis=1)
        for block in np.flatnonzero(active):
            kept &= (s.e[:, block] >= s.e[row, block]) & (s.ks[:, block] >= s.ks[row, block])
        return kept

    def best(self, olds, *, macs=np.inf, weights=(1.0, 1.0), cap=None, within=None, without=()):
        """The highest reward, and the ids of all networks that have it; `olds` are predictions of the validation split."""
        kept = self.macs <= macs
        kept[list(without)] = False
        if within is not None:
            kept &= self.containing(within)
        rates = np.array([self.nfr(old) for old in olds]).reshape(-1, len(kept))
        if cap is not None:
            kept &= (rates <= cap).all(axis=0)
        rewards = weights[0] * self.top1() - (weights[1] * rates.mean(axis=0) if len(rates) else 0.0)
        highest = rewards[kept].max()
        return highest, {self.ids[i] for i in np.flatnonzero(kept) if rewards[i] >= highest - 1e-12}


def flips(old, new, labels):
    """The rates as every answer names them."""
    was, now = old == labels, new == labels
    return {"top1": now.mean(), "top1_ref": was.mean(), "nfr": (was & ~now).mean(), "pfr": (~was & now).mean(), "n": len(labels)}


def drained(events):
    """What a generator returns at last."""
    while True:
        try:
            next(events)
        except StopIteration as stop:
            return stop.value
