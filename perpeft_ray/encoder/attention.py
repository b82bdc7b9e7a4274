"""Where the towers look: the last layer's attention on tokens and patches.

Letters: n items, L tokens, P patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from perpeft_ray.data.catalogue import ItemBatch
from perpeft_ray.encoder.foundation import DualTowers, Towers


class LastAttention(nn.Module):
    """The towers' last attention, averaged over heads, from the position that is pooled.

    It replaces the towers' attention by one that keeps its weights, for good. A module of its own,
    so that a group's tensors can be put in place for a call: the towers are its child `towers`.
    """

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        towers.model.set_attn_implementation("eager")  # others do not give their weights
        self.towers = towers

    def forward(self, batch: ItemBatch) -> tuple[Tensor | None, Tensor | None]:
        """Weights on tokens [n, L] and on patches [n, P], float32, each row summing to 1.

        Tokens: as seen from the last one where attention is causal, else the mean over all that
        look. Patches: as seen from the class token where there is one. None for a tower that is
        not used or has no attention.
        """
        towers = self.towers
        text = image = None
        if isinstance(towers, DualTowers):
            if towers.modality != "image":
                out = towers.model.get_text_features(
                    **towers._text_inputs(batch), output_attentions=True
                )
                text = _on_tokens(out.attentions, batch.attention_mask)
            if towers.modality != "text":
                out = towers.model.get_image_features(
                    pixel_values=towers._pixels(batch), output_attentions=True
                )
                image = _on_patches(out.attentions)
        else:
            out = towers.model(
                input_ids=batch.token_ids,
                attention_mask=batch.attention_mask,
                output_attentions=True,
            )
            text = _on_tokens(out.attentions, batch.attention_mask)
        return text, image


def _on_tokens(layers: tuple[Tensor, ...] | None, mask: Tensor) -> Tensor | None:
    if not layers:
        return None
    weights = layers[-1].float().mean(dim=1)  # [n, L, L], over heads
    real = mask.float()
    causal = bool((weights.triu(1) == 0).all())
    if causal:
        last = mask.sum(dim=1) - 1
        seen = weights[torch.arange(len(weights)), last]
    else:
        seen = (weights * real[:, :, None]).sum(dim=1)
    return _shares(seen * real)


def _on_patches(layers: tuple[Tensor, ...] | None) -> Tensor | None:
    if not layers:
        return None
    weights = layers[-1].float().mean(dim=1)  # [n, 1 + P, 1 + P], or [n, P, P] without class token
    positions = weights.shape[-1]
    if round((positions - 1) ** 0.5) ** 2 == positions - 1:
        return _shares(weights[:, 0, 1:])
    return _shares(weights.mean(dim=1))


def _shares(weights: Tensor) -> Tensor:
    return weights / weights.sum(dim=1, keepdim=True)
