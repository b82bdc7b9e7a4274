"""Stage 1 is computed once for every setting that determines it, and read by all who need it.

An entry is a folder, local or at a URI, named by a content hash: safetensors for weights, moments
and ranks; JSON for the record, which is written last and makes the entry count. The first who needs
it builds it under a lock, which the operating system releases if the builder dies.
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
    entry: Path | str, lock: Path, collective: Collective, compute: Callable[[], StageOne]
) -> tuple[StageOne, bool]:
    """What a folder has, by path or URI, and whether it was there already; computed where not.

    One trial of this machine computes it at a time, others wait at `lock`, which worker 0 holds and
    which alone reads and writes. Where another machine was faster, its result stays, and is
    returned: rounding may differ, and all continue from one. `compute` may raise: nothing is
    written then, and whoever waits computes it for themselves.
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
    """The stage 1 of a folder, by path or URI; None where there is none."""
    text = read_file(subfolder(entry, _RECORD))
    if text is None:
        return None
    record = json.loads(text)
    tensors = uuid.UUID(record["tensors"]).hex  # no other folder than one of `_write`
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
    # A name of its own: two machines that write at once do not mix.
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
