"""Dropout as masks in the dtype of what they are multiplied with.

On a CPU torch draws one Bernoulli number for each element, this four at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEVELS = 2**16


class BitDropout(nn.Module):
    """As `nn.Dropout`, with masks cut on a CPU from whole random words of torch's generator.

    `p` is rounded to a multiple of 2^-16. At width 64 torch's own Bernoulli draws were a quarter
    of a LoRA training step (see results/findings/cpu_speed.md).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.dropped = round(p * _LEVELS)

    @property
    def scale(self) -> float:
        """What elements that are kept are multiplied by; not where all are dropped."""
        return _LEVELS / (_LEVELS - self.dropped)

    def kept(self, x: Tensor) -> Tensor | None:
        """1 at elements of `x` that are not dropped this time, else 0, in its dtype; None: all."""
        if not self.training or self.dropped == 0:
            return None
        if x.device.type != "cpu":
            return torch.empty_like(x).bernoulli_(1 - self.dropped / _LEVELS)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        drawn = words.view(torch.int16)[: x.numel()].view(x.shape)
        kept = drawn >= self.dropped - _LEVELS // 2
        return kept.view(torch.uint8).to(x.dtype)  # from bool it takes eight times the time

    def forward(self, x: Tensor) -> Tensor:
        """`x` with each element zeroed with probability p, the others scaled by 1 / (1 - p)."""
        if self.training and self.dropped == _LEVELS:
            return x * 0.0
        kept = self.kept(x)
        return x if kept is None else x * kept.mul_(self.scale)


def replace_dropout(module: nn.Module) -> None:
    """Put `BitDropout` in the place of every `nn.Dropout` inside `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.Dropout):
            setattr(module, name, BitDropout(child.p))
        else:
            replace_dropout(child)
