"""Cache of trained trials, so that reading test later needs no second training.

The search trains without reading test; the ablation needs the same configuration and seed with
test. Their common part is stored by content hash in a folder, local or at a URI: safetensors and a
JSON record, which is written last and makes the entry valid.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load, save

from perpeft_ray.config import TrialConfig, canonical_hash
from perpeft_ray.data.places import read_file, subfolder, write_file
from perpeft_ray.train.grouping import Grouping
from perpeft_ray.train.outcome import EpochRecord
from perpeft_ray.train.progress import (
    Best,
    as_shared,
    best_from,
    best_record,
    grouping_from,
    grouping_tensors,
    records_from,
    savable,
)
from perpeft_ray.train.stage_cache import VERSION


@dataclass(frozen=True, eq=False)
class Trained:
    """A trial after its last epoch: the selected epoch and all measurements."""

    best: Best
    grouping: Grouping | None
    """None for methods without groups."""
    epochs: list[EpochRecord]
    stage1_seconds: float
    stage2_seconds: float
    stage3_seconds: float
    evaluate_seconds: float


def trial_key(config: TrialConfig, fingerprint: str) -> str:
    """Hash of all that determines a trained trial; dataset and encoder count by content."""
    fields = dataclasses.asdict(config) | {"dataset": None, "encoder": None}
    version = [VERSION, _FORMAT]
    return canonical_hash({"version": version, "fingerprint": fingerprint, **fields})


def is_kept(entry: Path | str) -> bool:
    """Whether a folder (path or URI) has a trained trial."""
    return read_file(subfolder(entry, _RECORD)) is not None


def read_trained(entry: Path | str) -> Trained | None:
    """The trained trial of a folder (path or URI); None if there is none."""
    text = read_file(subfolder(entry, _RECORD))
    if text is None:
        return None
    record = json.loads(text)
    packed = read_file(subfolder(entry, _WEIGHTS))
    assert packed is not None  # it was written before the record
    tensors = load(packed)
    prefix = "grouping."
    grouping = {
        name.removeprefix(prefix): tensors.pop(name)
        for name in list(tensors)
        if name.startswith(prefix)
    }
    return Trained(
        best=best_from(record, tensors),
        grouping=grouping_from(grouping) if grouping else None,
        epochs=as_shared(records_from(record)),
        **{name: record[name] for name in _SECONDS},
    )


def write_trained(trained: Trained, entry: Path | str) -> None:
    """Write a trained trial, unless it is already there."""
    if is_kept(entry):
        return
    record, tensors = best_record(trained.best)
    if trained.grouping is not None:
        parts = savable(grouping_tensors(trained.grouping))
        tensors |= {f"grouping.{name}": tensor for name, tensor in parts.items()}
    record["epochs"] = [dataclasses.asdict(epoch) for epoch in trained.epochs]
    record |= {name: getattr(trained, name) for name in _SECONDS}
    write_file(subfolder(entry, _WEIGHTS), save(tensors))
    text = json.dumps(record, indent=1, allow_nan=False)
    write_file(subfolder(entry, _RECORD), text.encode())


_RECORD, _WEIGHTS = "record.json", "best.safetensors"
_FORMAT = 2
"""Part of every key: change it whenever the stored form of a trained trial changes."""

_SECONDS = ("stage1_seconds", "stage2_seconds", "stage3_seconds", "evaluate_seconds")
