"""One trial from configuration to outcome: three stages, selection, and a single reading of test.

Plain torch: it runs in pytest and in workers of Ray Train alike.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import cast

import numpy as np
import torch

from perpeft_ray.config import GROUPED_METHODS, PERSONAL_METHODS, SIMPLE_METHODS, TrialConfig
from perpeft_ray.encoder.sizes import encoder_parameters
from perpeft_ray.recommender.simple import SimpleMethod, simple_ranks
from perpeft_ray.train.build import trainable_parameters
from perpeft_ray.train.cache import cached_trial, entry, trial_key
from perpeft_ray.train.checkpoint import Checkpoints
from perpeft_ray.train.collective import Alone, Collective
from perpeft_ray.train.evaluation import facts_of_users, metrics_of, no_lists, of_lists
from perpeft_ray.train.fit import Report, ranks_of
from perpeft_ray.train.grouping import Grouping, principal_components
from perpeft_ray.train.job import Job, open_job
from perpeft_ray.train.memory import PeakMemory, naming_what_to_lower
from perpeft_ray.train.outcome import TrialOutcome, UserRanks
from perpeft_ray.train.snapshot import Snapshot, Trained, write_trained
from perpeft_ray.train.stages import (
    continue_stage_one,
    final_model,
    stage_one,
    stage_three,
    stage_two,
)
from perpeft_ray.train.state import TrainState, load_weights
from perpeft_ray.train.workspace import Workspace, open_split, prepare_here


@naming_what_to_lower()
def run_trial(
    config: TrialConfig,
    workspace: Workspace,
    report: Report,
    *,
    test: bool,
    checkpoints: Path | str | None = None,
    collective: Collective | None = None,
    device: torch.device | None = None,
    memory_gb: float = 4.0,
) -> TrialOutcome:
    """Train and evaluate one configuration.

    Args:
        report: called after every epoch, on every worker, also for epochs from a cache or a
            checkpoint. It may raise to stop the trial.
        test: whether to read test, once, for the epoch that validation selected.
        checkpoints: the trial's own folder, a local path or a URI (`Checkpoints`). With checkpoints
            of the same trial, training resumes after their last epoch, with the result of an
            unbroken run; they are removed when training ends. None: no checkpoints.
        collective: the workers that share this trial; None: this process alone. Every worker
            returns the same outcome.
        device: where to compute; None: a GPU if this process sees one (Ray shows a trial only its
            own), else the CPU.
        memory_gb: memory that a training step may keep for its backward pass, on each worker; the
            rest is computed again, with the same result. At least one unit is kept
            (`train/memory.py`).

    Raises InputError for more groups than users, FloatingPointError for a loss that is not finite.
    """
    if config.method in SIMPLE_METHODS:
        return _simple_outcome(config, workspace, test=test)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory = PeakMemory(device)
    job = open_job(config, workspace, collective or Alone(), device, memory_gb)
    trained, state = train(job, report, checkpoints)
    grouping, split = trained.grouping, job.split
    no_group = np.full(split.num_users, -1, dtype=np.int32)
    user_map = np.full((split.num_users, 2), np.nan, dtype=np.float32)
    if grouping is not None:
        user_map = principal_components(grouping.states)
    test_ranks = np.full(split.num_users, -1, dtype=np.int64)
    test_seconds = 0.0
    lists = no_lists(split, device) if test else None
    if test:
        started = time.perf_counter()
        load_weights(state, trained.best.weights)
        test_ranks = ranks_of(job, state, grouping, "test", lists)
        test_seconds = time.perf_counter() - started
    return TrialOutcome(
        selected_epoch=trained.best.epoch,
        still_improving=trained.best.epoch == trained.epochs[-1].epoch,
        valid=trained.best.valid,
        test=metrics_of(test_ranks) if test else None,
        **of_lists(lists, split),
        users_evaluated=len(split.evaluated("test")),
        encoder_parameters=encoder_parameters(workspace.encoder) if job.model.tower else 0,
        trainable_parameters=trainable_parameters(config, state.model),
        stage1_seconds=trained.stage1_seconds,
        stage2_seconds=trained.stage2_seconds,
        stage3_seconds=trained.stage3_seconds,
        evaluate_seconds=trained.evaluate_seconds + test_seconds,
        peak_memory_mb=memory.megabytes(),
        world_size=job.collective.world_size,
        device=device.type,
        computed=job.computed,
        users=UserRanks(
            **facts_of_users(split),
            group=no_group if grouping is None else grouping.valid,
            test_group=no_group if grouping is None else grouping.test,
            valid_rank=trained.best.valid_ranks,
            test_rank=test_ranks,
            map_x=user_map[:, 0],
            map_y=user_map[:, 1],
        ),
    )


def _simple_outcome(config: TrialConfig, workspace: Workspace, *, test: bool) -> TrialOutcome:
    """Rank every user's validation item and, if `test`, the test item; on the CPU."""
    memory = PeakMemory(torch.device("cpu"))
    started = time.perf_counter()
    prepare_here(workspace, config.dataset, config.data)
    split = open_split(workspace)
    method = cast("SimpleMethod", config.method)
    valid_ranks = simple_ranks(method, split, "valid")
    unknown = np.full(split.num_users, -1, dtype=np.int64)
    lists = no_lists(split, torch.device("cpu")) if test else None
    test_ranks = simple_ranks(method, split, "test", lists) if test else unknown
    nowhere = np.full(split.num_users, np.nan, dtype=np.float32)
    return TrialOutcome(
        selected_epoch=0,
        still_improving=False,
        valid=metrics_of(valid_ranks),
        test=metrics_of(test_ranks) if test else None,
        **of_lists(lists, split),
        users_evaluated=len(split.evaluated("test")),
        encoder_parameters=0,
        trainable_parameters=0,
        stage1_seconds=0.0,
        stage2_seconds=0.0,
        stage3_seconds=0.0,
        evaluate_seconds=time.perf_counter() - started,
        peak_memory_mb=memory.megabytes(),
        world_size=1,
        device="cpu",
        computed=None,
        users=UserRanks(
            **facts_of_users(split),
            group=unknown.astype(np.int32),
            test_group=unknown.astype(np.int32),
            valid_rank=valid_ranks,
            test_rank=test_ranks,
            map_x=nowhere,
            map_y=nowhere,
        ),
    )


