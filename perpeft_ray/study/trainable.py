"""The function that Tune runs for every trial: train, report every epoch, write the row.

Everything in this module runs in the trial's own process.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ray import tune

from perpeft_ray.config import StudyConfig, TrialConfig
from perpeft_ray.data.places import is_uri, subfolder
from perpeft_ray.metrics import RankingMetrics
from perpeft_ray.study.plan import TrialSpec
from perpeft_ray.study.record import Recorder, Searched, TrialRecord
from perpeft_ray.train.outcome import EpochRecord, TrialOutcome

if TYPE_CHECKING:  # torch is imported by trials that train, not by those who plan them
    from perpeft_ray.train.workspace import Workspace

OBJECTIVE = "best_valid_ndcg_at_20"
"""Key of the objective in what a trial reports to Tune; absent before any validation."""
VALIDATED_STAGE3_EPOCHS = "validated_stage3_epochs"
"""Key of ASHA's time: epochs of stage 3, present only where this epoch was validated."""

Report = Callable[[EpochRecord], None]


class Runner(Protocol):
    """Trains one trial in this process: `perpeft_ray.train.trial.run_trial`."""

    def __call__(
        self,
        config: TrialConfig,
        workspace: Workspace,
        report: Report,
        *,
        test: bool,
        checkpoints: Path | str,
    ) -> TrialOutcome:
        """Train, call `report` after every epoch and return what was measured.

        `checkpoints` is a folder of this trial's own; what it holds is gone on with.
        """


class DistributedRunner(Protocol):
    """Trains one trial with Ray Train: `perpeft_ray.train.ray_train.run_distributed`."""

    def __call__(
        self,
        config: TrialConfig,
        workspace: Workspace,
        report: Report,
        *,
        workers: int,
        cpus_per_worker: int,
        gpus_per_worker: float,
        test: bool,
        checkpoints: Path | str,
    ) -> TrialOutcome:
        """As `Runner`; `report` is called in this process."""


class StudyRecorder(Recorder, Protocol):
    """A recorder that also tells what the search has found: `perpeft_ray.results.folder`."""

    def keep(self) -> None:
        """See that what the study's main process has written outlives this machine."""

    def searched(self) -> dict[str, Searched]:
        """The COMPLETE and PRUNED trials of the search, by config hash, as they began."""


@dataclass(frozen=True)
class Study:
    """A study and what its trials need; travels to every trial's process."""

    config: StudyConfig
    folder: Path
    """Absolute: `<storage>/<study>`."""
    workspace: Workspace
    recorder: StudyRecorder
    run: Runner
    run_distributed: DistributedRunner

    @property
    def checkpoints(self) -> Path | str:
        """Folder or URI with a subfolder for each trial that has not ended, by its trial id."""
        given, study = self.config.checkpoints, self.config.study
        if given:
            return subfolder(given if is_uri(given) else Path(given).absolute(), study)
        storage = self.config.storage
        whole = subfolder(storage, study) if is_uri(storage) else self.folder
        return subfolder(whole, "checkpoints")


def make_trainable(study: Study) -> Callable[[dict[str, Any]], None]:
    """The Tune function of a study; its configuration is `TrialSpec.to_tune`."""

    def trial(config: dict[str, Any]) -> None:
        run_spec(study, TrialSpec.from_tune(config), tune.report)

    return trial


def run_spec(study: Study, spec: TrialSpec, report: Callable[[dict[str, Any]], None]) -> None:
    """Run one trial and write its COMPLETE row; `report` takes one dictionary an epoch.

    The row is written here and not by the study's main process, so that it is kept if that dies.
    Raises FloatingPointError where the objective is not finite, and whatever the trial raises.
    """
    started_at = datetime.now(UTC)
    epochs: list[EpochRecord] = []

    def keep(record: EpochRecord) -> None:
        epochs.append(record)
        report(to_result(record, spec.config))

    checkpoints = subfolder(study.checkpoints, spec.trial_id)
    if spec.workers == 0:
        _use_threads(study.config.cpus_per_worker)
        outcome = study.run(
            spec.config, study.workspace, keep, test=spec.test, checkpoints=checkpoints
        )
    else:
        # Read by Ray Train's controller: at the default of 2 s a short trial takes twice as long.
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        outcome = study.run_distributed(
            spec.config,
            study.workspace,
            keep,
            workers=spec.workers,
            cpus_per_worker=study.config.cpus_per_worker,
            gpus_per_worker=study.config.gpus,
            test=spec.test,
            checkpoints=checkpoints,
        )
    if not epochs:  # Tune prints a line for a trial that has reported nothing
        report({OBJECTIVE: outcome.valid.ndcg_at_20})
    study.recorder.write_trial(
        TrialRecord(
            study=study.config.study,
            trial_id=spec.trial_id,
            phase=spec.phase,
            status="COMPLETE",
            error=None,
            config=spec.config,
            outcome=outcome,
            epochs=epochs,
            started_at=started_at,
            finished_at=datetime.now(UTC),
        )
    )


def _use_threads(count: int) -> None:
    """Train with as many threads as the trial has processors, whatever OMP_NUM_THREADS is."""
    torch = sys.modules.get("torch")  # imported with the runner, if that trains at all
    if torch is not None:
        torch.set_num_threads(count)


def to_result(record: EpochRecord, config: TrialConfig) -> dict[str, Any]:
    """What Tune is told of an epoch: the record, and the keys that search and ASHA read.

    Raises FloatingPointError where the objective is not finite: Optuna would leave the trial
    RUNNING for ever.
    """
    result: dict[str, Any] = {"record": asdict(record)}
    if record.best_valid_ndcg_at_20 is not None:
        if not math.isfinite(record.best_valid_ndcg_at_20):
            raise FloatingPointError(
                f"validation NDCG@20 is {record.best_valid_ndcg_at_20} in epoch {record.epoch}"
            )
        result[OBJECTIVE] = record.best_valid_ndcg_at_20
    if record.stage == 3 and record.valid is not None:
        result[VALIDATED_STAGE3_EPOCHS] = record.epoch - config.stage1_epochs
    return result


def from_result(result: Mapping[str, Any]) -> EpochRecord:
    """The record that `to_result` was given."""
    fields = result["record"]
    valid = fields["valid"]
    return EpochRecord(**{**fields, "valid": None if valid is None else RankingMetrics(**valid)})
