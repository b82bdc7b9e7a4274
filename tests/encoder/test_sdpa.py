"""Attention of bfloat16 towers by plain products, against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from perpeft_ray.encoder.fast import sdpa


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
@pytest.mark.parametrize("length", [7, 40, 90])
def test_equals_attention_of_torch(kind, length):
    torch.manual_seed(0)
    q, k, v = qkv = [torch.randn(2, 4, length, 8).bfloat16().requires_grad_() for _ in range(3)]
    mask = {
        "none": None,
        "bool": torch.rand(2, 1, length, length) < 0.7 + torch.eye(length),
        "float": torch.randn(1, 4, length, length),
    }[kind]
    ours = sdpa.attend(q, k, v, mask, 0.3)
    assert ours.grad_fn is not None
    assert "ScaledDot" not in type(ours.grad_fn).__name__
    added = mask if kind == "bool" else _double(mask)
    exact = F.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), attn_mask=added, scale=0.3
    )
    torch.testing.assert_close(ours.double(), exact, rtol=0.03, atol=0.03)
    gradient = torch.randn(ours.shape).bfloat16()
    of_ours = torch.autograd.grad(ours, qkv, gradient)
    of_exact = torch.autograd.grad(exact, qkv, gradient.double())
    for found, expected in zip(of_ours, of_exact, strict=True):
        assert (found - expected).norm() <= 0.02 * expected.norm()


def _double(mask: torch.Tensor | None) -> torch.Tensor | None:
    return None if mask is None else mask.double()
