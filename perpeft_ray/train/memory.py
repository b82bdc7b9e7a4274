"""Memory of training: how many items are encoded at a time, and a trial's peak."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from perpeft_ray.encoder.hardware import sizes_of
from perpeft_ray.recommender.model import Module, Recommender

_LEAST_ITEMS = 32
_PROBED_ITEMS = 8


@dataclass(frozen=True)
class Units:
    """In how many items at a time a piece is encoded, and for how many of these units what the
    backward pass needs is kept."""

    items: int = 1024
    """Part of what a trial computes, since each unit has its own dropout: the same on all workers,
    whatever memory they may take."""
    that_fit: int = 2**31
    """Units that the worker's memory holds at once."""

    def kept(self, units: int) -> int:
        """How many of so many units are kept; the others are encoded again, one at a time."""
        return units if units <= self.that_fit else max(0, self.that_fit - 1)


def items_in_a_unit(item_bytes: float, device: torch.device) -> int:
    """Items of so many bytes together as the device is best at, at least 32."""
    sizes = sizes_of(device)
    return int(np.clip(sizes.unit_bytes / max(item_bytes, 1.0), _LEAST_ITEMS, sizes.unit_items))


def bytes_to_keep(memory_gb: float, device: torch.device) -> float:
    """`memory_gb` as in `run_trial`, of a GPU at least a sixth of its memory."""
    if device.type != "cuda":
        return memory_gb * 1e9
    return max(memory_gb * 1e9, torch.cuda.get_device_properties(device).total_memory / 6)


def bytes_of_an_item(model: Recommender, module: Module) -> float:
    """What the backward pass of a training step keeps of an item; measured on the first few."""
    table = model.backbone.item_embedding.weight
    probed = sizes_of(table.device).padded(_PROBED_ITEMS)
    items = np.arange(1, 1 + min(probed, len(table) - 1))
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


@contextmanager
def naming_what_to_lower() -> Iterator[None]:
    """MemoryError, with the settings that need less, where a GPU's memory is full."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        first = str(error).partition(".")[0]
        raise MemoryError(
            "the GPU's memory is full: lower `train.batch_size`, or raise `gpus_per_worker` so "
            f"that fewer trials share a GPU ({first})"
        ) from error


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
