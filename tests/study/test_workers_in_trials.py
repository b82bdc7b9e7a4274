"""Ray Train workers of a study: when the process of Tune that waits for a trial is killed, and when
Ray has no room for them."""

from __future__ import annotations

import io
import os
import signal
import sys
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
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.state import list_actors
from ray.util.state.common import ActorState

from perpeft_ray.config import SearchSettings, StudyConfig, TrainSettings, TrialConfig
from perpeft_ray.errors import StudyStoppedError
from perpeft_ray.store.folder import StudyFolder
from perpeft_ray.study.ablation import run_ablation
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.search.suggest import open_journal
from perpeft_ray.study.trainable import Study
from perpeft_ray.train.outcome import EpochRecord
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
OF_TRAIN = ("RayTrainWorker", "TrainController", "Broker")
OF_TUNE = ("ImplicitFunc",)


@pytest.fixture(autouse=True)
def _of_this_module() -> None:
    # Trials' processes cannot import test modules.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class KillsOnce:
    """A trial; in mid-epoch of the first one the process of Tune that waits for it is killed."""

    folder: Path

    def __call__(
        self,
        config: TrialConfig,
        workspace: Workspace,
        report: Callable[[EpochRecord], None],
        **more: Any,
    ) -> Any:
        killed = self.folder / "killed"

        def and_kill(record: EpochRecord) -> None:
            report(record)
            if record.epoch == KILLED_AT and more["collective"].rank == 0 and not killed.exists():
                killed.write_text(config.config_hash)
                [waiting] = _actors(OF_TUNE)
                os.kill(waiting.pid, signal.SIGKILL)

        return run_trial(config, workspace, and_kill, **more)


def _study(folder: Path) -> Study:
    shop = write_small_shop(folder / "shop")
    config = StudyConfig(
        dataset=f"parquet:{shop}",
        encoder="toyshop-clip",
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
    return Study(
        config=config,
        folder=StudyFolder.create(config),
        workspace=prepare(config.dataset, config.encoder, folder / "results" / ".cache"),
        run=KillsOnce(folder / "told"),
    )


def _run(study: Study) -> str:
    out = io.StringIO()
    with Progress(out) as progress:
        run_ablation(study, progress)
    return out.getvalue()


def _states(study: Study) -> list[TrialState]:
    storage = open_journal(study.folder.path / "optuna.journal")
    [name] = [n for n in optuna.get_all_study_names(storage) if n.endswith("-perpeft")]
    return sorted(t.state for t in optuna.load_study(study_name=name, storage=storage).trials)


def _actors(classes: tuple[str, ...]) -> list[ActorState]:
    """That have not ended."""
    address = ray.get_runtime_context().gcs_address
    actors = list_actors(address, filters=[("state", "!=", "DEAD")], limit=1000)
    return [actor for actor in actors if actor.class_name in classes]


def _wait_until_nothing_is_left(*, but_groups: bool = False) -> None:
    deadline = time.monotonic() + 120
    while left := _actors(OF_TRAIN):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    states = {group["state"] for group in placement_group_table().values()}
    assert but_groups or states <= {"REMOVED"}


def test_its_row_is_fail_the_workers_take_the_next_and_the_same_command_goes_on(
    tmp_path: Path,
) -> None:
    study = _study(tmp_path)
    _run(study)
    _wait_until_nothing_is_left()
    killed = (tmp_path / "told" / "killed").read_text()
    trials = study.folder.trials()
    assert trials.status.tolist().count("FAIL") == 1
    [lost] = trials[trials.status == "FAIL"].to_dict("records")
    assert (lost["config_hash"], lost["phase"]) == (killed, "search")
    assert lost["error"].startswith("ActorDiedError: ")
    others = trials[trials.status == "COMPLETE"]
    assert sorted(others.phase) == ["ablation", "search"]
    assert _states(study) == [TrialState.COMPLETE, TrialState.FAIL]

    assert "continuing: 2 of 3 trials are done" in _run(study)
    _wait_until_nothing_is_left()
    trials = study.folder.trials()
    assert not trials.duplicated(["phase", "config_hash"]).any()
    assert set(trials.status) == {"COMPLETE"}
    assert TrialState.RUNNING not in _states(study)
    assert not (study.folder.path / "checkpoints").exists() or not any(
        (study.folder.path / "checkpoints").iterdir()
    )

    # It went on after its checkpoint and ended as if nothing had happened.
    unbroken = study.workspace.with_nothing_trained(tmp_path)
    records: list[EpochRecord] = []
    config = study.folder.searched()[killed].config
    outcome = run_trial(config, unbroken, records.append, test=False)
    [again] = trials[(trials.config_hash == killed) & (trials.phase == "search")].to_dict("records")
    assert again["valid_ndcg_at_20"] == pytest.approx(outcome.valid.ndcg_at_20, abs=1e-9)
    epochs = study.folder.epochs()
    own = epochs[epochs.trial_id == again["trial_id"]].sort_values("epoch")
    assert own.epoch.tolist() == list(range(1, EPOCHS + 1))
    np.testing.assert_allclose(own.loss, [record.loss for record in records], rtol=1e-5)


def test_workers_that_have_no_room_end_the_wait(tmp_path: Path) -> None:
    """Of a trial, for which Tune's process waits already."""
    there = int(ray.cluster_resources()["CPU"])

    @ray.remote(num_cpus=1)
    class Other:
        def here(self) -> bool:
            return True

    other = Other.remote()  # type: ignore[attr-defined]  # Ray adds it
    assert ray.get(other.here.remote())
    study = _study(tmp_path)
    impatient = replace(study.config, workers=there, start_timeout_s=3.0)
    study = replace(study, config=impatient)
    began = time.monotonic()
    wanted = rf"it needs {there} x \(1 CPU\); the nodes have {there} CPU, of which {there - 1} CPU"
    with pytest.raises(StudyStoppedError, match=wanted):
        _run(study)
    assert time.monotonic() - began < 90  # 3 s, on a machine that may be busy
    assert study.folder.trials().empty
    ray.kill(other)
    _wait_until_nothing_is_left(but_groups=True)
    for key, group in placement_group_table().items():
        if group["state"] != "REMOVED":  # they end with the study's Ray job, which is this session
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(key))))
