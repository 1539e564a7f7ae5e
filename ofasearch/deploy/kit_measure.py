"""Time the networks of a kit on the device at hand. Needs Python 3.8, numpy and onnxruntime 1.12, and nothing else.

`ofasearch latency kit` copies this file into its kits as `measure.py`; on the device one runs

    python measure.py

Every network runs in short bursts, in turn with a few others; between the bursts a reference network tells how fast the
device is at that moment, and bursts count in units of it. What is measured is appended to `results.jsonl` after every
few networks: stop it when you like (Ctrl-C), and run it again to go on. `ofasearch latency import` reads the results.

The rules are those by which ofasearch measures the machine it runs on (`latency.stopwatch`, `deploy.runtime`,
`jobs.measuring`), said again for old versions of Python; tests hold both to the same numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import numpy as np
except ImportError:  # said in a sentence, by `main`
    np = None  # type: ignore[assignment]

if TYPE_CHECKING:  # annotations are never evaluated, and Python 3.8 could not evaluate these
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Action = Callable[[], object]
    Clock = Callable[[], float]  # seconds

KIT_FORMAT = "ofasearch-kit-1"
RESULTS_FORMAT = "ofasearch-kit-results-1"
MANIFEST, RESULTS = "manifest.json", "results.jsonl"
CPU = "CPUExecutionProvider"
SEED = 0  # of the inputs

GROUP = 4  # networks timed in turn; what a kill can lose at most
JUMP = 1.15  # a reference that changes by more across one burst says that the burst saw two speeds of the device
LEVEL_QUANTILE = 0.25  # of the reference
ENOUGH = 8  # bursts
MOST_SAMPLES = 10  # of one turn
DISTURBED = 1.15  # a reference this much above its level tells of a disturbed device
RULE: dict[str, Any] = {
    "tolerance": 0.006,  # stop when the 95 % interval of every median is narrower
    "min_bursts": 10,
    "max_bursts": 60,
    "max_seconds": 6.0,  # of a group, once it has had its least bursts
    "warmup": 3,
    "settle": 2,  # uncounted runs whenever a network's turn comes
    "burst": 3,  # counted ones at least
    "burst_ms": 2.0,  # a turn of a quick network has up to MOST_SAMPLES, to last as long as this
    "min_sample_ms": 0.0,
    "turn_ms": 250.0,  # a turn of a slow network has fewer runs, to last about this long
}
BUSY = 0.7  # load per core from which on other work disturbs timings


class KitError(Exception):
    """Something that stops the measuring, in one sentence."""


# -- the stopwatch ---------------------------------------------------------------------------------------------


class Reference:
    """The network that runs between bursts; `level_ms` is what it takes when the device is itself."""

    def __init__(self, action: Action, level_ms: float | None = None):
        self.action, self.level_ms = action, level_ms
        self.settle, self.burst = 1, 3
        self.seen_ms: list[float] = []

    def run(self, clock: Clock) -> float:
        """Milliseconds of one burst: its fastest run."""
        for _ in range(self.settle):
            self.action()
        self.seen_ms.append(min(sample(self.action, 1, clock) for _ in range(self.burst)))
        return self.seen_ms[-1]

    def level(self) -> float:
        """Milliseconds: as given, else made of what was seen so far."""
        return self.level_ms if self.level_ms is not None else float(np.quantile(self.seen_ms, LEVEL_QUANTILE))

    @property
    def disturbed(self) -> float:
        """Share of the bursts in which the device was well slower than at the reference's level."""
        return float(np.mean(np.array(self.seen_ms) > DISTURBED * self.level()))

    @property
    def speed(self) -> float:
        """Speed of the device among these bursts when it is itself: 1 as at the level, 0.5 half as fast."""
        return self.level() / float(np.quantile(self.seen_ms, LEVEL_QUANTILE))


class Track:
    """Bursts of one network, and the reference's milliseconds before and after each."""

    def __init__(self) -> None:
        self.samples: list[list[float]] = []
        self.before: list[float] = []
        self.after: list[float] = []

    def timing(self, reference: Reference) -> dict[str, Any]:
        """What the bursts say, at the reference's level."""
        raw, before, after = np.array(self.samples), np.array(self.before), np.array(self.after)
        level, beside = reference.level(), np.sqrt(before * after)
        steady = np.maximum(before, after) <= JUMP * np.minimum(before, after)
        quiet = steady & (beside <= DISTURBED * level)
        use = next((kept for kept in (quiet, steady) if kept.sum() >= ENOUGH), np.ones(len(raw), dtype=bool))
        found = timing_of(raw[use] * (level / beside[use])[:, None])
        return dict(found, raw_p50=float(np.median(raw)), disturbed=float(np.mean(beside > DISTURBED * level)))


