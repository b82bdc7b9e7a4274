"""Ranks against a plain loop over users and items."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from perpeft_ray.data.split import Histories
from perpeft_ray.encoder import hardware
from perpeft_ray.metrics import ranking_metrics
from perpeft_ray.recommender.ranking import target_ranks


def histories_of(sequences: list[list[int]]) -> Histories:
    offsets = np.concatenate(([0], np.cumsum([len(s) for s in sequences]))).astype(np.int64)
    return Histories(offsets, np.array([*itertools.chain(*sequences)], dtype=np.int32))


def test_a_case_by_hand():
    """Items 1..5 score 5, 4, 4, 2, 1; item 1 is known."""
    embeddings = torch.tensor([[99.0], [5.0], [4.0], [4.0], [2.0], [1.0]])
    targets = np.array([2, 3, 4, 5, 1])
    ranks = target_ranks(torch.ones(5, 1), embeddings, targets, histories_of([[1]] * 5))
    # 2 and 3 tie, so each has the other before it; 1 is known, but a target is a candidate.
    assert ranks.tolist() == [1, 1, 2, 3, 0]
    assert ranks.dtype == np.int64


def test_lists_by_hand() -> None:
    """Two users score items 1..4 alike; the second knows items 1 to 3, and has target 1."""
    embeddings = torch.tensor([[99.0], [5.0], [4.0], [3.0], [2.0]])
    lists = torch.zeros(3, 4)
    history = histories_of([[], [1, 2, 3]])
    target_ranks(torch.ones(2, 1), embeddings, np.array([4, 1]), history, lists)
    # 1, 2, 3 for the first; 1 and 4 are all that the second can be shown.
    assert lists.tolist() == [[2, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]]


@pytest.mark.parametrize("block_scores", [1, 7 * 40, 10**9])
@pytest.mark.parametrize("tied", [False, True])
def test_equals_one_user_at_a_time(monkeypatch, block_scores, tied):
    """With repeats in the history, targets in the history, empty histories, and ties."""
    monkeypatch.setattr(hardware, "_CPU", replace(hardware._CPU, block_scores=block_scores))
    rng = np.random.default_rng(0)
    U, I, D = 25, 40, 6  # noqa: E741
    # Small whole numbers have exact and often equal dot products.
    draw = (lambda *s: rng.integers(-1, 2, s)) if tied else (lambda *s: rng.standard_normal(s))
    states = torch.tensor(draw(U, D), dtype=torch.float32)
    embeddings = torch.tensor(draw(I + 1, D), dtype=torch.float32)
    targets = rng.integers(1, I + 1, U)
    sequences = [rng.integers(1, I + 1, rng.integers(0, 30)).tolist() for _ in range(U)]
    sequences[3] += [int(targets[3])] * 2
    ranks = target_ranks(states, embeddings, targets, histories_of(sequences))
    expected = [
        plain_rank((embeddings.double() @ states[u].double()).numpy(), targets[u], sequences[u])
        for u in range(U)
    ]
    assert ranks.tolist() == expected


def test_constant_scores_earn_nothing():
    """Also where the items are equal and not zero, whatever order the product sums in."""
    torch.manual_seed(0)
    for num_items in (31, 64, 1683):
        states = torch.randn(50, 32)
        embeddings = torch.randn(32).expand(num_items + 1, 32)
        targets = np.arange(50) % num_items + 1
        ranks = target_ranks(states, embeddings, targets, histories_of([[]] * 50))
        assert (ranks == num_items - 1).all()
        metrics = ranking_metrics(ranks)
        assert (metrics.hr_at_30, metrics.ndcg_at_30) == (0.0, 0.0)
    ranks = target_ranks(torch.zeros(1, 4), torch.randn(32, 4), np.array([3]), histories_of([[]]))
    assert ranks.tolist() == [30]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["states", "target", "known item"])
def test_scores_that_are_not_finite_are_no_rank(bad, where):
    states, embeddings = torch.ones(3, 2), torch.ones(6, 2)
    rows = {"states": states[1], "target": embeddings[2], "known item": embeddings[5]}
    rows[where][0] = bad
    with pytest.raises(ValueError, match="must be finite"):
        target_ranks(states, embeddings, np.array([1, 2, 3]), histories_of([[5], [5], []]))


@pytest.mark.parametrize("target", [0, 6])
def test_a_target_that_is_no_item_is_refused(target):
    with pytest.raises(ValueError, match="targets must be items 1 to 5"):
        target_ranks(torch.ones(1, 2), torch.ones(6, 2), np.array([target]), histories_of([[]]))


def test_no_users_have_no_ranks():
    none = np.array([], dtype=np.int64)
    assert target_ranks(torch.ones(0, 2), torch.ones(6, 2), none, histories_of([])).shape == (0,)


def plain_rank(scores: NDArray[np.float64], target: int, known: list[int]) -> int:
    rank = 0
    for item in range(1, len(scores)):
        if item != target and item not in known and scores[item] >= scores[target]:
            rank += 1
    return rank
