"""Attention of bfloat16 towers that are trained on a CPU.

torch's backward of bfloat16 SDPA takes 3 to 8 times the time of the same in float32 there (torch
2.13, avx512_bf16, 17 to 50 positions), more than all matrix products of a layer of width 128.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_NAME = "sdpa_trained_in_float32"


def train_in_float32(model: Any) -> None:
    """Let a transformers model with SDPA compute attention in float32 where gradients flow."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(_NAME, _attention)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        model.set_attn_implementation(_NAME)


def for_training(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three as float32 where gradients flow through one of them on a CPU, else as they are."""
    if q.device.type == "cpu" and any(t.requires_grad for t in (q, k, v)):
        return q.float(), k.float(), v.float()
    return q, k, v


def _attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    dtype = q.dtype
    q, k, v = for_training(q, k, v)
    if mask is not None and mask.is_floating_point():
        mask = mask.to(q.dtype)
    out, _ = sdpa_attention_forward(module, q, k, v, mask, **options)
    return out.to(dtype), None
