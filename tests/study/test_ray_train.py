"""A trial on real Ray Train workers: one and two of them, against this process alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from perpeft_ray.config import StudyConfig, TrainSettings
from perpeft_ray.train.outcome import EpochRecord
from perpeft_ray.train.ray_train import run_distributed
from perpeft_ray.train.trial import run_trial
from perpeft_ray.train.workspace import prepare
from tests.small_shop import write_small_shop


@pytest.mark.usefixtures("ray_runtime")
@pytest.mark.timeout(200)
def test_one_and_two_workers_and_this_process_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every user's rank and every epoch's loss; parameters are compared in tests/train."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    shop = write_small_shop(tmp_path / "shop")
    workspace = prepare(f"parquet:{shop}", "toyshop-clip", tmp_path / "cache")
    train = TrainSettings(
        epochs=1, personal_epochs=2, batch_size=8, validate_every=1, dtype="float32"
    )
    config = StudyConfig(train=train).trial(
        "perpeft",
        seed=0,
        variant="lora",
        rank=4,
        groups=3,
        conditioning_weight=0.5,
        learning_rate=1e-3,
        mode="parallel",
    )
    outcomes, losses = [], []
    for workers in (0, 1, 2):
        records: list[EpochRecord] = []
        own = tmp_path / str(workers)
        fresh = dataclasses.replace(workspace, stages=own / "stages", trials=own / "trials")
        if workers == 0:
            outcome = run_trial(config, fresh, records.append, test=True)
        else:
            outcome = run_distributed(
                config,
                fresh,
                records.append,
                workers=workers,
                cpus_per_worker=1,
                gpus_per_worker=0.0,
                storage=own,
                name="trial",
                test=True,
            )
            assert outcome.world_size == workers
        outcomes.append(outcome)
        losses.append([record.loss for record in records])
    for outcome, loss in zip(outcomes[1:], losses[1:], strict=True):
        np.testing.assert_allclose(loss, losses[0], rtol=1e-5)
        assert np.array_equal(outcome.users.group, outcomes[0].users.group)
        assert np.array_equal(outcome.users.test_rank, outcomes[0].users.test_rank)
