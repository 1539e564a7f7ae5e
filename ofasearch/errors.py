"""Every exception raised on purpose.

Each message is one sentence that says what must hold, what came, and what to do. The command line turns
any `OfaSearchError` into that sentence on stderr and into `exit_code`.
"""

from __future__ import annotations


class OfaSearchError(Exception):
    """Base of all errors that ofasearch raises on purpose."""

    exit_code = 1


class UsageError(OfaSearchError, ValueError):
    """An option is missing, contradicts another, or has a bad unit."""

    exit_code = 2


class InfeasibleError(OfaSearchError, ValueError):
    """No subnet of the space can meet the budget; the message names the nearest possible one."""

    exit_code = 3


class ArchError(OfaSearchError, ValueError):
    """A row of codes, an arch id or a settings object does not describe a subnet of the space."""


class NotFoundError(OfaSearchError, LookupError):
    """A named space, supernet, predictor, target, data set or file does not exist."""


class FormatError(OfaSearchError, ValueError):
    """A file from outside is damaged, foreign, too large, or carries code."""


class MismatchError(OfaSearchError, ValueError):
    """Two things that were not made for each other: digests, spaces, classes or devices differ."""


class UnmeasuredError(OfaSearchError, LookupError):
    """A price was asked that was never measured; it is named instead of being taken as zero."""


class CalibrationError(OfaSearchError, RuntimeError):
    """A network whose batch norm was not recalibrated would have been scored or exported."""


class VerificationError(OfaSearchError, RuntimeError):
    """An exported network does not compute what the original computes."""


class TrainingError(OfaSearchError, RuntimeError):
    """Training cannot go on: non-finite loss, impossible schedule, damaged checkpoints."""


class WriteError(OfaSearchError, OSError):
    """A result could not be written; what was there before is untouched."""
