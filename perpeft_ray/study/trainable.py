"""The function that Tune runs for every trial: hand it to the workers, report, write the row.

It runs in a process of Tune's own, which needs no processor and imports nothing that trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from perpeft_ray.config import StudyConfig
from perpeft_ray.data.places import subfolder
from perpeft_ray.store.folder import StudyFolder
from perpeft_ray.study.plan import TrialSpec
from perpeft_ray.train.broker import Failure, Task
from perpeft_ray.train.outcome import EpochRecord

if TYPE_CHECKING:
    from perpeft_ray.store.lease import Lease
    from perpeft_ray.train.ray_train import Runner
    from perpeft_ray.train.workspace import Workspace

OBJECTIVE = "best_valid_ndcg_at_20"
"""Key of the objective in what a trial reports to Tune; absent before any validation.

Stage 3 selects among its own epochs, so that it begins anew there.
"""
BEST_SO_FAR = "best_so_far"
"""Key of the best of all validations so far, which never falls."""


@dataclass(frozen=True)
class Study:
    """A study and what its trials need."""

    config: StudyConfig
    folder: StudyFolder
    workspace: Workspace
    run: Runner
    """What each worker of a trial runs: `run_trial`."""
    leases: tuple[Lease, ...] = ()
    """What the study's main process holds, and stops without."""

    @property
    def checkpoints(self) -> Path | str:
        """Folder or URI with a subfolder for each trial that has not ended, by its trial id."""
        return subfolder(self.folder.uri or self.folder.path, "checkpoints")


def make_trainable(
    study: Study, broker: Any, *, fresh_processes: bool = False
) -> Callable[[dict[str, Any]], None]:
    """The Tune function of a study; its configuration is `TrialSpec.to_tune`.

    It has a trial trained, reports each epoch and writes the row, which is so kept if the study's
    main process dies. Raises FloatingPointError where the objective is not finite, and whatever
    ended the trial. `broker`: handle of the actor that has the workers (`Broker`).
    """
    # Not the study itself, whose workspace would import what trains.
    folder, name, checkpoints = study.folder, study.config.study, study.checkpoints

    def trial(values: dict[str, Any]) -> None:
        spec = TrialSpec.from_tune(values)
        own = subfolder(checkpoints, spec.trial_id)
        epochs: list[EpochRecord] = []
        task = Task(spec.trial_id, spec.config, spec.test, own, fresh_processes)
        ray.get(broker.submit.remote(task))
        outcome = None
        try:
            while outcome is None:
                for news in ray.get(broker.news.remote(task.trial_id)):
                    if isinstance(news, Failure):
                        raise news.error
                    if isinstance(news, EpochRecord):
                        epochs.append(news)
                        tune.report(to_result(epochs))
                    else:
                        outcome = news
            started_at = ray.get(broker.begun.remote(task.trial_id))
        finally:  # also where Tune stops the trial, by SystemExit in `report`
            ray.get(broker.drop.remote(task.trial_id))
        if not epochs:  # Tune prints a line for a trial that has reported nothing
            tune.report({OBJECTIVE: outcome.valid.ndcg_at_20})
        folder.write_trial(spec.record(name, "COMPLETE", epochs, started_at, outcome=outcome))

    return trial


def to_result(epochs: Sequence[EpochRecord]) -> dict[str, Any]:
    """The report to Tune of the last epoch: its record, and what search and trackers read.

    Raises FloatingPointError where the objective is not finite: Optuna would leave the trial
    RUNNING for ever.
    """
    record = epochs[-1]
    result: dict[str, Any] = {"record": asdict(record)}
    if record.best_valid_ndcg_at_20 is not None:
        if not math.isfinite(record.best_valid_ndcg_at_20):
            raise FloatingPointError(
                f"validation NDCG@20 is {record.best_valid_ndcg_at_20} in epoch {record.epoch}"
            )
        result[OBJECTIVE] = record.best_valid_ndcg_at_20
        result[BEST_SO_FAR] = max(epoch.best_valid_ndcg_at_20 or 0.0 for epoch in epochs)
    return result


def from_result(result: Mapping[str, Any]) -> EpochRecord:
    """The record that `to_result` was given."""
    return EpochRecord.of(result["record"])
