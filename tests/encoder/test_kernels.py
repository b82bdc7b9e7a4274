"""The GPU kernels against torch, on a CPU by Triton's interpreter.

pip install triton && TRITON_INTERPRET=1 pytest tests/encoder/test_kernels.py
"""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)
kernels = pytest.importorskip("perpeft_ray.encoder.fast.kernels")


def heads_of(n: int, heads: int, length: int, depth: int, dtype: torch.dtype) -> Tensor:
    """Random [n, h, L, d], laid out as a linear layer writes it."""
    return torch.randn(n, length, heads, depth).to(dtype).transpose(1, 2)


@pytest.mark.parametrize("seen", ["all", "earlier", "own tokens", "any"])
@pytest.mark.parametrize(("length", "depth"), [(7, 16), (50, 64), (77, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # not interpreted: bfloat16
def test_attention_and_its_gradients_are_torchs(
    seen: str, length: int, depth: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    n, heads = 2, 3
    q, k, v, gradient = (heads_of(n, heads, length, depth, dtype) for _ in range(4))
    mask = None
    if seen == "own tokens":
        mask = (torch.arange(length) < torch.tensor([[3], [length]]))[:, None, None]
    elif seen == "any":
        mask = (torch.rand(n, 1, length, length) < 0.5) | torch.eye(length, dtype=torch.bool)
    causal = seen == "earlier"
    a, b, c = exact = [x.float().requires_grad_() for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(a, b, c, attn_mask=mask, is_causal=causal, scale=0.3)
    of_exact = torch.autograd.grad(expected, exact, gradient.float())

    found = kernels.attention(q, k, v, mask, 0.3, causal)
    of_found = kernels.attention_backward(gradient, q, k, v, mask, 0.3, causal)

    tolerance = 1e-5 if dtype == torch.float32 else 2e-3
    for one, other in zip((found, *of_found), (expected, *of_exact), strict=True):
        assert one.dtype == dtype
        assert (one.float() - other).norm() <= tolerance * other.norm()


def test_activation_and_its_gradient_are_clips() -> None:
    torch.manual_seed(0)
    x = (4 * torch.randn(3, 1000, 7)).requires_grad_()
    gradient = torch.randn_like(x)
    expected = x * torch.sigmoid(1.702 * x)
    (of_expected,) = torch.autograd.grad(expected, x, gradient)
    torch.testing.assert_close(kernels.quick_gelu(x.detach()), expected)
    torch.testing.assert_close(kernels.quick_gelu_backward(gradient, x.detach()), of_expected)


def test_pixels_are_scaled_by_channel() -> None:
    pixels = torch.randint(0, 256, (5, 3, 31, 31), dtype=torch.uint8)
    scale, shift = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([-1.0, 0.0, 2.0])
    found = kernels.scale_pixels(pixels, scale, shift, torch.float32)
    expected = pixels * scale.view(3, 1, 1) + shift.view(3, 1, 1)
    torch.testing.assert_close(found, expected)
