"""The process of a Tune trial is killed while its Ray Train workers train: they go with it."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import ray
from optuna.trial import TrialState
from ray.util import placement_group_table
from ray.util.state import list_actors
from ray.util.state.common import ActorState

from perpeft_ray.config import SearchSettings, StudyConfig, TrainSettings, TrialConfig
from perpeft_ray.results.folder import StudyFolder
from perpeft_ray.study.ablation import run_ablation
from perpeft_ray.study.plan import search_trials
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.search.suggest import open_journal
from perpeft_ray.study.trainable import Study
from perpeft_ray.train.outcome import EpochRecord
from perpeft_ray.train.ray_train import run_distributed
from perpeft_ray.train.trial import run_trial
from perpeft_ray.train.workspace import Workspace, prepare
from tests.small_shop import write_small_shop

pytestmark = [
    pytest.mark.usefixtures("ray_runtime"),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]
EPOCHS = 5
KILLED_AT = 3
OF_TRAIN = ("RayTrainWorker", "TrainController")


@pytest.fixture(autouse=True)
def _of_this_module() -> None:
    import sys

    # Trials' processes cannot import test modules.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class KilledOnce:
    """Ray Train, under a process that is killed in the midst of an epoch of its first trial."""

    folder: Path

    def __call__(
        self,
        config: TrialConfig,
        workspace: Workspace,
        report: Callable[[EpochRecord], None],
        **more: Any,
    ) -> Any:
        def and_die(record: EpochRecord) -> None:
            report(record)
            with (self.folder / f"{config.config_hash}-{os.getpid()}").open("a") as file:
                file.write(f"{record.epoch} {record.loss}\n")
            if record.epoch == KILLED_AT and not (self.folder / "killed").exists():
                (self.folder / "killed").write_text(config.config_hash)
                os.kill(os.getpid(), signal.SIGKILL)

        return run_distributed(config, workspace, and_die, **more)


def _study(folder: Path) -> Study:
    shop = write_small_shop(folder / "shop")
    config = StudyConfig(
        dataset=f"parquet:{shop}",
        storage=str(folder / "results"),
        workers=2,
        parallel_workers=0,
        methods=("perpeft",),
        train=TrainSettings(
            epochs=1,
            personal_epochs=EPOCHS - 1,
            validate_every=1,
            batch_size=8,
            dtype="float32",
        ),
        search=SearchSettings(
            trials=2,
            max_concurrent=1,
            variants=("iisan",),
            groups=(3,),
            conditioning_weights=(0.5,),
            learning_rates=(1e-3, 2e-3),
            asha=False,
        ),
    )
    (folder / "told").mkdir()
    recorder = StudyFolder.create(config)
    return Study(
        config=config,
        folder=recorder.path,
        workspace=prepare(config.dataset, config.encoder, folder / "results" / ".cache"),
        recorder=recorder,
        run=run_trial,
        run_distributed=KilledOnce(folder / "told"),
    )


def _run(study: Study) -> str:
    out = io.StringIO()
    with Progress(out) as progress:
        run_ablation(study, progress)
    return out.getvalue()


def _states(study: Study) -> list[TrialState]:
    storage = open_journal(study.folder / "optuna.journal")
    [name] = optuna.get_all_study_names(storage)
    return sorted(t.state for t in optuna.load_study(study_name=name, storage=storage).trials)


def _actors_of_train() -> list[ActorState]:
    """That have not ended."""
    address = ray.get_runtime_context().gcs_address
    actors = list_actors(address, filters=[("state", "!=", "DEAD")], limit=1000)
    return [actor for actor in actors if actor.class_name in OF_TRAIN]


def _wait_until_nothing_is_left() -> None:
    deadline = time.monotonic() + 120
    while left := _actors_of_train():
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    assert {group["state"] for group in placement_group_table().values()} <= {"REMOVED"}


def test_its_row_is_fail_no_worker_stays_and_the_same_command_goes_on(tmp_path: Path) -> None:
    study = _study(tmp_path)
    _run(study)
    _wait_until_nothing_is_left()
    killed = (tmp_path / "told" / "killed").read_text()
    trials = study.recorder.trials()
    assert trials.status.tolist().count("FAIL") == 1
    [lost] = trials[trials.status == "FAIL"].to_dict("records")
    assert (lost["config_hash"], lost["phase"]) == (killed, "search")
    assert lost["error"].startswith("ActorDiedError: ")
    others = trials[trials.status == "COMPLETE"]  # both had both of this Ray's processors
    assert sorted(others.phase) == ["ablation", "search"]
    assert _states(study) == [TrialState.COMPLETE, TrialState.FAIL]

    assert "continuing: 2 of 3 trials are done" in _run(study)
    _wait_until_nothing_is_left()
    trials = study.recorder.trials()
    assert not trials.duplicated(["phase", "config_hash"]).any()
    assert set(trials.status) == {"COMPLETE"}
    assert TrialState.RUNNING not in _states(study)
    assert not (study.folder / "checkpoints").exists() or not any(
        (study.folder / "checkpoints").iterdir()
    )

    # It went on after its checkpoint and ended as if nothing had happened.
    unbroken = replace(study.workspace, stages=tmp_path / "stages", trials=tmp_path / "trials")
    records: list[EpochRecord] = []
    [config] = [
        spec.config for spec in search_trials(study.config) if spec.config.config_hash == killed
    ]
    outcome = run_trial(config, unbroken, records.append, test=False)
    [again] = trials[(trials.config_hash == killed) & (trials.phase == "search")].to_dict("records")
    assert again["valid_ndcg_at_20"] == pytest.approx(outcome.valid.ndcg_at_20, abs=1e-9)
    epochs = study.recorder.epochs()
    own = epochs[epochs.trial_id == again["trial_id"]].sort_values("epoch")
    assert own.epoch.tolist() == list(range(1, EPOCHS + 1))
    np.testing.assert_allclose(own.loss, [record.loss for record in records], rtol=1e-5)
