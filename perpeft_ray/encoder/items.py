"""Item encoders: item indices in, features out, whatever lies between.

One small interface over what the methods need: live towers with an adapter (LoRA, (IA)³ and
others), a side network on cached hidden states (IISAN), or cached features (frozen). A module's
trainable parameters are exactly what one group's PEFT module is.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perpeft_ray.data.catalogue import Catalogue, ItemBatch
from perpeft_ray.encoder.foundation import Towers
from perpeft_ray.encoder.iisan import Iisan
from perpeft_ray.encoder.variants import adapter_modules


class TowerItemEncoder(nn.Module):
    """Live towers over the catalogue store; what is trainable in them is the PEFT module."""

    def __init__(self, towers: Towers, catalogue: Catalogue) -> None:
        super().__init__()
        self.towers = towers
        self.out_features = towers.out_features
        self._catalogue = catalogue

    def train(self, mode: bool = True) -> TowerItemEncoder:
        """Training mode for the adapter and its dropout only: frozen towers keep theirs off."""
        super().train(False)
        self.training = mode
        for module in adapter_modules(self.towers):
            module.training = mode
        return self

    def forward(self, items: NDArray[np.int64]) -> Tensor:
        """Item indices int64 [n] -> float32 [n, out_features]."""
        device = next(self.towers.parameters()).device
        return self.towers(batch_on(self._catalogue, items, device))


class IisanItemEncoder(nn.Module):
    """IISAN over cached hidden states; float16 [I+1, K, W] each, None for a tower left out."""

    def __init__(
        self,
        text: NDArray[np.float16] | None,
        image: NDArray[np.float16] | None,
        bottleneck: int,
    ) -> None:
        super().__init__()
        (states,) = {tower.shape[1] for tower in (text, image) if tower is not None}
        text_width, image_width = (0 if t is None else t.shape[2] for t in (text, image))
        self.side = Iisan(text_width, image_width, states, bottleneck)
        self.out_features = self.side.out_features
        self._text, self._image = text, image

    def forward(self, items: NDArray[np.int64]) -> Tensor:
        """Item indices int64 [n] -> float32 [n, out_features]."""
        device = self.side.gates.device

        def states(tower: NDArray[np.float16] | None) -> Tensor | None:
            return None if tower is None else torch.from_numpy(tower[items]).to(device).float()

        return self.side(states(self._text), states(self._image))


class CachedItemEncoder(nn.Module):
    """Cached features float32 [I+1, out_features]; nothing to train."""

    def __init__(self, features: NDArray[np.float32]) -> None:
        super().__init__()
        self.out_features = features.shape[1]
        self._features = features

    def forward(self, items: NDArray[np.int64]) -> Tensor:
        """Item indices int64 [n] -> float32 [n, out_features], on the CPU."""
        return torch.from_numpy(self._features[items])


def batch_on(catalogue: Catalogue, items: NDArray[np.int64], device: torch.device) -> ItemBatch:
    """The catalogue's encoder inputs of these items, on a device."""
    batch = catalogue.batch(items)
    if device.type == "cpu":
        return batch
    return ItemBatch(
        pixels=None if batch.pixels is None else batch.pixels.to(device),
        token_ids=batch.token_ids.to(device),
        attention_mask=batch.attention_mask.to(device),
        has_image=batch.has_image.to(device),
        has_title=batch.has_title.to(device),
    )
