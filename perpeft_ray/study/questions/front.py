"""The Pareto front of accuracy and size."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def on_front(sizes: ArrayLike, scores: ArrayLike) -> NDArray[np.bool_]:
    """True if no other point is at most as large and better, or smaller and as good; bool [n]."""
    size, score = np.asarray(sizes), np.asarray(scores)
    no_worse = (size[None] <= size[:, None]) & (score[None] >= score[:, None])
    better = (size[None] < size[:, None]) | (score[None] > score[:, None])
    beaten: NDArray[np.bool_] = np.any(no_worse & better, axis=1)
    return ~beaten
