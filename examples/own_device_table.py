"""A latency table for your own device from a few networks timed on it.

    python examples/own_device_table.py [OUT]

Three networks of the embedded supernet are exported and timed; from these times and the device's peaks a table for all networks is
estimated, and a search goes by it. Here this machine plays the device. For another one, copy the three ONNX files there, time
them with what will run them (on Linux: `ofasearch bench`), and put your numbers in `measured`. Where more can be timed,
`ofasearch latency kit` packs some hundred networks with a script that needs no ofasearch.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ofasearch
from ofasearch.jobs.estimates import EstimateRequest, Timed, estimate

NETWORKS = [f"compofa-mbv3-cifar@r32-{depths}" for depths in ("2-2-2-2-2", "3-3-3-3-3", "4-4-4-4-4")]
LEFT_OUT = "compofa-mbv3-cifar@r32-2-3-4-3-2"  # timed only to see how good the table is
PEAKS = {"peak_tflops": 0.1, "bandwidth_gbs": 20.0, "like": "xeon"}  # a core of a server; look yours up


def timed(network: str, folder: Path) -> float:
    """Milliseconds per image of one network on the device."""
    file = folder / f"{network.partition('@')[2]}.onnx"
    ofasearch.export(network, out=file)
    return float(ofasearch.bench(file, seconds=0.3)["latency_ms_p50"])


def main(out: Path) -> dict[str, object]:
    """Time, estimate, check, search; returns the answer of the search."""
    measured = {network: timed(network, out / "networks") for network in NETWORKS}
    known = tuple(Timed(subnet=network, latency_ms=ms) for network, ms in measured.items())
    table = out / "mydevice.csv"
    request = EstimateRequest(device="mydevice", spaces=("compofa-mbv3-cifar",), timed=known, out=table, **PEAKS)
    print(f"{table}: estimated, {100 * estimate(request)['calibration']['left_out_mape']:.0f} % off where a timed network is left out")

    by_table = ofasearch.explain(LEFT_OUT, target=str(table))["latency_ms"]
    print(f"a network that was not used: {by_table:.3f} ms by the table, {timed(LEFT_OUT, out / 'networks'):.3f} ms timed")

    limit = sum(measured.values()) / len(measured)
    answer = ofasearch.find(target=str(table), latency_ms=limit, out=out / "found")
    print(f"at most {limit:.3f} ms: {answer['arch_id']}, {answer['latency_ms']:.3f} ms by the table ({answer['latency_source']})")
    return answer


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_device"))
