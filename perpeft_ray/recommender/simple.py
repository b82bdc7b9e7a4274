"""Two baselines without training: popularity, and cosine similarity of items over histories.

Letters: U users, I items (1..I, 0 is padding), b users of a block.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from perpeft_ray.data.split import Histories, Split
from perpeft_ray.recommender.ranking import count_lists

SimpleMethod = Literal["popularity", "item_knn"]

_BLOCK_SCORES = 2**24
"""Scores per block: 128 MiB of float64."""
_BLOCK_PAIRS = 2**25
"""Pairs of items whose similarity is held at once: 384 MiB."""
_TIE = 1e-9
"""Scores this close count as equal: sums in another order round differently."""


def simple_ranks(
    method: SimpleMethod,
    split: Split,
    part: Literal["valid", "test"],
    lists: Tensor | None = None,
) -> NDArray[np.int64]:
    """0-based rank of each user's target, int64 [U]; -1 for users that are not evaluated.

    `popularity` scores an item by its occurrences, `item_knn` by the sum over the user's items of
    the cosine between the two items' columns of the binary user-item matrix (all neighbours; an
    item is not its own neighbour). Both count only training items, also for `test`, like the
    trained methods. A user's items are the known ones (`Split.known`). Candidates, ties and `lists`
    as in `target_ranks`; in a list, the more frequent of items with equal scores comes first.

    Source: Deshpande and Karypis, ACM TOIS 22 (2004).
    """
    history = split.known(part)
    targets = split.target(part) - 1
    known = _binary(history, split.num_items)  # [U, I]
    scores = split.occurrences.astype(np.float64)
    similarity = _Similarity(split) if method == "item_knn" else None
    ranks = np.full(split.num_users, -1, dtype=np.int64)
    step = max(1, _BLOCK_SCORES // split.num_items)
    evaluated = split.evaluated(part)
    for start in range(0, len(evaluated), step):
        users = evaluated[start : start + step]
        rows, columns = np.arange(len(users)), targets[users]
        own = known[users]
        block = similarity.sums(own) if similarity else np.tile(scores, (len(users), 1))  # [b, I]
        of_target = block[rows, columns]
        block[own.nonzero()] = -np.inf
        block[rows, columns] = of_target  # a candidate even if it is in the history
        if lists is not None:
            count_lists(torch.from_numpy(block + scores * (_TIE / scores.max())), lists)
        ranks[users] = (block >= of_target[:, None] - _TIE).sum(axis=1) - 1
    return ranks


class _Similarity:
    """Cosines between the items of training histories, in blocks of columns.

    A single block is computed once, several again for every block of users: the whole matrix
    [I, I] may not fit the memory.
    """

    def __init__(self, split: Split) -> None:
        binary = _binary(split.train, split.num_items)  # [U, I]
        norms = np.sqrt(np.maximum(binary.sum(axis=0), 1.0))  # [I]
        self._scaled = binary @ sparse.diags_array(1.0 / norms)  # [U, I]
        self._transposed = self._scaled.T.tocsr()
        # Items with which each item may share a user.
        neighbours = np.minimum(binary.T @ binary.sum(axis=1), split.num_items)  # [I]
        block = np.cumsum(neighbours) // _BLOCK_PAIRS
        edges = [*np.unique(block, return_index=True)[1], split.num_items]
        self._spans = [slice(*ends) for ends in pairwise(edges)]
        self._whole = self._columns(self._spans[0]) if len(self._spans) == 1 else None

    def sums(self, own: sparse.csr_array) -> NDArray[np.float64]:
        """Each item's similarity to users' items, summed; [b, I] -> [b, I]."""
        if self._whole is not None:
            return np.asarray((own @ self._whole).toarray())
        sums = np.empty(own.shape)
        for span in self._spans:
            sums[:, span] = (own @ self._columns(span)).toarray()
        return sums

    def _columns(self, span: slice) -> sparse.csr_array:
        """Columns of the matrix, with zeros for an item and itself."""
        columns = self._transposed @ self._scaled[:, span]
        columns.setdiag(0.0, k=-span.start)
        return columns


def _binary(history: Histories, num_items: int) -> sparse.csr_array:
    """Whether a user has an item, float64 [U, I]."""
    ones = np.ones(len(history.items))
    shape = (len(history.offsets) - 1, num_items)
    parts = (ones, history.items - 1, history.offsets.copy())  # changed in place below
    matrix = sparse.csr_array(parts, shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix
