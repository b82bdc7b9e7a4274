"""A node is lost in mid-epoch: the trial continues elsewhere, with the unbroken result."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from perpeft_ray.config import StudyConfig, TrainSettings
from perpeft_ray.train.broker import Task
from perpeft_ray.train.outcome import EpochRecord
from perpeft_ray.train.ray_train import Groups, worker_groups
from perpeft_ray.train.trial import run_trial
from perpeft_ray.train.workspace import prepare
from tests.on_workers import train
from tests.small_shop import write_small_shop

ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "OMP_NUM_THREADS": "1"}
TRAIN = TrainSettings(
    epochs=1, personal_epochs=8, batch_size=8, validate_every=1, dtype="float32", mode="parallel"
)


def lose_a_node(folder: Path) -> None:
    """Two nodes of a worker each; one is removed in stage 3, and another takes its place."""
    shop = write_small_shop(folder / "shop")
    study = StudyConfig(dataset=f"parquet:{shop}", encoder="toyshop-clip", train=TRAIN)
    config = study.trial("perpeft", seed=0, variant="lora", groups=3, learning_rate=1e-3)
    workspace = prepare(config.dataset, config.encoder, folder / "cache")
    alone: list[EpochRecord] = []
    fresh = workspace.with_nothing_trained(folder / "alone")
    unbroken = run_trial(config, fresh, alone.append, test=True)

    os.environ.update(ENVIRONMENT)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.add_node(num_cpus=1)
    lost = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    records: list[EpochRecord] = []

    def report(record: EpochRecord) -> None:
        records.append(record)
        if record.epoch == config.stage1_epochs + 2:
            cluster.remove_node(lost, allow_graceful=False)
            cluster.add_node(num_cpus=1)

    groups = Groups(count=1, workers=2, cpus_per_worker=1, gpus_per_worker=0.0, memory_gb=4.0)
    task = Task("trial", config, True, folder / "checkpoints")
    try:
        with worker_groups(groups, run_trial, workspace, folder / "ray_train") as workers:
            outcome = train(workers.broker, task, report)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert outcome.world_size == 2
    assert [record.epoch for record in records] == [record.epoch for record in alone]
    losses, expected = ([record.loss for record in of] for of in (records, alone))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert np.array_equal(outcome.users.test_rank, unbroken.users.test_rank)


@pytest.mark.cluster
@pytest.mark.timeout(560)
def test_a_trial_outlives_a_node(tmp_path: Path) -> None:
    """In a process of its own: this one may be connected to another Ray."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=lose_a_node, args=(tmp_path,))
    process.start()
    process.join(timeout=500)
    assert process.exitcode == 0
