"""Size of a variant's module on an encoder, from the encoder's configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from perpeft_ray.config import FACTS, Variant
from perpeft_ray.encoder.foundation import skeleton
from perpeft_ray.encoder.iisan import Iisan, kept_layers
from perpeft_ray.encoder.variants import AdapterSettings, add_adapter


@dataclass(frozen=True)
class ModuleSettings:
    """Settings that determine a module's size; each variant reads those that apply to it."""

    rank: int = 4
    """Rank; its meaning depends on the variant."""
    bottleneck: int = 32
    """Width of IISAN's bottleneck blocks."""
    last_layers: int | None = None
    """Adapt only this many last layers of each tower; None: all."""


@lru_cache(maxsize=2)
def encoder_parameters(encoder: str) -> int:
    """Parameters of the frozen foundation model, including all towers and projections."""
    return _count(skeleton(encoder))


def module_parameters(encoder: str, variant: Variant, settings: ModuleSettings) -> int:
    """Trainable parameters of one group's module; does not read the encoder's weights.

    Raises InputError if the variant does not fit the encoder.
    """
    towers = skeleton(encoder)
    if FACTS[variant].in_towers:
        adapter = AdapterSettings(variant, settings.rank, 0.0, settings.last_layers, seed=0)
        add_adapter(towers, adapter)
        return _count(towers, trainable=True)
    (text_width, text_layers), (image_width, image_layers) = towers.state_sizes()
    kept, _ = kept_layers(text_layers, image_layers)
    with torch.device("meta"):
        return _count(Iisan(text_width, image_width, len(kept), settings.bottleneck))


def _count(module: nn.Module, *, trainable: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)