def timing_of(samples_ms: Any) -> dict[str, Any]:
    """Percentiles of bursts (bursts, n), and a 95 % interval of the median by order statistics of the bursts' medians."""
    bursts = np.sort(np.median(samples_ms, axis=1))
    n = len(bursts)
    half = 0.98 * math.sqrt(n)
    low, high = bursts[max(0, math.floor(n / 2 - half))], bursts[min(n - 1, math.ceil(n / 2 + half))]
    p50, p90, p95, p99 = (float(p) for p in np.percentile(samples_ms, (50, 90, 95, 99)))
    found = {"p50": p50, "p90": p90, "p95": p95, "p99": p99, "mean": float(samples_ms.mean()), "std": float(samples_ms.std())}
    return dict(found, low=min(p50, float(low)), high=max(p50, float(high)), n=int(samples_ms.size))


def stopwatch(actions: Mapping[str, Action], rule: Mapping[str, Any], clock: Clock, reference: Reference) -> dict[str, dict[str, Any]]:
    """Time all actions in turn, round by round, the reference between them."""
    fastest = {name: warm_up(action, rule, clock) for name, action in actions.items()}
    repeats = {name: max(1, math.ceil(rule["min_sample_ms"] / ms)) for name, ms in fastest.items()}
    turns = {name: turn(rule, ms) for name, ms in fastest.items()}
    tracks = {name: Track() for name in actions}
    warm = reference.run(clock)
    reference.settle, reference.burst = shortened(reference.settle, reference.burst, warm, rule["turn_ms"])
    deadline = clock() + rule["max_seconds"]
    last = reference.run(clock)
    for round_number in range(1, rule["max_bursts"] + 1):
        for name, action in actions.items():
            track, (settle, burst) = tracks[name], turns[name]
            for _ in range(settle):
                action()
            track.samples.append([sample(action, repeats[name], clock) for _ in range(burst)])
            track.before.append(last)
            last = reference.run(clock)
            track.after.append(last)
        if round_number >= rule["min_bursts"] and (
            clock() > deadline
            or (round_number % 5 == 0 and all(tight(track.timing(reference), rule["tolerance"]) for track in tracks.values()))
        ):
            break
    return {name: track.timing(reference) for name, track in tracks.items()}


def sample(action: Action, repeats: int, clock: Clock) -> float:
    """Milliseconds of one run, averaged over `repeats` runs in a row."""
    start = clock()
    for _ in range(repeats):
        action()
    return (clock() - start) * 1000 / repeats


def warm_up(action: Action, rule: Mapping[str, Any], clock: Clock) -> float:
    """Milliseconds of the fastest of the runs that are not counted."""
    return max(1e-4, min(sample(action, 1, clock) for _ in range(max(1, rule["warmup"]))))


def turn(rule: Mapping[str, Any], ms: float) -> tuple[int, int]:
    """How many runs of one turn are not counted, and how many are, of a network that takes `ms`."""
    return shortened(rule["settle"], max(rule["burst"], min(MOST_SAMPLES, math.ceil(rule["burst_ms"] / ms))), ms, rule["turn_ms"])


def shortened(settle: int, burst: int, ms: float, turn_ms: float) -> tuple[int, int]:
    """The same shares of fewer runs where a turn would last longer than `turn_ms`; one run is always counted."""
    share = min(1.0, turn_ms / ((settle + burst) * ms))
    return int(settle * share), max(1, int(burst * share))


def tight(timing: Mapping[str, Any], tolerance: float) -> bool:
    """Whether the interval of a median is narrow enough."""
    return bool(timing["high"] - timing["low"] <= 2 * tolerance * timing["p50"])


# -- networks --------------------------------------------------------------------------------------------------


