"""Triton kernels for GPUs; imported only there.

In torch, CLIP's activation x * sigmoid(1.702 x) takes three kernels forward and two backward, each
moving a layer's widest tensor through memory. Scaling pixels takes four, in float32. Flash
attention is made for long sequences: at the 50 positions of ViT-B/32 its backward pass alone took a
fifth of a step on an H200. Here a program computes one head of one item in registers.
Letters: n items, h heads, L positions, d units of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]  # comes with torch's CUDA build
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
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


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """softmax(q k^T * scale) v, [n, h, L, d]; L up to 128; d 16, 32 or 64.

    `mask`: bool [n or 1, 1, L or 1, L]. `causal`: a position sees none after it. Computed in
    float32 but for the operands of products, which are of the inputs' dtype.
    """
    rows = [_rows(x) for x in (q, k, v)]
    out = torch.empty_like(rows[0])
    _attention[(q.shape[0] * q.shape[1],)](*rows, out, **_launch(q, mask, scale, causal))
    return out.transpose(1, 2)


def attention_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    causal: bool,
) -> tuple[Tensor, ...]:
    """The gradients of q, k and v, from that of `attention(q, k, v, mask, scale, causal)`."""
    rows = [_rows(x) for x in (q, k, v, gradient)]
    found = [torch.empty_like(x) for x in rows[:3]]
    grid = (q.shape[0] * q.shape[1],)
    _attention_backward[grid](*rows, *found, **_launch(q, mask, scale, causal))
    return tuple(x.transpose(1, 2) for x in found)


def _rows(x: Tensor) -> Tensor:
    """[n, h, L, d] -> [n, L, h, d] as linear layers write it, usually without a copy."""
    return x.transpose(1, 2).contiguous()


def _launch(q: Tensor, mask: Tensor | None, scale: float, causal: bool) -> dict[str, Any]:
    n, heads, length, depth = q.shape
    block = max(16, triton.next_power_of_2(length))
    seen = q if mask is None else mask.expand(n, 1, length, length).view(torch.uint8)
    strides = (0, 0, 0, 0) if mask is None else seen.stride()
    return {
        "mask_at": seen,
        "mask_item": strides[0],
        "mask_row": strides[2],
        "mask_column": strides[3],
        "scale": scale,
        "heads": heads,
        "length": length,
        "DEPTH": depth,
        "BLOCK": block,
        "CAUSAL": causal,
        "MASKED": mask is not None,
        "num_warps": max(1, block // 16),
    }


@triton.jit  # type: ignore[untyped-decorator]
def _attention(  # type: ignore[no-untyped-def]
    q_at,
    k_at,
    v_at,
    out_at,
    mask_at,
    mask_item,
    mask_row,
    mask_column,
    scale,
    heads,
    length,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASKED: tl.constexpr,
):
    item, start, at, exists = _tile(heads, length, DEPTH, BLOCK)
    q = tl.load(q_at + start + at, mask=exists, other=0)
    k = tl.load(k_at + start + at, mask=exists, other=0)
    weights = _weights(
        q,
        k,
        mask_at + item * mask_item,
        mask_row,
        mask_column,
        scale,
        length,
        BLOCK,
        CAUSAL,
        MASKED,
    )
    v = tl.load(v_at + start + at, mask=exists, other=0)
    tl.store(out_at + start + at, tl.dot(weights.to(v.dtype), v), mask=exists)


@triton.jit  # type: ignore[untyped-decorator]
def _attention_backward(  # type: ignore[no-untyped-def]
    q_at,
    k_at,
    v_at,
    g_at,
    q_to,
    k_to,
    v_to,
    mask_at,
    mask_item,
    mask_row,
    mask_column,
    scale,
    heads,
    length,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASKED: tl.constexpr,
):
    item, start, at, exists = _tile(heads, length, DEPTH, BLOCK)
    q = tl.load(q_at + start + at, mask=exists, other=0)
    k = tl.load(k_at + start + at, mask=exists, other=0)
    weights = _weights(
        q,
        k,
        mask_at + item * mask_item,
        mask_row,
        mask_column,
        scale,
        length,
        BLOCK,
        CAUSAL,
        MASKED,
    )
    g = tl.load(g_at + start + at, mask=exists, other=0)
    tl.store(v_to + start + at, tl.dot(tl.trans(weights.to(g.dtype)), g), mask=exists)
    v = tl.load(v_at + start + at, mask=exists, other=0)
    of_weights = tl.dot(g, tl.trans(v))
    mean = tl.sum(weights * of_weights, axis=1)
    of_scores = (weights * (of_weights - mean[:, None]) * scale).to(q.dtype)
    tl.store(q_to + start + at, tl.dot(of_scores, k), mask=exists)
    tl.store(k_to + start + at, tl.dot(tl.trans(of_scores), q), mask=exists)


@triton.jit  # type: ignore[untyped-decorator]
def _tile(heads, length, DEPTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """A program's item; where its [BLOCK, DEPTH] lies in [n, L, h, d]; which of it exists."""
    item, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    rows, columns = tl.arange(0, BLOCK)[:, None], tl.arange(0, DEPTH)[None, :]
    start = (item * length * heads + head) * DEPTH
    return item, start, rows * heads * DEPTH + columns, (rows < length) & (columns >= 0)


@triton.jit  # type: ignore[untyped-decorator]
def _weights(  # type: ignore[no-untyped-def]
    q,
    k,
    mask_at,
    mask_row,
    mask_column,
    scale,
    length,
    BLOCK: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASKED: tl.constexpr,
):
    """softmax(q k^T * scale), float32 [BLOCK, BLOCK]; zero where nothing is seen."""
    rows, columns = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    seen = (rows < length) & (columns < length)
    if CAUSAL:
        seen &= rows >= columns
    if MASKED:
        seen &= tl.load(mask_at + rows * mask_row + columns * mask_column, mask=seen, other=0) != 0
    scores = tl.where(seen, tl.dot(q, tl.trans(k)) * scale, -1e30)
    weights = tl.where(seen, tl.exp(scores - tl.max(scores, axis=1)[:, None]), 0.0)
    return weights / tl.maximum(tl.sum(weights, axis=1), 1e-30)[:, None]


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
