"""Faster attention of bfloat16 towers on a CPU, by plain products.

torch's fused kernel is slow there at the lengths of titles and patches. Milliseconds for 4,000
tokens, 12 heads of 64, with a mask (torch 2.13, one Zen 4 core with avx512_bf16): forward and
backward at 28 positions 123, here 23; at 50, 138 and 23; at 256, 149 and 55; forward alone 14 and
8, 15 and 10, 41 and 24. float32 and GPUs keep torch's kernel.
Letters: n items, h heads, L positions, d units of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NAME = "sdpa_by_products"
_MOST = 512
"""Maximum positions; beyond them the scores take too much memory."""
_VECTOR = 16
"""Least numbers in a row for torch's softmax, which takes up to eight times as long below: filling
up saves 9 to 14 % of encoding titles of 8 to 15 tokens with a MiniLM-shaped BERT."""


def attend_by_products(model: Any) -> None:
    """Switch a transformers model with SDPA to this attention."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(_NAME, _attention)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        model.set_attn_implementation(_NAME)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(q k^T * scale) v over the positions in `mask`, [n, h, Lq, d].

    `mask`: bool, or float to add; broadcasts to [n, h, Lq, Lk]. Equals torch's
    `scaled_dot_product_attention` up to rounding.
    """
    if not _by_products(q, k):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return _Products.apply(q, k, v, mask, scale)  # type: ignore[no-any-return, no-untyped-call]  # torch leaves it untyped


def _by_products(q: Tensor, k: Tensor) -> bool:
    narrow = q.device.type == "cpu" and q.dtype == torch.bfloat16
    return narrow and k.shape[1] == q.shape[1] and k.shape[2] <= _MOST


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
    if not _by_products(q, k) or options.get("dropout") or others:
        out, _ = sdpa_attention_forward(module, q, k, v, mask, **options)
        return out, None
    causal = options.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    if causal and mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    scale = options.get("scaling")
    out = attend(q, k, v, mask, q.shape[-1] ** -0.5 if scale is None else scale)
    return out.transpose(1, 2).contiguous(), None
