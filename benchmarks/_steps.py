"""Training steps and evaluations of a trial, as callables to time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _shops import Clip, write_clip, write_shop

from perpeft_ray.config import Dtype, Mode, StudyConfig, TrainSettings
from perpeft_ray.train.collective import Alone
from perpeft_ray.train.epoch import StageData, train_epoch
from perpeft_ray.train.evaluation import evaluate
from perpeft_ray.train.grouping import group_items
from perpeft_ray.train.job import Job, open_job
from perpeft_ray.train.state import TrainState
from perpeft_ray.train.workspace import Workspace, prepare


def shop_and_clip(
    scratch: Path, clip: Clip, users: int = 300, items: int = 500, mean_length: int = 30
) -> Workspace:
    """A catalogue and an encoder, prepared."""
    titles = write_shop(scratch / "shop", users, items, mean_length)
    write_clip(scratch / "clip", clip, titles)
    return prepare(f"parquet:{scratch / 'shop'}", str(scratch / "clip"), scratch / "cache")


@dataclass(frozen=True, eq=False)
class Bench:
    """A trial of PerPEFT with LoRA, ready to train; users are assigned to groups in turn."""

    job: Job
    state: TrainState
    groups: np.ndarray

    @property
    def dtype(self) -> str:
        """Compute dtype of the frozen towers."""
        assert self.job.model.tower is not None
        encoder: Any = self.job.model.tower.encoder
        return str(encoder.towers.dtype).removeprefix("torch.")

    def stage_data(self, stage: int, batch: int = 16) -> StageData:
        """`batch` users, from all (stage 1) or from group 0 with its negatives (stage 3)."""
        job = self.job
        trainable = job.sampler.trainable_users
        if stage == 1:
            return StageData(1, job.sampler, {0: trainable[:batch]}, {0: None}, 0.0)
        pools = group_items(job.split.train, self.groups, int(self.groups.max()) + 1)
        own = trainable[self.groups[trainable] == 0][:batch]
        return StageData(3, job.sampler, {0: own}, {0: pools[0]}, 1.0)

    def step(self, stage: int, batch: int = 16) -> Callable[[], float]:
        """One step of those users."""
        data = self.stage_data(stage, batch)
        return lambda: train_epoch(self.state, data, 1, self.job.config, Alone(), self.job.units)

    def evaluation(self) -> Callable[[], Any]:
        """Ranks of all users under the modules of all groups."""
        job, length = self.job, self.job.config.sequence_length
        return lambda: evaluate(
            self.state.model, self.state.modules, self.groups, job.split, "valid", length, Alone()
        )


def open_bench(
    workspace: Workspace,
    *,
    groups: int = 8,
    rank: int = 4,
    dtype: Dtype = "auto",
    length: int = 10,
    mode: Mode = "sequential",
    batch_size: int = 4096,
    memory_gb: float = 4.0,
    last_layers: int | None = None,
    device: str = "cpu",
) -> Bench:
    """A trial on the workspace, untrained."""
    settings = TrainSettings(dtype=dtype, batch_size=batch_size, mode=mode)
    config = StudyConfig(train=settings).trial(
        "perpeft",
        variant="lora",
        rank=rank,
        groups=groups,
        conditioning_weight=1.0,
        seed=0,
        learning_rate=1e-4,
    )
    config = dataclasses.replace(config, sequence_length=length, last_layers=last_layers)
    job = open_job(config, workspace, Alone(), torch.device(device), memory_gb)
    state = job.fresh_state(range(groups))
    of_users = (np.arange(job.split.num_users) % groups).astype(np.int32)
    return Bench(job, state, of_users)


def matrix_flops(work: Callable[[], Any]) -> float:
    """FLOPs of the matrix products and convolutions in a call, counted while it runs.

    Attention's own products (under 2 % at these lengths) are not counted on a CPU.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())
