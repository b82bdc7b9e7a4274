"""Trial records made by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from perpeft_ray.config import Method, StudyConfig, Variant
from perpeft_ray.metrics import RankingMetrics, ndcg
from perpeft_ray.store.folder import StudyFolder
from perpeft_ray.store.record import Phase, Status, TrialRecord
from perpeft_ray.store.schema import trial_table, users_table
from perpeft_ray.train.outcome import EpochRecord, TrialOutcome, UserRanks

Record = Callable[..., TrialRecord]
Frames = tuple[pd.DataFrame, pd.DataFrame]

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
USERS = UserRanks(
    user_id=np.array(["u1", "u2", "u3"], dtype=object),
    group=np.array([0, 1, -1], dtype=np.int32),
    test_group=np.array([0, 0, -1], dtype=np.int32),
    valid_rank=np.array([4, 0, -1], dtype=np.int64),
    test_rank=np.array([7, 2, -1], dtype=np.int64),
    history_length=np.array([4, 2, 1], dtype=np.int64),
    test_item_occurrences=np.array([3, 9, -1], dtype=np.int64),
    map_x=np.array([-1.0, 0.5, 0.5], dtype=np.float32),
    map_y=np.array([0.25, 0.25, -0.5], dtype=np.float32),
)


def metrics(ndcg_at_20: float) -> RankingMetrics:
    """Six different values that follow from one."""
    return RankingMetrics(
        hr_at_10=1.5 * ndcg_at_20,
        hr_at_20=2.0 * ndcg_at_20,
        hr_at_30=2.5 * ndcg_at_20,
        ndcg_at_10=0.75 * ndcg_at_20,
        ndcg_at_20=ndcg_at_20,
        ndcg_at_30=1.25 * ndcg_at_20,
    )


def outcome(score: float, *, test: bool, **changes: Any) -> TrialOutcome:
    """A finished trial's; `score` is both NDCG@20, the test's if it read test."""
    made = TrialOutcome(
        selected_epoch=21,
        still_improving=False,
        valid=metrics(score),
        test=metrics(score) if test else None,
        test_coverage=(0.25, 0.5) * 50 if test else None,
        test_popularity=(8.0, 2.0) * 50 if test else None,
        users_evaluated=2,
        encoder_parameters=4000,
        trainable_parameters=60,
        stage1_seconds=3.5,
        stage2_seconds=0.25,
        stage3_seconds=4.5,
        evaluate_seconds=0.5,
        peak_memory_mb=812.0,
        world_size=1,
        device="cpu",
        computed="float32-cpu",
        users=USERS,
    )
    return replace(made, **changes)


@pytest.fixture(scope="session")
def record() -> Record:
    """A factory of records; the score is both the validation and the test NDCG@20."""

    def make(
        method: Method = "perpeft",
        variant: Variant | None = "lora",
        score: float = 0.1,
        *,
        seed: int = 0,
        phase: Phase = "ablation",
        status: Status = "COMPLETE",
        study: StudyConfig | None = None,
        learning_rate: float = 1e-2,
        rank: int = 4,
        minute: int = 0,
        still_improving: bool = False,
        trial_id: str | None = None,
    ) -> TrialRecord:
        config = (study or StudyConfig()).trial(
            method,
            seed=seed,
            variant=variant,
            rank=rank,
            groups=6,
            conditioning_weight=0.5,
            learning_rate=learning_rate,
        )
        without_encoder = {"encoder_parameters": 0, "trainable_parameters": 0}
        made = outcome(
            score,
            test=phase == "ablation",
            still_improving=still_improving,
            **without_encoder if method == "without_mm" else {},
        )
        epoch = EpochRecord(1, 1, 0.7, 0.5, None, None, False)
        finished_at = START + timedelta(minutes=minute)
        return TrialRecord(
            study="ablation_peft",
            trial_id=trial_id or f"{phase}-{config.config_hash}",
            phase=phase,
            status=status,
            error="ValueError: the loss is nan" if status == "FAIL" else None,
            config=config,
            outcome=made if status == "COMPLETE" else None,
            epochs=[]
            if status == "FAIL"
            else [
                epoch,
                replace(epoch, stage=3, epoch=2, valid=metrics(score), best_valid_ndcg_at_20=score),
            ],
            started_at=START,
            finished_at=finished_at,
        )

    return make


def with_ranks(
    made: TrialRecord, ranks: Sequence[float], valid: float | None = None
) -> TrialRecord:
    """A record whose users u0, u1, … have these test ranks, -1 where they are not evaluated.

    Its validation NDCG@20 is `valid` or else the same as its test NDCG@20.
    """
    assert made.outcome is not None
    count = len(ranks)
    values = np.asarray(ranks, dtype=np.int64)
    number = made.config.groups
    groups = (np.arange(count) % number if number else np.full(count, -1)).astype(np.int32)
    users = UserRanks(
        user_id=np.array([f"u{number}" for number in range(count)], dtype=object),
        group=groups,
        test_group=groups,
        valid_rank=values,
        test_rank=values,
        history_length=np.arange(count) % 5 + 1,
        test_item_occurrences=np.arange(count) // 2,
        map_x=np.full(count, np.nan, np.float32),
        map_y=np.full(count, np.nan, np.float32),
    )
    test = metrics(float(ndcg(values[values >= 0], 20).mean()))
    chosen = test if valid is None else metrics(valid)
    changed = replace(made.outcome, users=users, test=test, valid=chosen)
    return replace(made, outcome=changed)


def written(study: StudyConfig, records: Sequence[TrialRecord]) -> StudyFolder:
    """A new study's folder with these trials."""
    folder = StudyFolder.create(study)
    for made in records:
        folder.write_trial(made)
    return folder


def frames_of(records: Sequence[TrialRecord]) -> Frames:
    """The rows of `trials/` and of `users/`, as `read_results` gives them."""
    trials = [trial_table(made).to_pandas() for made in records]
    users = [
        users_table(made.trial_id, made.outcome.users).to_pandas()
        for made in records
        if made.outcome is not None
    ]
    return pd.concat(trials, ignore_index=True), pd.concat(users)
