"""The projector: from a foundation model's embedding to SASRec's width."""

from __future__ import annotations

from torch import Tensor, nn


class Projector(nn.Module):
    """Two linear layers with LayerNorm: `in_features` → 2D → D (METHOD.md, section 3).

    `in_features` is the encoder's output width (1024 for CLIP ViT-B/32, image and text together);
    `hidden_units` is D. Input [..., in_features], output [..., D].
    """

    def __init__(self, in_features: int, hidden_units: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_features, 2 * hidden_units),
            nn.LayerNorm(2 * hidden_units),
            nn.ReLU(),
            nn.Linear(2 * hidden_units, hidden_units),
            nn.LayerNorm(hidden_units),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Project features [..., in_features] to [..., D]."""
        return self.layers(features)  # type: ignore[no-any-return]  # nn.Module's call is untyped
