"""A trial on real Ray Train workers, against this process alone; and workers that are lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.util.state import list_actors
from ray.util.state.common import ActorState

from perpeft_ray.config import StudyConfig, TrainSettings, TrialConfig
from perpeft_ray.train.outcome import EpochRecord, TrialOutcome
from perpeft_ray.train.ray_train import run_distributed
from perpeft_ray.train.trial import run_trial
from perpeft_ray.train.workspace import Workspace, prepare
from tests.small_shop import write_small_shop

pytestmark = [pytest.mark.usefixtures("ray_runtime"), pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("ray_train")
    shop = write_small_shop(folder / "shop")
    return prepare(f"parquet:{shop}", "toyshop-clip", folder / "cache")


@pytest.fixture(autouse=True)
def _short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


def _config(personal_epochs: int, learning_rate: float = 1e-3) -> TrialConfig:
    train = TrainSettings(
        epochs=1,
        personal_epochs=personal_epochs,
        batch_size=8,
        validate_every=1,
        dtype="float32",
    )
    return StudyConfig(train=train).trial(
        "perpeft",
        seed=0,
        variant="lora",
        rank=4,
        groups=3,
        conditioning_weight=0.5,
        learning_rate=learning_rate,
        mode="parallel",
    )


def _distributed(
    config: TrialConfig,
    workspace: Workspace,
    folder: Path,
    report: Callable[[EpochRecord], None],
    workers: int,
) -> TrialOutcome:
    return run_distributed(
        config,
        workspace.with_nothing_trained(folder),
        report,
        workers=workers,
        cpus_per_worker=1,
        gpus_per_worker=0.0,
        test=True,
        checkpoints=folder / "checkpoints",
    )


def _workers(**wanted: str) -> list[ActorState]:
    """Ray Train's workers, those that have ended too."""
    filters = [("class_name", "=", "RayTrainWorker")]
    filters += [(name, "=", value) for name, value in wanted.items()]
    address = ray.get_runtime_context().gcs_address
    return list_actors(address, filters=filters, limit=1000)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_workers_agree_with_this_process_though_one_of_two_is_killed(
    tmp_path: Path, workspace: Workspace, workers: int
) -> None:
    """Every user's rank and every epoch's loss; parameters are compared in tests/train."""
    config = _config(personal_epochs=8)
    alone: list[EpochRecord] = []
    own = tmp_path / "alone"
    fresh = workspace.with_nothing_trained(own)
    expected = run_trial(config, fresh, alone.append, test=True)
    records: list[EpochRecord] = []

    def report(record: EpochRecord) -> None:
        records.append(record)
        if workers == 2 and record.epoch == 3:
            os.kill(_workers(state="ALIVE")[-1].pid, signal.SIGKILL)

    before = len(_workers())
    outcome = _distributed(config, workspace, tmp_path / "workers", report, workers)
    assert outcome.world_size == workers
    assert not (tmp_path / "workers" / "checkpoints").exists()
    started = len(_workers()) - before
    assert started == (4 if workers == 2 else 1)  # a lost worker takes its group with it
    assert [record.epoch for record in records] == list(range(1, 10))  # none is told twice
    np.testing.assert_allclose(
        [record.loss for record in records], [record.loss for record in alone], rtol=1e-5
    )
    assert np.array_equal(outcome.users.group, expected.users.group)
    assert np.array_equal(outcome.users.test_rank, expected.users.test_rank)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_trial_at_once(
    tmp_path: Path, workspace: Workspace
) -> None:
    """It would come again, so the workers are not started again for it."""
    before = len(_workers())
    with pytest.raises(FloatingPointError, match="must be finite, but is nan in stage"):
        _distributed(_config(3, learning_rate=1e18), workspace, tmp_path, lambda record: None, 2)
    assert len(_workers()) - before == 2
