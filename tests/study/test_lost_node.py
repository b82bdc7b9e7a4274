"""A node goes in mid-epoch: the trial goes on elsewhere, with the result of an unbroken run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from perpeft_ray.config import StudyConfig, TrainSettings
from perpeft_ray.train.outcome import EpochRecord
from perpeft_ray.train.trial import run_trial
from perpeft_ray.train.workspace import prepare
from tests.small_shop import write_small_shop


@pytest.mark.cluster
@pytest.mark.timeout(560)
def test_a_trial_outlives_a_node(tmp_path: Path) -> None:
    train = TrainSettings(
        epochs=1, personal_epochs=8, batch_size=8, validate_every=1, dtype="float32"
    )
    shop = write_small_shop(tmp_path / "shop")
    config = StudyConfig(dataset=f"parquet:{shop}", encoder="toyshop-clip", train=train).trial(
        "perpeft",
        seed=0,
        variant="lora",
        rank=4,
        groups=3,
        conditioning_weight=0.5,
        learning_rate=1e-3,
        mode="parallel",
    )
    (tmp_path / "trial.json").write_text(json.dumps(asdict(config)))
    # A process of its own: this one may be connected to another Ray.
    subprocess.run(
        [sys.executable, "-m", "tests.study.lost_node", str(tmp_path)], check=True, timeout=500
    )
    found = json.loads((tmp_path / "outcome.json").read_text())
    records: list[EpochRecord] = []
    workspace = prepare(config.dataset, config.encoder, tmp_path / "other_cache")
    unbroken = run_trial(config, workspace, records.append, test=True)
    assert found["epochs"] == [record.epoch for record in records]
    np.testing.assert_allclose(found["losses"], [record.loss for record in records], rtol=1e-5)
    assert found["test_rank"] == unbroken.users.test_rank.tolist()
    assert found["world_size"] == 2
