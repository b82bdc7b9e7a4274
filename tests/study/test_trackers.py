"""Trackers: what a trial leaves in TensorBoard's, MLflow's and W&B's own files."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

import pytest
from ray.tune.experiment import Trial
from ray.tune.logger import LoggerCallback
from tensorboardX.proto.event_pb2 import Event

from perpeft_ray.config import StudyConfig, TrainSettings
from perpeft_ray.metrics import RankingMetrics
from perpeft_ray.study import trackers
from perpeft_ray.study.plan import TrialSpec
from perpeft_ray.study.trackers import TensorBoard, WandB
from perpeft_ray.study.trainable import to_result
from perpeft_ray.train.outcome import EpochRecord
from tests.study.fakes import search_trials

STUDY = StudyConfig(train=TrainSettings(lr=0.005))
VALID = RankingMetrics(0.1, 0.2, 0.3, 0.04, 0.05, 0.06)
EPOCHS = [
    EpochRecord(1, 1, 0.75, 1.0, None, None, False),
    EpochRecord(1, 2, 0.5, 1.0, VALID, 0.5, False),
    EpochRecord(3, 3, 0.25, 1.0, VALID, 0.25, False),
]


@pytest.fixture
def trial() -> Trial:
    [spec, *_] = search_trials(STUDY)
    return Trial("study", config=spec.to_tune(), stub=True)


def log_epochs(tracker: LoggerCallback, trial: Trial) -> None:
    tracker.log_trial_start(trial)
    for count in range(1, len(EPOCHS) + 1):
        tracker.log_trial_result(count, trial, to_result(EPOCHS[:count]))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The numbers of the one event file of a folder, read as TFRecords."""
    [file] = folder.iterdir()
    data, found = file.read_bytes(), {}
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        data = data[12 + size + 4 :]
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard_has_every_epoch_once_also_when_a_trial_is_run_again(
    tmp_path: Path, trial: Trial
) -> None:
    log_epochs(TensorBoard(tmp_path), trial)  # killed
    tracker = TensorBoard(tmp_path)
    log_epochs(tracker, trial)
    tracker.log_trial_end(trial)
    found = scalars(tmp_path / TrialSpec.from_tune(trial.config).trial_id)
    assert found["loss"] == [(1, 0.75), (2, 0.5), (3, 0.25)]
    assert found["valid/ndcg_at_20"] == [(2, pytest.approx(0.05)), (3, pytest.approx(0.05))]
    assert found["valid/best_ndcg_at_20"] == [(2, 0.5), (3, 0.5)]  # it never falls
    assert len(found) == 1 + 6 + 1


def test_a_full_disk_raises_where_tensorboard_is_written(tmp_path: Path, trial: Trial) -> None:
    tracker = TensorBoard(tmp_path)
    tracker.log_trial_start(trial)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))  # as a disk with a byte left
    try:
        with pytest.raises(OSError, match="too large"):
            tracker.log_trial_result(1, trial, to_result(EPOCHS[:1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    tracker.log_trial_end(trial)


def test_mlflow_has_the_settings_and_every_epoch(
    tmp_path: Path, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    _, tracker = trackers.trackers(replace(STUDY, log=("mlflow",)), tmp_path)
    tracker.setup()
    for count in range(len(EPOCHS)):
        result = to_result(EPOCHS[: count + 1]) | {"training_iteration": count + 1}
        if count == 0:
            tracker.log_trial_start(trial)
        tracker.log_trial_result(count, trial, result)
    tracker.log_trial_end(trial)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    [run] = client.search_runs([client.get_experiment_by_name(STUDY.study).experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["config/variant"] == "lora"
    assert run.data.metrics["best_so_far"] == 0.5
    losses = client.get_metric_history(run.info.run_id, "record/loss")
    assert [(m.step, m.value) for m in losses] == [(1, 0.75), (2, 0.5), (3, 0.25)]


def test_wandb_writes_offline_runs_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    one, other = (
        Trial("study", config=spec.to_tune(), stub=True) for spec in search_trials(STUDY)[:2]
    )
    tracker = WandB("study", tmp_path)
    tracker.log_trial_start(one)
    log_epochs(tracker, other)
    tracker.log_trial_end(other)
    tracker.log_trial_end(one, failed=True)
    assert len(list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))) == 2
