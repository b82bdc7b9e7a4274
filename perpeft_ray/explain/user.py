"""A user's history, and recommendations by the own, the global and another group's module."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from perpeft_ray.config import PERSONAL_METHODS
from perpeft_ray.errors import InputError
from perpeft_ray.models.trained import (
    TrainedTrial,
    check_group,
    groups_with_users,
    item_embeddings,
    open_global,
    open_trained,
    user_states,
)
from perpeft_ray.recommender.ranking import target_ranks
from perpeft_ray.recommender.sampling import select
from perpeft_ray.store.folder import StudyFolder


@dataclass(frozen=True)
class Recommendations:
    """The best items for a user under one module."""

    title: str
    items: list[tuple[int, float]]
    """Items 1..I and their scores, best first, without the user's history."""
    test_rank: int | None
    """0-based rank of the user's test item; None if the user is not evaluated."""


@dataclass(frozen=True)
class UserExplanation:
    """A user under several modules."""

    user: int
    group: int
    history: list[int]
    """Items 1..I, oldest first: training and validation."""
    test_item: int | None
    lists: list[Recommendations]


def explain_user(
    folder: StudyFolder, trial: TrainedTrial, user: int, other: int | None = None, k: int = 10
) -> UserExplanation:
    """A user, 0..U-1, of a personalised trial, before the test item is known.

    The global module is that of the study's finished `global` trial with the same variant and seed,
    else the trial's own stage 1. `other` None: the group with users whose mean state is farthest
    from that of the user's group, if there is one. Raises InputError for a trial without groups, an
    unknown group or one without users, and a k below 1.
    """
    if trial.grouping is None or trial.config.method not in PERSONAL_METHODS:
        raise InputError(
            f"`trial` must be of a method with one module per group, but {trial.trial_id} is "
            f"{trial.config.method}"
        )
    if k < 1:
        raise InputError(f"`k` must be a whole number of at least 1, but is {k}")
    own = int(trial.grouping.test[user])
    if other is None:
        other = _farthest_group(trial, own)
    else:
        check_group(trial, "other", other)
    common, name = _global(folder, trial)
    test_item = int(trial.split.test_item[user]) or None
    lists = [
        _recommend(trial, user, own, f"own group {own}", k),
        _recommend(common, user, 0, name, k),
    ]
    if other is not None:
        lists.append(_recommend(trial, user, other, f"group {other}", k))
    return UserExplanation(
        user=user,
        group=own,
        history=trial.split.known("test").of(user).tolist(),
        test_item=test_item,
        lists=lists,
    )


def _recommend(trial: TrainedTrial, user: int, group: int, title: str, k: int) -> Recommendations:
    users = np.array([user])
    embeddings = item_embeddings(trial, group)
    state = user_states(trial, users, group, embeddings)  # [1, D]
    known = select(trial.split.known("test"), users)
    scores = (state @ embeddings.T)[0]
    scores[0] = -torch.inf
    scores[torch.from_numpy(known.items.astype(np.int64))] = -torch.inf
    best = scores.topk(min(k, int(torch.isfinite(scores).sum())))
    target = trial.split.test_item[users]
    rank = int(target_ranks(state, embeddings, target, known)[0]) if target[0] else None
    items = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Recommendations(title, items, rank)


def _global(folder: StudyFolder, trial: TrainedTrial) -> tuple[TrainedTrial, str]:
    rows = folder.trials()
    same = rows[
        (rows.method == "global")
        & (rows.phase == "ablation")
        & (rows.status == "COMPLETE")
        & (rows.variant == trial.config.variant)
        & (rows.seed == trial.config.seed)
    ]
    if same.empty:
        return open_global(folder, trial), "global module (stage 1)"
    return open_trained(folder, str(same.trial_id.iloc[-1])), "global module"


def _farthest_group(trial: TrainedTrial, own: int) -> int | None:
    """The group whose mean state after stage 1 is farthest away."""
    assert trial.grouping is not None
    states, groups = trial.grouping.states, trial.grouping.test
    mean = states[groups == own].mean(axis=0)
    distances = {
        group: float(((states[groups == group].mean(axis=0) - mean) ** 2).sum())
        for group in groups_with_users(trial)
        if group != own
    }
    return max(distances, key=lambda group: distances[group], default=None)
