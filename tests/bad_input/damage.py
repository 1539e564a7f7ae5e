"""Seeded damage to files of any kind, and the few facts that all tests of bad input share."""

import io
import os
import shutil

import numpy as np
from PIL import Image

from ofasearch.space.families import MobileDesign, Stage

DESIGN = MobileDesign(
    name="tiny",
    stem=8,
    stem_stride=2,
    first=8,
    stages=(Stage(8, 1, "relu", se=False, kernel=3), Stage(16, 2, "h_swish", se=True, kernel=3)),
    c_expand=16,
    c_feature=24,
    classes=3,
    resolutions=(16,),
    depths=(1, 2),
    expands=(2, 3),
    kernels=(3, 5),
)
ARCH = "tiny@r16-132-152"
ARCH_TUTORIAL = "ofa-mbv3-w1.2@r224-" + "-".join(["23333"] * 5)

# The file of each kind, and the command that reads it. Commands run in the folder of one test.
FIND = "find --flops 1G --json --out out"
DOORS = {
    "supernet": ("net/supernet.safetensors", "export {arch} --supernet net -o former.onnx --json"),
    "members": ("net/members.safetensors", FIND + " --supernet net"),
    "checkpoint": (
        "run/checkpoint.pt",
        "train --space tiny --data images.parquet --epochs 1 --batch-size 64 --out run --resume --json",
    ),
    "subnet": ("subnet.pt", "export subnet.pt -o former.onnx --json"),
    "tutorial": ("tutorial.pth", "predictor predict tutorial.pth " + ARCH_TUTORIAL + " --json"),
    "encoder": ("encoder.pth", "predictor import encoder.pth -o taken.safetensors --json"),
    "predictor": ("predictor.safetensors", "predictor predict predictor.safetensors {arch} --json"),
    "lookup": ("lookup/16_lookup_table.yaml", FIND + " --supernet net --target lookup --latency 1s"),
    "table": ("table.csv", FIND + " --supernet net --target table.csv --latency 1s"),
    "card": ("table.json", FIND + " --supernet net --target table.csv --latency 1s"),
    "images": ("images.parquet", "eval subnet.pt --data images.parquet --json"),
    "pairs": ("pairs.jsonl", "predictor check predictor.safetensors --pairs pairs.jsonl --json"),
    "accuracies": ("pairs.csv", "predictor check predictor.safetensors --pairs pairs.csv --json"),
    "onnx": ("subnet.onnx", "eval subnet.onnx --data images.parquet --json"),
    "predictions": ("predictions.npz", "flips predictions.npz subnet.pt --data images.parquet --json"),
    "record": ("record.json", "inspect record.json --json"),
    "published": ("published/init", "export published -o former.onnx --json"),
    "config": ("published/net.config", "space cost published --json"),
}


# Kinds that share a format are told apart by their contents alone.
FORMATS = (
    ("predictor", "supernet", "members"),
    ("subnet", "checkpoint"),
    ("tutorial",),
    ("lookup",),
    ("encoder",),  # an even number of groups from the tutorial's, which its door takes as well
    ("table", "accuracies"),
    ("record", "card"),
    ("pairs",),
    ("images",),
    ("onnx",),
    ("predictions",),
    ("published",),
    ("config",),  # an even number of groups from the records, whose door takes any JSON
)


def strangers(kind):
    """For a kind of file, the others of its format and every second of the other formats, a kind of each."""
    own = next(i for i, group in enumerate(FORMATS) if kind in group)
    others = [group[0] for i, group in enumerate(FORMATS) if (i - own) % 2 == 1]
    return [other for other in FORMATS[own] if other != kind] + others


def png(seed, size=16):
    """A small PNG of seeded noise."""
    return encoded(np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8))


def encoded(pixels, kind="PNG"):
    """Pixels as the bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def cut(share):
    """Keep the first `share` of a file."""
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flip(seed):
    """Flip one seeded bit, in the first kilobyte for even seeds: headers are hit as often as contents."""

    def change(path):
        content, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
        position = int(rng.integers(len(content) if seed % 2 else min(1024, len(content))))
        content[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)

    return change


def zeroed(path):
    """Zeros for the first 64 bytes."""
    content = path.read_bytes()
    path.write_bytes(bytes(64) + content[64:])


def _instead(make):
    def change(path):
        path.unlink()
        make(path)

    return change


def _loop(path):
    path.symlink_to(path.name)


def _nowhere(path):
    path.symlink_to("nowhere")


def _folder_with_itself(path):
    keep = path.read_bytes()
    path.unlink()
    path.mkdir()
    (path / path.name).write_bytes(keep)


def recoded(encoding):
    """The text of a file in another encoding, with a letter that only some encodings know."""
    return lambda path: path.write_bytes(("é" + path.read_text(encoding="utf-8")).encode(encoding))


# Damage after which no kind of file can be valid.
FATAL = {
    "cut to nothing": cut(0),
    "cut in the middle": cut(0.5),
    "header zeroed": zeroed,
    "a folder": _folder_with_itself,
    "a pipe": _instead(os.mkfifo),
    "a link to itself": _instead(_loop),
}


def swapped(other):
    """Another valid file in place of this one."""
    return lambda path: shutil.copy(other, path)
