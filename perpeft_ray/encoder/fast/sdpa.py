"""Faster attention of bfloat16 towers at the lengths of titles and patches.

On a CPU by plain products. Milliseconds for 4,000 tokens, 12 heads of 64, with a mask (torch 2.13,
one Zen 4 core with avx512_bf16): torch's forward and backward at 28 positions 123, here 23; at 50,
138 and 23; at 256, 149 and 55; forward alone 14 and 8, 15 and 10, 41 and 24. On a GPU by a kernel
that keeps the scores in registers; what that gains was not measured yet. float32 keeps torch's.
Letters: n items, h heads, L positions, d units of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NAME = "sdpa_of_short_sequences"
_MOST = {"cpu": 512, "cuda": 128}
"""Maximum positions; beyond them the scores take too much memory, or too many registers."""
_VECTOR = 16
"""Least numbers in a row for torch's softmax, which takes up to eight times as long below: filling
up saves 9 to 14 % of encoding titles of 8 to 15 tokens with a MiniLM-shaped BERT."""


def replace_attention(model: Any) -> None:
    """Switch a transformers model with SDPA to this attention."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(_NAME, _attention)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        model.set_attn_implementation(_NAME)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool = False
) -> Tensor:
    """softmax(q k^T * scale) v over the positions in `mask`, [n, h, Lq, d].

    `mask`: bool, or float to add; broadcasts to [n, h, Lq, Lk]. `causal`, without a mask: no
    position sees a later one. Equals torch's `scaled_dot_product_attention` up to rounding.
    """
    if not _is_short(q, k, mask):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scale, is_causal=causal
        )
    if q.is_cuda:
        return _InRegisters.apply(q, k, v, mask, scale, causal)  # type: ignore[no-any-return, no-untyped-call]  # torch leaves it untyped
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    return _Products.apply(q, k, v, mask, scale)  # type: ignore[no-any-return, no-untyped-call]  # torch leaves it untyped


def _is_short(q: Tensor, k: Tensor, mask: Tensor | None) -> bool:
    """Whether this module computes the attention of q and k."""
    (_, heads, length, depth), device = q.shape, q.device.type
    if q.dtype != torch.bfloat16 or k.shape[1] != heads or k.shape[2] > _MOST.get(device, 0):
        return False
    simple = mask is None or (mask.dtype == torch.bool and mask.dim() == 4 and mask.shape[1] == 1)
    return device == "cpu" or (simple and k.shape[2] == length and depth in (16, 32, 64))


class _InRegisters(torch.autograd.Function):
    """`kernels.attention`. Keeps only q, k and v for the gradient, not the result."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool
    ) -> Tensor:
        from perpeft_ray.encoder.fast import kernels

        ctx.save_for_backward(q, k, v, mask)
        ctx.scale, ctx.causal = scale, causal
        return kernels.attention(q, k, v, mask, scale, causal)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        from perpeft_ray.encoder.fast import kernels

        q, k, v, mask = ctx.saved_tensors
        found = kernels.attention_backward(gradient, q, k, v, mask, ctx.scale, ctx.causal)
        return *found, None, None, None


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        ctx.scale, ctx.shapes = scale, (q.shape, k.shape)
        heads = (len(q) * q.shape[1], -1, q.shape[3])
        q, k, v = q.reshape(heads), k.reshape(heads), v.reshape(heads)
        scores = torch.baddbmm(_no(q), q, k.mT, beta=0, alpha=scale)
        of_heads = scores.view(*ctx.shapes[0][:3], -1)  # [n, h, Lq, Lk]
        if mask is not None and mask.dtype == torch.bool:
            of_heads.masked_fill_(~mask, torch.finfo(scores.dtype).min)
        elif mask is not None:
            of_heads.add_(mask)
        # torch's bfloat16 softmax is slower in short rows; its backward in shorter ones.
        wide = _filled(scores.float(), -torch.inf) if scores.shape[-1] < 80 else scores
        weights = wide.softmax(-1)[..., : scores.shape[-1]].to(scores.dtype)
        ctx.save_for_backward(q, k, v, weights)
        return torch.bmm(weights, v).view(ctx.shapes[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        q, k, v, weights = ctx.saved_tensors
        gradient = gradient.reshape(q.shape)
        of_weights = torch.bmm(gradient, v.mT)
        g_v = torch.bmm(weights.mT, gradient)
        wide = torch.float32 if weights.shape[-1] < 32 else weights.dtype
        filled, of_filled = (_filled(x.to(wide), 0.0) for x in (weights, of_weights))
        of_scores = torch._softmax_backward_data(of_filled, filled, -1, wide)
        of_scores = of_scores[..., : weights.shape[-1]].to(weights.dtype)
        g_q = torch.baddbmm(_no(q), of_scores, k, beta=0, alpha=ctx.scale)
        g_k = torch.baddbmm(_no(q), of_scores.mT, q, beta=0, alpha=ctx.scale)
        of_q, of_k = ctx.shapes
        return g_q.view(of_q), g_k.view(of_k), g_v.view(of_k), None, None


def _filled(x: Tensor, value: float) -> Tensor:
    """`x` with rows of at least `_VECTOR`."""
    return F.pad(x, (0, max(_VECTOR - x.shape[-1], 0)), value=value)


def _no(like: Tensor) -> Tensor:
    """An empty addend."""
    return like.new_empty(())


def _attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    others = {"position_bias", "softcap"} & {name for name, x in options.items() if x is not None}
    if not _is_short(q, k, mask) or options.get("dropout") or others:
        out, _ = sdpa_attention_forward(module, q, k, v, mask, **options)
        return out, None
    causal = options.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    scale = options.get("scaling")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out = attend(q, k, v, mask, scale, causal=causal and mask is None)
    return out.transpose(1, 2).contiguous(), None
