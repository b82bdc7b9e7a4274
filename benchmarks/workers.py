"""What a second worker brings: an epoch of stage 3 by one and by two processes of one thread each.

    python benchmarks/workers.py

Small CLIP (small_clip.py), 300 users in 8 groups, parallel mode, gloo on this machine. The second
worker is worth 2 where nothing is shared; the bound is 1.7.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from _bench import Row, record, seconds
from _shops import SMALL
from _steps import open_bench, shop_and_clip

from perpeft_ray.train.collective import TorchCollective
from perpeft_ray.train.epoch import StageData, batches_per_group, train_epoch
from perpeft_ray.train.grouping import group_items, owners
from perpeft_ray.train.workspace import prepare

GROUPS = 8


def main() -> None:
    """Measure and record."""
    with tempfile.TemporaryDirectory() as scratch:
        shop_and_clip(Path(scratch), SMALL)
        alone, both = (epoch_of(world, Path(scratch)) for world in (1, 2))
    case = "epoch of stage 3, 300 users in 8 groups"
    record(
        [
            Row("workers", f"{case}, one worker", "seconds", alone, "s"),
            Row("workers", f"{case}, two workers", "seconds", both, "s", alone),
        ]
    )


def epoch_of(world: int, scratch: Path) -> float:
    """Median seconds of an epoch by so many processes."""
    commands = [
        [sys.executable, __file__, "--measure", str(rank), str(world), str(scratch)]
        for rank in range(world)
    ]
    others = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands[1:]]
    done = subprocess.run(commands[0], check=True, stdout=subprocess.PIPE, text=True)
    for other in others:
        if other.wait() != 0:
            raise RuntimeError("a worker failed")
    return float(done.stdout.splitlines()[-1])


def measure(rank: int, world: int, scratch: Path) -> float:
    """Seconds of an epoch in this process."""
    torch.set_num_threads(1)
    store = f"file://{scratch / f'store-{world}'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    workspace = prepare(f"parquet:{scratch / 'shop'}", str(scratch / "clip"), scratch / "cache")
    bench = open_bench(workspace, groups=GROUPS, mode="parallel", batch_size=16)
    job, trainable = bench.job, bench.job.sampler.trainable_users
    users = {group: trainable[bench.groups[trainable] == group] for group in range(GROUPS)}
    pools = group_items(job.split.train, bench.groups, GROUPS)
    data = StageData(3, job.sampler, users, dict(enumerate(pools)), 0.5)
    owner = owners(batches_per_group(users, job.config.batch_size), world)
    for group in range(GROUPS):
        if owner[group] != rank:
            del bench.state.modules[group]
    collective = TorchCollective(torch.device("cpu"))
    taken = seconds(lambda: train_epoch(bench.state, data, 1, job.config, collective), repeats=2)
    dist.destroy_process_group()
    return taken


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(measure(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
    else:
        main()
