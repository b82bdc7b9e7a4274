"""Cache of trained results: stage 1 for all trials with the same settings, and whole trials.

Reading test, `export` and `explain` then need no second training. An entry is one file
(`snapshot.py`) at a path or URI, named by a hash of all that determines it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from filelock import FileLock

from perpeft_ray.config import TrialConfig, canonical_hash
from perpeft_ray.data.places import subfolder
from perpeft_ray.train.collective import Collective
from perpeft_ray.train.outcome import EpochRecord
from perpeft_ray.train.snapshot import (
    Snapshot,
    Trained,
    read_snapshot,
    read_trained,
    write_snapshot,
)

VERSION = 5
"""Part of every key: change it whenever results or their stored form change."""

_NOT_IN_STAGE_1 = ("groups", "conditioning_weight", "stage3_epochs", "mode")
_OWN_STAGE_1 = ("without_text", "without_image")
"""Methods whose PEFT module encodes different content."""


def stage_one_key(config: TrialConfig, fingerprint: str, computed: str) -> str:
    """Hash of all that determines stage 1: `config` without settings of later stages.

    Methods that first train the same global module with the same settings have the same key.
    `fingerprint`: of data and encoder; `computed`: what `computed_with` returns.
    """
    fields = _fields(config, fingerprint, computed)
    for name in _NOT_IN_STAGE_1:
        del fields[name]
    if config.variant is not None and config.method not in _OWN_STAGE_1:
        fields["method"] = "peft"
    return canonical_hash(fields)


def trial_key(config: TrialConfig, fingerprint: str, computed: str) -> str:
    """Hash of all that determines a trained trial; arguments as for `stage_one_key`."""
    return canonical_hash(_fields(config, fingerprint, computed))


def entry(folder: Path | str, key: str) -> Path | str:
    """The file of a key in the folder of a cache."""
    return subfolder(folder, f"{key}.safetensors")


def cached_stage_one(
    file: Path | str, lock: Path, collective: Collective, compute: Callable[[], Snapshot]
) -> tuple[Snapshot, bool]:
    """The stage 1 of a file (path or URI), computed if missing, and whether it was there.

    One trial per machine computes it at a time; others wait at `lock`, which the operating system
    releases if its holder dies. Worker 0 holds the lock and alone reads and writes. If another
    machine was faster, its result stays and is returned, so that all trials continue from the same
    rounding. If `compute` raises, nothing is written and the next trial computes it.
    """
    with ExitStack() as holding:

        def look() -> Snapshot | None:
            found = read_stage_one(file)
            if found is None:
                lock.parent.mkdir(parents=True, exist_ok=True)
                holding.enter_context(FileLock(lock))
                found = read_stage_one(file)
            return found

        stage = collective.share(look)
        if stage is not None:
            return stage, True
        computed = compute()

        def keep() -> Snapshot | None:
            faster = read_stage_one(file)
            if faster is None:
                write_snapshot(computed, file)
            return faster

        faster = collective.share(keep)
        return faster or computed, faster is not None


def read_stage_one(file: Path | str) -> Snapshot | None:
    """The stage 1 of a file, its epochs marked as shared; None if there is none."""
    found = read_snapshot(file)
    if found is None:
        return None
    progress = dataclasses.replace(found.progress, epochs=_shared(found.progress.epochs))
    return dataclasses.replace(found, progress=progress)


def cached_trial(file: Path | str) -> Trained | None:
    """The trained trial of a file, its epochs marked as shared; None if there is none."""
    found = read_trained(file)
    return found and dataclasses.replace(found, epochs=_shared(found.epochs))


def _shared(epochs: tuple[EpochRecord, ...]) -> tuple[EpochRecord, ...]:
    return tuple(dataclasses.replace(epoch, shared=True) for epoch in epochs)


def _fields(config: TrialConfig, fingerprint: str, computed: str) -> dict[str, Any]:
    fields = dataclasses.asdict(config)
    # Their content is in the fingerprint and in `computed`.
    for name in ("dataset", "encoder", "dtype"):
        del fields[name]
    return {"version": VERSION, "fingerprint": fingerprint, "computed": computed, **fields}
