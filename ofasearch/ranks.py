"""The processes that share one job: those of `torchrun`, or one alone.

`torchrun --nproc-per-node 4 -m ofasearch train ...` starts four processes of the same command; torch.distributed carries
what they exchange. Without torchrun there is one process and nothing is exchanged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ofasearch.errors import TrainingError, UsageError

PATIENCE = timedelta(hours=1)  # how long one process waits for another before it takes it for dead


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process among all: `rank` of `size`, `local` among those of the same machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def add(self, tensors: Sequence[Any]) -> None:
        """Replace tensors, in place, by their sums over all processes; all processes pass the same shapes.

        Raises TrainingError when another process has died.
        """
        if self.size == 1 or not tensors:
            return
        import torch
        import torch.distributed as dist

        flat = torch.cat([t.reshape(-1) for t in tensors])
        with _others_alive():
            dist.all_reduce(flat)
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()

    def share_tensors(self, tensors: Sequence[Any]) -> None:
        """Replace tensors, in place, by those of the first process."""
        import torch
        import torch.distributed as dist

        if self.size > 1:
            with _others_alive(), torch.no_grad():
                for tensor in tensors:
                    whole = tensor.detach().contiguous()
                    dist.broadcast(whole, 0)
                    tensor.copy_(whole)

    def share(self, value: Any) -> Any:
        """The first process's value, on every process."""
        import torch.distributed as dist

        found = [value]
        if self.size > 1:
            with _others_alive():
                dist.broadcast_object_list(found, 0)
        return found[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes in order of rank, on every process.

        Raises TrainingError when another process has died.
        """
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        with _others_alive():
            dist.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Return when all processes have come here."""
        self.gather(None)


def speaks() -> bool:
    """Whether this process is the one that prints: the first of torchrun's, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def join() -> Iterator[Ranks]:
    """Take part in the job; outside torchrun it is alone.

    Raises UsageError when the environment names several processes and not which one this is, TrainingError when the
    others cannot be reached.
    """
    ranks = _announced()
    if ranks.size == 1:
        yield ranks
        return
    import torch
    import torch._dynamo  # optimisers do; before there is a group, for what it imports keeps one alive, and a thread that aborts at exit
    import torch.distributed as dist

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(ranks.local % torch.cuda.device_count())
    with _others_alive():
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)  # --device cpu on a GPU machine too
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def _announced() -> Ranks:
    """What torchrun says of this process."""
    try:
        size = int(os.environ.get("WORLD_SIZE", "1"))
        return Ranks(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0"))) if size != 1 else Ranks()
    except (KeyError, ValueError) as error:
        raise UsageError(
            "several processes must be started by torchrun, which sets RANK and WORLD_SIZE to numbers, "
            f"but here one is not: {error}; unset WORLD_SIZE to train alone"
        ) from error


@contextmanager
def _others_alive() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:  # torch.distributed's errors are RuntimeErrors, its bad addresses ValueErrors
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise TrainingError(
            f"all processes of the job must stay alive and reachable, but one is not ({reason}); start the job again with --resume"
        ) from error
