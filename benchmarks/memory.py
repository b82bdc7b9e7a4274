"""What `--memory-gb` bounds, and what it costs: steps of a ViT-B/32-shaped CLIP with LoRA.

    python benchmarks/memory.py

One thread, bfloat16. A step of 64 users fits this machine with everything kept for the backward
pass, and is measured with and without the bound. A step of 256 users is measured with the bound;
its reference is four steps of 64 users without one.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from _bench import Row, in_fresh_process, record
from _shops import VIT_B_32
from _steps import open_bench, shop_and_clip

from perpeft_ray.train.memory import PeakMemory
from perpeft_ray.train.workspace import prepare

CASES = {"64 users, everything kept": (64, 1000.0), "64 users": (64, 4.0), "256 users": (256, 4.0)}


def main() -> None:
    """Measure and record, case by case."""
    with tempfile.TemporaryDirectory() as scratch:
        shop_and_clip(Path(scratch), VIT_B_32, users=512, items=4000, mean_length=12)
        rows: list[Row] = []
        first = 0.0
        for case, (users, memory_gb) in CASES.items():
            taken = in_fresh_process(__file__, scratch, str(users), str(memory_gb), threads=1)
            first = first or taken["seconds"] / users
            rows += [
                Row("memory", case, "seconds", taken["seconds"], "s", first * users),
                Row("memory", case, "peak", taken["peak"], "MB"),
                Row("memory", case, "before the step", taken["before"], "MB"),
            ]
            record(rows)


def measure(scratch: Path, users: int, memory_gb: float) -> dict[str, float]:
    """Seconds of processor time and peak memory of one step."""
    torch.set_num_threads(1)
    memory = PeakMemory(torch.device("cpu"))
    workspace = prepare(f"parquet:{scratch / 'shop'}", str(scratch / "clip"), scratch / "cache")
    bench = open_bench(workspace, groups=1, dtype="bfloat16", memory_gb=memory_gb)
    step = bench.step(1, users)
    before = memory.megabytes()
    memory = PeakMemory(torch.device("cpu"))
    started = time.process_time()
    step()
    taken = time.process_time() - started
    return {"seconds": taken, "peak": memory.megabytes(), "before": before}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))
    else:
        main()
