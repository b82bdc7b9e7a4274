"""Training memory: how many items to encode at a time, and a trial's peak."""

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
from perpeft_ray.recommender.model import GroupParameters, Recommender

_LEAST_ITEMS = 32
_PROBED_ITEMS = 8


@dataclass(frozen=True)
class Units:
    """Items per encoded unit of a piece, and how many units keep their activations for the backward
    pass."""

    items: int = 1024
    """Items per unit. It affects results, since each unit has its own dropout, so it is the same on
    all workers, whatever their memory."""
    that_fit: int = 2**31
    """Units that fit the worker's memory at once."""

    def kept(self, units: int) -> int:
        """How many of `units` keep their activations; the others are encoded again, one by one."""
        return units if units <= self.that_fit else max(0, self.that_fit - 1)


def items_in_a_unit(item_bytes: float, device: torch.device) -> int:
    """The best number of items per unit for the device, at least 32."""
    sizes = sizes_of(device)
    return int(np.clip(sizes.unit_bytes / max(item_bytes, 1.0), _LEAST_ITEMS, sizes.unit_items))


def bytes_to_keep(memory_gb: float, device: torch.device) -> float:
    """`memory_gb` as in `run_trial`; on a GPU at least a sixth of its memory."""
    if device.type != "cuda":
        return memory_gb * 1e9
    return max(memory_gb * 1e9, torch.cuda.get_device_properties(device).total_memory / 6)


def bytes_of_an_item(model: Recommender, module: GroupParameters) -> float:
    """Bytes that the backward pass keeps per item, measured on the first few items."""
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

    kept: list[Tensor] = []  # so that no address is reused
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model.content(items, module)
    return total / len(items)


@contextmanager
def naming_what_to_lower() -> Iterator[None]:
    """Turn a full GPU's error into a MemoryError that names the settings to change."""
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

    On Linux the process's high-water mark is reset, which separates trials that share a process;
    elsewhere the figure is the process's peak so far.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        marks = Path("/proc/self/clear_refs")
        if marks.exists():
            # Some containers forbid this; the figure is then the process's peak.
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
