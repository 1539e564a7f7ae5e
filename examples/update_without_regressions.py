"""A model is in production; find the larger one that replaces it and breaks least of what it gets right. No data, no download.

python examples/update_without_regressions.py runs/update
"""

import shutil
import sys
from pathlib import Path

import ofasearch

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/update")

# The model in production: the best subnet of at most 4.6 million multiply-accumulates.
shipped = ofasearch.find(macs=4.6e6, out=folder / "first")
shutil.copy(shipped["files"]["subnet"], folder / "model150.pt")

# Its successor: larger, holding all of its weights; rewarded for accuracy, punished (half as much) for negative flips. Without
# `macs` it may take twice as many as the first.
update = ofasearch.regnas(ref=folder / "model150.pt", macs=7.2e6, lambda2=0.5, out=folder / "second")
measured = update["measured"]
print(f"{shipped['arch_id']} -> {update['arch_id']}")
print(f"test top-1 {100 * measured['top1_ref']:.2f} % -> {100 * measured['top1']:.2f} % ({measured['n']:,} images)")
print(f"{100 * measured['nfr']:.2f} % of the images were right and are wrong now, {100 * measured['pfr']:.2f} % the other way round")

# The same budget searched by accuracy alone, for comparison.
plain = ofasearch.regnas(ref=folder / "model150.pt", macs=7.2e6, reward="r0", cas=False, out=folder / "plain")
print(f"by accuracy alone: top-1 {100 * plain['measured']['top1']:.2f} %, {100 * plain['measured']['nfr']:.2f} % break")
