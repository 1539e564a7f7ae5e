"""Quantise a network to int8 and say what that costs. With the path of CIFAR-10 the network is one that was trained on it.

python examples/int8_export.py runs/int8 [DATA]

Without DATA the images are scikit-learn's handwritten digits, which need no download: the network was not trained on them, so that
its accuracy means little, but all else is as with your own images.
"""

import sys
from pathlib import Path

import ofasearch

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/int8")
data = sys.argv[2] if len(sys.argv) > 2 else "digits"

# The best network of at most 5 million multiply-accumulates, in float32, recalibrated on the data.
found = ofasearch.find(macs=5e6, data=data, images=200, top_k=1, out=folder)

# The same in int8: recipes are compared on validation images, and timed beside the float32 file.
made = ofasearch.quantize(found["files"]["onnx"], out=folder / "subnet.int8.onnx", data=data, seconds=0.5)
recipe, old, new, flips = made["recipe"], made["fp32"], made["int8"], made["flips"]
floating = " and ".join(recipe["floating"]) or "nothing"
print(f"scales per {'channel' if recipe['per_channel'] else 'tensor'}, {floating} in float")
print(f"test top-1 {100 * old['test_top1']:.2f} % -> {100 * new['test_top1']:.2f} % ({flips['n']:,} images)")
print(f"{100 * flips['nfr']:.2f} % of the images were right and are wrong now, {100 * flips['pfr']:.2f} % the other way round")
print(f"size {old['size_bytes']:,} -> {new['size_bytes']:,} bytes, latency times {made['latency_ratio']:.2f}")

# Any program that runs ONNX runs the file; here it is scored like any other network.
checked = ofasearch.evaluate_subnet(made["onnx"], data=data)
assert checked["top1"] == new["test_top1"]
