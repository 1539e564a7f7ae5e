"""Find the network for your device inside a trained once-for-all supernet.

The jobs of the command line, from Python. Each takes the command's options as keywords and returns its JSON answer:

    answer = ofasearch.find(target="cpu", latency_ms=0.3)
    answer["arch_id"], answer["files"]["onnx"]
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ofasearch.jobs.face import bench, evaluate, export, find, inspect, train

__all__ = ["bench", "evaluate", "export", "find", "inspect", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a job when it is first used: `import ofasearch` alone stays light."""
    if name in __all__:
        from ofasearch.jobs import face

        return getattr(face, name)
    raise AttributeError(f"module 'ofasearch' has no attribute '{name}'")


class _Package(ModuleType):
    """Two rooms, `train` and `evaluate`, bear the name of a job: importing one of them must not hide the job."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
