"""Stage 1 is computed once for every setting that determines it, and read by all who need it.

An entry is a folder named by a content hash: safetensors for weights, moments and ranks, JSON for
the record. It appears whole or not at all; the first who needs it builds it under a lock, which
the operating system releases if the builder dies.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from perpeft_ray.config import TrialConfig, canonical_hash
from perpeft_ray.data.folders import new_folder
from perpeft_ray.metrics import RankingMetrics
from perpeft_ray.train.outcome import EpochRecord

VERSION = 1
"""Part of every key: change it with anything that changes what stage 1 computes."""

_NOT_IN_STAGE_1 = (
    "dataset",  # its content is in the workspace's fingerprint, as the encoder's is
    "encoder",
    "groups",
    "conditioning_weight",
    "stage3_epochs",
    "mode",
)


@dataclass(frozen=True, eq=False)
class Best:
    """The validated epoch with the highest validation NDCG@20 so far."""

    epoch: int
    valid: RankingMetrics
    weights: dict[str, Tensor]
    valid_ranks: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class StageOne:
    """Stage 1 as it ended, and its best epoch."""

    weights: dict[str, Tensor]
    optimizers: dict[str, Tensor]
    best: Best
    epochs: list[EpochRecord]
    train_seconds: float
    evaluate_seconds: float


def stage_one_key(config: TrialConfig, fingerprint: str) -> str:
    """Hash of all that determines stage 1: `config` without what only later stages read.

    Personalised methods and `global` with the same settings have the same key.
    """
    fields = dataclasses.asdict(config)
    for name in _NOT_IN_STAGE_1:
        del fields[name]
    fields["method"] = fields["method"] if config.variant is None else "peft"
    return canonical_hash({"version": VERSION, "fingerprint": fingerprint, **fields})


def cached_stage_one(
    folder: Path, key: str, compute: Callable[[], StageOne]
) -> tuple[StageOne, bool]:
    """The entry of a key, and whether it was there already; computed where it was not.

    `compute` may raise: nothing is written then, and whoever waits computes it for themselves.
    """
    entry = folder / key
    if entry.is_dir():
        return _read(entry), True
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{key}.lock"):
        if entry.is_dir():
            return _read(entry), True
        stage = compute()
        with new_folder(entry) as temporary:
            _write(stage, temporary)
    return stage, False


def _write(stage: StageOne, folder: Path) -> None:
    save_file(_savable(stage.weights), folder / "last.safetensors")
    save_file(_savable(stage.optimizers), folder / "optimizers.safetensors")
    ranks = {"valid_ranks": torch.from_numpy(stage.best.valid_ranks)}
    save_file(_savable({**stage.best.weights, **ranks}), folder / "best.safetensors")
    record = {
        "best_epoch": stage.best.epoch,
        "best_valid": dataclasses.asdict(stage.best.valid),
        "epochs": [dataclasses.asdict(record) for record in stage.epochs],
        "train_seconds": stage.train_seconds,
        "evaluate_seconds": stage.evaluate_seconds,
    }
    (folder / "record.json").write_text(json.dumps(record, indent=1, allow_nan=False))


def _read(folder: Path) -> StageOne:
    record = json.loads((folder / "record.json").read_text())
    best = load_file(folder / "best.safetensors")
    ranks = best.pop("valid_ranks").numpy()
    epochs = []
    for fields in record["epochs"]:
        valid = RankingMetrics(**fields["valid"]) if fields["valid"] else None
        epochs.append(EpochRecord(**{**fields, "valid": valid, "shared": True}))
    return StageOne(
        weights=load_file(folder / "last.safetensors"),
        optimizers=load_file(folder / "optimizers.safetensors"),
        best=Best(record["best_epoch"], RankingMetrics(**record["best_valid"]), best, ranks),
        epochs=epochs,
        train_seconds=record["train_seconds"],
        evaluate_seconds=record["evaluate_seconds"],
    )


def _savable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
