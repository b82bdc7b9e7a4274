"""Ranks of all evaluated users, each under the module of their group.

Workers share the work in parts whose bounds do not depend on the number of workers: parts of the
catalogue to encode, then users to rank. Their results are summed. Letters: U users, I items, D
hidden units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perpeft_ray.config import LONGEST_LIST
from perpeft_ray.data.split import Split
from perpeft_ray.encoder.hardware import sizes_of
from perpeft_ray.metrics import RankingMetrics, list_metrics, ranking_metrics
from perpeft_ray.recommender.model import GroupParameters, Recommender
from perpeft_ray.recommender.ranking import target_ranks
from perpeft_ray.recommender.sampling import last_inputs, select
from perpeft_ray.train.collective import Collective


class CatalogueContents:
    """Projected content of all items under each group's module, encoded only after a change."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[dict[str, Tensor], Tensor]] = {}

    @torch.no_grad()
    def of(
        self,
        groups: Iterable[int],
        model: Recommender,
        modules: Mapping[int, GroupParameters],
        collective: Collective,
    ) -> dict[int, Tensor]:
        """By group, float32 [I+1, D], row 0 zero; the same on every worker."""
        model.eval()
        wanted = sorted(groups)
        table = model.backbone.item_embedding.weight
        changed = [g for g in wanted if not self._is_known(g, modules[g])]
        fresh = torch.zeros(len(changed), *table.shape, device=table.device)
        # Chunks by groups; every worker takes every n-th pair.
        for number, items in enumerate(model.chunks()):
            pairs = number * len(changed) + np.arange(len(changed))
            own = np.flatnonzero(pairs % collective.world_size == collective.rank)
            if not len(own):
                continue  # else the chunk would be read and embedded for nothing
            found = model.contents(items, [modules[changed[place]] for place in own])
            for place, content in zip(own, found, strict=True):
                fresh[place, torch.from_numpy(items)] = content
        if changed:
            collective.sum_(fresh)
        for group, content in zip(changed, fresh, strict=True):
            module = {name: value.detach().clone() for name, value in modules[group].items()}
            self._known[group] = module, content
        return {group: self._known[group][1] for group in wanted}

    def _is_known(self, group: int, module: GroupParameters) -> bool:
        """Whether a group's content is known for equal weights."""
        then, _ = self._known.get(group, ({}, None))
        return group in self._known and all(
            name in then and torch.equal(value, then[name]) for name, value in module.items()
        )


def evaluate(
    model: Recommender,
    modules: Mapping[int, GroupParameters],
    groups: NDArray[np.int32],
    split: Split,
    part: Literal["valid", "test"],
    length: int,
    collective: Collective,
    owners: NDArray[np.integer] | None = None,
    contents: CatalogueContents | None = None,
    lists: Tensor | None = None,
) -> NDArray[np.int64]:
    """0-based rank of each user's target, int64 [U]; -1 for users that are not evaluated.

    `groups` [U] is each user's group. Encodes the catalogue for each of `modules` whose group has
    users to evaluate, unless `contents` has it. Every worker returns all ranks. `lists` as in
    `target_ranks`, over all users, on every worker. `owners` [U]: the owner of each user's vector
    in a `VectorRecommender`; None: the user.
    """
    history = split.known(part)
    targets, evaluated = split.target(part), split.evaluated(part)
    of_group = {
        group: users for group in modules if len(users := evaluated[groups[evaluated] == group])
    }
    found = (contents or CatalogueContents()).of(of_group, model, modules, collective)
    model.eval()
    ranks = torch.zeros(split.num_users, dtype=torch.float64)
    at_once = sizes_of(model.backbone.item_embedding.weight.device).rank_users
    parts = [
        (group, chunk)
        for group, users in of_group.items()
        for chunk in np.array_split(users, -(-len(users) // at_once))
    ]
    last, table = None, None
    for group, users in parts[collective.rank :: collective.world_size]:
        if table is None or group != last:
            last, table = group, model.table(found[group])
        inputs = last_inputs(history, users, length)
        queries = model.queries(
            users if owners is None else owners[users], inputs, table, modules[group]
        )
        known = select(history, users)
        of_users = target_ranks(queries, table, targets[users], known, lists)
        ranks[torch.from_numpy(users)] = torch.from_numpy(of_users).double()
    collective.sum_(ranks)
    if lists is not None:
        collective.sum_(lists)
    out = ranks.numpy().astype(np.int64)
    out[targets == 0] = -1
    return out


def metrics_of(ranks: NDArray[np.int64]) -> RankingMetrics:
    """Metrics over the evaluated users (rank not -1)."""
    return ranking_metrics(ranks[ranks >= 0])


def no_lists(split: Split, device: torch.device) -> Tensor:
    """Empty counts for the `lists` of `evaluate`: zeros, float32 [K, I]."""
    return torch.zeros(LONGEST_LIST, split.num_items, device=device)


def of_lists(lists: Tensor | None, split: Split) -> dict[str, Any]:
    """Fields of `TrialOutcome` about recommended lists; None: test was not read."""
    if lists is None:
        return {"test_coverage": None, "test_popularity": None}
    coverage, popularity = list_metrics(lists.cpu().numpy(), split.occurrences)
    return {
        "test_coverage": tuple(coverage.tolist()),
        "test_popularity": tuple(popularity.tolist()),
    }


def facts_of_users(split: Split) -> dict[str, Any]:
    """Fields of `UserRanks` that depend only on the data."""
    occurrences = np.concatenate([[-1], split.occurrences])
    return {
        "user_id": split.user_ids,
        "history_length": np.diff(split.known("test").offsets),
        "test_item_occurrences": occurrences[split.test_item],
    }


def states_to_group(
    model: Recommender,
    content: Tensor,
    split: Split,
    part: Literal["valid", "test"],
    length: int,
) -> NDArray[np.float32]:
    """SASRec's last outputs of all users, float32 [U, D].

    `content` [I+1, D]: all items' content under one module.
    """
    model.eval()
    users = np.arange(split.num_users)
    inputs = last_inputs(split.known(part), users, length)
    return model.states(inputs, model.table(content)).float().cpu().numpy()
