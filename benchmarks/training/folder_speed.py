"""How fast photographs become training batches: images per second of `FolderSource` alone, by number of workers, in one run.

    OMP_NUM_THREADS=1 python benchmarks/training/folder_speed.py

The photographs are made for the run, in a temporary folder or in `--folder`: smooth random content with as much fine detail
as brings them to the 100 kB of a photograph, JPEG of quality 90, about 500x375 pixels, upright and lying, 10 classes. They
come from the system's file cache: a disk may be slower. Time counts from the first request on, so filling the pipeline is
paid for. The rounds of all numbers of workers take turns, after one short round each that is not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, features
from PIL import __version__ as pillow_version

from ofasearch.data.folder import FolderSet, class_folders, list_images
from ofasearch.records import provenance, write_json
from ofasearch.train.source import FolderSource, Request

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "benchmarks"))
from search_vs_ofa import machine  # noqa: E402 - its folder is no package

CLASSES = 10
LONG, SHORT = (480, 521), (355, 396)  # pixels, drawn from these ranges
QUALITY = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One pass over some batches."""

    workers: int
    images: int
    seconds: float
    images_per_s: float


def noise(rng: np.random.Generator, size: tuple[int, int], octave: int, bands: int) -> npt.NDArray[np.float32]:
    """Smooth noise (height, width, bands) around 0, of a grain that halves with each octave: 128 pixels at 0, 1 at 7."""
    width, height = (max(2, (side << octave) >> 7) for side in size)
    grain = rng.integers(0, 256, (height, width, bands), dtype=np.uint8)
    smooth = Image.fromarray(grain.squeeze()).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float32).reshape(size[1], size[0], bands) - 128


def photograph(rng: np.random.Generator) -> Image.Image:
    """Octaves of noise, each a little weaker than the one before; the fine half is grey, as in photographs."""
    size = (int(rng.integers(*LONG)), int(rng.integers(*SHORT)))
    size = size if rng.random() < 0.75 else size[::-1]
    pixels = np.full((size[1], size[0], 3), 128, dtype=np.float32)
    for octave in range(8):
        pixels += noise(rng, size, octave, 3 if octave < 4 else 1) * (0.5 * 0.85**octave)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_folder(folder: Path, count: int) -> FolderSet:
    """Class folders of photographs, the same in every run; those that are there already are kept."""

    def write(number: int) -> None:
        path = folder / f"class{number % CLASSES}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            photograph(np.random.default_rng((0, number))).save(path, quality=QUALITY)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(count)))
    return list_images(folder, [path.name for path in class_folders(folder)])


def measure(images: FolderSet, workers: int, options: argparse.Namespace, batches: int) -> Round:
    """Draw batches as a training does, and throw them away."""
    source = FolderSource(images, flip=True, workers=workers)
    order = np.random.default_rng(0).permutation(len(images))
    requests = [
        Request(np.resize(np.roll(order, -step * options.batch), options.batch), options.resolution, (0, step)) for step in range(batches)
    ]
    start = time.perf_counter()
    count = sum(len(batch) for batch in source.images(requests))
    seconds = time.perf_counter() - start
    return Round(workers=workers, images=count, seconds=seconds, images_per_s=count / seconds)


def measure_all(images: FolderSet, workers: Sequence[int], options: argparse.Namespace) -> list[Round]:
    """Rounds in turn, after one that is not counted."""
    for number in workers:
        measure(images, number, options, 2)
    rounds = []
    for _ in range(options.rounds):
        for number in workers:
            rounds.append(measure(images, number, options, options.batches))
            print(f"# {number} workers: {rounds[-1].images_per_s:.0f} images/s", flush=True)
    return rounds


def parse() -> argparse.Namespace:
    """The options; fewer photographs, batches and rounds make a quick trial."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--machine", default=machine(), help="results go to OUT/MACHINE/training/ (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results")
    parser.add_argument("--photographs", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help="where the photographs are made and kept (default: a temporary folder)")
    parser.add_argument("--workers", type=int, nargs="+", default=sorted({1, 2, os.cpu_count() or 1}))
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--batches", type=int, default=16, help="per round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.photographs < CLASSES or min(options.rounds, options.batches, options.batch, options.resolution, *options.workers) < 1:
        parser.error(f"there must be at least {CLASSES} photographs, and one of everything else")
    return options


def main() -> None:
    """Make the photographs, measure, write the raw record, print the table."""
    options = parse()
    with tempfile.TemporaryDirectory() as temporary:
        images = make_folder(options.folder or Path(temporary), options.photographs)
        file_bytes = statistics.mean((images.root / name).stat().st_size for name in images.files)
        load_before = os.getloadavg()
        rounds = measure_all(images, options.workers, options)
    speeds = {number: [r.images_per_s for r in rounds if r.workers == number] for number in options.workers}
    summary = [{"workers": n, "images_per_s": statistics.median(s), "least": min(s), "most": max(s)} for n, s in speeds.items()]
    record = provenance(
        benchmark="folder_speed",
        pillow=pillow_version,
        libjpeg_turbo=features.version("libjpeg_turbo"),
        cpu=options.machine,
        load_average={"before": load_before, "after": os.getloadavg()},
        settings={name: getattr(options, name) for name in ("workers", "resolution", "batch", "batches", "rounds")},
        photographs={
            "count": len(images),
            "pixels": {"long": LONG, "short": SHORT},
            "jpeg_quality": QUALITY,
            "mean_file_bytes": round(file_bytes),
        },
    )
    path = options.out / options.machine / "training" / "folder_speed.json"
    write_json(path, record | {"summary": summary, "rounds": [asdict(r) for r in rounds]})
    print(f"{'workers':>8} {'images/s':>9}")
    for row in summary:
        print(f"{row['workers']:>8} {row['images_per_s']:>9.0f}")
    print(f"raw results: {path}")


if __name__ == "__main__":
    main()
