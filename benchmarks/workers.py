"""What does a second worker gain? Epochs and evaluations by one and two processes of one thread.

    python benchmarks/workers.py

Small CLIP (small_clip.py), 1,200 users and 3,000 items, 8 groups, parallel mode, gloo on this
machine. The time is the CPU time of the slowest worker, so that other load does not count. Two
workers are ideally 2 times as fast; the goal is 1.7.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from _bench import Row, record
from _shops import SMALL
from _steps import open_bench, shop_and_clip

from perpeft_ray.train.collective import Alone, TorchCollective
from perpeft_ray.train.epoch import StageData, train_epoch
from perpeft_ray.train.evaluation import evaluate
from perpeft_ray.train.grouping import group_items
from perpeft_ray.train.workspace import prepare

GROUPS = 8


CASES = ("epoch of stage 1", "epoch of stage 3", "evaluation, 8 groups", "evaluation, 1 group")


def main() -> None:
    """Measure and record."""
    with tempfile.TemporaryDirectory() as scratch:
        shop_and_clip(Path(scratch), SMALL, users=1200, items=3000)
        alone, both = (seconds_of(world, Path(scratch)) for world in (1, 2))
    rows = []
    for case, one, two in zip(CASES, alone, both, strict=True):
        rows.append(Row("workers", f"{case}, one worker", "seconds", one, "s"))
        rows.append(Row("workers", f"{case}, two workers", "seconds", two, "s", one))
    record(rows)


def seconds_of(world: int, scratch: Path) -> list[float]:
    """The CPU time of each case on this many processes: the slowest one's."""
    commands = [
        [sys.executable, __file__, "--measure", str(rank), str(world), str(scratch)]
        for rank in range(world)
    ]
    workers = [subprocess.Popen(c, stdout=subprocess.PIPE, text=True) for c in commands]
    printed = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise RuntimeError("a worker failed")
    return [max(of_case) for of_case in zip(*map(json.loads, printed), strict=True)]


def measure(rank: int, world: int, scratch: Path) -> list[float]:
    """CPU seconds of each case in this process."""
    torch.set_num_threads(1)
    store = f"file://{scratch / f'store-{world}'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    workspace = prepare(f"parquet:{scratch / 'shop'}", str(scratch / "clip"), scratch / "cache")
    bench = open_bench(workspace, groups=GROUPS, mode="parallel", batch_size=16)
    job, trainable = bench.job, bench.job.sampler.trainable_users
    users = {group: trainable[bench.groups[trainable] == group] for group in range(GROUPS)}
    pools = group_items(job.split.train, bench.groups, GROUPS)
    everyone = {0: trainable}
    first = StageData(1, job.sampler, everyone, {0: None}, 0.0, job.config.step_batches)
    third = StageData(3, job.sampler, users, dict(enumerate(pools)), 0.5)
    collective = TorchCollective() if world > 1 else Alone()

    def epoch(data: StageData) -> None:
        train_epoch(bench.state, data, 1, job.config, collective, job.units)

    def ranks(groups: np.ndarray) -> None:
        length = job.config.sequence_length
        modules = bench.state.modules
        evaluate(job.model, modules, groups, job.split, "valid", length, collective)

    works: list[Callable[[], None]] = [
        lambda: epoch(first),
        lambda: epoch(third),
        lambda: ranks(bench.groups),
        lambda: ranks(np.zeros_like(bench.groups)),
    ]
    taken = []
    for work in works:
        work()
        times = []
        for _ in range(3):
            started = time.process_time()
            work()
            times.append(time.process_time() - started)
        taken.append(statistics.median(times))
    dist.destroy_process_group()
    return taken


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))))
    else:
        main()
