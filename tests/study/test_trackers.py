"""Trackers: what a trial leaves in TensorBoard's, MLflow's and W&B's own files."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from perpeft_ray.config import SearchSettings, StudyConfig, TrainSettings
from perpeft_ray.errors import InputError
from perpeft_ray.metrics import RankingMetrics
from perpeft_ray.study import trackers
from perpeft_ray.study.ablation import run_ablation
from perpeft_ray.study.plan import TrialSpec
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.trackers import MLflow, TensorBoard, Tracker, WandB, check_trackers
from perpeft_ray.train.outcome import EpochRecord
from tests.study.conftest import rows_of
from tests.study.whole_space import search_trials

STUDY = StudyConfig(train=TrainSettings(lr=0.005))
VALID = RankingMetrics(0.1, 0.2, 0.3, 0.04, 0.05, 0.06)
EPOCHS = [
    EpochRecord(1, 1, 0.75, 1.0, None, None, False),
    EpochRecord(3, 2, 0.5, 1.0, VALID, 0.05, False),
]


def follow(tracker: Tracker, spec: TrialSpec) -> None:
    tracker.begin(spec)
    for record in EPOCHS:
        tracker.epoch(spec, record)
    tracker.end(spec, "COMPLETE")


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


def test_tensorboard_has_every_epoch_once_also_when_a_trial_is_run_again(tmp_path: Path) -> None:
    [spec, *_] = search_trials(STUDY)
    tracker = TensorBoard(tmp_path)
    tracker.begin(spec)
    tracker.epoch(spec, EPOCHS[0])  # killed
    follow(TensorBoard(tmp_path), spec)
    found = scalars(tmp_path / "tensorboard" / spec.trial_id)
    assert found["loss"] == [(1, 0.75), (2, 0.5)]
    assert found["valid/ndcg_at_20"] == [(2, pytest.approx(0.05))]
    assert found["valid/best_ndcg_at_20"] == [(2, pytest.approx(0.05))]
    assert len(found) == 1 + 6 + 1


@pytest.mark.usefixtures("ray_runtime")
def test_every_trial_of_a_study_is_in_tensorboard(
    make_study: Callable[..., Any], small_study: Callable[..., Any]
) -> None:
    search = SearchSettings(
        trials=3, ranks=(2,), groups=(4,), conditioning_weights=(1.0,), learning_rates=(5e-3,)
    )
    study = make_study(replace(small_study(methods=("perpeft",)), search=search))
    with Progress(io.StringIO()) as progress:
        run_ablation(study, progress)
    rows = rows_of(study)
    folders = {folder.name: folder for folder in (study.folder.path / "tensorboard").iterdir()}
    assert folders.keys() == {row["trial_id"] for row in rows}
    for row in rows:
        assert len(scalars(folders[row["trial_id"]])["loss"]) == row["epochs"]


def test_mlflow_has_a_run_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    [spec, *_] = search_trials(STUDY)
    MLflow("study", tmp_path).begin(spec)  # killed
    follow(MLflow("study", tmp_path), spec)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("study").experiment_id
    [run] = client.search_runs([experiment])
    assert (run.info.run_name, run.info.status) == (spec.trial_id, "FINISHED")
    assert run.data.params["variant"] == "lora"
    assert run.data.metrics["valid/ndcg_at_20"] == 0.05
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in losses] == [(1, 0.75), (2, 0.5)]


def test_wandb_writes_offline_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    one, other, *_ = search_trials(STUDY)
    tracker = WandB("study", tmp_path)
    tracker.begin(one)
    follow(tracker, other)  # side by side
    tracker.end(one, "FAIL")
    assert len(list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))) == 2


def test_a_tracker_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    check_trackers(STUDY)
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with pytest.raises(InputError) as told:
        check_trackers(replace(STUDY, log=("mlflow",)))
    assert str(told.value) == (
        "`log` must name installed packages, but mlflow is not: pip install 'perpeft-ray[mlflow]'"
    )


def test_the_best_so_far_of_a_trial_never_falls(tmp_path: Path) -> None:
    [spec, *_] = search_trials(STUDY)
    tracker = TensorBoard(tmp_path)
    tracker.begin(spec)
    for epoch, (stage, best) in enumerate([(1, 0.5), (3, 0.25), (3, 0.75)], start=1):
        tracker.epoch(spec, EpochRecord(stage, epoch, 0.5, 1.0, VALID, best, False))
    tracker.end(spec, "COMPLETE")
    found = scalars(tmp_path / "tensorboard" / spec.trial_id)
    assert found["valid/best_ndcg_at_20"] == [(1, 0.5), (2, 0.5), (3, 0.75)]
