"""One run of Tune: trials from an agenda, on groups of Ray Train workers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import ray
from ray import tune
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError

from perpeft_ray.config import StudyConfig
from perpeft_ray.data.places import remove_folder, subfolder, subfolders
from perpeft_ray.study.agenda import Agenda
from perpeft_ray.study.plan import TrialSpec, is_one_of, resources_of_worker
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.runtime import scratch_folder
from perpeft_ray.study.trackers import trackers
from perpeft_ray.study.trainable import Study, make_trainable
from perpeft_ray.study.watch import Watch
from perpeft_ray.train.ray_train import Groups, worker_groups

OF_RAY_TRAIN = "ray_train"
"""Folder of Ray Train's own files, beside the checkpoints of trials."""
_ON_FAILURE = ("_actor_start_failed", "_actor_task_failed")


def run_tune(
    study: Study,
    agenda: Agenda,
    progress: Progress,
    *,
    workers: int,
    fresh_processes: bool = False,
) -> None:
    """Let Tune run the trials of an agenda; returns when all have ended.

    `workers`: of each trial, which stay for the next one; Tune's own processes only wait for them.
    `fresh_processes`: whether a trial's workers end with it. A trial that fails becomes a FAIL row
    and the others continue.
    """
    if agenda.is_empty():
        return
    take_memory_kills_as_deaths()
    config = study.config
    groups = Groups(
        count=_concurrency(config, workers),
        workers=workers,
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
    _remove_checkpoints(study)


def _remove_checkpoints(study: Study) -> None:
    """Of trials that have ended: what a kill, or a worker of a stopped trial, has left."""
    ended = study.folder.finished()
    for name in subfolders(study.checkpoints):
        if is_one_of(name, ended):
            remove_folder(subfolder(study.checkpoints, name))


def _concurrency(config: StudyConfig, workers: int) -> int:
    """Trials at a time: what the study allows and the cluster holds, at least one."""
    cluster = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    fits = [
        int(cluster.get(name, 0) / (workers * amount))
        for name, amount in resources_of_worker(config).items()
    ]
    return max(1, min(config.search.max_concurrent, *fits))


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
