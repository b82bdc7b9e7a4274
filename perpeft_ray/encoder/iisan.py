"""IISAN: a side network on cached hidden states; no gradient passes through the towers.

Source: Fu et al., SIGIR 2024, in the form of the PerPEFT paper (METHOD.md section 4).
Letters: n items, K hidden states per tower, W a tower's width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

STATES = 7
"""Hidden states per tower in the paper: the embedding output and every second of 12 layers."""


def kept_layers(text_layers: int, image_layers: int) -> tuple[list[int], list[int]]:
    """Which hidden states of each tower IISAN reads: the embedding output and every second layer.

    Shallower towers than the paper's use as many states as they have, up to `STATES` (ours). The
    pooled token's embedding is the same for all items, so every second of two layers would leave
    only the last state to learn from. Both towers give the same number; with unequal depths they
    are spread evenly. `image_layers` 0: no image tower.
    """
    shallow = min(text_layers, image_layers) if image_layers else text_layers
    count = 1 + max((shallow + 1) // 2, min(shallow, STATES - 1))
    text = torch.linspace(0, text_layers, count).round().int().tolist()
    image = torch.linspace(0, image_layers, count).round().int().tolist() if image_layers else []
    return text, image


class Iisan(nn.Module):
    """Side network over K hidden states per tower.

    Args:
        text_width, image_width: widths of the towers; 0 omits a tower and the inter-modal one.
        states: K, hidden states per tower.
        bottleneck: width of the blocks' inner layer.
    """

    def __init__(self, text_width: int, image_width: int, states: int, bottleneck: int) -> None:
        super().__init__()
        both = bool(text_width and image_width)
        if text_width:
            self.text_blocks = _blocks(text_width, states, bottleneck)
        if image_width:
            self.image_blocks = _blocks(image_width, states, bottleneck)
        if both:
            self.inter_blocks = _blocks(text_width, states, bottleneck)
            self.to_text = nn.ModuleList(nn.Linear(image_width, text_width) for _ in range(states))
        self.out_features = (2 if both else 1) * text_width + image_width
        self.gates = nn.Parameter(torch.zeros(3 if both else 1, states))

    def forward(self, text: Tensor | None, image: Tensor | None) -> Tensor:
        """text [n, K, W_text] and image [n, K, W_image], None for a tower of width 0 -> float32
        [n, out_features]."""
        gates = torch.sigmoid(self.gates)
        out = []
        if text is not None:
            out.append(_tower(self.text_blocks, gates[0], text))
        if image is not None:
            out.append(_tower(self.image_blocks, gates[len(out)], image))
        if text is not None and image is not None:
            inter = torch.zeros_like(text[:, 0])
            for layer, block in enumerate(self.inter_blocks):
                gate = gates[2, layer]
                both = gate * text[:, layer] + (1 - gate) * self.to_text[layer](image[:, layer])
                inter = block(inter + both)
            out.append(inter)
        return torch.cat(out, dim=-1)


class _Bottleneck(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=0.01)  # variance 1e-4
            nn.init.zeros_(linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        return states + self.up(nn.functional.gelu(self.down(states)))  # type: ignore[no-any-return]  # nn.Module's call is untyped


def _blocks(width: int, states: int, inner: int) -> nn.ModuleList:
    return nn.ModuleList(_Bottleneck(width, inner) for _ in range(states))


def _tower(blocks: nn.ModuleList, gates: Tensor, states: Tensor) -> Tensor:
    """One modality's tower: starts as its first hidden state, then mixes in the next ones."""
    out = blocks[0](states[:, 0])
    for layer in range(1, len(blocks)):
        gate = gates[layer]
        out = blocks[layer](gate * out + (1 - gate) * states[:, layer])
    return out  # type: ignore[no-any-return]  # nn.Module's call is untyped
