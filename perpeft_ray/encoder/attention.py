"""Where the towers look: the last layer's attention on tokens and patches.

Letters: n items, L tokens, P patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from perpeft_ray.data.catalogue import ItemBatch
from perpeft_ray.encoder.foundation import Towers


class LastAttention(nn.Module):
    """The towers' last self-attention, averaged over heads.

    Permanently switches the towers to attention that returns its weights. It is a module, so that
    a group's tensors can be swapped in for one call: the towers are its child `towers`.
    """

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers = towers
        for half in (towers.text, towers.image):
            if half is not None:
                half.fast = False
                half.model.set_attn_implementation("eager")

    def forward(self, batch: ItemBatch) -> tuple[Tensor | None, Tensor | None]:
        """Weights on tokens [n, L] and on patches [n, P], float32, each row summing to 1.

        Tokens: as seen from the last token if attention is causal, else the mean over all tokens.
        Patches: as seen from the class token, or the mean over patches if there is none. None for
        a missing half, or one without self-attention.
        """
        text = image = None
        if self.towers.text is not None:
            with _weights_of(self.towers.text.model) as layers:
                self.towers.text.features(batch)
            text = _on_tokens(layers, batch.attention_mask)
        if self.towers.image is not None:
            with _weights_of(self.towers.image.model) as layers:
                self.towers.image.features(self.towers.pixels(batch))
            image = _on_patches(layers)
        return text, image


@contextmanager
def _weights_of(model: nn.Module) -> Iterator[list[Tensor]]:
    """Attention weights [n, heads, positions, positions] of every layer that runs inside.

    Transformers' self-attention modules return (output, weights) in every family.
    """
    layers: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Tensor):
            weights = output[1]
            # Wrappers of a layer return the same weights again.
            if weights.dim() == 4 and not any(weights is other for other in layers):
                layers.append(weights)

    hooks = [module.register_forward_hook(keep) for module in model.modules()]
    try:
        yield layers
    finally:
        for hook in hooks:
            hook.remove()


def _on_tokens(layers: list[Tensor], mask: Tensor) -> Tensor | None:
    if not layers:
        return None
    weights = layers[-1].float().mean(dim=1)  # [n, L, L], over heads
    real = mask.float()
    if bool((weights.triu(1) == 0).all()):  # causal
        last = mask.sum(dim=1) - 1
        return _shares(weights[torch.arange(len(weights)), last] * real)
    return _shares((weights * real[:, :, None]).sum(dim=1) * real)


def _on_patches(layers: list[Tensor]) -> Tensor | None:
    if not layers:
        return None
    weights = layers[-1].float().mean(dim=1)  # [n, 1 + P, 1 + P], or [n, P, P] without class token
    positions = weights.shape[-1]
    if round(positions**0.5) ** 2 == positions:
        return _shares(weights.mean(dim=1))
    return _shares(weights[:, 0, 1:])


def _shares(weights: Tensor) -> Tensor:
    return weights / weights.sum(dim=1, keepdim=True)
