"""PEFT variants: counts of the paper, and what an untrained or trained module does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from perpeft_ray.encoder.dropout import BitDropout
from perpeft_ray.encoder.foundation import Towers
from perpeft_ray.encoder.iisan import Iisan, kept_layers
from perpeft_ray.encoder.variants import AdapterSettings, add_adapter, trainable

VIT_B_32 = 151_277_313
"""Parameters of CLIP ViT-B/32; METHOD.md section 4."""


def _settings(variant: Any) -> AdapterSettings:
    return AdapterSettings(variant, rank=4, dropout=0.1, last_layers=None, seed=0)


def _vit_b_32() -> Towers:
    """CLIPConfig's defaults are ViT-B/32; no memory for its weights is needed to count them."""
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig())
    model.requires_grad_(False)
    return Towers(model, None, None)


@pytest.mark.parametrize(("variant", "expected"), [("lora", 245_760), ("ia3", 46_080)])
def test_trainable_parameters_on_vit_b_32(variant, expected):
    towers = _vit_b_32()
    assert sum(p.numel() for p in towers.model.parameters()) == VIT_B_32
    add_adapter(towers, _settings(variant))
    assert sum(p.numel() for p in trainable(towers).values()) == expected


def test_eight_loras_are_the_papers_share():
    assert round(100 * 8 * 245_760 / VIT_B_32, 2) == 1.30


def test_iisan_on_vit_b_32():
    text, image = kept_layers(12, 12)
    assert text == image == [0, 2, 4, 6, 8, 10, 12]
    side = Iisan(512, 768, len(text), 32)
    assert sum(p.numel() for p in side.parameters()) == 3_572_149
    assert side.out_features == 1792


def test_iisan_against_its_equations():
    """A second, scalar-by-scalar writing of METHOD.md section 4."""
    torch.manual_seed(0)
    side = Iisan(6, 4, 3, 2)
    with torch.no_grad():
        side.gates.copy_(torch.randn(3, 3))
    text, image = torch.randn(2, 3, 6), torch.randn(2, 3, 4)

    def block(layer: Any, z: torch.Tensor) -> torch.Tensor:
        inner = torch.nn.functional.gelu(z @ layer.down.weight.T + layer.down.bias)
        return z + inner @ layer.up.weight.T + layer.up.bias

    gates = 1 / (1 + torch.exp(-side.gates))
    zt, zi, zx = text[:, 0], image[:, 0], torch.zeros(2, 6)
    for k in range(3):
        if k > 0:
            zt = gates[0, k] * zt + (1 - gates[0, k]) * text[:, k]
            zi = gates[1, k] * zi + (1 - gates[1, k]) * image[:, k]
        zt, zi = block(side.text_blocks[k], zt), block(side.image_blocks[k], zi)
        down = image[:, k] @ side.to_text[k].weight.T + side.to_text[k].bias
        zx = block(side.inter_blocks[k], zx + gates[2, k] * text[:, k] + (1 - gates[2, k]) * down)
    expected = torch.cat([zt, zi, zx], dim=1)
    torch.testing.assert_close(side(text, image), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ((2, 2), ([0, 1, 2], [0, 1, 2])),
        ((6, 0), ([0, 1, 2, 3, 4, 5, 6], [])),
        ((12, 6), ([0, 2, 4, 6, 8, 10, 12], [0, 1, 2, 3, 4, 5, 6])),
        ((24, 24), None),
        ((8, 12), None),
    ],
)
def test_kept_layers(layers, expected):
    text, image = kept_layers(*layers)
    assert expected is None or (text, image) == expected
    assert layers[1] == 0 or len(text) == len(image)
    assert (text[0], text[-1]) == (0, layers[0])


def test_bit_dropout_against_its_definition():
    torch.manual_seed(0)
    dropout = BitDropout(0.1).train()
    x = torch.full((1000, 1001), 2.0)
    out = dropout(x)
    kept = out != 0
    assert abs(kept.float().mean().item() - 0.9) < 0.001
    torch.testing.assert_close(out[kept].mean().item(), 2 / 0.9, atol=1e-4, rtol=0)
    # Masks of neighbouring elements come from the same word and must still be independent.
    both_dropped = (~kept[:, 0:1000:2] & ~kept[:, 1:1000:2]).float().mean().item()
    assert abs(both_dropped - 0.01) < 0.001
    assert torch.equal(dropout.eval()(x), x)
