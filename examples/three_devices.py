"""One supernet, three devices, a network for each: nothing is trained, only searched. No data, no download.

    python examples/three_devices.py [OUT]

Each device is a latency table: one measured on a server, two estimated from published peaks. A table of your own device goes in
the same place (examples/own_device_table.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

import ofasearch

LIMITS = {"raspberrypi4": 4.8, "jetson-nano": 3.8, "amd-epyc-ort-1t": 0.5}  # table -> ms that an image may take there


def main(arguments: list[str]) -> dict[str, dict[str, object]]:
    """Search three times in the embedded supernet and print what was found."""
    out = Path(arguments[0] if arguments else "runs/three_devices")
    found = {device: ofasearch.find(target=device, latency_ms=limit, out=out / device) for device, limit in LIMITS.items()}
    print(f"{'device':<16} {'limit':>8} {'latency':>9} {'by table':<9} {'M MACs':>6} {'test top-1':>10}  network")
    for device, answer in found.items():
        top1 = 100 * answer["measured"]["top1"]
        print(
            f"{device:<16} {LIMITS[device]:>5.2f} ms {answer['latency_ms']:>6.3f} ms {answer['latency_source']:<9} "
            f"{answer['macs'] / 1e6:>6.2f} {top1:>8.2f} %  {answer['arch_id']}"
        )
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
