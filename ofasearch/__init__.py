"""Find the network for your device inside a trained once-for-all supernet.

The jobs of the command line, from Python. Each takes the command's options as keywords and returns its JSON answer:

    answer = ofasearch.find(target="cpu", latency_ms=0.5)
    answer["arch_id"], answer["files"]["onnx"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ofasearch.jobs.face import (
        bench,
        bn_check,
        diff,
        evaluate_subnet,
        explain,
        export,
        find,
        finetune,
        flips,
        inspect,
        pareto,
        quantize,
        regnas,
        replay,
        train_supernet,
    )

__all__ = [
    "bench",
    "bn_check",
    "diff",
    "evaluate_subnet",
    "explain",
    "export",
    "find",
    "finetune",
    "flips",
    "inspect",
    "pareto",
    "quantize",
    "regnas",
    "replay",
    "train_supernet",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a job when it is first used: `import ofasearch` alone stays light."""
    if name in __all__:
        from ofasearch.jobs import face

        return getattr(face, name)
    raise AttributeError(f"module 'ofasearch' has no attribute '{name}'")
