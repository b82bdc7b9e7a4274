"""Sizes of work that depend on the device: what is a good part on a CPU wastes a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sizes:
    """How work is cut on a kind of device."""

    part_cost: int
    """What encoding one part of the titles costs beside its tokens, in tokens."""
    part_tokens: int
    """Tokens of a part at most, padding counted."""


_CPU = Sizes(part_cost=128, part_tokens=4096)
_CUDA = Sizes(part_cost=8192, part_tokens=2**20)


def sizes_of(device: torch.device) -> Sizes:
    """The sizes for a device."""
    return _CUDA if device.type == "cuda" else _CPU
