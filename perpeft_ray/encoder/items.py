"""Item encoders: item indices in, features out.

One interface for live towers with an adapter (LoRA, (IA)³ and others), a side network on cached
hidden states (IISAN), and cached features (frozen). A module's trainable parameters are exactly
one group's PEFT module.

Reading (`inputs`) and computing (`forward`) are two calls, so that the next step's items can be
read while a step is computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perpeft_ray.data.catalogue import Catalogue, ItemBatch
from perpeft_ray.encoder.foundation import Towers
from perpeft_ray.encoder.iisan import Iisan
from perpeft_ray.encoder.rows import CatalogueRows, Rows
from perpeft_ray.encoder.variants import adapter_modules

Inputs = tuple[Any, ...]
"""Arguments of an encoder's `forward` for n items."""


class ItemEncoder(nn.Module):
    """`forward(*inputs(items))`: item indices int64 [n] -> float32 [n, out_features].

    On a GPU the result may have extra rows of repeated items after these n, so that shapes repeat.
    """

    out_features: int

    def inputs(self, items: NDArray[np.int64]) -> Inputs:
        """The arguments of `forward` for these items, on its device."""
        raise NotImplementedError

    def shared(self, inputs: Inputs) -> Inputs:
        """These inputs with everything computed that is the same under all modules."""
        return inputs

    def order(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """These items in the best order to encode them in batches."""
        return items


class TowerItemEncoder(ItemEncoder):
    """Live towers over the catalogue store; their trainable part is the PEFT module."""

    def __init__(self, towers: Towers, catalogue: Catalogue) -> None:
        super().__init__()
        self.towers = towers
        self.out_features = towers.out_features
        self._rows = CatalogueRows(catalogue)

    @property
    def _device(self) -> torch.device:
        return next(self.towers.parameters()).device

    def train(self, mode: bool = True) -> TowerItemEncoder:
        """Training mode for the adapter and its dropout only, not the frozen towers'."""
        super().train(False)
        self.training = mode
        for module in adapter_modules(self.towers):
            module.training = mode
        return self

    def inputs(self, items: NDArray[np.int64]) -> Inputs:
        """An `ItemBatch`."""
        items = self._rows.padded(items, self._device)
        return (self._rows.batch(items, self._device),)

    def shared(self, inputs: Inputs) -> Inputs:
        """With embedded images."""
        batch, *rest = inputs
        return (self.towers.embedded(batch), *rest)

    def order(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """By title length, longest first."""
        return self._rows.by_length(items)

    def forward(self, batch: ItemBatch) -> Tensor:
        """A batch of n items -> float32 [n, out_features]."""
        return self.towers(batch)  # type: ignore[no-any-return]  # nn.Module's call is untyped


class IisanItemEncoder(ItemEncoder):
    """IISAN over cached hidden states; float16 [I+1, K, W] each, None for an omitted tower."""

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
        self._text, self._image = (None if t is None else Rows(t) for t in (text, image))

    def inputs(self, items: NDArray[np.int64]) -> Inputs:
        """Hidden states of the text and the image tower, float32 [n, K, W] each."""
        device = self.side.gates.device
        return tuple(
            None if tower is None else tower.read(items, device).float()
            for tower in (self._text, self._image)
        )

    def forward(self, *inputs: Any) -> Tensor:
        """States of n items -> float32 [n, out_features]."""
        return self.side(*inputs)  # type: ignore[no-any-return]  # nn.Module's call is untyped


class CachedItemEncoder(ItemEncoder):
    """Cached features float32 [I+1, out_features]; nothing to train."""

    _where: Tensor

    def __init__(self, features: NDArray[np.float32]) -> None:
        super().__init__()
        self.out_features = features.shape[1]
        self._features = Rows(features)
        self.register_buffer("_where", torch.empty(0), persistent=False)

    def inputs(self, items: NDArray[np.int64]) -> Inputs:
        """The features themselves."""
        return (self._features.read(items, self._where.device),)

    def forward(self, *inputs: Any) -> Tensor:
        """The features."""
        (features,) = inputs
        return features  # type: ignore[no-any-return]  # nn.Module's call is untyped
