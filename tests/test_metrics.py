"""Metrics against values worked by hand and against ranx."""

import math

import numpy as np
import pytest

from perpeft_ray.metrics import (
    CUTOFFS,
    hit,
    list_metrics,
    ndcg,
    ranking_metrics,
    reciprocal_rank,
)


def test_ndcg_of_the_third_place_is_one_half():
    assert ndcg(np.array([2]), 10)[0] == 0.5  # 1 / log2(2 + 2), exactly


@pytest.mark.parametrize(
    ("rank", "k", "expected"),
    [
        (0, 10, 1.0),
        (1, 10, 1 / math.log2(3)),
        (6, 10, 1 / 3),
        (9, 10, 1 / math.log2(11)),
        (10, 10, 0.0),
        (14, 20, 0.25),
        (19, 20, 1 / math.log2(21)),
        (20, 20, 0.0),
        (30, 30, 0.0),
    ],
)
def test_ndcg_by_hand(rank, k, expected):
    assert ndcg(np.array([rank]), k)[0] == pytest.approx(expected, rel=1e-15)


def test_hit_is_one_below_the_cutoff():
    assert hit(np.array([0, 9, 10, 500]), 10).tolist() == [1.0, 1.0, 0.0, 0.0]


def test_means_by_hand():
    metrics = ranking_metrics(np.array([2, 14, 25, 100]))
    assert (metrics.hr_at_10, metrics.hr_at_20, metrics.hr_at_30) == (0.25, 0.5, 0.75)
    assert metrics.ndcg_at_10 == 0.125
    assert metrics.ndcg_at_20 == 0.1875
    assert metrics.ndcg_at_30 == pytest.approx((0.5 + 0.25 + 1 / math.log2(27)) / 4, rel=1e-15)


def test_means_equal_ranx(monkeypatch):
    # Compiling takes ranx more than a minute; as plain Python these 200 users take no time.
    monkeypatch.setattr("numba.config.DISABLE_JIT", True)
    import ranx

    rng = np.random.default_rng(0)
    ranks = rng.integers(0, 50, 200)
    items = [f"i{position:02}" for position in range(50)]
    # The list of user u is items in order, and its one relevant item the one at the user's rank.
    qrels = ranx.Qrels({f"u{u}": {items[rank]: 1} for u, rank in enumerate(ranks)})
    scores = {item: float(50 - position) for position, item in enumerate(items)}
    run = ranx.Run({f"u{u}": scores for u in range(len(ranks))})
    names = [f"{metric}@{k}" for metric in ("hit_rate", "ndcg", "mrr") for k in CUTOFFS]
    expected = ranx.evaluate(qrels, run, names)
    ours = ranking_metrics(ranks)
    for k in CUTOFFS:
        assert getattr(ours, f"hr_at_{k}") == pytest.approx(expected[f"hit_rate@{k}"], rel=1e-12)
        assert reciprocal_rank(ranks, k).mean() == pytest.approx(expected[f"mrr@{k}"], rel=1e-12)
        assert getattr(ours, f"ndcg_at_{k}") == pytest.approx(expected[f"ndcg@{k}"], rel=1e-12)


def test_no_user_and_no_rank_are_refused():
    with pytest.raises(ValueError, match="at least one rank"):
        ranking_metrics(np.array([], dtype=np.int64))
    with pytest.raises(ValueError, match="not negative, but one is -1"):
        ranking_metrics(np.array([3, -1]))


def test_reciprocal_rank_by_hand() -> None:
    assert reciprocal_rank(np.array([0, 3, 9, 10]), 10).tolist() == [1.0, 0.25, 0.1, 0.0]


def test_coverage_and_popularity_by_hand() -> None:
    # Two users over four items: one is shown item 0 then 1, the other item 0 then 2.
    counts = np.array([[2, 0, 0, 0], [0, 1, 1, 0]])
    coverage, popularity = list_metrics(counts, np.array([9, 3, 1, 5]))
    assert coverage.tolist() == [0.25, 0.75]
    assert popularity.tolist() == [9.0, (9 + 9 + 3 + 1) / 4]
