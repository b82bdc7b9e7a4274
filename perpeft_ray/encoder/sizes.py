"""Size of a variant's module on an encoder, from the encoder's configuration alone."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from perpeft_ray.config import FACTS, Variant
from perpeft_ray.encoder.foundation import skeleton
from perpeft_ray.encoder.iisan import Iisan, kept_layers
from perpeft_ray.encoder.variants import AdapterSettings, add_adapter


@lru_cache(maxsize=2)
def encoder_parameters(encoder: str) -> int:
    """Parameters of the frozen foundation model, including all towers and projections."""
    return _count(skeleton(encoder))


def module_parameters(
    encoder: str,
    variant: Variant,
    *,
    rank: int = 4,
    bottleneck: int = 32,
    last_layers: int | None = None,
) -> int:
    """Trainable parameters of one group's module; does not read the encoder's weights.

    Each variant uses the settings that apply to it, as in `PeftSettings`. Raises InputError if it
    does not fit the encoder.
    """
    towers = skeleton(encoder)
    if FACTS[variant].in_towers:
        adapter = AdapterSettings(variant, rank, 0.0, last_layers, seed=0)
        add_adapter(towers, adapter)
        return _count(towers, trainable=True)
    (text_width, text_layers), (image_width, image_layers) = towers.state_sizes()
    kept, _ = kept_layers(text_layers, image_layers)
    with torch.device("meta"):
        return _count(Iisan(text_width, image_width, len(kept), bottleneck))


def _count(module: nn.Module, *, trainable: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)
