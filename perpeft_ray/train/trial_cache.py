"""A trained trial is kept, so that reading test for it later needs no second training.

The search trains with test unread; the ablation asks for the same configuration and seed with test
read. What both share is kept here by content hash, in the form of the stage cache: safetensors and
JSON, whole or not at all.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from perpeft_ray.config import TrialConfig, canonical_hash
from perpeft_ray.data.folders import new_folder
from perpeft_ray.train.grouping import Grouping
from perpeft_ray.train.outcome import EpochRecord
from perpeft_ray.train.stage_cache import VERSION, Best, best_from, best_record, records_from


@dataclass(frozen=True, eq=False)
class Trained:
    """A trial after its last epoch: the selected epoch and what was measured on the way."""

    best: Best
    grouping: Grouping | None
    """None for methods without groups."""
    epochs: list[EpochRecord]
    stage1_seconds: float
    stage2_seconds: float
    stage3_seconds: float
    evaluate_seconds: float


def trial_key(config: TrialConfig, fingerprint: str) -> str:
    """Hash of all that determines a trained trial; the dataset and encoder by their content."""
    fields = dataclasses.asdict(config) | {"dataset": None, "encoder": None}
    version = [VERSION, _FORMAT]
    return canonical_hash({"version": version, "fingerprint": fingerprint, **fields})


def read_trained(entry: Path) -> Trained | None:
    """The trained trial of a folder, None where there is none."""
    if not entry.is_dir():
        return None
    record = json.loads((entry / "record.json").read_text())
    tensors = load_file(entry / "best.safetensors")
    grouping = None
    if "grouping.valid" in tensors:
        centroids = tensors.pop("grouping.centroids", None)
        grouping = Grouping(
            valid=tensors.pop("grouping.valid").numpy(),
            test=tensors.pop("grouping.test").numpy(),
            states=tensors.pop("grouping.states").numpy(),
            centroids=None if centroids is None else centroids.numpy(),
        )
    return Trained(
        best=best_from(record, tensors),
        grouping=grouping,
        epochs=records_from(record),
        **{name: record[name] for name in _SECONDS},
    )


def write_trained(trained: Trained, entry: Path) -> None:
    """Write a trained trial; nothing where its folder is already there."""
    if entry.is_dir():
        return
    record, tensors = best_record(trained.best)
    if trained.grouping is not None:
        for field in dataclasses.fields(trained.grouping):
            array = getattr(trained.grouping, field.name)
            if array is not None:
                tensors[f"grouping.{field.name}"] = torch.from_numpy(np.array(array))
    record["epochs"] = [dataclasses.asdict(epoch) for epoch in trained.epochs]
    record |= {name: getattr(trained, name) for name in _SECONDS}
    with new_folder(entry) as temporary:
        save_file(tensors, temporary / "best.safetensors")
        (temporary / "record.json").write_text(json.dumps(record, indent=1, allow_nan=False))


_FORMAT = 2
"""Part of every key: change it with what is kept of a trained trial."""

_SECONDS = ("stage1_seconds", "stage2_seconds", "stage3_seconds", "evaluate_seconds")
