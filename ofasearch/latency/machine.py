"""The machine at hand: what measurements are kept under, what they were made beside, and whether it is busy."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from ofasearch.errors import NotFoundError, UsageError
from ofasearch.latency.table import TableKey

BATCH_LIMIT, THREADS_LIMIT = 4096, 1024
BUSY = 0.7  # load per core from which on other work disturbs timings
_POLICY = Path("/sys/devices/system/cpu/cpu0/cpufreq")


def check_run(*, batch: int, threads: int) -> None:
    """Raise UsageError for a batch or a number of threads that no measurement should use."""
    if not 1 <= batch <= BATCH_LIMIT or not 1 <= threads <= THREADS_LIMIT:
        raise UsageError(f"--batch must be 1..{BATCH_LIMIT} and --threads 1..{THREADS_LIMIT}, but got {batch} and {threads}")


def cpu_model() -> str:
    """The processor's name as the system gives it; a small board gives its own."""
    board = _read(Path("/proc/device-tree/model")).rstrip("\0")
    return board or _first_line("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def cpu_device() -> str:
    """The processor of this machine as a table names it: model, cores, system."""
    return f"{cpu_model()} x{os.cpu_count()} {platform.system()} {platform.machine()}"


def cuda_device() -> str:
    """The first CUDA device of this machine as a table names it.

    Raises NotFoundError where there is none.
    """
    import torch

    if not torch.cuda.is_available():
        raise NotFoundError("--target cuda needs a CUDA device that torch can use, but there is none here; use --target cpu")
    return str(torch.cuda.get_device_name(0))


def fingerprint(*, batch: int, threads: int) -> TableKey:
    """The CPU of this machine with ONNX Runtime in fp32: what `find`, `bench` and exported files name.

    Raises UsageError as `check_run` does.
    """
    check_run(batch=batch, threads=threads)
    import onnxruntime as ort

    return TableKey(device=cpu_device(), runtime=f"onnxruntime {ort.__version__} cpu", batch=batch, threads=threads)


def describe_machine(target: str) -> dict[str, Any]:
    """What a table's card keeps of the machine beside its key; what the system does not tell is absent."""
    found: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    found["caches"] = _caches()
    for name in ("scaling_governor", "scaling_driver", "cpuinfo_max_freq"):
        value = _read(_POLICY / name)
        if value:
            found[f"frequency_{name.removeprefix('scaling_').removeprefix('cpuinfo_')}"] = value
    found["frequency_policy"] = found.pop("frequency_governor", "not told by the system")
    load = system_load()
    if load is not None:
        found["load_at_start"] = round(load, 2)
    if target == "cuda":
        found |= _describe_cuda()
    return {key: value for key, value in found.items() if value}


def system_load() -> float | None:
    """The one-minute load average, where the system has one."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def load_warning() -> str | None:
    """A word when the machine is busy, else None."""
    load, cores = system_load(), os.cpu_count() or 1
    if load is None or load <= BUSY * cores:
        return None
    return f"the machine is busy (load {load:.1f} on {cores} cores): timings will scatter"


def _describe_cuda() -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(0)
    found = {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    found["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    for name, ask in (("gpu_clock_mhz", torch.cuda.clock_rate), ("gpu_temperature", torch.cuda.temperature)):
        try:
            found[name] = ask()
        except Exception:  # needs the vendor's management library, which may be absent
            continue
    driver = _first_line("/proc/driver/nvidia/version", "NVRM version")
    return found | ({"driver": driver} if driver else {})


def _caches() -> list[str]:
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = (_read(folder / name) for name in ("type", "level", "size"))
        if size:
            found.append(f"L{level} {kind.lower()} {size}")
    return found


def _first_line(path: str, start: str) -> str:
    """What stands behind the colon of the first line that begins so, or nothing."""
    for line in _read(Path(path)).splitlines():
        if line.startswith(start):
            return line.partition(":")[2].strip()
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
