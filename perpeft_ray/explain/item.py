"""An item as two groups see it: attention on its title and image, and its neighbours.

Letters: I items (0 is padding), G groups, D hidden units, L tokens.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from perpeft_ray.config import FACTS
from perpeft_ray.data.catalogue import ItemBatch
from perpeft_ray.encoder.attention import LastAttention
from perpeft_ray.encoder.items import TowerItemEncoder
from perpeft_ray.encoder.rows import CatalogueRows
from perpeft_ray.errors import InputError
from perpeft_ray.explain.words import title_words
from perpeft_ray.models.trained import (
    TrainedTrial,
    check_group,
    groups_with_users,
    item_embedding,
    item_embeddings,
)
from perpeft_ray.train.workspace import open_catalogue


@dataclass(frozen=True, eq=False)
class GroupView:
    """An item under one group's module."""

    group: int
    users: int
    """Users of the group at test time."""
    words: NDArray[np.float32] | None
    """Attention on each word of the title, [W], summing to 1; None without a title."""
    patches: NDArray[np.float32] | None
    """Attention on each patch of the image, [rows, columns], summing to 1; None without one."""
    neighbours: list[tuple[int, float]]
    """Items 1..I nearest by cosine of embeddings, with the cosine, nearest first."""


@dataclass(frozen=True, eq=False)
class ItemExplanation:
    """An item under two groups' modules, or under one if no other group has users."""

    item: int
    """1..I."""
    words: list[str]
    """Words of the title, W with special tokens; empty without a title."""
    has_attention: bool
    """Whether the variant changes the towers, so that groups attend differently."""
    cosine: float | None
    """Cosine of the item's embeddings under the two groups."""
    views: tuple[GroupView, ...]


def explain_item(
    trial: TrainedTrial, item: int, groups: tuple[int, int] | None = None, neighbours: int = 5
) -> ItemExplanation:
    """An item, 1..I, of a personalised trial under two groups.

    `groups` None: the two groups with users that see the item most differently. Raises InputError
    for a trial without one module per group, for unknown groups, and for a group without users,
    whose module was never trained.
    """
    if len(trial.modules) < 2:
        raise InputError(
            f"`trial` must have a module for each of several groups, but {trial.trial_id} has one"
        )
    if neighbours < 0:
        raise InputError(f"`neighbours` must be a whole number of at least 0, but is {neighbours}")
    used = groups_with_users(trial)
    own = torch.stack([item_embedding(trial, item, group) for group in trial.modules])  # [G, D]
    cosines = F.cosine_similarity(own[:, None], own[None], dim=-1)  # [G, G]
    for group in groups or ():
        check_group(trial, "groups", group)
    shown = groups or _farthest(cosines, used)
    title = trial.dataset.items.title.iloc[item - 1]
    batch = item_batch(trial, item)
    words = None
    if bool(batch.has_title[0]):
        words = title_words(trial.workspace.encoder, title, batch.token_ids[0].tolist())
    views = []
    for group in shown:
        tokens, patches = _attention(trial, batch, group)
        near = _neighbours(item_embeddings(trial, group), item, neighbours) if neighbours else []
        views.append(
            GroupView(
                group=group,
                users=int((trial.modules_of_users() == group).sum()),
                words=None if tokens is None or words is None else words.sums(tokens),
                patches=patches,
                neighbours=near,
            )
        )
    assert trial.config.variant is not None
    return ItemExplanation(
        item=item,
        words=[] if words is None else words.words,
        has_attention=FACTS[trial.config.variant].in_towers,
        cosine=float(cosines[shown]) if len(shown) == 2 else None,
        views=tuple(views),
    )


def item_batch(trial: TrainedTrial, item: int) -> ItemBatch:
    """The encoder's inputs of item 1..I alone, on the CPU."""
    rows = CatalogueRows(open_catalogue(trial.workspace))
    return rows.batch(np.array([item]), torch.device("cpu"))


def _attention(
    trial: TrainedTrial, batch: ItemBatch, group: int
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """Weights on tokens [L] and on patches [rows, columns]."""
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
    with torch.no_grad():
        text, image = functional_call(LastAttention(encoder.towers), own, (batch,))
    tokens = None if text is None else text[0].numpy()
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


def _farthest(cosines: Tensor, groups: list[int]) -> tuple[int, ...]:
    """The two groups with the lowest cosine [G, G], ascending; the only one if there is one."""
    pairs = list(itertools.combinations(groups, 2))
    return min(pairs, key=lambda pair: float(cosines[pair]), default=tuple(groups))
