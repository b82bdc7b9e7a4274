"""PEFT variants: counts of the paper, and what an untrained or trained module does."""

from __future__ import annotations

import pytest
import torch

from perpeft_ray.encoder.fast.dropout import BitDropout
from perpeft_ray.encoder.iisan import kept_layers


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
