"""The three stages of a trial. All workers call them in the same order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perpeft_ray.config import VECTOR_METHODS
from perpeft_ray.recommender.model import Recommender
from perpeft_ray.train.build import build_vectors
from perpeft_ray.train.cache import cached_stage_one, entry, stage_one_key
from perpeft_ray.train.checkpoint import Checkpoints
from perpeft_ray.train.epoch import StageData
from perpeft_ray.train.evaluation import states_to_group
from perpeft_ray.train.fit import Report, fit
from perpeft_ray.train.grouping import Grouping, group_items, group_users
from perpeft_ray.train.job import Job
from perpeft_ray.train.snapshot import Snapshot, TrainProgress
from perpeft_ray.train.state import (
    TrainState,
    load_optimizers,
    load_weights,
    optimizer_tensors,
    weights,
)


def stage_one(job: Job, report: Report) -> Snapshot:
    """The global module: from the stage cache, or trained by the first trial that needs it.

    All trials that share a stage 1 share its checkpoints: after a kill, the next trial on this
    machine continues it.
    """
    workspace = job.workspace
    key = stage_one_key(job.config, workspace.fingerprint, job.computed)
    unfinished = Checkpoints(workspace.unfinished / f".{key}.unfinished", key, job.collective)
    stage, found = cached_stage_one(
        entry(workspace.stages, key),
        workspace.unfinished / f"{key}.lock",
        job.collective,
        lambda: _train_stage_one(job, unfinished, report),
    )
    if found:
        for record in stage.progress.epochs:
            report(record)
    else:
        unfinished.remove()
    return stage


def stage_two(job: Job, first: Snapshot) -> Grouping:
    """Group the users by their outputs under the global module, on worker 0 for all."""
    config = job.config
    assert config.groups is not None
    groups = config.groups
    state = job.fresh_state([0])
    load_weights(state, first.weights)
    content = job.contents.of([0], job.model, state.modules, job.collective)[0]

    def group() -> Grouping:
        length = config.sequence_length
        return group_users(
            states_to_group(job.model, content, job.split, "valid", length),
            states_to_group(job.model, content, job.split, "test", length),
            groups,
            config.seed,
            shuffle=config.method == "random_grouping",
        )

    return job.collective.share(group)


def stage_three(
    job: Job, first: Snapshot, grouping: Grouping, checkpoints: Checkpoints | None, report: Report
) -> tuple[TrainState, TrainProgress]:
    """Train personalised modules, each from a copy of the global one; SASRec continues."""
    config = job.config
    assert config.conditioning_weight is not None
    users = _users_by_group(job, grouping)
    pools = group_items(job.split.train, grouping.valid, len(users))
    data = StageData(3, job.sampler, users, dict(enumerate(pools)), config.conditioning_weight)
    state = job.fresh_state(users)
    copies = {
        name.replace("modules.0.", f"modules.{group}.", 1): tensor
        for name, tensor in first.weights.items()
        for group in users
    }
    load_weights(state, copies)
    progress = fit(
        job,
        state,
        data,
        grouping,
        job.stage_three_span,
        stage=3,
        start=TrainProgress(),
        checkpoints=checkpoints,
        report=report,
    )
    return state, progress


def final_model(job: Job, grouping: Grouping | None) -> Recommender:
    """The model of stage 3, with vectors of users or groups if the method has them."""
    if job.config.method not in VECTOR_METHODS:
        return job.model
    return build_vectors(job.config, job.model, grouping, job.split.num_users)


def continue_stage_one(
    job: Job,
    first: Snapshot,
    grouping: Grouping | None,
    checkpoints: Checkpoints | None,
    report: Report,
) -> tuple[TrainState, TrainProgress]:
    """For methods with one module: train on, for as many epochs in all as PerPEFT."""
    state = job.fresh_state([0], final_model(job, grouping))
    load_weights(state, {**weights(state), **first.weights})  # vectors start here
    load_optimizers(state, first.optimizers)
    # Stage 1's best epoch counts for this method too, unless the method adds vectors.
    so_far = None if job.config.method in VECTOR_METHODS else first.progress.best
    progress = fit(
        job,
        state,
        _global_data(job),
        grouping,
        job.stage_three_span,
        stage=3,
        start=TrainProgress(best=so_far),
        checkpoints=checkpoints,
        report=report,
    )
    return state, progress


def _train_stage_one(job: Job, checkpoints: Checkpoints, report: Report) -> Snapshot:
    state = job.fresh_state([0])
    progress = fit(
        job,
        state,
        _global_data(job),
        None,
        job.stage_one_span,
        stage=1,
        start=TrainProgress(),
        checkpoints=checkpoints,
        report=report,
    )
    return Snapshot(progress, weights(state), optimizer_tensors(state))


def _users_by_group(job: Job, grouping: Grouping) -> dict[int, NDArray[np.int64]]:
    """The trainable users of every group, ascending."""
    assert job.config.groups is not None
    trainable = job.sampler.trainable_users
    of = grouping.valid[trainable]
    return {group: trainable[of == group] for group in range(job.config.groups)}


def _global_data(job: Job) -> StageData:
    """Stage 1: one group of all users, negatives from all items."""
    users = {0: job.sampler.trainable_users}
    return StageData(1, job.sampler, users, {0: None}, 0.0, job.config.step_batches)
