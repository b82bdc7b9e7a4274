"""An item as two groups see it: attention on its title and image, and its neighbours.

Letters: I items (0 is padding), G groups, D hidden units, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from perpeft_ray.config import FACTS
from perpeft_ray.encoder.attention import LastAttention
from perpeft_ray.encoder.items import TowerItemEncoder
from perpeft_ray.encoder.source import parse_encoder
from perpeft_ray.errors import InputError
from perpeft_ray.models.trained import TrainedTrial, item_embedding, item_embeddings
from perpeft_ray.train.workspace import open_catalogue


@dataclass(frozen=True, eq=False)
class GroupView:
    """An item under one group's module."""

    group: int
    users: int
    """Users of the group while testing."""
    tokens: NDArray[np.float32] | None
    """Attention on each of the item's tokens, [L], summing to 1; None where there is none."""
    patches: NDArray[np.float32] | None
    """Attention on each patch of the image, [rows, columns], summing to 1; None likewise."""
    neighbours: list[tuple[int, float]]
    """Items 1..I nearest by the cosine of embeddings, and the cosine, nearest first."""


@dataclass(frozen=True, eq=False)
class ItemExplanation:
    """An item under two groups' modules."""

    item: int
    """1..I."""
    tokens: list[str]
    """Of the title, as the tokenizer has them."""
    has_attention: bool
    """Whether the variant changes the towers, so that groups attend differently."""
    cosine: float
    """Between the item's embeddings under the two groups."""
    views: tuple[GroupView, GroupView]


def explain_item(
    trial: TrainedTrial, item: int, groups: tuple[int, int] | None = None, neighbours: int = 5
) -> ItemExplanation:
    """An item, 1..I, of a personalised trial under two groups.

    `groups` None: the two that see the item most differently. Raises InputError for a trial without
    a module for each group, and for groups that it does not have.
    """
    if len(trial.modules) < 2:
        raise InputError(
            f"`trial` must have a module for each of several groups, but {trial.trial_id} has one"
        )
    own = torch.stack([item_embedding(trial, item, group) for group in trial.modules])  # [G, D]
    cosines = F.cosine_similarity(own[:, None], own[None], dim=-1)  # [G, G]
    pair = _farthest(cosines) if groups is None else _checked(groups, len(own))
    batch = open_catalogue(trial.workspace).batch(np.array([item]))
    assert trial.config.variant is not None
    has_attention = FACTS[trial.config.variant].in_towers
    return ItemExplanation(
        item=item,
        tokens=_words(trial.workspace.encoder, batch.token_ids[0].tolist()),
        has_attention=has_attention,
        cosine=float(cosines[pair]),
        views=(
            _view(trial, item, pair[0], neighbours),
            _view(trial, item, pair[1], neighbours),
        ),
    )


def _view(trial: TrainedTrial, item: int, group: int, neighbours: int) -> GroupView:
    tokens, patches = _attention(trial, item, group)
    near = _neighbours(item_embeddings(trial, group), item, neighbours) if neighbours else []
    return GroupView(
        group=group,
        users=int((trial.modules_of_users() == group).sum()),
        tokens=tokens,
        patches=patches,
        neighbours=near,
    )


def _attention(
    trial: TrainedTrial, item: int, group: int
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    assert trial.model.tower is not None
    encoder = trial.model.tower.encoder
    if not isinstance(encoder, TowerItemEncoder):
        return None, None
    prefix = "encoder."
    own: dict[str, Tensor] = {
        name.removeprefix(prefix): parameter.detach()
        for name, parameter in trial.modules[group].items()
        if name.startswith(prefix)
    }
    batch = open_catalogue(trial.workspace).batch(np.array([item]))
    with torch.no_grad():
        text, image = functional_call(LastAttention(encoder.towers), own, (batch,))
    tokens = text[0].numpy() if text is not None and bool(batch.has_title[0]) else None
    patches = None
    if image is not None and bool(batch.has_image[0]):
        side = round(image.shape[1] ** 0.5)
        patches = image[0].view(side, -1).numpy()
    return tokens, patches


def _neighbours(embeddings: Tensor, item: int, count: int) -> list[tuple[int, float]]:
    cosines = F.cosine_similarity(embeddings[item], embeddings, dim=-1)  # [I+1]
    cosines[[0, item]] = -2.0  # padding and the item itself
    best = cosines.topk(min(count, len(cosines) - 2))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def _farthest(cosines: Tensor) -> tuple[int, int]:
    first, second = divmod(int(cosines.argmin()), len(cosines))
    return min(first, second), max(first, second)


def _checked(groups: tuple[int, int], count: int) -> tuple[int, int]:
    for group in groups:
        if not 0 <= group < count:
            raise InputError(f"`groups` must be between 0 and {count - 1}, but has {group}")
    return groups


def _words(encoder: str, ids: list[int]) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(parse_encoder(encoder).path)
    return [token.replace("</w>", "") for token in tokenizer.convert_ids_to_tokens(ids)]
