"""Faster versions of what transformers and peft compute, with the same results up to rounding.

`PERPEFT_FAST=0` in the environment turns them all off. `benchmarks/fast_paths.py` measures each;
one that gains less than a tenth is not worth its code.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from perpeft_ray.config import Variant


def enabled() -> bool:
    """Whether the fast versions are used."""
    return os.environ.get("PERPEFT_FAST", "1") != "0"


def speed_up_model(model: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Speed up a transformers model, in place; `dtype` and `device` are its own."""
    from perpeft_ray.encoder.fast.clip import replace_activation
    from perpeft_ray.encoder.fast.patches import embed_patches_by_product
    from perpeft_ray.encoder.fast.sdpa import replace_attention

    if not enabled():
        return
    if device.type == "cuda":
        embed_patches_by_product(model)
    if dtype == torch.bfloat16:
        replace_attention(model)
    replace_activation(model)


def speed_up_adapter(model: nn.Module, variant: Variant) -> None:
    """Speed up the adapter that peft put into a model, in place."""
    from perpeft_ray.encoder.fast.dropout import replace_dropout
    from perpeft_ray.encoder.fast.lora import compute_in_bfloat16

    if not enabled():
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleDict) and name.endswith("_dropout"):
            replace_dropout(module)
    if variant in ("lora", "rslora"):
        compute_in_bfloat16(model)
