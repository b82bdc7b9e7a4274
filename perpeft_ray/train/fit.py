"""The epochs of a stage: train, validate, keep the best, write the checkpoint, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from perpeft_ray.config import VECTOR_METHODS
from perpeft_ray.train.checkpoint import Checkpoints
from perpeft_ray.train.epoch import StageData, train_epoch
from perpeft_ray.train.evaluation import evaluate, metrics_of
from perpeft_ray.train.grouping import Grouping
from perpeft_ray.train.job import Job
from perpeft_ray.train.outcome import EpochRecord
from perpeft_ray.train.snapshot import Best, TrainProgress
from perpeft_ray.train.state import TrainState, weights

Report = Callable[[EpochRecord], None]


def fit(
    job: Job,
    state: TrainState,
    data: StageData,
    grouping: Grouping | None,
    epochs: range,
    *,
    stage: int,
    start: TrainProgress,
    checkpoints: Checkpoints | None,
    report: Report,
) -> TrainProgress:
    """Train for these epochs, in place, and validate every `validate_every`th and the last one.

    With `patience` p it ends early, after p validations in a row without a new best.

    With checkpoints it resumes after their last epoch, and reports their epochs too. An epoch's
    checkpoint is written before its report, so a reported epoch is never trained again.

    Args:
        grouping: the users' groups for validation; None: all in group 0.
        stage: the stage in the records; `data.stage` keys the random numbers.
        start: progress before the first of these epochs; its best may be of an earlier stage.
    """
    progress = start if checkpoints is None else checkpoints.restore(state, start)
    for record in progress.epochs:
        report(record)
    for epoch in epochs[len(progress.epochs) :]:
        if 0 < job.config.patience <= progress.validations_since_best:
            break
        started = time.perf_counter()
        loss = train_epoch(state, data, epoch, job.config, job.collective, job.units)
        valid, best, evaluate_seconds = None, progress.best, progress.evaluate_seconds
        if (epoch - epochs.start + 1) % job.config.validate_every == 0 or epoch == epochs[-1]:
            before = time.perf_counter()
            ranks = ranks_of(job, state, grouping, "valid")
            evaluate_seconds += time.perf_counter() - before
            valid = metrics_of(ranks)
            if best is None or valid.ndcg_at_20 > best.valid.ndcg_at_20:
                best = Best(epoch, valid, weights(state), ranks)
        record = EpochRecord(
            stage=stage,
            epoch=epoch,
            loss=loss,
            seconds=time.perf_counter() - started,
            valid=valid,
            best_valid_ndcg_at_20=best.valid.ndcg_at_20 if best else None,
            shared=False,
        )
        progress = TrainProgress((*progress.epochs, record), best, evaluate_seconds)
        if checkpoints is not None:
            checkpoints.save(state, progress)
        report(record)
    return progress


def ranks_of(
    job: Job,
    state: TrainState,
    grouping: Grouping | None,
    part: Literal["valid", "test"],
    lists: Tensor | None = None,
) -> NDArray[np.int64]:
    """Every user's rank under their group's module, or with their group's vector.

    int64 [U]; -1: not evaluated. `lists`: as in `evaluate`.
    """
    everyone = np.zeros(job.split.num_users, dtype=np.int32)
    groups = None if grouping is None else grouping.of(part)
    of_vectors = job.config.method in VECTOR_METHODS
    return evaluate(
        state.model,
        state.modules,
        everyone if groups is None or of_vectors else groups,
        job.split,
        part,
        job.config.sequence_length,
        job.collective,
        owners=groups if of_vectors else None,
        contents=job.contents,
        lists=lists,
    )
