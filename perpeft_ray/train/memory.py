"""Memory of training: how many items are encoded at a time, and a trial's peak."""

from __future__ import annotations

import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from perpeft_ray.recommender.model import Module, Recommender

_UNIT_BYTES = 2 * 2**30
_LEAST_ITEMS, _MOST_ITEMS = 32, 1024
_PROBED_ITEMS = 8


@dataclass(frozen=True)
class Units:
    """In how many items at a time a piece is encoded, and for how many of these units what the
    backward pass needs is kept."""

    items: int = _MOST_ITEMS
    """Part of what a trial computes, since each unit has its own dropout: the same on all workers,
    whatever memory they may take."""
    that_fit: int = 2**31
    """Units that the worker's memory holds at once."""

    def kept(self, units: int) -> int:
        """How many of so many units are kept; the others are encoded again, one at a time."""
        return units if units <= self.that_fit else max(0, self.that_fit - 1)


def items_in_a_unit(item_bytes: float) -> int:
    """Items of 2 GiB together, at least 32 and at most 1,024."""
    return int(np.clip(_UNIT_BYTES / max(item_bytes, 1.0), _LEAST_ITEMS, _MOST_ITEMS))


def bytes_of_an_item(model: Recommender, module: Module) -> float:
    """What the backward pass of a training step keeps of an item; measured on the first few."""
    items = np.arange(1, 1 + min(_PROBED_ITEMS, model.backbone.item_embedding.num_embeddings - 1))
    seen = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *module.values()]}
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept.append(tensor)
            total += storage.nbytes()
        return tensor

    kept: list[Tensor] = []  # so that no address is used twice
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model.content(items, module)
    return total / len(items)


class PeakMemory:
    """Peak memory since construction: of the GPU on CUDA, else of this process.

    Linux can reset the process's high-water mark, so that trials which share a process are told
    apart; elsewhere the figure is the process's peak so far.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        marks = Path("/proc/self/clear_refs")
        if marks.exists():
            # Some containers forbid it: the figure is then the process's peak.
            with suppress(PermissionError):
                marks.write_text("5")

    def megabytes(self) -> float:
        """The peak in MiB."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**20
        status = Path("/proc/self/status")
        if status.exists():
            for line in status.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
