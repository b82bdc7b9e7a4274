"""Faster plain LoRA in bfloat16 towers: one function that computes in the towers' dtype.

peft widens every input to float32 for the adapter and adds in float32, which moves four times the
memory of the frozen product itself. Here the float32 adapter weights are narrowed for each call;
products still accumulate in float32.
Letters: K inputs, N outputs, r rank.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perpeft_ray.encoder.fast.dropout import BitDropout

_ADAPTER = "default"


def compute_in_bfloat16(model: nn.Module) -> None:
    """Switch peft's plain LoRA layers on frozen bfloat16 linear layers to this function."""
    from peft.tuners.lora import Linear

    for layer in model.modules():
        if isinstance(layer, Linear) and layer.base_layer.weight.dtype == torch.bfloat16:
            layer.forward = partial(_forward, layer, layer.forward)  # type: ignore[method-assign]  # see above


def _forward(layer: Any, by_peft: Any, x: Tensor) -> Tensor:
    base, dropout = layer.base_layer, layer.lora_dropout[_ADAPTER]
    all_dropped = dropout.training and getattr(dropout, "p", 0.0) == 1.0
    if layer.disable_adapters or layer.merged or all_dropped:
        return by_peft(x)  # type: ignore[no-any-return]  # nn.Module's call is untyped
    kept, scale = None, layer.scaling[_ADAPTER]
    if isinstance(dropout, BitDropout):
        kept = dropout.kept(x)
        scale *= dropout.scale if kept is not None else 1.0
    down, up = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    return _Lora.apply(x, base.weight, base.bias, down, up, kept, scale)  # type: ignore[no-any-return, no-untyped-call]  # torch leaves it untyped


class _Lora(torch.autograd.Function):
    """x W^T + b + scale · (kept · x) A^T B^T; gradients of x, A and B."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        kept: Tensor | None,
        scale: float,
    ) -> Tensor:
        a, b = down.to(x.dtype), (up * scale).to(x.dtype)  # [r, K], [N, r]
        out = F.linear(x, weight, bias)
        low = F.linear(x if kept is None else x * kept, a)  # [..., r]
        out.view(-1, out.shape[-1]).addmm_(low.flatten(0, -2), b.T)
        ctx.save_for_backward(x, weight, a, b, low, kept)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight, a, b, low, kept = ctx.saved_tensors
        g = gradient.reshape(-1, gradient.shape[-1])  # [m, N]
        g_low = g @ b  # [m, r]
        g_up = (g.T @ low.flatten(0, -2)).float() * ctx.scale
        dropped = x if kept is None else x * kept
        g_down = (g_low.T @ dropped.flatten(0, -2)).float()
        g_x = None
        if ctx.needs_input_grad[0]:
            g_x = (g @ weight).view_as(x)
            if kept is None:
                g_x.view(-1, x.shape[-1]).addmm_(g_low, a)
            else:
                g_x.add_((g_low @ a).view_as(x).mul_(kept))
        return g_x, None, None, g_down, g_up, None, None
