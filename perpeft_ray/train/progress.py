"""A stage's progress after an epoch, and its form on disk: JSON and named tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
class Progress:
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


def best_record(best: Best) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An epoch as a JSON record and tensors, including users' ranks."""
    ranks = {"valid_ranks": torch.from_numpy(best.valid_ranks)}
    record = {"best_epoch": best.epoch, "best_valid": dataclasses.asdict(best.valid)}
    return record, savable({**best.weights, **ranks})


def best_from(record: Mapping[str, Any], tensors: dict[str, Tensor]) -> Best:
    """The inverse of `best_record`."""
    ranks = tensors.pop("valid_ranks").numpy()
    return Best(record["best_epoch"], RankingMetrics(**record["best_valid"]), tensors, ranks)


def records_from(record: Mapping[str, Any]) -> list[EpochRecord]:
    """The epochs of a JSON record, stored under `epochs` as dictionaries."""
    return [
        EpochRecord(
            **{**fields, "valid": RankingMetrics(**fields["valid"]) if fields["valid"] else None}
        )
        for fields in record["epochs"]
    ]


def as_shared(records: list[EpochRecord]) -> list[EpochRecord]:
    """Epochs marked as read from a cache."""
    return [dataclasses.replace(record, shared=True) for record in records]


def grouping_tensors(grouping: Grouping) -> dict[str, Tensor]:
    """The arrays of a grouping as tensors, without None."""
    arrays = {field.name: getattr(grouping, field.name) for field in dataclasses.fields(grouping)}
    return {
        name: torch.from_numpy(np.array(array))
        for name, array in arrays.items()
        if array is not None
    }


def grouping_from(tensors: Mapping[str, Tensor]) -> Grouping:
    """The inverse of `grouping_tensors`."""
    centroids = tensors.get("centroids")
    return Grouping(
        valid=tensors["valid"].numpy(),
        test=tensors["test"].numpy(),
        states=tensors["states"].numpy(),
        centroids=None if centroids is None else centroids.numpy(),
    )


def savable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in the form that safetensors needs: on the CPU, contiguous, detached."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
