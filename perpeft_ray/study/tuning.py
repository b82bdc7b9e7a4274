"""One run of Tune: trials from an agenda, on groups of Ray Train workers."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.experiment import Trial

from perpeft_ray.data.places import remove_folder, subfolder, subfolders
from perpeft_ray.errors import is_full_disk
from perpeft_ray.store.record import Status
from perpeft_ray.study.agenda import Agenda
from perpeft_ray.study.plan import TrialSpec
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.room import Patience, trials_that_fit
from perpeft_ray.study.runtime import scratch_folder
from perpeft_ray.study.trackers import trackers
from perpeft_ray.study.trainable import Study, from_result, make_trainable
from perpeft_ray.train.outcome import EpochRecord
from perpeft_ray.train.ray_train import Groups, Workers, worker_groups

log = logging.getLogger(__name__)

OF_RAY_TRAIN = "ray_train"
"""Folder of Ray Train's own files, beside the checkpoints of trials."""
_ON_FAILURE = ("_actor_start_failed", "_actor_task_failed")


def run_tune(
    study: Study,
    agenda: Agenda,
    progress: Progress,
    *,
    fresh_processes: bool = False,
) -> None:
    """Let Tune run the trials of an agenda; returns when all have ended.

    A trial's workers stay for the next one, unless `fresh_processes`; Tune's own processes only
    wait for them. A trial that fails becomes a FAIL row and the others continue.
    """
    if agenda.is_empty():
        return
    take_memory_kills_as_deaths()
    config = study.config
    groups = Groups(
        count=min(config.search.max_concurrent, trials_that_fit(config)),
        workers=config.workers,
        cpus_per_worker=config.cpus_per_worker,
        gpus_per_worker=config.gpus,
        memory_gb=config.memory_gb,
    )
    files = subfolder(study.checkpoints, OF_RAY_TRAIN)
    # Rows are ours; what Tune keeps about the trials is thrown away.
    with (
        scratch_folder("perpeft-tune-") as scratch,
        worker_groups(groups, study.run, study.workspace, files) as running,
    ):
        trainable = make_trainable(study, running.broker, fresh_processes=fresh_processes)
        tune.Tuner(
            tune.with_resources(trainable, {"node:__internal_head__": 0.001}),
            tune_config=tune.TuneConfig(
                search_alg=agenda,
                num_samples=-1,  # as many as the agenda has
                max_concurrent_trials=groups.count,
                reuse_actors=True,
                trial_name_creator=lambda trial: TrialSpec.from_tune(trial.config).trial_id,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=config.study,
                storage_path=str(scratch),
                stop=agenda.stops,
                callbacks=[Watch(study, running, progress), *trackers(config, study.folder.path)],
                verbose=0,
            ),
        ).fit()
    # What a kill, or a worker of a stopped trial, has left.
    trials = study.folder.trials()
    ended = set(trials.trial_id[trials.status != "FAIL"])
    for name in ended.intersection(subfolders(study.checkpoints)):
        remove_folder(subfolder(study.checkpoints, name))


@dataclass
class _Running:
    """A trial that Tune has started."""

    spec: TrialSpec
    begun: Any
    """Reference to the time when workers took it."""
    started_at: datetime | None = None
    """That time, once it is here."""
    epochs: list[EpochRecord] = field(default_factory=list)


