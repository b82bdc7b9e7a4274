"""HR@K, NDCG@K and MRR@K from ranks, coverage and popularity from lists; pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

CUTOFFS = (10, 20, 30)


@dataclass(frozen=True)
class RankingMetrics:
    """Means over users of HR@K and NDCG@K, each in [0, 1]."""

    hr_at_10: float
    hr_at_20: float
    hr_at_30: float
    ndcg_at_10: float
    ndcg_at_20: float
    ndcg_at_30: float


def ndcg(ranks: NDArray[np.integer], k: int) -> NDArray[np.float64]:
    """NDCG@k of each user with one relevant item: 1 / log2(rank + 2) if rank < k, else 0.

    `ranks` are 0-based, any shape; the result has the same shape. Source: the paper, section 4.
    """
    gains = 1.0 / np.log2(np.asarray(ranks, dtype=np.float64) + 2.0)
    return np.where(np.asarray(ranks) < k, gains, 0.0)


def hit(ranks: NDArray[np.integer], k: int) -> NDArray[np.float64]:
    """HR@k of each user with one relevant item: 1 if the 0-based rank is below k, else 0."""
    return (np.asarray(ranks) < k).astype(np.float64)


def reciprocal_rank(ranks: NDArray[np.integer], k: int) -> NDArray[np.float64]:
    """MRR@k of each user with one relevant item: 1 / (rank + 1) if the 0-based rank < k."""
    return np.where(np.asarray(ranks) < k, 1.0 / (np.asarray(ranks, dtype=np.float64) + 1.0), 0.0)


OF_RANKS = {"hr": hit, "ndcg": ndcg, "mrr": reciprocal_rank}
"""Metrics of ranks, each a function of (ranks, k)."""


def list_metrics(
    counts: NDArray[np.number], occurrences: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coverage@k and popularity@k of recommended lists for k = 1..K, each float64 [K].

    `counts` [K, I]: number of users with the item at this place of their list. Coverage is the
    share of the I items in any user's first k; popularity is the mean of `occurrences` [I], an
    item's occurrences in training, over the first k of all lists.
    """
    so_far = np.cumsum(counts, axis=0, dtype=np.float64)  # [K, I]
    return (so_far > 0).mean(axis=1), (so_far @ occurrences) / so_far.sum(axis=1)


def ranking_metrics(ranks: NDArray[np.integer]) -> RankingMetrics:
    """Means of HR and NDCG at 10, 20 and 30 over users.

    `ranks`: integers [users], 0-based, none negative. Raises ValueError without users.
    """
    if len(ranks) == 0:
        raise ValueError("ranking metrics need at least one rank, but there is none")
    if np.min(ranks) < 0:
        raise ValueError(f"ranks are 0-based and not negative, but one is {np.min(ranks)}")
    means = {f"hr_at_{k}": float(hit(ranks, k).mean()) for k in CUTOFFS}
    means |= {f"ndcg_at_{k}": float(ndcg(ranks, k).mean()) for k in CUTOFFS}
    return RankingMetrics(**means)


def on_front(sizes: ArrayLike, scores: ArrayLike) -> NDArray[np.bool_]:
    """True if no other point is at most as large and better, or smaller and as good; bool [n]."""
    size, score = np.asarray(sizes), np.asarray(scores)
    no_worse = (size[None] <= size[:, None]) & (score[None] >= score[:, None])
    better = (size[None] < size[:, None]) | (score[None] > score[:, None])
    beaten: NDArray[np.bool_] = np.any(no_worse & better, axis=1)
    return ~beaten
