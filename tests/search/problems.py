"""Problems for searches: spaces of three sizes, and objectives of known parts that remember what they were asked."""

from functools import cache

import numpy as np

from ofasearch.search.problem import Budget, Problem
from ofasearch.space.costs import activation_bytes, macs, params
from ofasearch.space.families import get_space

LISTED, MIDDLE, LARGE = "compofa-mbv3-w1.0", "compofa-mbv3-elastic-w1.0", "ofa-mbv3-w1.0"


@cache
def space_of(name):
    """The space at three resolutions."""
    return get_space(name).with_resolutions((128, 176, 224))


def on_phone(layer):
    """Milliseconds, made up, of a device that is slow at small kernels."""
    return (0.01 + macs(layer) / 1e8) * (2.0 if layer.kernel == 3 else 1.0)


def on_server(layer):
    """Milliseconds, made up, of a device that waits for weights."""
    return 0.05 + params(layer) / 1e7


PRICES = {"macs": macs, "params": params, "memory": activation_bytes, "phone": on_phone, "server": on_server}


@cache
def cost_of(name, what):
    """A price of networks of `space_of(name)`."""
    return space_of(name).tabulate(PRICES[what], "max" if what == "memory" else "sum")


def budget(name, what, share):
    """The lowest `share` of what the space spans."""
    bounds = cost_of(name, what).bounds()
    return Budget(what, cost_of(name, what), bounds.lowest + share * (bounds.highest - bounds.lowest), repr)


class Utilities:
    """Plus or minus the sum over genes of a number that grows with the gene's code; absent genes count 0."""

    def __init__(self, space, seed, sign=-1.0):
        steps = np.random.default_rng(seed).random((len(space.genes), int(space.sizes.max()) + 1))
        self.table = sign * np.where(np.arange(steps.shape[1]) > 0, steps, 0).cumsum(axis=1)
        self.asked = [np.zeros((0, len(space.genes)), dtype=np.int64)]

    def __call__(self, codes):
        self.asked.append(codes.copy())
        values = self.table[np.arange(codes.shape[1]), codes].sum(axis=1)
        values.flags.writeable = False  # they may be somebody's memory
        return values

    @property
    def rows(self):
        """All networks asked for, in their order, (n, g)."""
        return np.concatenate(self.asked)


def problem_of(name, objectives, budgets):
    """One utility, or one that falls and others that grow with the same genes: a front of many networks."""
    space = space_of(name)
    signs = (-1.0, 1.0, 1.0)[:objectives]
    return Problem(space, tuple(Utilities(space, 5 + i, sign) for i, sign in enumerate(signs)), budgets)


def distinct(codes):
    return len(np.unique(codes, axis=0)) == len(codes)
