"""Peak memory of one trial."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

import torch


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
