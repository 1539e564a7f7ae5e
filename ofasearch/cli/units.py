"""Quantities with units on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ofasearch.errors import UsageError
from ofasearch.jobs import quantities
from ofasearch.jobs.quantities import Unit

if TYPE_CHECKING:  # generic for the type checker only, and only since click 8.2
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType

PAPER = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)  # ratios of lambda2 to lambda1 (REG-NAS, supplement, table 1)


class Quantity(_ParamType):
    """A positive number with one of the units of its kind; the result is in the unit whose factor is 1."""

    def __init__(self, unit: Unit):
        self.name, self._unit = unit.name, unit

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse; a bad unit, a missing unit or a number that is not positive is wrong usage (exit 2)."""
        if isinstance(value, float):
            return value
        try:
            return self._unit.parse(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


LATENCY, COUNT, MEMORY = Quantity(quantities.LATENCY), Quantity(quantities.COUNT), Quantity(quantities.MEMORY)


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


class Sizes(_ParamType):
    """Positive whole numbers separated by commas."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse, or fail as wrong usage; how large is too large, the job says."""
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if not all(part.isdecimal() and len(part) < 10 for part in parts):
            self.fail(f"must be whole numbers separated by commas, such as 1,8,32, but got '{value}'", param, ctx)
        return tuple(map(int, parts))


class Names(_ParamType):
    """A list of names separated by commas."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Split; whoever takes the names knows them."""
        return value if isinstance(value, tuple) else tuple(str(value).split(","))


class Share(_ParamType):
    """A share of all images, such as 2%."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse, or fail as wrong usage."""
        if isinstance(value, float):
            return value
        try:
            return quantities.fraction(str(value))
        except UsageError as error:
            self.fail(str(error).replace("accuracy", "a share"), param, ctx)


class Counts(_ParamType):
    """Several counts separated by commas, such as 150M,300M."""

    name = "counts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Parse, or fail as wrong usage."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(quantities.COUNT.parse(part) for part in str(value).split(","))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Ratios(_ParamType):
    """Several numbers separated by commas, or `paper` for those that the paper tried."""

    name = "ratios"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Parse, or fail as wrong usage."""
        if isinstance(value, tuple):
            return value
        try:
            return PAPER if value == "paper" else tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"must be numbers separated by commas, such as 0.1,1,10, but got '{value}'", param, ctx)


NUMBERS, SIZES = Numbers(), Sizes()
SHARE, COUNTS, RATIOS = Share(), Counts(), Ratios()
NAMES = Names()
