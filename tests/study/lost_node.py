"""A trial on a Ray of several nodes, one of which is removed; a process of its own.

    python -m tests.study.lost_node FOLDER

FOLDER has `trial.json` (the config's fields) and `shop/`; what was found goes to `outcome.json`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from perpeft_ray.config import TrialConfig
from perpeft_ray.train.broker import Task
from perpeft_ray.train.outcome import EpochRecord
from perpeft_ray.train.ray_train import Groups, worker_groups
from perpeft_ray.train.trial import run_trial
from perpeft_ray.train.workspace import prepare
from tests.on_workers import train

ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "OMP_NUM_THREADS": "1"}


def main(folder: Path) -> None:
    """Two nodes of a worker each; one is removed in stage 3, and another takes its place."""
    config = TrialConfig(**json.loads((folder / "trial.json").read_text()))
    workspace = prepare(config.dataset, config.encoder, folder / "cache")
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
    found = {
        "epochs": [record.epoch for record in records],
        "losses": [record.loss for record in records],
        "test_rank": outcome.users.test_rank.tolist(),
        "world_size": outcome.world_size,
    }
    (folder / "outcome.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
