"""Checkpoints of an unfinished stage, after every epoch, written and read by worker 0.

    <folder>/<key>/
        grouping.safetensors             users' groups, once
        epoch-0012/
            state.safetensors            SASRec, every group's module, and their optimisers
            record.json                  the epochs so far; written last, it makes the epoch count

The latest and the best epoch are kept, others removed. Nothing depends on the number of workers, so
a trial may resume with another number. These are our own files and not Ray Train's checkpoints:
trials outside Ray and a stage 1 shared by many trials need them too, and Ray Train's workers take
many trials.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pyarrow import fs
from safetensors.numpy import save
from safetensors.torch import load
from torch import Tensor

from perpeft_ray.data.places import resolve, write_whole
from perpeft_ray.metrics import RankingMetrics
from perpeft_ray.train.collective import Collective
from perpeft_ray.train.grouping import Grouping
from perpeft_ray.train.progress import (
    Best,
    Progress,
    grouping_from,
    grouping_tensors,
    records_from,
)
from perpeft_ray.train.state import (
    TrainState,
    load_optimizers,
    load_weights,
    optimizer_tensors,
    weights,
)

_OPTIMIZER = "optimizer."
_RECORD = "record.json"
_STATE = "state.safetensors"
_GROUPING = "grouping.safetensors"


class Checkpoints:
    """The checkpoints of one stage. All workers save, restore and remove in the same order."""

    def __init__(self, folder: Path | str, key: str, collective: Collective) -> None:
        """Name the checkpoints; reads and writes nothing yet.

        Args:
            folder: a local path, or a URI of pyarrow (`s3://…`, `gs://…`, `file:///…`) or fsspec
                (`fsspec+memory://…`); worker 0 must see it.
            key: hash of all that determines the stage's result; other keys' files are not read.
        """
        self._files, self._folder = resolve(folder)
        self._root = f"{self._folder}/{key}"
        self._collective = collective

    def save(self, state: TrainState, progress: Progress) -> None:
        """Write the state after the last epoch of `progress`; remove older epochs except the best.

        Raises OSError on worker 0 if writing fails, for example on a full disk.
        """
        if self._collective.rank != 0:
            return
        epoch = progress.epochs[-1].epoch
        own = {record.epoch for record in progress.epochs}
        best = progress.best if progress.best and progress.best.epoch in own else None
        moments = optimizer_tensors(state)
        tensors = weights(state) | {_OPTIMIZER + name: t for name, t in moments.items()}
        if best and best.epoch == epoch:
            tensors["valid_ranks"] = torch.from_numpy(best.valid_ranks)
        write_whole(self._files, f"{self._of(epoch)}/{_STATE}", _packed(tensors))
        stage = {
            "epochs": [dataclasses.asdict(record) for record in progress.epochs],
            "evaluate_seconds": progress.evaluate_seconds,
            "best_epoch": best.epoch if best else None,
            "best_valid": dataclasses.asdict(best.valid) if best else None,
        }
        text = json.dumps(stage, indent=1, allow_nan=False)
        write_whole(self._files, f"{self._of(epoch)}/{_RECORD}", text.encode())
        for other in self._epochs():
            if other != epoch and other != stage["best_epoch"]:
                self._files.delete_dir(self._of(other))

    def restore(self, state: TrainState, start: Progress) -> Progress:
        """Load the latest checkpoint into `state`, in place, and return the stage's progress.

        Without a checkpoint, returns `start` and leaves `state` unchanged. The best of `start`
        stays the best unless a later epoch was better.
        """
        found = self._collective.share(self._latest)
        if found is None:
            return start
        record, tensors, of_best = found
        load_weights(state, tensors)
        moments = {
            name.removeprefix(_OPTIMIZER): tensor
            for name, tensor in tensors.items()
            if name.startswith(_OPTIMIZER)
        }
        load_optimizers(state, moments)
        best = start.best
        if record["best_epoch"] is not None:
            device = state.model.backbone.item_embedding.weight.device
            ranks = of_best.pop("valid_ranks").numpy()
            best_weights = {name: tensor.to(device) for name, tensor in of_best.items()}
            valid = RankingMetrics(**record["best_valid"])
            best = Best(record["best_epoch"], valid, best_weights, ranks)
        return Progress(tuple(records_from(record)), best, record["evaluate_seconds"])

    def save_grouping(self, grouping: Grouping, seconds: float) -> None:
        """Write the users' groups, which took `seconds`. Only worker 0 calls this."""
        tensors = grouping_tensors(grouping)
        tensors["seconds"] = torch.tensor(seconds, dtype=torch.float64)
        write_whole(self._files, f"{self._root}/{_GROUPING}", _packed(tensors))

    def grouping(self) -> tuple[Grouping, float] | None:
        """The arguments of `save_grouping`; None if it was not called. Only worker 0 calls this."""
        path = f"{self._root}/{_GROUPING}"
        if self._files.get_file_info(path).type != fs.FileType.File:
            return None
        tensors = load(self._read(path))
        return grouping_from(tensors), float(tensors["seconds"])

    def remove(self) -> None:
        """Remove the stage's checkpoints, and the folder if it is then empty."""
        if self._collective.rank == 0:
            with suppress(FileNotFoundError):
                self._files.delete_dir(self._root)
                if not self._files.get_file_info(fs.FileSelector(self._folder)):
                    self._files.delete_dir(self._folder)

    def _latest(self) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]] | None:
        """The latest epoch's record and tensors, and the best epoch's without its optimisers."""
        epoch = max(self._epochs(complete=True), default=0)
        if epoch == 0:
            return None
        record = json.loads(self._read(f"{self._of(epoch)}/{_RECORD}"))
        best = record["best_epoch"]
        of_best = {} if best is None else load(self._read(f"{self._of(best)}/{_STATE}"))
        of_best = {n: tensor for n, tensor in of_best.items() if not n.startswith(_OPTIMIZER)}
        return record, load(self._read(f"{self._of(epoch)}/{_STATE}")), of_best

    def _of(self, epoch: int) -> str:
        return f"{self._root}/epoch-{epoch:04d}"

    def _epochs(self, *, complete: bool = False) -> list[int]:
        """Epochs that have a folder, or a complete one."""
        chosen = fs.FileSelector(self._root, recursive=True, allow_not_found=True)
        wanted = rf"epoch-(\d+)/{re.escape(_RECORD)}$" if complete else r"epoch-(\d+)$"
        found = (re.search(wanted, info.path) for info in self._files.get_file_info(chosen))
        return [int(match[1]) for match in found if match]

    def _read(self, path: str) -> bytes:
        with self._files.open_input_stream(path) as stream:
            return stream.read()  # type: ignore[no-any-return]  # pyarrow is untyped


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    """Serialise as safetensors, by NumPy: a torch call for each of 2,000 tensors adds up."""
    return save({name: t.contiguous().numpy(force=True) for name, t in tensors.items()})
