"""Ranks of all evaluable users, each under the module of their group.

Letters: U users, D hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from perpeft_ray.data.split import LeaveOneOut
from perpeft_ray.metrics import RankingMetrics, ranking_metrics
from perpeft_ray.recommender.model import Module, Recommender
from perpeft_ray.recommender.ranking import target_ranks
from perpeft_ray.recommender.sampling import last_inputs, select
from perpeft_ray.train.collective import Collective


def evaluate(
    model: Recommender,
    modules: Mapping[int, Module],
    groups: NDArray[np.int32],
    split: LeaveOneOut,
    part: Literal["valid", "test"],
    length: int,
    collective: Collective,
    owners: NDArray[np.integer] | None = None,
) -> NDArray[np.int64]:
    """0-based rank of each user's target, int64 [U]; -1 for users that are not evaluated.

    `modules` are the groups that this worker owns; `groups` [U] is each user's group. Every worker
    returns the ranks of all users. The catalogue is encoded once for each group with users.
    `owners` [U]: of a `VectorRecommender`, whose vector each user has; None: their own.
    """
    model.eval()
    history = split.known(part)
    targets = split.valid_item if part == "valid" else split.test_item
    device = model.backbone.item_embedding.weight.device
    ranks = torch.zeros(split.num_users, dtype=torch.float64, device=device)
    for group, module in modules.items():
        users = split.evaluable[groups[split.evaluable] == group]
        if len(users) == 0:
            continue
        embeddings = model.embed_all(module)
        inputs = last_inputs(history, users, length)
        queries = model.queries(
            users if owners is None else owners[users], inputs, embeddings, module
        )
        known = select(history, users)
        found = target_ranks(queries, embeddings, targets[users], known)
        rows = torch.as_tensor(users, device=device)
        ranks[rows] = torch.as_tensor(found, dtype=torch.float64, device=device)
    collective.sum_([ranks])
    out = ranks.cpu().numpy().astype(np.int64)
    out[np.setdiff1d(np.arange(split.num_users), split.evaluable)] = -1
    return out


def metrics_of(ranks: NDArray[np.int64]) -> RankingMetrics:
    """Metrics over the users that are evaluated (rank not -1)."""
    return ranking_metrics(ranks[ranks >= 0])


def user_states(
    model: Recommender,
    module: Module,
    split: LeaveOneOut,
    part: Literal["valid", "test"],
    length: int,
) -> NDArray[np.float32]:
    """SASRec's last outputs of all users under one module, float32 [U, D], for grouping."""
    model.eval()
    users = np.arange(split.num_users)
    inputs = last_inputs(split.known(part), users, length)
    return model.states(inputs, model.embed_all(module)).float().cpu().numpy()
