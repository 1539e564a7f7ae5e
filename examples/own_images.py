"""From a folder of your own images to an ONNX file: train a supernet on them, search it, fine-tune the network found.

    python examples/own_images.py [IMAGES [OUT]]

IMAGES holds a folder of images per class (or train/ and val/ with such folders). Without it some small pictures are painted,
and all is so short that it teaches nothing but the steps; take `epochs=100` and more for images of your own.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import ofasearch

SPACE = "compofa-mbv3-cifar-w0.15"  # for images of 32x32 pixels; the width makes it quick. Photographs: compofa-mbv3-w1.0
COLOURS = {"red": (200, 60, 60), "green": (60, 180, 60), "blue": (60, 60, 200)}


def paint(folder: Path, per_class: int = 90) -> Path:
    """A folder of small pictures, one class for each colour."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = np.clip(rng.normal(colour, 60, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")
    return folder


def main(images: str, out: Path, *, epochs: int = 2) -> dict[str, object]:
    """Train, search, fine-tune; returns the answer of the fine-tuning."""
    trained = ofasearch.train_supernet(
        space=SPACE, data=images, epochs=epochs, batch_size=32, lr=0.05, warmup_epochs=0.2, out=out / "supernet"
    )
    print("supernet, validation top-1:", ", ".join(f"{name} {100 * top1:.1f} %" for name, top1 in trained["top1"].items()))

    # No predictor knows these weights, so networks are evaluated for real: a few of them, on at most 200 images.
    found = ofasearch.find(
        supernet=trained["supernet"], data=images, macs=1.5e6, objective="measured", images=200, population=4, generations=1,
        algorithm="random", out=out / "found",
    )  # fmt: skip
    print(f"found {found['arch_id']}: {found['macs'] / 1e6:.2f} M MACs, test top-1 {100 * found['measured']['top1']:.1f} %")

    tuned = ofasearch.finetune(found["files"]["subnet"], data=images, epochs=epochs, batch_size=32, out=out / "tuned")
    before, after = (100 * tuned[side]["test_top1"] for side in ("before", "after"))
    print(f"fine-tuned for {epochs} epochs: test top-1 {before:.1f} % -> {after:.1f} %")
    print(f"deploy {tuned['files']['onnx']}")
    return tuned


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        source = sys.argv[1] if len(sys.argv) > 1 else str(paint(Path(folder) / "images"))
        main(source, Path(sys.argv[2] if len(sys.argv) > 2 else "runs/own_images"))
