"""Triton kernels for GPUs; imported only there.

In torch, CLIP's activation x * sigmoid(1.702 x) takes three kernels forward and two backward, each
moving a layer's widest tensor through memory. Scaling pixels takes four, in float32.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]  # comes with torch's CUDA build
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

_BLOCK = 4096


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), elementwise, computed in float32."""
    x = x.contiguous()
    out = torch.empty_like(x)
    _forward[(triton.cdiv(x.numel(), _BLOCK),)](x, out, x.numel(), _BLOCK)
    return out


def quick_gelu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient of x, from that of `quick_gelu(x)`."""
    x, gradient = x.contiguous(), gradient.contiguous()
    out = torch.empty_like(x)
    _backward[(triton.cdiv(x.numel(), _BLOCK),)](gradient, x, out, x.numel(), _BLOCK)
    return out


def scale_pixels(pixels: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [n, 3, S, S] -> pixels * scale + shift, one of each per channel, rounded once."""
    pixels = pixels.contiguous()
    out = torch.empty_like(pixels, dtype=dtype)
    channels, area = pixels.shape[1], pixels.shape[2] * pixels.shape[3]
    grid = (triton.cdiv(pixels.numel(), _BLOCK),)
    scale, shift = scale.flatten(), shift.flatten()
    _scaled[grid](pixels, scale, shift, out, pixels.numel(), area, channels, _BLOCK)
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _scaled(  # type: ignore[no-untyped-def]
    x_at, scale_at, shift_at, out_at, count, area, channels, BLOCK: tl.constexpr
):
    where = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel = (where // area) % channels
    x = tl.load(x_at + where, mask=where < count).to(tl.float32)
    x = x * tl.load(scale_at + channel) + tl.load(shift_at + channel)
    tl.store(out_at + where, x, mask=where < count)


@triton.jit  # type: ignore[untyped-decorator]
def _forward(x_at, out_at, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    where = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_at + where, mask=where < count).to(tl.float32)
    tl.store(out_at + where, x * tl.sigmoid(1.702 * x), mask=where < count)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(g_at, x_at, out_at, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    where = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_at + where, mask=where < count).to(tl.float32)
    g = tl.load(g_at + where, mask=where < count).to(tl.float32)
    s = tl.sigmoid(1.702 * x)
    tl.store(out_at + where, g * s * (1 + 1.702 * x * (1 - s)), mask=where < count)
