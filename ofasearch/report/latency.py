"""A table against reality, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from ofasearch.errors import UsageError
from ofasearch.records import write_atomic

PICTURES = (".svg", ".png", ".pdf")


def check_picture(path: Path) -> None:
    """Raise UsageError for a file type that cannot be drawn."""
    if path.suffix.lower() not in PICTURES:
        raise UsageError(f"--plot must be a picture such as plot.svg or plot.png, but got '{path.name}'")


def plot_validation(
    predicted_ms: Sequence[float], measured_ms: Sequence[float], resolutions: Sequence[int], path: Path, *, title: str
) -> None:
    """Scatter of measured over predicted latency, one colour an input size, with the line where both are equal.

    Raises UsageError for a file type that cannot be drawn, WriteError.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check_picture(path)
    figure = Figure(figsize=(6, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    edge = [0.0, 1.05 * max(*predicted_ms, *measured_ms)]
    axes.plot(edge, edge, color="0.7", linewidth=1, label="equal")
    drawn = axes.scatter(predicted_ms, measured_ms, c=resolutions, cmap="viridis", s=24)
    if len(set(resolutions)) > 1:
        figure.colorbar(drawn, label="input size (pixels)")
    axes.set(xlim=edge, ylim=edge, xlabel="latency by the table (ms)", ylabel="measured end to end (ms)")
    axes.set_title(title, fontsize=10)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.lstrip(".").lower())
    write_atomic(path, content.getvalue())
