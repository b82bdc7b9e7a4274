"""What the study's main process does while Tune runs trials: PRUNED and FAIL rows, and progress."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from perpeft_ray.data.places import remove_folder, subfolder
from perpeft_ray.errors import is_full_disk
from perpeft_ray.store.record import Status, TrialRecord
from perpeft_ray.study.plan import TrialSpec
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.room import Patience
from perpeft_ray.study.trainable import Study, from_result
from perpeft_ray.train.outcome import EpochRecord
from perpeft_ray.train.ray_train import Workers

log = logging.getLogger(__name__)


class Watch(tune.Callback):
    """Tune's callback of a study.

    A trial writes its own COMPLETE row. One that ASHA stops or that fails cannot, so its row is
    written here, from what it reported.
    """

    def __init__(self, study: Study, workers: Workers, progress: Progress) -> None:
        self._study = study
        self._workers = workers
        self._progress = progress
        self._started_at: dict[str, datetime] = {}
        self._epochs: dict[str, list[EpochRecord]] = {}
        self._patience = Patience(study.config.start_timeout_s)
        self._stopped_by: BaseException | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Tune saves callbacks for a restore that never comes, and a terminal cannot be saved.
        return {}

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        """Note the time."""
        self._started_at[trial.trial_id] = datetime.now(UTC)
        self._epochs[trial.trial_id] = []
        spec = TrialSpec.from_tune(trial.config)
        self._progress.start(spec)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: object,
    ) -> None:
        """Keep the epoch; a trial without epochs reports once, without one."""
        if "record" not in result:
            return
        record = from_result(result)
        self._epochs[trial.trial_id].append(record)
        self._progress.epoch(TrialSpec.from_tune(trial.config), record)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        """Tell of a finished trial, or write the row of one that ASHA stopped."""
        spec = TrialSpec.from_tune(trial.config)
        complete = spec.key in self._study.folder.finished()  # it has written its row itself
        if not complete:
            self._write(trial, spec, "PRUNED", None)
            # A worker may be writing still: what it leaves goes when the study ends.
            remove_folder(subfolder(self._study.checkpoints, spec.trial_id))
        self._tell(trial, spec, "COMPLETE" if complete else "PRUNED", None)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        """Write the row of a trial that failed; the traceback goes to the log."""
        spec = TrialSpec.from_tune(trial.config)
        # A process of Tune's that was killed has not said so itself.
        ray.get(self._workers.broker.drop.remote(spec.trial_id))
        raised = _raised_by(trial)
        error = one_line(raised)
        log.error("trial %s failed\n%s", spec.trial_id, Path(trial.error_file).read_text())
        if is_full_disk(raised):  # not the trial's fault: it has no row, and is run again
            self._stopped_by = raised
            return
        self._write(trial, spec, "FAIL", error)
        self._tell(trial, spec, "FAIL", error)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        """Keep progress visible, and end what cannot go on; Tune steps at least every 0.1 s or so.

        What is raised here, unlike in the other methods, ends Tune as it is.
        """
        self._progress.tick()
        if self._stopped_by is not None:
            raise self._stopped_by
        self._workers.look()
        self._patience.look()

    def _write(self, trial: Trial, spec: TrialSpec, status: Status, error: str | None) -> None:
        now = datetime.now(UTC)
        self._study.folder.write_trial(
            TrialRecord(
                study=self._study.config.study,
                trial_id=spec.trial_id,
                phase=spec.phase,
                status=status,
                error=error,
                config=spec.config,
                outcome=None,
                epochs=self._epochs.get(trial.trial_id, []),
                started_at=self._started_at.get(trial.trial_id, now),
                finished_at=now,
            )
        )

    def _tell(self, trial: Trial, spec: TrialSpec, status: Status, error: str | None) -> None:
        epochs = self._epochs.get(trial.trial_id, [])
        started_at = self._started_at.get(trial.trial_id)
        self._progress.finish(
            spec,
            status,
            score=epochs[-1].best_valid_ndcg_at_20 if epochs else None,
            seconds=(datetime.now(UTC) - started_at).total_seconds() if started_at else 0.0,
            error=error,
        )
        self._study.folder.keep()


def one_line(error: BaseException) -> str:
    """An exception's type and the first line of its message, without Ray's wrapping."""
    while True:
        # RayTaskError, ControllerError and WorkerGroupError hold what was raised.
        inner = getattr(error, "cause", None) or getattr(error, "controller_failure", None)
        failures = getattr(error, "worker_failures", None)
        if failures:
            inner = failures[min(failures)]
        if not isinstance(inner, BaseException):
            break
        error = inner
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": ")


def _raised_by(trial: Trial) -> BaseException:
    """What ended a trial, from the file in which Tune has just put it."""
    if trial.pickled_error_file is None:
        return RuntimeError(Path(trial.error_file).read_text())
    with Path(trial.pickled_error_file).open("rb") as file:
        return ray.cloudpickle.load(file)  # type: ignore[no-any-return]  # a pickle holds anything
