"""A user's history, and what own module, the global one and another group's would recommend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from perpeft_ray.config import PERSONAL_METHODS
from perpeft_ray.errors import InputError
from perpeft_ray.models.trained import (
    TrainedTrial,
    item_embeddings,
    open_global,
    open_trained,
    user_states,
)
from perpeft_ray.recommender.ranking import target_ranks
from perpeft_ray.recommender.sampling import select
from perpeft_ray.results.folder import StudyFolder


@dataclass(frozen=True)
class Recommendations:
    """The best items for a user under one module."""

    title: str
    items: list[tuple[int, float]]
    """Items 1..I and their scores, best first; none of the user's history."""
    test_rank: int | None
    """0-based rank of the user's test item; None where the user is not evaluated."""


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
    """A user, 0..U-1, of a personalised trial, as before the test item is known.

    The global module is that of the study's `global` trial with the same variant and seed, where
    it has ended, else the trial's own stage 1. `other` None: the group whose centroid is farthest
    from the user's own. Raises InputError for a trial without groups or an unknown group.
    """
    if trial.grouping is None or trial.config.method not in PERSONAL_METHODS:
        raise InputError(
            f"`trial` must be of a method with a module a group, but {trial.trial_id} is "
            f"{trial.config.method}"
        )
    groups = len(trial.modules)
    own = int(trial.grouping.test[user])
    if other is None:
        other = _farthest_group(trial, own)
    elif not 0 <= other < groups:
        raise InputError(f"`other` must be between 0 and {groups - 1}, but is {other}")
    common, name = _global(folder, trial)
    test_item = int(trial.split.test_item[user]) or None
    return UserExplanation(
        user=user,
        group=own,
        history=trial.split.known("test").of(user).tolist(),
        test_item=test_item,
        lists=[
            _recommend(trial, user, own, f"own group {own}", k),
            _recommend(common, user, 0, name, k),
            _recommend(trial, user, other, f"group {other}", k),
        ],
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


def _farthest_group(trial: TrainedTrial, own: int) -> int:
    """By the distance between the means of the groups' states after stage 1."""
    assert trial.grouping is not None
    states, groups = trial.grouping.states, trial.grouping.valid
    means = np.stack([states[groups == group].mean(axis=0) for group in trial.modules])
    distances = ((means - means[own]) ** 2).sum(axis=1)
    return int(distances.argmax())