class Network:
    """One network of the kit in ONNX Runtime, with its inputs; with a profile, it keeps account of its nodes."""

    def __init__(self, entry: Mapping[str, Any], content: bytes, run: Mapping[str, Any], profile: Path | None = None):
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = run["threads"]
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        provider = run["provider"]
        fallback = ["CUDAExecutionProvider"] if provider == "TensorrtExecutionProvider" else []
        try:
            self._session = ort.InferenceSession(content, options, providers=[provider, *fallback])
            used = self._session.get_providers()[0]
        except Exception as error:  # ONNX Runtime raises many kinds
            raise KitError(f"ONNX Runtime {ort.__version__} must run {entry['file']}, but does not: {first_line(error)}") from error
        if used != provider:  # it falls back in silence
            raise KitError(f"--provider {provider} must work on this device, but ONNX Runtime fell back to {used}")
        self._keys = entry["keys"]
        shape = (run["batch"], *entry["input"])
        images = np.random.default_rng(SEED).normal(size=shape).astype(np.float32)
        self._feed = {self._session.get_inputs()[0].name: images}

    def run(self) -> object:
        """One inference."""
        return self._session.run(None, self._feed)

    def account(self) -> tuple[Any, Any, Any]:
        """What the profile says of all runs so far; to be asked once."""
        path = Path(self._session.end_profiling())
        events = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
        if any(event.get("args", {}).get("op_name") == "ConstantOfShape" for event in events):
            raise KitError("ONNX Runtime must make the weights when it loads a file, but makes them in every run; install a newer one")
        return read_profile(events, self._keys)