class Watch(tune.Callback):
    """What the study's main process does while trials run: PRUNED and FAIL rows, and progress.

    A trial writes its own COMPLETE row. One that ASHA stops or that fails cannot, so its row is
    written here, from what it reported.
    """

    def __init__(self, study: Study, workers: Workers, progress: Progress) -> None:
        self._study = study
        self._workers = workers
        self._progress = progress
        self._running: dict[str, _Running] = {}
        self._patience = Patience(study.config.start_timeout_s)
        self._stopped_by: BaseException | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Tune saves callbacks for a restore that never comes, and a terminal cannot be saved.
        return {}

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        """Ask when workers take it, which may have to start first."""
        spec = TrialSpec.from_tune(trial.config)
        begun = self._workers.broker.begun.remote(spec.trial_id)
        self._running[trial.trial_id] = _Running(spec, begun)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: object,
    ) -> None:
        """Keep the epoch; a trial without epochs reports once, without one."""
        running = self._running[trial.trial_id]
        self._begin(running)
        if "record" in result:
            record = from_result(result)
            running.epochs.append(record)
            self._progress.epoch(running.spec, record)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        """Show a finished trial, or write the row of one that ASHA stopped."""
        spec = TrialSpec.from_tune(trial.config)
        if spec.key in self._study.folder.finished():  # it has written its row itself
            self._end(trial, "COMPLETE")
            return
        self._end(trial, "PRUNED")
        # A worker may be writing still: what it leaves goes when the study ends.
        remove_folder(subfolder(self._study.checkpoints, spec.trial_id))

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        """Write the row of a trial that failed; the traceback goes to the log."""
        trial_id = TrialSpec.from_tune(trial.config).trial_id
        # A process of Tune's that was killed has not said so itself.
        ray.get(self._workers.broker.drop.remote(trial_id))
        raised = _raised_by(trial)
        log.error("trial %s failed\n%s", trial_id, Path(trial.error_file).read_text())
        if is_full_disk(raised):  # not the trial's fault: it has no row, and is run again
            self._stopped_by = raised
        else:
            self._end(trial, "FAIL", one_line(raised))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        """Keep progress visible, and end what cannot go on; Tune steps at least every 0.1 s or so.

        What is raised here, unlike in the other methods, ends Tune as it is.
        """
        for running in self._running.values():
            if running.started_at is None and ray.wait([running.begun], timeout=0)[0]:
                self._begin(running)
        self._progress.tick()
        if self._stopped_by is not None:
            raise self._stopped_by
        for lease in self._study.leases:
            lease.look()
        self._workers.look()
        self._patience.look()

    def _begin(self, running: _Running) -> None:
        """Note when workers took a trial, and show it as running."""
        if running.started_at is None:
            running.started_at = ray.get(running.begun)
            self._progress.start(running.spec)

    def _end(self, trial: Trial, status: Status, error: str | None = None) -> None:
        """Show the end of a trial, and write its row unless it has done so itself."""
        spec = TrialSpec.from_tune(trial.config)
        ran = self._running.pop(trial.trial_id, None) or _Running(spec, None)  # or never started
        started_at = ran.started_at or datetime.now(UTC)
        study = self._study.config.study
        record = spec.record(study, status, ran.epochs, started_at, error=error)
        if status != "COMPLETE":
            self._study.folder.write_trial(record)
        self._progress.finish(record)
        self._study.folder.keep()


def one_line(error: BaseException) -> str:
    """An exception's type and the first line of its message, without Ray's wrapping."""
    while isinstance(inner := getattr(error, "cause", None), BaseException):  # of RayTaskError
        error = inner
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": ")


def _raised_by(trial: Trial) -> BaseException:
    """What ended a trial, from the file in which Tune has just put it."""
    if trial.pickled_error_file is None:
        return RuntimeError(Path(trial.error_file).read_text())
    with Path(trial.pickled_error_file).open("rb") as file:
        return ray.cloudpickle.load(file)  # type: ignore[no-any-return]  # a pickle holds anything


def take_memory_kills_as_deaths() -> None:
    """Work around Ray 2.60: make Tune treat an out-of-memory kill as the trial's death.

    Ray's memory monitor raises OutOfMemoryError, which is not a RayActorError and which Tune does
    not expect: in a running trial it ends the whole study, and in a starting one Tune loses the
    error for the row. Raises AttributeError if Ray no longer has these methods.
    """
    for name in _ON_FAILURE:
        told = getattr(RayActorManager, name)
        if not hasattr(told, "__wrapped__"):
            setattr(RayActorManager, name, _with_deaths(told))


def _with_deaths(told: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(told)
    def wrapper(*args: Any, exception: Exception, **named: Any) -> None:
        if isinstance(exception, OutOfMemoryError):
            # The first line has the node and its memory; the rest is general advice.
            exception = RayActorError(error_msg=str(exception).strip().partition("\n")[0])
        told(*args, exception=exception, **named)

    return wrapper
