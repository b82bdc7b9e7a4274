"""What training says of itself: one record an epoch, one outcome a trial. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perpeft_ray.metrics import RankingMetrics


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of one stage."""

    stage: int
    """1 (global module) or 3 (personalised modules, or stage 1 continued)."""
    epoch: int
    """1-based, counted over the whole trial: stage 3 goes on where stage 1 ended."""
    loss: float
    """Mean training loss a position."""
    seconds: float
    """Wall time of the epoch with its validation; of the first run where it is shared."""
    valid: RankingMetrics | None
    """Validation metrics, None where this epoch was not validated."""
    best_valid_ndcg_at_20: float | None
    """The best validation NDCG@20 so far, the trial's objective; None before any validation."""
    shared: bool
    """True for epochs trained before and read from a cache: of a stage 1, or of a whole trial."""


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
    """0-based; -1 for users that are not evaluated or where test was not read."""
    history_length: NDArray[np.int64]
    """Items that are known of the user while testing."""
    test_item_occurrences: NDArray[np.int64]
    """How often the test item occurs in training; -1 for users that are not evaluated."""
    map_x: NDArray[np.float32]
    """First principal component of what was grouped, SASRec's outputs after stage 1; NaN for
    methods without groups."""
    map_y: NDArray[np.float32]
    """Second principal component."""


@dataclass(frozen=True)
class TrialOutcome:
    """What a finished trial measured."""

    selected_epoch: int
    still_improving: bool
    """Whether the selected epoch is the last one trained: more epochs may give more."""
    valid: RankingMetrics
    test: RankingMetrics | None
    """None where the trial was told not to read test (search)."""
    test_coverage: tuple[float, ...] | None
    """For k = 1, 2, …: the share of all items that are in anyone's first k; None as `test`."""
    test_popularity: tuple[float, ...] | None
    """For k = 1, 2, …: how often an item of the users' first k occurs in training, on average."""
    users_evaluated: int
    encoder_parameters: int
    trainable_parameters: int
    """Of PEFT modules of all groups; projectors and SASRec are not counted, as in the paper."""
    stage1_seconds: float
    """As measured when it was computed, also where it came from the stage cache."""
    stage2_seconds: float
    stage3_seconds: float
    evaluate_seconds: float
    """Of all validations, and of the test."""
    peak_memory_mb: float
    """In MiB, of the process that reports: resident, or on CUDA what torch had allocated."""
    world_size: int
    device: str
    users: UserRanks
