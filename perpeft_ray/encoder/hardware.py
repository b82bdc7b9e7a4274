"""Settings that depend on the device: sizes of work, and the choice of torch's kernels.

Good sizes for a CPU waste a GPU, where launching a kernel costs as much as a thousand tokens.
Shapes repeat there, so that kernels are planned and graphs captured once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sizes:
    """How to cut and pad work on a kind of device."""

    part_cost: int
    """Fixed cost of encoding one part of the titles, in tokens."""
    part_tokens: int
    """Maximum tokens per part, padding included."""
    length_step: int = 1
    """Pad titles to a multiple of this many tokens."""
    item_step: int = 1
    """Pad the items of a batch to a multiple of this, or of an eighth of the next power of two if
    that is more."""
    graph_items: int = 0
    """Capture training passes of up to this many items in CUDA graphs."""
    encode_items: int = 256
    """Items per batch outside training."""
    block_scores: int = 2**20
    """Scores per block while ranking: 4 MiB on a CPU, which fit its cache."""
    states_users: int = 1024
    """Users per SASRec batch outside training."""
    rank_users: int = 128
    """Users per ranking batch of a worker."""
    unread_steps: int = 1
    """Training steps between reads of the losses; each read waits for the GPU."""
    unit_bytes: int = 2 * 2**30
    """Bytes that the backward pass may keep per encoded batch of items in training."""
    unit_items: int = 1024
    """Maximum items per batch in training."""

    def padded(self, count: int) -> int:
        """The padded number of items."""
        step = max(self.item_step, 2 ** max(count.bit_length() - 4, 0) if self.item_step > 1 else 1)
        return -(-count // step) * step


_CPU = Sizes(part_cost=128, part_tokens=4096)
_CUDA = Sizes(
    part_cost=8192,
    part_tokens=2**18,
    length_step=8,
    item_step=64,
    graph_items=4096,
    encode_items=4096,
    block_scores=2**28,
    states_users=2**15,
    rank_users=8192,
    unread_steps=32,
    unit_bytes=8 * 2**30,
    unit_items=4096,
)


def sizes_of(device: torch.device) -> Sizes:
    """The sizes for a device."""
    return _CUDA if device.type == "cuda" else _CPU


def choose_kernels(device: torch.device) -> None:
    """Choose torch's kernels for a trial on a GPU.

    cuDNN's attention is off: it plans anew for every shape (70 to 160 ms each on an H200). TF32 is
    off, so that float32 means float32; use bfloat16 for tensor cores.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
