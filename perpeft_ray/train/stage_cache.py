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

from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from perpeft_ray.config import TrialConfig, canonical_hash
from perpeft_ray.data.folders import new_folder
from perpeft_ray.train.outcome import EpochRecord
from perpeft_ray.train.progress import (
    Best,
    as_shared,
    best_from,
    best_record,
    records_from,
    savable,
)

VERSION = 2
"""Part of every key: change it with anything that changes what stage 1 computes."""

_NOT_IN_STAGE_1 = (
    "dataset",  # its content is in the workspace's fingerprint, as the encoder's is
    "encoder",
    "groups",
    "conditioning_weight",
    "stage3_epochs",
    "mode",
)
_OWN_STAGE_1 = ("without_text", "without_image")
"""Methods with a PEFT module whose content differs from that of the others."""


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

    Methods that train the same global module first, with the same settings, have the same key.
    """
    fields = dataclasses.asdict(config)
    for name in _NOT_IN_STAGE_1:
        del fields[name]
    if config.variant is not None and config.method not in _OWN_STAGE_1:
        fields["method"] = "peft"
    return canonical_hash({"version": VERSION, "fingerprint": fingerprint, **fields})


def cached_stage_one(
    folder: Path, key: str, compute: Callable[[], StageOne]
) -> tuple[StageOne, bool]:
    """The entry of a key, and whether it was there already; computed where it was not.

    `compute` may raise: nothing is written then, and whoever waits computes it for themselves.
    """
    stage = read_stage_one(folder, key)
    if stage is not None:
        return stage, True
    folder.mkdir(parents=True, exist_ok=True)
    entry = folder / key
    with FileLock(folder / f"{key}.lock"):
        if entry.is_dir():
            return _read(entry), True
        stage = compute()
        with new_folder(entry) as temporary:
            _write(stage, temporary)
    return stage, False


def read_stage_one(folder: Path, key: str) -> StageOne | None:
    """The entry of a key, None where there is none."""
    entry = folder / key
    return _read(entry) if entry.is_dir() else None


def _write(stage: StageOne, folder: Path) -> None:
    record, tensors = best_record(stage.best)
    save_file(savable(stage.weights), folder / "last.safetensors")
    save_file(savable(stage.optimizers), folder / "optimizers.safetensors")
    save_file(tensors, folder / "best.safetensors")
    record["epochs"] = [dataclasses.asdict(epoch) for epoch in stage.epochs]
    record["train_seconds"] = stage.train_seconds
    record["evaluate_seconds"] = stage.evaluate_seconds
    (folder / "record.json").write_text(json.dumps(record, indent=1, allow_nan=False))


def _read(folder: Path) -> StageOne:
    record = json.loads((folder / "record.json").read_text())
    return StageOne(
        weights=load_file(folder / "last.safetensors"),
        optimizers=load_file(folder / "optimizers.safetensors"),
        best=best_from(record, load_file(folder / "best.safetensors")),
        epochs=as_shared(records_from(record)),
        train_seconds=record["train_seconds"],
        evaluate_seconds=record["evaluate_seconds"],
    )