def read_profile(events: Sequence[Mapping[str, Any]], layers: Sequence[str]) -> tuple[Any, Any, Any]:
    """Milliseconds of layers (runs, layers) and of runs (runs,), and the number of kernels of each layer, of a profile.

    Nodes are named `<layer>.<part>`; those that the runtime adds count to the layer before them.
    """
    starts = sorted((e["ts"], e["dur"]) for e in events if e.get("name") == "model_run")
    kernels = sorted((e["ts"], e["dur"], e["name"]) for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time"))
    layer_ms, counts = np.zeros((len(starts), len(layers))), np.zeros((len(starts), len(layers)))
    run, current = -1, 0
    for begin, duration, name in kernels:
        while run + 1 < len(starts) and begin >= starts[run + 1][0]:
            run, current = run + 1, 0
        current = next((i for i in range(current, len(layers)) if name.startswith(tuple(layers[i] + mark for mark in ".:_"))), current)
        layer_ms[run, current] += (duration + 0.5) / 1000
        counts[run, current] += 1
    return layer_ms, np.array([duration / 1000 for _, duration in starts]), counts[-1]


def shares_of(layer_ms: Any, run_ms: Any, kernels: Any, ms: float, traced_ms: float) -> list[float]:
    """Shares of a network's layers; what keeping account costs is spread over the kernels and taken off."""
    layers = np.median(layer_ms / run_ms[:, None], axis=0) * traced_ms
    cost = max(0.0, float(layers.sum() - ms) / float(kernels.sum()))
    left = np.maximum(layers - cost * kernels, 0.1 * layers)
    return [float(share) for share in left / left.sum()]


# -- the device ------------------------------------------------------------------------------------------------


def cpu_model() -> str:
    """The processor's name as the system gives it; a small board or a telephone gives its own."""
    return (
        text_of("/proc/device-tree/model").rstrip("\0")
        or line_of("/proc/cpuinfo", "model name")
        or told_by("getprop", "ro.product.model")
        or platform.processor()
        or platform.machine()
    )


def cpu_device() -> str:
    """The processor of this device as a table names it: model, cores, system."""
    return f"{cpu_model()} x{os.cpu_count()} {platform.system()} {platform.machine()}"


def accelerator() -> str:
    """The first graphics processor that the driver names; where it names none, the board."""
    return told_by("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or f"accelerator of {cpu_model()}"


def target_of(provider: str) -> str:
    """The short name of a provider: cpu, cuda, tensorrt, ..."""
    return provider.replace("ExecutionProvider", "").lower()


def describe_machine() -> dict[str, Any]:
    """What the system tells of the device beside its name."""
    found: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    policy = "/sys/devices/system/cpu/cpu0/cpufreq/"
    found["frequency_policy"] = text_of(policy + "scaling_governor") or "not told by the system"
    found["frequency_driver"] = text_of(policy + "scaling_driver")
    found["frequency_max_freq"] = text_of(policy + "cpuinfo_max_freq")
    load = system_load()
    if load is not None:
        found["load_at_start"] = round(load, 2)
    return {key: value for key, value in found.items() if value != "" and value is not None}


def system_load() -> float | None:
    """The one-minute load average, where the system tells it."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def line_of(path: str, start: str) -> str:
    """What stands behind the colon of the first line that begins so, or nothing."""
    for line in text_of(path).splitlines():
        if line.startswith(start):
            return line.partition(":")[2].strip()
    return ""


def text_of(path: str) -> str:
    """The text of a file of the system, or nothing."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def told_by(tool: str, *argv: str) -> str:
    """The first line that a tool of the system prints; nothing where there is no such tool."""
    path = shutil.which(tool)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if path:
            done = subprocess.run([path, *argv], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20, check=True)
            return (done.stdout.decode(errors="replace").splitlines() or [""])[0].strip()
    return ""


def first_line(error: BaseException) -> str:
    """What an exception says first."""
    return (str(error).splitlines() or [type(error).__name__])[0]


# -- the kit and its results -----------------------------------------------------------------------------------


class Kit:
    """The networks to measure, as the manifest lists them; `digest` is the manifest's."""

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            text = (folder / MANIFEST).read_bytes()
            self.digest = hashlib.sha256(text).hexdigest()
            record = json.loads(text.decode("utf-8"))
            if record["format"] != KIT_FORMAT:
                raise KitError(f"{folder / MANIFEST} must be of format {KIT_FORMAT}, but is {record['format']}")
            self.batch, self.threads = int(record["batch"]), int(record["threads"])
            self.networks: dict[str, dict[str, Any]] = record["networks"]
            self.reference: str = record["reference"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise KitError(f"{folder / MANIFEST} must be the manifest of a kit beside measure.py, but cannot be read: {error}") from error

    def wanted(self, quick: bool) -> list[str]:
        """Names of the networks to measure, in their order; `quick` leaves out probes of input sizes between others."""
        names = [name for name, entry in self.networks.items() if entry["role"] != "reference"]
        sizes = {name: self.networks[name]["input"][1] for name in names if self.networks[name]["role"] == "probes"}
        ends = {min(sizes.values()), max(sizes.values())} if sizes else set()
        return [name for name in names if not quick or name not in sizes or sizes[name] in ends]

    def open(self, name: str, run: Mapping[str, Any], profile: Path | None = None) -> Network:
        """One network in the runtime."""
        entry = self.networks[name]
        try:
            content = (self.folder / entry["file"]).read_bytes()
        except OSError as error:
            raise KitError(f"{entry['file']} must lie in the kit, but cannot be read; copy the whole folder again ({error})") from error
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise KitError(f"{entry['file']} must be as it was written, but is damaged; copy the whole folder again")
        return Network(entry, content, run, profile)


class Results:
    """The file of results: a first line that says what it belongs to, then one JSON line for every network."""

    def __init__(self, path: Path, header: Mapping[str, Any]):
        self.path = path
        self.done: dict[str, dict[str, Any]] = {}
        self.level_ms: float | None = None
        try:
            self._file = path.open("ab+", buffering=0)
        except OSError as error:
            raise KitError(f"{path} must be writable, but is not ({error.strerror}); choose another with --out") from error
        try:
            self._begin(header)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _begin(self, header: Mapping[str, Any]) -> None:
        """Read what is there, or write the first line."""
        self._hold()
        self._file.seek(0)
        lines = self._file.readall().split(b"\n")
        self._torn = lines[-1] != b""  # by a kill: the next line must not be lost with it
        records = [record for record in map(parsed, lines) if record is not None]
        if records and records[0].get("format") == RESULTS_FORMAT:
            self._take(records, header)
        elif not any(lines[:-1]) and not records:  # nothing at all, or a first line that a kill tore
            self.add(header)
        else:
            raise KitError(f"{self.path} must be results of measure.py, but holds something else; choose another with --out")

    def _hold(self) -> None:
        """Keep other processes out where the system knows how; two would disturb each other."""
        try:
            import fcntl
        except ImportError:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise KitError(f"{self.path} must have one writer, but another measure.py is at work on it") from error
        except OSError:
            return  # a file system without locks

    def _take(self, records: Sequence[Mapping[str, Any]], header: Mapping[str, Any]) -> None:
        for field in ("kit", "device", "runtime", "precision", "batch", "threads"):
            if records[0].get(field) != header[field]:
                raise KitError(
                    f"{self.path} must be results of this kit, device and number of threads to be continued, but its {field} is "
                    f"'{records[0].get(field)}' and not '{header[field]}'; choose another file with --out"
                )
        for record in records[1:]:
            if "level_ms" in record:
                self.level_ms = self.level_ms or float(record["level_ms"])
            elif "name" in record:
                self.done[str(record["name"])] = dict(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """Append one line and wait until it is on the disk."""
        try:
            left = (b"\n" if self._torn else b"") + json.dumps(record).encode() + b"\n"
            self._torn = True
            while left:
                left = left[self._file.write(left) :]
            self._torn = False
            os.fsync(self._file.fileno())
        except OSError as error:
            raise KitError(f"{self.path} must be writable, but is not ({error.strerror}); make room, and run measure.py again") from error
        if "name" in record:
            self.done[record["name"]] = dict(record)


def parsed(line: bytes) -> dict[str, Any] | None:
    """One line of results, or None for an empty or torn one."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


# -- measuring -------------------------------------------------------------------------------------------------


def measure_group(kit: Kit, names: Sequence[str], run: Mapping[str, Any], results: Results, reference: Network) -> None:
    """Time a few networks in turn and append what was found."""
    with profile_folder(results.path) as folder:
        networks = {name: kit.open(name, run) for name in names}
        # a file for each: what the runtime adds to a name is no more than the second
        traced = {name: kit.open(name, run, folder / name) for name in names if is_traced(kit, name, run)}
        actions: dict[str, Action] = {name: network.run for name, network in networks.items()}
        actions.update({f"traced {name}": network.run for name, network in traced.items()})
        between = Reference(reference.run, results.level_ms)
        timings = stopwatch(actions, RULE, time.perf_counter, between)
        if results.level_ms is None:
            results.level_ms = between.level()
            results.add({"level_ms": results.level_ms})
        for name in names:
            record = dict(timings[name], name=name, speed=between.speed, group_disturbed=between.disturbed)
            if name in traced:
                layer_ms, run_ms, kernels = traced[name].account()
                shares = shares_of(layer_ms, run_ms, kernels, timings[name]["p50"], timings[f"traced {name}"]["p50"])
                record["shares"] = [round(share, 8) for share in shares]
            results.add(record)


def is_traced(kit: Kit, name: str, run: Mapping[str, Any]) -> bool:
    """Whether the shares of a network's layers are wanted; off the processor a profile tells how long launches take."""
    return bool(run["provider"] == CPU and kit.networks[name]["role"] == "probes")


@contextlib.contextmanager
def profile_folder(results: Path) -> Iterator[Path]:
    """A folder beside the results, empty now and gone afterwards; what a kill left there goes as well."""
    folder = results.with_name(results.name + ".profiles")
    shutil.rmtree(str(folder), ignore_errors=True)
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(str(folder), ignore_errors=True)


def groups_of(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """The names, a few at a time."""
    for start in range(0, len(names), GROUP):
        yield names[start : start + GROUP]


def measure(kit: Kit, run: Mapping[str, Any], results: Results, quick: bool, minutes: float | None) -> None:
    """Measure what is missing, as long as the time lasts."""
    names = kit.wanted(quick)
    left = [name for name in names if name not in results.done]
    screen = Screen(len(names))
    if left and len(left) < len(names):
        screen.say(f"{len(names) - len(left)} of {len(names)} networks are measured already")
    started = time.monotonic()
    spent: list[float] = []  # seconds of each group
    work = {name: 2 if is_traced(kit, name, run) else 1 for name in left}  # that networks are to each other
    total = sum(work.values())
    reference = kit.open(kit.reference, run) if left else None
    for group in groups_of(left):
        passed = time.monotonic() - started
        if minutes is not None and passed + max(spent, default=0.0) > 60 * minutes:
            screen.say(
                f"stopped after {duration(passed)}: {len(names) - len(left)} of {len(names)} networks are measured; run it again to go on"
            )
            return
        if not spent:
            screen.say(f"timing the first {len(group)} of {len(left)} networks ...")
        begun = time.monotonic()
        assert reference is not None
        measure_group(kit, group, run, results, reference)
        spent.append(time.monotonic() - begun)
        left = left[len(group) :]
        rest_work = sum(work[name] for name in left)
        rest = sum(spent) * rest_work / (total - rest_work)
        if len(spent) == 1 and left:
            screen.say(f"all of it will take about {duration(rest)} more; Ctrl-C stops it, and the next run goes on from there")
        screen.update(len(names) - len(left), rest)
    screen.say(f"all {len(names)} networks are measured: {results.path}")
    if max((record.get("group_disturbed", 0) for record in results.done.values()), default=0) > 0.5:
        screen.say("the device was disturbed or slowed down at times; the timings are corrected by the reference network")


class Screen:
    """What people see: sentences, and on a terminal one live line."""

    def __init__(self, total: int):
        self._total, self._width, self._live = total, 0, sys.stdout.isatty()

    def say(self, text: str) -> None:
        """A sentence of its own."""
        print("\r" + " " * self._width + "\r" + text if self._width else text, flush=True)
        self._width = 0

    def update(self, done: int, rest_seconds: float) -> None:
        """How far it is."""
        text = f"{done}/{self._total} networks, about {duration(rest_seconds)} left"
        if not self._live:
            print(text, flush=True)
            return
        filled = 24 * done // max(1, self._total)
        line = f"[{'#' * filled}{'.' * (24 - filled)}] {text}"
        print("\r" + line.ljust(self._width), end="", flush=True)
        self._width = len(line)


def duration(seconds: float) -> str:
    """Seconds for people."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def main(argv: Sequence[str] | None = None, folder: Path | None = None) -> int:
    """Measure the kit beside this file; 0 done (or out of time), 1 refused, 130 interrupted."""
    folder = folder or Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(prog="measure.py", description="Time the networks of this kit on this device. Run it again to go on.")
    parser.add_argument("--threads", type=int, help="threads of ONNX Runtime (default: what the kit was written for)")
    parser.add_argument("--minutes", type=float, help="stop after about so long")
    parser.add_argument("--provider", default=CPU, help=f"execution provider of ONNX Runtime (default: {CPU})")
    parser.add_argument(
        "--quick", action="store_true", help="measure layers at the smallest and the largest input only; others are interpolated"
    )
    parser.add_argument("--out", type=Path, help=f"file of results (default: {RESULTS} beside this file)")
    options = parser.parse_args(argv)
    try:
        _measure_here(folder, options)
    except KitError as error:
        print(f"measure.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; what was measured is kept, and running it again goes on from there", file=sys.stderr)
        return 130
    return 0


def _measure_here(folder: Path, options: argparse.Namespace) -> None:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise KitError("Python must have onnxruntime, but has none; try: pip install numpy onnxruntime") from error
    if np is None:
        raise KitError("Python must have numpy, but has none; try: pip install numpy onnxruntime")
    kit = Kit(folder)
    threads = kit.threads if options.threads is None else options.threads
    if not 1 <= threads <= 1024:
        raise KitError(f"--threads must be 1..1024, but got {threads}")
    if options.minutes is not None and not options.minutes > 0:
        raise KitError(f"--minutes must be positive, but got {options.minutes}")
    provider = options.provider
    if provider not in ort.get_available_providers():
        raise KitError(f"--provider must be one of {', '.join(ort.get_available_providers())} here, but got '{provider}'")
    header = {
        "format": RESULTS_FORMAT,
        "kit": kit.digest,
        "device": cpu_device() if provider == CPU else accelerator(),
        "runtime": f"onnxruntime {ort.__version__} {target_of(provider)}",
        "precision": "fp32",
        "batch": kit.batch,
        "threads": threads,
        "machine": describe_machine(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    load, cores = system_load(), os.cpu_count() or 1
    if load is not None and load > BUSY * cores:
        print(f"the device is busy (load {load:.1f} on {cores} cores): timings will scatter", file=sys.stderr)
    run = {"threads": threads, "provider": provider, "batch": kit.batch}
    with contextlib.closing(Results(options.out or folder / RESULTS, header)) as results:
        measure(kit, run, results, options.quick, options.minutes)


if __name__ == "__main__":
    sys.exit(main())
