"""Popularity and item-kNN against loops over users and items."""

from __future__ import annotations

import dataclasses
import tracemalloc
from itertools import product
from typing import Literal

import numpy as np
import pytest
import torch

from perpeft_ray.data.split import Histories, Split
from perpeft_ray.recommender import simple
from perpeft_ray.recommender.simple import simple_ranks


def random_split(users: int, items: int, length: int, seed: int = 0) -> Split:
    """Histories with repeats, also of the targets; every fifth user only trains."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 2 * length, users)
    evaluated = np.arange(users) % 5 > 0
    popular = rng.integers(1, items + 1, (3, users)), rng.integers(1, items // 3 + 1, (3, users))
    targets = np.where(rng.random((3, users)) < 0.5, *popular).astype(np.int32)
    return Split(
        user_ids=np.arange(users).astype(object),
        item_ids=np.arange(items).astype(object),
        train=Histories(
            np.concatenate([[0], np.cumsum(lengths)]),
            rng.integers(1, items + 1, lengths.sum()).astype(np.int32),
        ),
        validation=Histories(
            np.concatenate([[0], np.cumsum(evaluated)]), targets[0][evaluated].astype(np.int32)
        ),
        test_item=np.where(evaluated, targets[1], 0),
    )


def slow_ranks(method: str, split: Split, part: Literal["valid", "test"]) -> list[int]:
    """The same by definition: dictionaries and loops."""
    trained = {user: split.train.of(user).tolist() for user in range(split.num_users)}
    histories = {}
    for user in range(split.num_users):
        own = split.train.of(user).tolist()
        if part == "test":
            own += split.validation.of(user).tolist()
        histories[user] = own
    owners = {
        item: {user for user, own in trained.items() if item in own}
        for item in range(1, split.num_items + 1)
    }

    def score(user: int, item: int) -> float:
        if method == "popularity":
            return sum(own.count(item) for own in trained.values())
        total = 0.0
        for other in set(histories[user]) - {item}:
            both = len(owners[item] & owners[other])
            if both:
                total += both / (len(owners[item]) * len(owners[other])) ** 0.5
        return total

    ranks = []
    for user in range(split.num_users):
        target = int((split.valid_item if part == "valid" else split.test_item)[user])
        if target == 0:
            ranks.append(-1)
            continue
        known = set(histories[user])
        least = score(user, target) - 1e-9
        others = (i for i in range(1, split.num_items + 1) if i != target and i not in known)
        ranks.append(sum(score(user, item) >= least for item in others))
    return ranks


@pytest.mark.parametrize(
    ("method", "part"), list(product(("popularity", "item_knn"), ("valid", "test")))
)
def test_ranks_are_those_of_the_definition(method, part, monkeypatch):
    split = random_split(users=60, items=40, length=5)
    monkeypatch.setattr(simple, "_BLOCK_SCORES", 7 * 40)  # several blocks, the last one short
    assert simple_ranks(method, split, part).tolist() == slow_ranks(method, split, part)


def knn(split: Split) -> tuple[list[int], list[list[float]]]:
    """Ranks and counted lists of item-kNN."""
    lists = torch.zeros(20, split.num_items)
    return simple_ranks("item_knn", split, "test", lists).tolist(), lists.tolist()


@pytest.mark.parametrize("pairs", [1, 333])
def test_a_similarity_in_blocks_gives_the_same(pairs, monkeypatch):
    split = random_split(users=60, items=40, length=5)
    whole = knn(split)
    monkeypatch.setattr(simple, "_BLOCK_SCORES", 7 * 40)  # several blocks of users too
    monkeypatch.setattr(simple, "_BLOCK_PAIRS", pairs)
    assert knn(split) == whole


def test_the_similarity_of_many_items_is_not_held_whole(monkeypatch):
    items = 2000
    split = random_split(users=400, items=items, length=100)
    monkeypatch.setattr(simple, "_BLOCK_SCORES", 400 * items)
    monkeypatch.setattr(simple, "_BLOCK_PAIRS", items * items // 10)
    tracemalloc.start()
    simple_ranks("item_knn", split, "test")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    scores, similarity = 8 * 400 * items, 12 * items * items
    assert peak < 4 * scores + similarity / 4


def test_a_tie_counts_against_the_target():
    split = Split(
        user_ids=np.array(["u"], dtype=object),
        item_ids=np.array(list("abcde"), dtype=object),
        train=Histories(np.array([0, 1]), np.array([1], np.int32)),
        validation=Histories(np.array([0, 1]), np.array([2], np.int32)),
        test_item=np.array([3], np.int32),
    )
    assert simple_ranks("item_knn", split, "valid").tolist() == [3]
    assert simple_ranks("popularity", split, "test").tolist() == [2]


@pytest.mark.parametrize("method", ["popularity", "item_knn"])
def test_lists_hold_every_users_target_at_its_rank(
    method: Literal["popularity", "item_knn"],
) -> None:
    """Of one user, the list of all candidates is the ranking; without ties the target is there."""
    split = random_split(users=60, items=40, length=5)
    for user in split.evaluated("test")[:20]:
        others = np.setdiff1d(np.arange(split.num_users), user)
        alone = dataclasses.replace(split, test_item=split.test_item.copy())
        alone.test_item[others] = 0
        lists = torch.zeros(40, 40)
        rank = simple_ranks(method, alone, "test", lists)[user]
        (place,) = np.flatnonzero(lists[:, split.test_item[user] - 1])
        assert place <= rank
        assert lists.sum() == 40 - len({*split.known("test").of(user)} - {split.test_item[user]})