def train(
    job: Job, report: Report, checkpoints: Path | str | None = None
) -> tuple[Trained, TrainState]:
    """A trial after its last epoch, read from the cache or trained here.

    The state is that after the last epoch, if it was trained here.
    """
    key = trial_key(job.config, job.workspace.fingerprint, job.computed)
    file = entry(job.workspace.trials, key)
    saved = None if checkpoints is None else Checkpoints(checkpoints, key, job.collective)
    trained = job.collective.share(lambda: cached_trial(file))
    if trained is None:
        trained, state = _train(job, report, saved)
        if job.collective.rank == 0:
            write_trained(trained, file)
    else:
        for record in trained.epochs:
            report(record)
        model = final_model(job, trained.grouping)
        state = job.fresh_state(range(job.config.modules), model)
    if saved is not None:
        saved.remove()
    return trained, state


def _train(job: Job, report: Report, saved: Checkpoints | None) -> tuple[Trained, TrainState]:
    first = stage_one(job, report)
    grouping, stage2_seconds = None, 0.0
    if job.config.method in GROUPED_METHODS:
        grouping, stage2_seconds = _grouping(job, first, saved)
    if grouping is not None and job.config.method in PERSONAL_METHODS:
        state, progress = stage_three(job, first, grouping, saved, report)
    else:
        state, progress = continue_stage_one(job, first, grouping, saved, report)
    assert progress.best is not None  # the last epoch is always validated
    trained = Trained(
        best=progress.best,
        grouping=grouping,
        epochs=(*first.progress.epochs, *progress.epochs),
        stage1_seconds=first.progress.train_seconds,
        stage2_seconds=stage2_seconds,
        stage3_seconds=progress.train_seconds,
        evaluate_seconds=first.progress.evaluate_seconds + progress.evaluate_seconds,
    )
    return trained, state


def _grouping(job: Job, first: Snapshot, saved: Checkpoints | None) -> tuple[Grouping, float]:
    """Stage 2 and its seconds; read from a checkpoint if there is one."""
    kept = job.collective.share(lambda: None if saved is None else saved.grouping())
    if kept is not None:
        return kept
    started = time.perf_counter()
    grouping = stage_two(job, first)
    seconds = time.perf_counter() - started
    if saved is not None and job.collective.rank == 0:
        saved.save_grouping(grouping, seconds)
    return grouping, seconds
