"""Batches of several groups in one pass (`train.grouped_step`) against one after another.

    python benchmarks/grouped_step.py

A parallel step of 8 groups with 4 users each, small CLIP (small_clip.py), LoRA, float32,
measured in turn.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _bench import Row, record, seconds_in_turn
from _shops import SMALL
from _steps import open_bench, shop_and_clip

from perpeft_ray.train.collective import Alone
from perpeft_ray.train.epoch import StageData, train_epoch
from perpeft_ray.train.grouping import group_items
from perpeft_ray.train.workspace import Workspace

GROUPS, USERS = 8, 4


def main() -> None:
    """Measure and record."""
    with tempfile.TemporaryDirectory() as scratch:
        workspace = shop_and_clip(Path(scratch), SMALL)
        works = [step(workspace, grouped) for grouped in (False, True)]
        one_by_one, together = seconds_in_turn(works, repeats=5)
    case = f"small CLIP, {GROUPS} groups of {USERS} users, float32"
    record(
        [
            Row("grouped_step", f"{case}, one by one", "seconds", one_by_one, "s"),
            Row("grouped_step", f"{case}, in one pass", "seconds", together, "s", one_by_one),
        ]
    )


def step(workspace: Workspace, grouped: bool) -> Callable[[], Any]:
    """A parallel step of all groups."""
    bench = open_bench(workspace, groups=GROUPS, dtype="float32", mode="parallel", grouped=grouped)
    job = bench.job
    trainable = job.sampler.trainable_users
    users: dict[int, np.ndarray] = {
        group: trainable[bench.groups[trainable] == group][:USERS] for group in range(GROUPS)
    }
    pools = group_items(job.split.train, bench.groups, GROUPS)
    data = StageData(3, job.sampler, users, dict(enumerate(pools)), 1.0)
    return lambda: train_epoch(bench.state, data, 1, job.config, Alone())


if __name__ == "__main__":
    main()
