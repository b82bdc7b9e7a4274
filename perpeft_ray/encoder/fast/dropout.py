"""Fast dropout on CPUs: masks in the input's dtype, cut from random words.

On a CPU torch draws one Bernoulli number per element; this draws four elements at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEVELS = 2**16


class BitDropout(nn.Module):
    """`nn.Dropout` whose CPU masks are cut from whole random words of torch's generator.

    `p` is rounded to a multiple of 2^-16. At width 64 torch's own Bernoulli draws were a quarter
    of a LoRA training step (see results/findings/cpu_speed.md).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.dropped = round(p * _LEVELS)

    @property
    def scale(self) -> float:
        """Factor of the kept elements; undefined if p is 1."""
        return _LEVELS / (_LEVELS - self.dropped)

    def kept(self, x: Tensor) -> Tensor | None:
        """Mask in the dtype of `x`: 1 for kept elements, 0 for dropped; None keeps all."""
        if not self.training or self.dropped == 0:
            return None
        if x.device.type != "cpu":
            return torch.empty_like(x).bernoulli_(1 - self.dropped / _LEVELS)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        drawn = words.view(torch.int16)[: x.numel()].view(x.shape)
        kept = drawn >= self.dropped - _LEVELS // 2
        return kept.view(torch.uint8).to(x.dtype)  # eight times faster than from bool

    def forward(self, x: Tensor) -> Tensor:
        """`x` with each element zeroed with probability p, the others scaled by 1 / (1 - p)."""
        if self.training and self.dropped == _LEVELS:
            return x * 0.0
        kept = self.kept(x)
        return x if kept is None else x * kept.mul_(self.scale)


def replace_dropout(module: nn.Module) -> None:
    """Replace every `nn.Dropout` inside `module` by `BitDropout`."""
    for name, child in module.named_children():
        if isinstance(child, nn.Dropout):
            setattr(module, name, BitDropout(child.p))
        else:
            replace_dropout(child)
