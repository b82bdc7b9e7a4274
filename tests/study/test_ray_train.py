"""Trials on real Ray Train workers that stay, against this process alone; and lost workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.util.state import list_actors

from perpeft_ray.config import StudyConfig, TrainSettings, TrialConfig
from perpeft_ray.train.broker import Task
from perpeft_ray.train.outcome import EpochRecord
from perpeft_ray.train.ray_train import Groups, Workers, worker_groups
from perpeft_ray.train.trial import run_trial
from perpeft_ray.train.workspace import Workspace, prepare
from tests.on_workers import train
from tests.small_shop import write_small_shop

pytestmark = [pytest.mark.usefixtures("ray_runtime"), pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("ray_train")
    shop = write_small_shop(folder / "shop")
    return prepare(f"parquet:{shop}", "toyshop-clip", folder / "cache")


TRAIN = TrainSettings(epochs=1, batch_size=8, validate_every=1, dtype="float32", mode="parallel")


def _config(personal_epochs: int, learning_rate: float = 1e-3) -> TrialConfig:
    return StudyConfig(train=replace(TRAIN, personal_epochs=personal_epochs)).trial(
        "perpeft",
        seed=0,
        variant="lora",
        rank=4,
        groups=3,
        conditioning_weight=0.5,
        learning_rate=learning_rate,
    )


@contextmanager
def _workers(count: int, workspace: Workspace, folder: Path) -> Iterator[Workers]:
    groups = Groups(count=1, workers=count, cpus_per_worker=1, gpus_per_worker=0.0, memory_gb=4.0)
    with worker_groups(groups, run_trial, workspace, folder / "ray_train") as workers:
        yield workers


def _task(config: TrialConfig, folder: Path) -> Task:
    return Task(config.config_hash, config, True, folder / "checkpoints" / config.config_hash)


def _pids(**wanted: str) -> list[int]:
    """Of Ray Train's workers."""
    filters = [(k, "=", v) for k, v in {"class_name": "RayTrainWorker", **wanted}.items()]
    address = ray.get_runtime_context().gcs_address
    return [actor.pid or 0 for actor in list_actors(address, filters=filters, limit=1000)]


QUICK = StudyConfig(train=replace(TRAIN, personal_epochs=1)).trial("without_mm", seed=0)


@pytest.fixture(scope="module")
def two(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Two workers, which have trained a trial."""
    folder = tmp_path_factory.mktemp("two")
    with _workers(2, workspace.with_nothing_trained(folder), folder) as workers:
        train(workers.broker, _task(QUICK, folder), lambda record: None)
        yield workers


def test_two_workers_agree_with_this_process_though_one_is_killed(
    two: Workers, tmp_path: Path, workspace: Workspace
) -> None:
    """Every user's rank and every epoch's loss; parameters are compared in tests/train."""
    config = _config(personal_epochs=8)
    alone: list[EpochRecord] = []
    fresh = workspace.with_nothing_trained(tmp_path / "alone")
    expected = run_trial(config, fresh, alone.append, test=True)
    records: list[EpochRecord] = []

    def report(record: EpochRecord) -> None:
        records.append(record)
        if record.epoch == 3:
            os.kill(_pids(state="ALIVE")[-1], signal.SIGKILL)

    before = set(_pids())
    outcome = train(two.broker, _task(config, tmp_path), report)
    # A lost worker takes its group with it.
    assert len(set(_pids()) - before) == outcome.world_size == 2
    assert not list((tmp_path / "checkpoints").glob("*/*/epoch-*"))
    assert [record.epoch for record in records] == list(range(1, 10))  # no epoch is reported twice
    np.testing.assert_allclose(
        [record.loss for record in records], [record.loss for record in alone], rtol=1e-5
    )
    assert np.array_equal(outcome.users.group, expected.users.group)
    assert np.array_equal(outcome.users.test_rank, expected.users.test_rank)


def test_the_same_processes_take_the_next_trial_also_after_one_that_fails(
    two: Workers, tmp_path: Path
) -> None:
    """A loss that is not finite would come again, so no worker starts again for it."""
    before = set(_pids())
    with pytest.raises(FloatingPointError, match="must be finite, but is nan in stage") as told:
        train(two.broker, _task(_config(3, 1e18), tmp_path), lambda record: None)
    assert "train_epoch" in "".join(told.value.__notes__)  # where it was raised
    train(two.broker, _task(replace(QUICK, seed=1), tmp_path), lambda record: None)
    assert set(_pids()) == before


@pytest.mark.slow
def test_processes_end_with_a_trial_that_asks_for_it(tmp_path: Path, workspace: Workspace) -> None:
    before = set(_pids())
    with _workers(1, workspace.with_nothing_trained(tmp_path), tmp_path) as running:
        for rate in (1e-3, 2e-3):
            task = replace(_task(_config(1, rate), tmp_path), fresh_process=True)
            train(running.broker, task, lambda record: None)
    assert len(set(_pids()) - before) >= 2
