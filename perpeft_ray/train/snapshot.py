"""Snapshots of training, one safetensors file each: a stage after an epoch, or a trained trial.

Checkpoints and caches have this form. The file's metadata holds a JSON record of everything that is
not a tensor. A file appears whole or not at all.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from safetensors.torch import load
from torch import Tensor

from perpeft_ray.data.places import read_file, write_file
from perpeft_ray.metrics import RankingMetrics
from perpeft_ray.train.grouping import Grouping
from perpeft_ray.train.outcome import EpochRecord


@dataclass(frozen=True, eq=False)
class Best:
    """The validated epoch with the highest validation NDCG@20 so far."""

    epoch: int
    valid: RankingMetrics
    weights: dict[str, Tensor]
    valid_ranks: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TrainProgress:
    """A stage's progress: its epochs so far."""

    epochs: tuple[EpochRecord, ...] = ()
    best: Best | None = None
    """May belong to an earlier stage that this one continues; None before any validation."""
    evaluate_seconds: float = 0.0
    """Wall time of validation, part of the epochs' seconds."""

    @property
    def validations_since_best(self) -> int:
        """Validations of this stage since its last new best; all if it had none."""
        best = -1 if self.best is None else self.best.epoch
        return sum(record.valid is not None and record.epoch > best for record in self.epochs)

    @property
    def train_seconds(self) -> float:
        """Wall time of training, without validation."""
        return sum(record.seconds for record in self.epochs) - self.evaluate_seconds


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A stage after an epoch: enough to continue it, or to begin the next stage."""

    progress: TrainProgress
    weights: dict[str, Tensor]
    """The result of `state.weights`."""
    optimizers: dict[str, Tensor]
    """The result of `state.optimizer_tensors`."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A trial after its last epoch: the selected epoch and all measurements."""

    best: Best
    grouping: Grouping | None
    """None for methods without groups."""
    epochs: tuple[EpochRecord, ...]
    stage1_seconds: float
    stage2_seconds: float
    stage3_seconds: float
    evaluate_seconds: float


_SECONDS = ("stage1_seconds", "stage2_seconds", "stage3_seconds")
_Parts = dict[str, dict[str, Tensor]]


def write_snapshot(snapshot: Snapshot, file: Path | str) -> None:
    """Write a snapshot to a path or URI. Raises OSError if that fails, e.g. on a full disk."""
    parts = {"last": snapshot.weights, "optimizers": snapshot.optimizers}
    _write(file, *_of_progress(snapshot.progress, parts))


def read_snapshot(file: Path | str) -> Snapshot | None:
    """The snapshot of a file, on the CPU; None if there is no file."""
    if (found := _read(file)) is None:
        return None
    record, parts = found
    return Snapshot(_progress(record, parts), parts.get("last", {}), parts.get("optimizers", {}))


def write_trained(trained: Trained, file: Path | str) -> None:
    """Write a trained trial to a path or URI."""
    progress = TrainProgress(trained.epochs, trained.best, trained.evaluate_seconds)
    grouping = {} if trained.grouping is None else {"grouping": _of_grouping(trained.grouping)}
    record, parts = _of_progress(progress, grouping)
    _write(file, record | {name: getattr(trained, name) for name in _SECONDS}, parts)


def read_trained(file: Path | str) -> Trained | None:
    """The trained trial of a file, on the CPU; None if there is no file."""
    if (found := _read(file)) is None:
        return None
    record, parts = found
    progress = _progress(record, parts)
    assert progress.best is not None
    return Trained(
        best=progress.best,
        grouping=_grouping(parts["grouping"]) if "grouping" in parts else None,
        epochs=progress.epochs,
        evaluate_seconds=progress.evaluate_seconds,
        **{name: record[name] for name in _SECONDS},
    )


def write_grouping(grouping: Grouping, seconds: float, file: Path | str) -> None:
    """Write users' groups, and how long grouping took, to a path or URI."""
    _write(file, {"seconds": seconds}, {"grouping": _of_grouping(grouping)})


def read_grouping(file: Path | str) -> tuple[Grouping, float] | None:
    """The arguments of `write_grouping`; None if there is no file."""
    if (found := _read(file)) is None:
        return None
    record, parts = found
    return _grouping(parts["grouping"]), record["seconds"]


def _of_progress(progress: TrainProgress, parts: _Parts) -> tuple[dict[str, Any], _Parts]:
    best = progress.best
    record = {
        "epochs": [dataclasses.asdict(epoch) for epoch in progress.epochs],
        "evaluate_seconds": progress.evaluate_seconds,
        "best_epoch": best and best.epoch,
        "best_valid": best and dataclasses.asdict(best.valid),
    }
    if best is None:
        return record, parts
    ranks = {"valid": torch.from_numpy(best.valid_ranks)}
    return record, {**parts, "best": best.weights, "ranks": ranks}


def _progress(record: Mapping[str, Any], parts: _Parts) -> TrainProgress:
    best = None
    if record["best_epoch"] is not None:
        valid, ranks = RankingMetrics(**record["best_valid"]), parts["ranks"]["valid"].numpy()
        best = Best(record["best_epoch"], valid, parts["best"], ranks)
    epochs = tuple(map(EpochRecord.of, record["epochs"]))
    return TrainProgress(epochs, best, record["evaluate_seconds"])


def _of_grouping(grouping: Grouping) -> dict[str, Tensor]:
    """The arrays of a grouping as tensors, without None."""
    arrays = {field.name: getattr(grouping, field.name) for field in dataclasses.fields(grouping)}
    return {n: torch.from_numpy(np.array(a)) for n, a in arrays.items() if a is not None}


def _grouping(tensors: Mapping[str, Tensor]) -> Grouping:
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    return Grouping(**{"centroids": None, **arrays})


def _write(file: Path | str, record: Mapping[str, Any], parts: _Parts) -> None:
    # By NumPy: a torch call for each of 2,000 tensors adds up.
    tensors = {
        f"{part}/{name}": tensor.contiguous().numpy(force=True)
        for part, named in parts.items()
        for name, tensor in named.items()
    }
    write_file(file, save(tensors, {"record": json.dumps(record, allow_nan=False)}))


def _read(file: Path | str) -> tuple[dict[str, Any], _Parts] | None:
    content = read_file(file)
    if content is None:
        return None
    # safetensors reads metadata only from local files. Format: length of the header, then JSON.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    parts: _Parts = {}
    for full_name, tensor in load(content).items():
        part, _, name = full_name.partition("/")
        parts.setdefault(part, {})[name] = tensor
    return json.loads(header["__metadata__"]["record"]), parts
