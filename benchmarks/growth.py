"""How do time and memory grow? Items, users, groups, rank and sequence length, up to ten times.

    python benchmarks/growth.py

Small CLIP (small_clip.py), one thread. Items, users and groups: an evaluation, which encodes every
item for every group and ranks every user; rank and sequence length: a stage-1 step of 16 users.
Every point runs in its own process, for its peak memory. A curve's exponent is the slope of a line
through its points in logarithms: 1 if ten times the size takes ten times the time.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from _bench import Row, in_fresh_process, record, seconds
from _shops import SMALL
from _steps import open_bench, shop_and_clip

from perpeft_ray.train.memory import PeakMemory

TIMES = (1, 3, 10)
BASE = {"items": 300, "users": 300, "groups": 1, "rank": 2, "length": 5}
STEPS = ("rank", "length")
"""Sizes that are measured by a step; the others by an evaluation."""
UNITS = {"seconds": "s", "peak_mb": "MB"}

Curve = list[dict[str, float]]


def main() -> None:
    """Measure and record."""
    rows = []
    for name, least in BASE.items():
        work = "step" if name in STEPS else "evaluation"
        curve: Curve = []
        for times in TIMES:
            sizes = BASE | {name: least * times}
            found = in_fresh_process(str(Path(__file__)), work, json.dumps(sizes), threads=1)
            curve.append({"size": least * times, **found})
            case = f"{work}, {name} {least * times:,}"
            rows += [Row("growth", case, key, found[key], unit) for key, unit in UNITS.items()]
        rows += [
            Row("growth", f"{work}, {name}", f"exponent of {key}", slope(curve, key), "")
            for key in UNITS
        ]
    record(rows)


def slope(curve: Curve, key: str) -> float:
    """Slope of the least-squares line through the points, both axes in logarithms."""
    size, value = (np.log([point[name] for point in curve]) for name in ("size", key))
    return float(np.polyfit(size, value, 1)[0])


def measure(work: str, sizes: dict[str, int]) -> dict[str, float]:
    """Time and peak memory in this process."""
    torch.set_num_threads(1)
    memory = PeakMemory(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as scratch:
        workspace = shop_and_clip(
            Path(scratch), SMALL, sizes["users"], sizes["items"], mean_length=80
        )
        bench = open_bench(
            workspace, groups=sizes["groups"], rank=sizes["rank"], length=sizes["length"]
        )
        call = bench.step(1) if work == "step" else bench.evaluation()
        return {"seconds": seconds(call, repeats=3), "peak_mb": memory.megabytes()}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], json.loads(sys.argv[3]))))
    else:
        main()
