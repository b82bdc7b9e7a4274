"""Item embeddings personalised by a learned vector of each user or group, under one module.

The rows `user_level_1/2` and `group_level_1/2` of the paper's Table 2, in **our reading**, without
the paper's text for them (METHOD.md section 6): level 1 adds an owner's vector
to an item's projected multimodal embedding, level 2 multiplies it by sigmoid(Linear(vector)).
An *owner* is the user, or the user's group.
Letters: U users, I items, B users in a call, D hidden units.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from perpeft_ray.encoder.rows import sent
from perpeft_ray.recommender.model import GroupParameters, Recommender

_GATE_BIAS = 2.0
"""Level 2 starts near the global module's embedding: sigmoid(2) = 0.88."""
_PREFIX = "vectors."


class PersonalVectors(nn.Module):
    """A vector of `hidden_units` for each of `owners`, and how it changes content."""

    def __init__(self, owners: int, hidden_units: int, level: Literal[1, 2]) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(owners, hidden_units))
        self.gate = None
        if level == 2:
            nn.init.normal_(self.vector, std=hidden_units**-0.5)
            self.gate = nn.Linear(hidden_units, hidden_units)
            nn.init.constant_(self.gate.bias, _GATE_BIAS)

    def forward(self, owners: Tensor) -> tuple[Tensor, Tensor]:
        """Owners int64 [B] -> factor and summand of content, [B, D] each."""
        vectors = F.embedding(owners, self.vector)
        if self.gate is None:
            return torch.ones_like(vectors), vectors
        return torch.sigmoid(self.gate(vectors)), torch.zeros_like(vectors)


class VectorRecommender(Recommender):
    """A recommender whose single module also holds `vectors`; shares the global one's parts.

    `owners`: each user's owner in training, int64 [U].
    """

    def __init__(
        self, base: Recommender, vectors: PersonalVectors, owners: NDArray[np.integer]
    ) -> None:
        super().__init__(base.backbone, base.tower, base.weight)
        self.vectors = vectors
        self.owners = owners

    def new_module(self) -> dict[str, nn.Parameter]:
        """As the global recommender's, followed by the vectors, so that the optimiser state of
        the global module keeps its position."""
        vectors = {
            _PREFIX + name: nn.Parameter(parameter.detach().clone())
            for name, parameter in self.vectors.named_parameters()
        }
        return {**super().new_module(), **vectors}

    def look_up(
        self,
        items: NDArray[np.int64],
        where: NDArray[np.int64],
        users: NDArray[np.int64],
        content: Tensor,
        module: GroupParameters,
    ) -> Tensor:
        """As in `Recommender`, with each user's owner vector applied."""
        index = sent(where, content.device)  # [..., B, T]
        factor, summand = (
            part[:, None] for part in self._vectors(self.owners[users], module)
        )  # [B, 1, D]
        personal = F.embedding(index, content) * factor + summand
        return F.embedding(index, self.ids(items)) + self.weight * personal

    def table(self, content: Tensor) -> Tensor:
        """Ids and content side by side, [I+1, 2D]: their sum depends on the user."""
        return torch.cat([self.backbone.item_embedding.weight.detach(), content], dim=1)

    @torch.no_grad()
    def queries(
        self,
        owners: NDArray[np.integer],
        inputs: NDArray[np.int64],
        item_embeddings: Tensor,
        module: GroupParameters,
    ) -> Tensor:
        """As in `Recommender`, [B, 2D], up to a constant per user.

        A state h scores an item by h · (id + w (factor * content + summand)); the summand's part
        is the same for all items.
        """
        D = item_embeddings.shape[1] // 2
        ids, content = item_embeddings[:, :D], item_embeddings[:, D:]
        factor, summand = self._vectors(owners, module)  # [B, D] each

        def embed(rows: slice, items: Tensor) -> Tensor:
            personal = F.embedding(items, content) * factor[rows, None] + summand[rows, None]
            return F.embedding(items, ids) + self.weight * personal

        states = self.last_outputs(inputs, embed)
        return torch.cat([states, self.weight * factor * states], dim=1)

    def _vectors(
        self, owners: NDArray[np.integer], module: GroupParameters
    ) -> tuple[Tensor, Tensor]:
        own: dict[str, Tensor] = {
            name.removeprefix(_PREFIX): parameter
            for name, parameter in module.items()
            if name.startswith(_PREFIX)
        }
        device = module[f"{_PREFIX}vector"].device
        index = torch.as_tensor(owners, dtype=torch.int64, device=device)
        return functional_call(self.vectors, own, (index,))  # type: ignore[no-any-return]  # nn.Module's call is untyped
