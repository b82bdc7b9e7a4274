"""Checkpoints of an unfinished stage, after every epoch; each worker writes what it owns.

    <folder>/<key>/
        grouping.safetensors             users' groups, once
        epoch-0012/
            backbone.safetensors         SASRec and its optimiser, by worker 0
            modules.3.safetensors        group 3's module and its optimiser, by its owner
            record.json                  the epochs so far; written last, it makes the epoch count

Kept are the latest epoch and the best one; what is older is removed. Nothing depends on the number
of workers, so another number can go on. They are files of our own and not Ray Train's checkpoints,
because a trial in its own process and a stage 1 that many trials share need them too, and because
a worker then reads its own groups alone.
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
_GROUPING = "grouping.safetensors"


class Checkpoints:
    """The checkpoints of one stage. Every worker makes the same calls in the same order."""

    def __init__(self, folder: Path | str, key: str, collective: Collective) -> None:
        """Nothing is read or written yet.

        Args:
            folder: a local path, or a URI that pyarrow knows (`s3://…`, `gs://…`, `file:///…`) or
                fsspec does (`fsspec+memory://…`); all workers must see it.
            key: hash of all that determines the stage's result; other keys' files are not read.
        """
        self._files, self._folder = resolve(folder)
        self._root = f"{self._folder}/{key}"
        self._collective = collective

    def save(self, state: TrainState, progress: Progress) -> None:
        """Write the state after the progress's last epoch; older epochs but the best are removed.

        Raises OSError where it cannot be written, a full disk included.
        """
        epoch = progress.epochs[-1].epoch
        own = {record.epoch for record in progress.epochs}
        best = progress.best if progress.best and progress.best.epoch in own else None
        self._files.create_dir(self._of(epoch))
        for part, tensors in _by_part(state).items():
            if part == "backbone":
                if self._collective.rank != 0:
                    continue
                if best and best.epoch == epoch:
                    tensors["valid_ranks"] = torch.from_numpy(best.valid_ranks)
            self._write(f"{self._of(epoch)}/{part}.safetensors", _packed(tensors))
        self._collective.wait()
        if self._collective.rank == 0:
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
        """Put the latest checkpoint into `state`, in place, and return the stage's progress.

        Without a checkpoint `state` is left as it is and `start` returned. Its best goes on where
        no epoch since has been better.
        """
        epoch = self._collective.agree(max(self._epochs(complete=True), default=0))
        if epoch == 0:
            return start
        tensors = self._tensors(epoch, state)
        moments = {
            name.removeprefix(_OPTIMIZER): tensor
            for name, tensor in tensors.items()
            if name.startswith(_OPTIMIZER)
        }
        load_weights(state, tensors)
        load_optimizers(state, moments)
        record = json.loads(self._read(f"{self._of(epoch)}/{_RECORD}"))
        best = start.best if record["best_epoch"] is None else self._best(record, state)
        return Progress(tuple(records_from(record)), best, record["evaluate_seconds"])

    def save_grouping(self, grouping: Grouping, seconds: float) -> None:
        """Write the users' groups, which took `seconds`."""
        if self._collective.rank == 0:
            tensors = grouping_tensors(grouping)
            tensors["seconds"] = torch.tensor(seconds, dtype=torch.float64)
            write_whole(self._files, f"{self._root}/{_GROUPING}", _packed(tensors))

    def grouping(self) -> tuple[Grouping, float] | None:
        """What `save_grouping` was given; None where it was not called."""
        path = f"{self._root}/{_GROUPING}"
        there = self._files.get_file_info(path).type == fs.FileType.File
        if not self._collective.agree(int(there)):
            return None
        tensors = load(self._read(path))
        return grouping_from(tensors), float(tensors["seconds"])

    def remove(self) -> None:
        """Remove the stage's checkpoints, and the folder where nothing else is in it."""
        if self._collective.rank == 0:
            with suppress(FileNotFoundError):
                self._files.delete_dir(self._root)
                if not self._files.get_file_info(fs.FileSelector(self._folder)):
                    self._files.delete_dir(self._folder)

    def _best(self, record: dict[str, Any], state: TrainState) -> Best:
        tensors = self._tensors(record["best_epoch"], state)
        ranks = tensors.pop("valid_ranks").numpy()
        device = state.model.backbone.item_embedding.weight.device
        of_best = {
            name: tensor.to(device)
            for name, tensor in tensors.items()
            if not name.startswith(_OPTIMIZER)
        }
        return Best(record["best_epoch"], RankingMetrics(**record["best_valid"]), of_best, ranks)

    def _tensors(self, epoch: int, state: TrainState) -> dict[str, Tensor]:
        """What an epoch has of SASRec and of the groups of `state`."""
        tensors: dict[str, Tensor] = {}
        for part in _parts(state):
            tensors |= load(self._read(f"{self._of(epoch)}/{part}.safetensors"))
        return tensors

    def _of(self, epoch: int) -> str:
        return f"{self._root}/epoch-{epoch:04d}"

    def _epochs(self, *, complete: bool = False) -> list[int]:
        """Epochs that have a folder, or a record in it."""
        chosen = fs.FileSelector(self._root, recursive=True, allow_not_found=True)
        wanted = rf"epoch-(\d+)/{re.escape(_RECORD)}$" if complete else r"epoch-(\d+)$"
        found = (re.search(wanted, info.path) for info in self._files.get_file_info(chosen))
        return [int(match[1]) for match in found if match]

    def _read(self, path: str) -> bytes:
        with self._files.open_input_stream(path) as stream:
            return stream.read()  # type: ignore[no-any-return]  # pyarrow is untyped

    def _write(self, path: str, content: bytes) -> None:
        with self._files.open_output_stream(path) as stream:
            stream.write(content)


def _parts(state: TrainState) -> list[str]:
    """Whose tensors a state has: SASRec's, and those of every group in it."""
    return ["backbone", *(f"modules.{group}" for group in state.modules)]


def _by_part(state: TrainState) -> dict[str, dict[str, Tensor]]:
    """Weights and optimiser moments."""
    by_part: dict[str, dict[str, Tensor]] = {part: {} for part in _parts(state)}
    for prefix, tensors in (("", weights(state)), (_OPTIMIZER, optimizer_tensors(state))):
        for name, tensor in tensors.items():
            owner, group, *_ = name.split(".")
            part = owner if owner == "backbone" else f"{owner}.{group}"
            by_part[part][prefix + name] = tensor
    return by_part


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    """In the safetensors format; by NumPy, since a call for each of 2,000 tensors adds up."""
    return save({name: t.contiguous().numpy(force=True) for name, t in tensors.items()})
