"""Numbers with units as people write them: 20ms, 300M, 2MB. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ofasearch.errors import UsageError

_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµ%]*)\s*")


@dataclass(frozen=True, slots=True)
class Unit:
    """What the numbers of one kind may be followed by; the result is in the unit whose factor is 1."""

    name: str
    factors: Mapping[str, float]
    example: str

    def parse(self, text: str) -> float:
        """A positive number. Raises UsageError for a bad unit, a missing unit or a number that is not positive."""
        match = _NUMBER.fullmatch(text)
        if match is None:
            raise UsageError(f"{self.name} must be a positive number with a unit, such as {self.example}, but got '{text}'")
        if match[2] not in self.factors:
            known = ", ".join(unit or "no unit" for unit in self.factors)
            raise UsageError(f"the unit of {self.name} must be one of {known} (such as {self.example}), but got '{text}'")
        number = float(match[1]) * self.factors[match[2]]
        if not 0 < number < float("inf"):
            raise UsageError(f"{self.name} must be positive, such as {self.example}, but got '{text}'")
        return number


LATENCY = Unit("latency", {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}, "20ms")
COUNT = Unit("count", {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}, "300M")
MEMORY = Unit("memory", {"B": 1.0, "kB": 1e3, "KB": 1e3, "KiB": 2**10, "MB": 1e6, "MiB": 2**20, "GB": 1e9, "GiB": 2**30}, "2MB")
ACCURACY = Unit("accuracy", {"": 1.0, "%": 0.01}, "76%")


def fraction(text: str) -> float:
    """An accuracy as a fraction; a bare number above 1 is percent. Raises UsageError."""
    number = ACCURACY.parse(text)
    value = number / 100 if number > 1 and "%" not in text else number
    if value > 1:
        raise UsageError(f"accuracy must be at most 100 %, but got '{text}'")
    return value


__all__ = ["COUNT", "LATENCY", "MEMORY", "Unit", "fraction"]
