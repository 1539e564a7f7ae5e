"""Quantities with units on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:  # generic for the type checker only, and only since click 8.2
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType

_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµ]*)\s*")


class Quantity(_ParamType):
    """A positive number with one of the given units; the result is in the unit whose factor is 1."""

    def __init__(self, name: str, units: Mapping[str, float], example: str):
        self.name, self._units, self._example = name, units, example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse; a bad unit, a missing unit or a number that is not positive is wrong usage (exit 2)."""
        if isinstance(value, float):
            return value
        match = _NUMBER.fullmatch(str(value))
        if match is None:
            self.fail(f"{self.name} must be a positive number with a unit, such as {self._example}, but got '{value}'", param, ctx)
        unit = match[2]
        if unit not in self._units:
            known = ", ".join(u or "no unit" for u in self._units)
            self.fail(f"the unit of {self.name} must be one of {known} (such as {self._example}), but got '{value}'", param, ctx)
        number = float(match[1]) * self._units[unit]
        if not 0 < number < float("inf"):
            self.fail(f"{self.name} must be positive, such as {self._example}, but got '{value}'", param, ctx)
        return number


LATENCY = Quantity("latency", {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}, "20ms")
COUNT = Quantity("count", {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}, "300M")
MEMORY = Quantity("memory", {"B": 1.0, "kB": 1e3, "KB": 1e3, "KiB": 2**10, "MB": 1e6, "MiB": 2**20, "GB": 1e9, "GiB": 2**30}, "2MB")


class Numbers(_ParamType):
    """A list of whole numbers separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse, or fail as wrong usage."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if not numbers or min(numbers) < 8:
            self.fail(f"must be sizes of at least 8 pixels separated by commas, such as 160,192,224, but got '{value}'", param, ctx)
        return numbers


NUMBERS = Numbers()
