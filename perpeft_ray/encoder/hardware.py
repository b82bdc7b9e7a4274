"""What depends on the device: sizes of work, and which of torch's kernels are used.

What is a good size on a CPU wastes a GPU: there, launching a kernel costs as much as a thousand
tokens, and shapes repeat, so that kernels are planned and graphs captured once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sizes:
    """How work is cut and padded on a kind of device."""

    part_cost: int
    """What encoding one part of the titles costs beside its tokens, in tokens."""
    part_tokens: int
    """Tokens of a part at most, padding counted."""
    length_step: int = 1
    """Titles are padded to multiples of so many tokens."""
    item_step: int = 1
    """Items that are encoded together are padded to a multiple of this, or of an eighth of
    their number's power of two if that is more."""
    graph_items: int = 0
    """Training passes of at most so many items are captured in CUDA graphs."""
    encode_items: int = 256
    """Items encoded at a time outside training."""
    block_scores: int = 2**20
    """Scores held at a time while ranking: on a CPU 4 MiB, which stay in its cache."""
    states_users: int = 1024
    """Users whose SASRec output is computed at a time outside training."""
    rank_users: int = 128
    """Users ranked at a time by a worker."""
    unread_steps: int = 1
    """Training steps whose losses are read at a time: a GPU is waited for to read them."""
    unit_bytes: int = 2 * 2**30
    """What the backward pass may keep of the items that are encoded at a time in training."""
    unit_items: int = 1024
    """Items encoded at a time in training, at most."""

    def padded(self, count: int) -> int:
        """The number of items that so many are padded to."""
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
    """Set which of torch's kernels a trial uses on a GPU.

    cuDNN's attention plans anew for every shape (70 to 160 ms each on an H200). TF32 is off, so
    that float32 means float32: what is worth a tensor core is in bfloat16.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
