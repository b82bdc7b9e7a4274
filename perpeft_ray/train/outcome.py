"""Results of training as plain data: one record per epoch, one outcome per trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perpeft_ray.metrics import RankingMetrics


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of one stage."""

    stage: int
    """1 (global module) or 3 (personalised modules, or stage 1 continued)."""
    epoch: int
    """1-based, counted over the whole trial: stage 3 continues the count of stage 1."""
    loss: float
    """Mean training loss per position."""
    seconds: float
    """Wall time of the epoch with its validation; for a shared epoch, of its first run."""
    valid: RankingMetrics | None
    """Validation metrics; None without validation in this epoch."""
    best_valid_ndcg_at_20: float | None
    """The best validation NDCG@20 so far, the trial's objective; None before any validation."""
    shared: bool
    """True for epochs read from a cache, of a stage 1 or a whole trial."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> EpochRecord:
        """The record whose `dataclasses.asdict` these fields are."""
        valid = fields["valid"]
        return cls(**{**fields, "valid": None if valid is None else RankingMetrics(**valid)})


@dataclass(frozen=True)
class UserRanks:
    """Each user's group and ranks under the selected epoch; all arrays [users]."""

    user_id: NDArray[np.object_]
    group: NDArray[np.int32]
    """Group while validating (from the training history); -1 for methods without groups."""
    test_group: NDArray[np.int32]
    """Group while testing (training + validation history); -1 for methods without groups."""
    valid_rank: NDArray[np.int64]
    """0-based; -1 for users that are not evaluated."""
    test_rank: NDArray[np.int64]
    """0-based; -1 for users that are not evaluated, or if test was not read."""
    history_length: NDArray[np.int64]
    """Known items of the user at test time."""
    test_item_occurrences: NDArray[np.int64]
    """Occurrences of the test item in training; -1 for users that are not evaluated."""
    map_x: NDArray[np.float32]
    """First principal component of SASRec's outputs after stage 1, which were grouped; NaN for
    methods without groups."""
    map_y: NDArray[np.float32]
    """Second principal component."""


@dataclass(frozen=True)
class TrialOutcome:
    """Measurements of a finished trial."""

    selected_epoch: int
    still_improving: bool
    """Whether the selected epoch is the last one trained: more epochs may give more."""
    valid: RankingMetrics
    test: RankingMetrics | None
    """None if the trial did not read test (search)."""
    test_coverage: tuple[float, ...] | None
    """For k = 1, 2, …: share of all items in any user's first k; None as `test`."""
    test_popularity: tuple[float, ...] | None
    """For k = 1, 2, …: mean occurrences in training of the items in users' first k."""
    users_evaluated: int
    encoder_parameters: int
    trainable_parameters: int
    """Parameters of all groups' PEFT modules, without projectors and SASRec, as in the paper."""
    stage1_seconds: float
    """Measured when it was computed, also if it came from the stage cache."""
    stage2_seconds: float
    stage3_seconds: float
    evaluate_seconds: float
    """Wall time of all validations and of the test."""
    peak_memory_mb: float
    """In MiB, of the reporting process: resident memory, or torch's allocations on CUDA."""
    world_size: int
    device: str
    computed: str | None
    """The result of `computed_with`, part of the names of the trial's weights; None for methods
    without training."""
    users: UserRanks
