"""Patch embedding of images as one matrix product: on GPUs the convolution has no tensor cores."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PatchProduct(nn.Conv2d):
    """A convolution whose stride is its kernel, over patches [n, h, w, channels x p x p]."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Images [n, channels, S, S] -> [n, W, h, w], as `nn.Conv2d`."""
        p, q = self.kernel_size
        n, channels, height, width = pixels.shape
        h, w = height // p, width // q
        patches = pixels[:, :, : h * p, : w * q].reshape(n, channels, h, p, w, q)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(n, h, w, -1)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def embed_patches_by_product(model: nn.Module) -> None:
    """Replace the patch embeddings in a model by `PatchProduct`, in place."""
    for module in model.modules():
        if (
            type(module) is nn.Conv2d
            and module.kernel_size == module.stride
            and module.padding in ((0, 0), "valid")
            and module.dilation == (1, 1)
            and module.groups == 1
        ):
            module.__class__ = PatchProduct
