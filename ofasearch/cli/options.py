"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def on_device(command: Command) -> Command:
    """How networks are priced and run on the target."""
    for option in reversed(
        (
            click.option("--runtime", default="ort", show_default=True, help="Runtime of the target."),
            click.option("--precision", default="fp32", show_default=True, help="Precision on the target."),
            click.option(
                "--measure",
                type=click.Choice(["table", "direct"]),
                default="table",
                show_default=True,
                help="How networks are priced.",
            ),
            click.option("--batch", default=1, show_default=True, help="Images per run on the target."),
            click.option("--threads", default=1, show_default=True, help="Threads on the target."),
        )
    ):
        command = option(command)
    return command
