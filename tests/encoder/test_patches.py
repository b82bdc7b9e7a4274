"""Patch embedding as one product, against the convolution."""

from __future__ import annotations

import torch
from torch import nn

from perpeft_ray.encoder.fast.patches import PatchProduct, embed_patches_by_product


def test_patches_by_product_are_the_convolution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, kernel_size=4, stride=4), nn.Conv2d(8, 5, 1, bias=False))
    pixels = torch.randn(2, 3, 18, 16, requires_grad=True)  # two rows of pixels are left over
    expected = model(pixels)
    (of_expected,) = torch.autograd.grad(expected.square().sum(), pixels)
    names = list(model.state_dict())
    embed_patches_by_product(model)
    assert isinstance(model[0], PatchProduct)
    found = model(pixels)
    (of_found,) = torch.autograd.grad(found.square().sum(), pixels)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(of_found, of_expected)
    assert list(model.state_dict()) == names


def test_other_convolutions_stay():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 2, stride=2, groups=2))
    embed_patches_by_product(model)
    assert not any(isinstance(module, PatchProduct) for module in model)
