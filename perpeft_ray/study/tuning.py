"""One run of Tune: trials from an agenda, each in a process of its own or on Ray Train workers."""

from __future__ import annotations

import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler

from perpeft_ray.config import StudyConfig
from perpeft_ray.data.places import remove_folder, subfolder, subfolders
from perpeft_ray.study.agenda import Agenda
from perpeft_ray.study.host.memory import take_memory_kills_as_deaths
from perpeft_ray.study.host.room import resources_of_worker
from perpeft_ray.study.host.scratch import scratch_folder
from perpeft_ray.study.plan import is_one_of
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.trainable import Study, make_trainable
from perpeft_ray.study.watch import Watch


def run_tune(
    study: Study,
    agenda: Agenda,
    progress: Progress,
    *,
    workers: int,
    scheduler: TrialScheduler | None = None,
    fresh_processes: bool = False,
) -> None:
    """Let Tune run the trials of an agenda; returns when all have ended.

    `workers`: the most Ray Train workers that a trial has; 0 where each trains in its own process.
    `fresh_processes`: whether a trial's process ends with it. A trial that fails becomes a FAIL row
    and the others go on.
    """
    take_memory_kills_as_deaths()
    trainable = tune.with_resources(make_trainable(study), _resources(study.config, workers))
    # Rows are ours; what Tune keeps about the trials is thrown away.
    with scratch_folder("perpeft-tune-") as scratch:
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=agenda,
                scheduler=scheduler,
                num_samples=-1,  # as many as the agenda has
                max_concurrent_trials=_concurrency(study.config, workers),
                # Imports are paid once; with a nested trainer and ASHA reuse hangs.
                reuse_actors=workers == 0 and not fresh_processes,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=study.config.study,
                storage_path=str(scratch),
                callbacks=[Watch(study, progress)],
                verbose=0,
            ),
        ).fit()
    _remove_checkpoints(study)


def _remove_checkpoints(study: Study) -> None:
    """Of trials that have ended: what a kill, or a worker of a stopped trial, has left."""
    ended = study.recorder.finished()
    for name in subfolders(study.checkpoints):
        if is_one_of(name, ended):
            remove_folder(subfolder(study.checkpoints, name))


def _concurrency(config: StudyConfig, workers: int) -> int:
    """Trials at a time: what the study allows and the cluster holds, at least one."""
    cluster = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
    fits = [
        int(cluster.get(name, 0) / (max(workers, 1) * amount))
        for name, amount in resources_of_worker(config).items()
    ]
    return max(1, min(config.search.max_concurrent, *fits))


def _resources(config: StudyConfig, workers: int) -> dict[str, float]:
    if workers == 0:
        return resources_of_worker(config)
    # The trial's own process only waits for its workers: given CPUs it could starve them.
    return {"node:__internal_head__": 0.001}
