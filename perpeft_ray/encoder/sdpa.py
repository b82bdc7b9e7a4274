"""Attention of bfloat16 towers that are trained on a CPU, by plain products.

At the lengths of titles and patches (14 to 50) torch's fused kernel is slow there in the backward:
forward and backward of 100 x 12 heads x 50 positions take 240 ms in bfloat16, 88 ms in float32 and
49 ms as the products below (torch 2.13, one core with avx512_bf16; results/LOG.md). Without
gradients, in float32 and on GPUs the kernel is left as it is.
Letters: n items, h heads, L positions, d units of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NAME = "sdpa_trained_by_products"


def train_by_products(model: Any) -> None:
    """Let a transformers model with SDPA attend as said above where gradients flow."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(_NAME, _attention)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        model.set_attn_implementation(_NAME)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(q k^T * scale) v over the positions that `mask` has, [n, h, Lq, d].

    `mask`: bool, or float to be added, of a shape that broadcasts to [n, h, Lq, Lk]. What torch's
    `scaled_dot_product_attention` gives, up to rounding.
    """
    if not _by_products(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    scores = (q @ k.transpose(-1, -2)).float() * scale  # [n, h, Lq, Lk]
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(-1).to(v.dtype) @ v


def _by_products(q: Tensor, k: Tensor, v: Tensor) -> bool:
    narrow = q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[1] == q.shape[1]
    return narrow and any(t.requires_grad for t in (q, k, v))


def _attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    others = {"position_bias", "softcap"} & {name for name, x in options.items() if x is not None}
    if not _by_products(q, k, v) or options.get("dropout") or others:
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
