"""Cache of stage 1, computed once for all trials with the same settings.

An entry is a folder, local or at a URI, named by a content hash: safetensors for weights, moments
and ranks, and a JSON record, which is written last and makes the entry valid. The first trial that
needs it builds it under a lock, which the operating system releases if the builder dies.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from safetensors.torch import load, save
from torch import Tensor

from perpeft_ray.config import TrialConfig, canonical_hash
from perpeft_ray.data.places import read_file, subfolder, write_file
from perpeft_ray.train.collective import Collective
from perpeft_ray.train.outcome import EpochRecord
from perpeft_ray.train.progress import (
    Best,
    as_shared,
    best_from,
    best_record,
    records_from,
    savable,
)

VERSION = 4
"""Part of every key: change it whenever the result of stage 1 changes."""

_NOT_IN_STAGE_1 = (
    "dataset",  # its content is in the workspace's fingerprint, like the encoder's
    "encoder",
    "groups",
    "conditioning_weight",
    "stage3_epochs",
    "mode",
)
_OWN_STAGE_1 = ("without_text", "without_image")
"""Methods whose PEFT module encodes different content."""


@dataclass(frozen=True, eq=False)
class StageOne:
    """The final state of stage 1, and its best epoch."""

    weights: dict[str, Tensor]
    optimizers: dict[str, Tensor]
    best: Best
    epochs: list[EpochRecord]
    train_seconds: float
    evaluate_seconds: float


def stage_one_key(config: TrialConfig, fingerprint: str) -> str:
    """Hash of all that determines stage 1: `config` without settings of later stages.

    Methods that first train the same global module with the same settings have the same key.
    """
    fields = dataclasses.asdict(config)
    for name in _NOT_IN_STAGE_1:
        del fields[name]
    if config.variant is not None and config.method not in _OWN_STAGE_1:
        fields["method"] = "peft"
    return canonical_hash({"version": VERSION, "fingerprint": fingerprint, **fields})


def cached_stage_one(
    entry: Path | str, lock: Path, collective: Collective, compute: Callable[[], StageOne]
) -> tuple[StageOne, bool]:
    """The stage 1 of a folder (path or URI), computed if missing, and whether it was there.

    One trial per machine computes it at a time; others wait at `lock`. Worker 0 holds the lock and
    alone reads and writes. If another machine was faster, its result stays and is returned, so that
    all trials continue from the same rounding. If `compute` raises, nothing is written and the next
    trial computes it.
    """
    with ExitStack() as holding:

        def look() -> StageOne | None:
            stage = read_stage_one(entry)
            if stage is None:
                lock.parent.mkdir(parents=True, exist_ok=True)
                holding.enter_context(FileLock(lock))
                stage = read_stage_one(entry)
            return stage

        stage = collective.share(look)
        if stage is not None:
            return stage, True
        computed = compute()

        def keep() -> StageOne | None:
            faster = read_stage_one(entry)
            if faster is None:
                _write(computed, entry)
            return faster

        faster = collective.share(keep)
        return faster or computed, faster is not None


def read_stage_one(entry: Path | str) -> StageOne | None:
    """The stage 1 of a folder (path or URI); None if there is none."""
    text = read_file(subfolder(entry, _RECORD))
    if text is None:
        return None
    record = json.loads(text)
    tensors = uuid.UUID(record["tensors"]).hex  # a folder of `_write` only
    parts = {}
    for part in _PARTS:
        packed = read_file(subfolder(entry, tensors, f"{part}.safetensors"))
        assert packed is not None  # it was written before the record
        parts[part] = load(packed)
    return StageOne(
        weights=parts["last"],
        optimizers=parts["optimizers"],
        best=best_from(record, parts["best"]),
        epochs=as_shared(records_from(record)),
        train_seconds=record["train_seconds"],
        evaluate_seconds=record["evaluate_seconds"],
    )


def _write(stage: StageOne, entry: Path | str) -> None:
    record, best = best_record(stage.best)
    # A unique name: two machines that write at once must not mix.
    record["tensors"] = uuid.uuid4().hex
    parts = {"last": savable(stage.weights), "optimizers": savable(stage.optimizers), "best": best}
    for part in _PARTS:
        file = subfolder(entry, record["tensors"], f"{part}.safetensors")
        write_file(file, save(parts[part]))
    record["epochs"] = [dataclasses.asdict(epoch) for epoch in stage.epochs]
    record["train_seconds"] = stage.train_seconds
    record["evaluate_seconds"] = stage.evaluate_seconds
    text = json.dumps(record, indent=1, allow_nan=False)
    write_file(subfolder(entry, _RECORD), text.encode())


_RECORD, _PARTS = "record.json", ("last", "optimizers", "best")
