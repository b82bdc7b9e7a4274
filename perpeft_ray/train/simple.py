"""The trial of a baseline without training."""

from __future__ import annotations

import time
import typing

import numpy as np
import torch

from perpeft_ray.config import TrialConfig
from perpeft_ray.recommender.simple import SimpleMethod, simple_ranks
from perpeft_ray.train.evaluation import facts_of_users, metrics_of, no_lists, of_lists
from perpeft_ray.train.memory import PeakMemory
from perpeft_ray.train.outcome import TrialOutcome, UserRanks
from perpeft_ray.train.workspace import Workspace, open_split, prepare_here


def simple_outcome(config: TrialConfig, workspace: Workspace, *, test: bool) -> TrialOutcome:
    """Rank every user's validation item and, if `test`, the test item; on the CPU."""
    memory = PeakMemory(torch.device("cpu"))
    started = time.perf_counter()
    prepare_here(workspace, config.dataset, config.data)
    split = open_split(workspace)
    method = typing.cast(SimpleMethod, config.method)
    valid_ranks = simple_ranks(method, split, "valid")
    unknown = np.full(split.num_users, -1, dtype=np.int64)
    lists = no_lists(split, torch.device("cpu")) if test else None
    test_ranks = simple_ranks(method, split, "test", lists) if test else unknown
    nowhere = np.full(split.num_users, np.nan, dtype=np.float32)
    return TrialOutcome(
        selected_epoch=0,
        still_improving=False,
        valid=metrics_of(valid_ranks),
        test=metrics_of(test_ranks) if test else None,
        **of_lists(lists, split),
        users_evaluated=len(split.evaluated("test")),
        encoder_parameters=0,
        trainable_parameters=0,
        stage1_seconds=0.0,
        stage2_seconds=0.0,
        stage3_seconds=0.0,
        evaluate_seconds=time.perf_counter() - started,
        peak_memory_mb=memory.megabytes(),
        world_size=1,
        device="cpu",
        users=UserRanks(
            **facts_of_users(split),
            group=unknown.astype(np.int32),
            test_group=unknown.astype(np.int32),
            valid_rank=valid_ranks,
            test_rank=test_ranks,
            map_x=nowhere,
            map_y=nowhere,
        ),
    )
