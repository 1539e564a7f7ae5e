"""Fits the roofline's constants on published networks and writes them with their residuals.

    python benchmarks/fit_roofline.py --data ../shared/data [--more FOLDER] [--out benchmarks/results/roofline_fit.json]

`--more` is a folder of further published networks, one folder each named `<device>_gpu<batch>-<ms>ms...` with net.config and
run.config: they are only compared with, never fitted. The constants are those of `ofasearch.latency.roofline.FITS`.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from ofasearch.latency.ofa_yaml import load_ofa_yaml
from ofasearch.latency.roofline import DEVICES, FITS, Fit, Measured, estimate_ms, fit, network_ms
from ofasearch.latency.table import LatencyTable, layer_of
from ofasearch.records import write_json
from ofasearch.space.core import Blueprint
from ofasearch.space.static import read_net_config

# device -> how the folders of its networks begin
FOLDERS = {"v100": "v100_gpu64", "xeon": "cpu_lat", "note10": "note10_lat", "pixel1": "pixel1_lat", "pixel2": "pixel2_lat"}
# Networks published for another device with the same MACs, parameters and (1080 Ti) accuracy and image size as these of the V100.
SAME = {"gtx1080ti": [("v100_gpu64-9ms", 22.0)], "tx2": [("v100_gpu64-6ms", 47.0), ("v100_gpu64-9ms", 80.0)]}
MORE = {"1080ti": "gtx1080ti", "tx2": "tx2"}  # once-for-all's spelling


def published(folder: Path) -> dict[str, list[tuple[str, Blueprint, float]]]:
    """Device -> (name, layers, published ms), fastest first."""
    found = {}
    for device, start in FOLDERS.items():
        nets = [(path.name, read_net_config(path / "net.config"), _ms(path.name)) for path in folder.glob(f"{start}-*")]
        found[device] = sorted(nets, key=lambda net: net[2])
    for device, same in SAME.items():
        found[device] = [(net[0], net[1], ms) for start, ms in same for net in found["v100"] if net[0].startswith(start)]
    return found


def fits(nets: dict[str, list[tuple[str, Blueprint, float]]]) -> dict[str, Fit]:
    """The fit of every device; those with fewer than four networks take the V100's time per kernel."""
    found: dict[str, Fit] = {}
    for name, known in FITS.items():
        launch = found["v100"].constants.launch_us if len(nets[name]) < 4 else None
        fixed: dict[str, Any] = {"depthwise": known.constants.depthwise, "family": known.family, "launch_us": launch}
        found[name] = fit(_measured(nets[name]), DEVICES[name], known.batch, **fixed)
    return found


def _measured(nets: list[tuple[str, Blueprint, float]]) -> Measured:
    return [(blueprint, ms) for _, blueprint, ms in nets]


def _ms(name: str) -> float:
    match = re.search(r"-(\d+)ms", name)
    if match is None:
        raise ValueError(f"{name} must say its latency, such as -22ms")
    return float(match[1])


def residuals(name: str, like: str, nets: list[tuple[str, Blueprint, float]]) -> dict[str, Any]:
    """Published and estimated ms of a device's networks with the constants of a fit."""
    device, batch = replace(DEVICES[name], like=like), FITS[name].batch
    estimates = [network_ms(blueprint, device, batch) for _, blueprint, _ in nets]
    errors = [e / ms - 1 for e, (_, _, ms) in zip(estimates, nets, strict=True)]
    return {
        "networks": [{"name": n, "published_ms": ms, "estimated_ms": round(e, 3)} for e, (n, _, ms) in zip(estimates, nets, strict=True)],
        "mape": round(float(np.mean(np.abs(errors))), 4),
        "errors": [round(e, 4) for e in errors],
        "order_right": bool((np.diff(estimates) > 0).all()),
    }


def one_network(record: dict[str, Any]) -> dict[str, Any]:
    """Largest error of the other networks when the estimates are scaled to one, for each one in turn."""
    ratio = np.array([net["estimated_ms"] / net["published_ms"] for net in record["networks"]])
    return {"largest_errors": [round(float(np.abs(np.delete(ratio, i) / ratio[i] - 1).max()), 4) for i in range(len(ratio))]}


def layers_of_note10(table: LatencyTable) -> dict[str, Any]:
    """How the roofline, fitted on whole networks of the Note10, does on its published table, layer by layer."""
    device = DEVICES["note10"]
    result: dict[str, Any] = {}
    rows = [(layer_of(shape), row.ms) for (_, shape), row in table.rows.items()]
    for kind in ("all", "conv", "mbconv", "pool", "linear"):
        part = [(estimate_ms(spec, device, 1), ms) for spec, ms in rows if kind in ("all", spec.kind)]
        estimated, real = np.array(part).T
        result[kind] = {
            "layers": len(part),
            "mape": round(float(np.mean(np.abs(estimated / real - 1))), 4),
            "sum_over_sum": round(float(estimated.sum() / real.sum()), 4),
            "kendall_tau": round(float(kendalltau(estimated, real).statistic), 4) if len(part) > 10 else None,
        }
    return result


def main() -> None:
    """Fit, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--more", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/roofline_fit.json"))
    args = parser.parse_args()
    nets = published(args.data / "ofa" / "specialized")
    found = fits(nets)
    if args.more:
        for path in sorted(args.more.iterdir()):
            device = MORE[path.name.partition("_")[0]]
            net = (path.name, read_net_config(path / "net.config"), _ms(path.name))
            nets[device] = sorted([*nets[device], net], key=lambda n: n[2])
    record = {
        "fits": {name: asdict(f) for name, f in found.items()},
        "own": {name: residuals(name, name, nets[name]) for name in FITS},
        "carried": {
            f"{like} to {name}": residuals(name, like, nets[name])
            for like, names in (("v100", ("gtx1080ti", "tx2")), ("tx2", ("v100", "gtx1080ti")), ("pixel1", ("note10", "pixel2")))
            for name in names
        },
    }
    record |= {
        "one_network": {name: one_network(r) for name, r in record["carried"].items()},
        "note10_layers": layers_of_note10(load_ofa_yaml(args.data / "ofa" / "note10")),
    }
    write_json(args.out, record)
    for name, f in found.items():
        print(f"{name:10} share {f.constants.share:.4f}  launch {f.constants.launch_us:.2f} us  mape {f.mape:.4f}", end="")
        print(f"  left out {f.left_out_mape:.4f} (max {f.left_out_max:.4f})" if f.left_out_mape is not None else "")
    for group in ("own", "carried"):
        for name, r in record[group].items():
            print(f"{group} {name:20} mape {r['mape']:.3f}  order right: {r['order_right']}  {r['errors']}")
    for name, r in record["one_network"].items():
        print(f"scaled to one network, {name:20} {r['largest_errors']}")
    for kind, r in record["note10_layers"].items():
        print("note10 layers", kind, r)


if __name__ == "__main__":
    main()
