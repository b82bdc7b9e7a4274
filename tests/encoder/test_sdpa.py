"""Attention of bfloat16 towers in training and out of it, for a masked and a causal model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from perpeft_ray.config import Variant
from perpeft_ray.encoder import sdpa
from perpeft_ray.encoder.foundation import load_towers
from perpeft_ray.encoder.variants import AdapterSettings, add_adapter, trainable
from tests.encoder.test_clip import some_items
from tests.encoder.tiny_models import write_tiny_model


@pytest.mark.parametrize("family", ["clip", "chinese_clip", "siglip"])
@pytest.mark.parametrize("variant", ["lora", "ia3"])
def test_training_in_float32_changes_only_rounding(
    family: str, variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = write_tiny_model(family, tmp_path)
    found = []
    for installed in (True, False):
        if not installed:
            monkeypatch.setattr(sdpa, "for_training", lambda *qkv: qkv)
            monkeypatch.setattr("perpeft_ray.encoder.clip.for_training", lambda *qkv: qkv)
        towers = load_towers(name, "bfloat16", torch.device("cpu"))
        rank = 4 if variant == "lora" else None
        add_adapter(towers, AdapterSettings(variant, rank, 0.0 if rank else None, 1, 0))
        torch.manual_seed(0)
        for parameter in trainable(towers).values():
            torch.nn.init.normal_(parameter, std=0.1)
        batch = some_items(towers)
        features = towers(batch)
        parameters = list(trainable(towers).values())
        gradients = torch.autograd.grad(features.square().sum(), parameters)
        assert features.isfinite().all()
        found.append(torch.cat([features.flatten(), *(g.flatten() for g in gradients)]).detach())
    assert (found[0] - found[1]).norm() <= 0.03 * found[1].norm()
