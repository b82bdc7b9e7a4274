"""Exact full ranking: the target's rank among all items new to the user."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perpeft_ray.data.split import Histories
from perpeft_ray.encoder.hardware import sizes_of

_BLOCK_USERS = 16
"""Least users per block: a product with fewer rows is bound by reading the items."""


@torch.no_grad()
def target_ranks(
    states: Tensor,
    item_embeddings: Tensor,
    targets: NDArray[np.integer],
    history: Histories,
    lists: Tensor | None = None,
) -> NDArray[np.int64]:
    """0-based rank of each user's target: how many other candidates score at least as high.

    `states` float32 [n, D] are the users' last outputs, `item_embeddings` float32 [I+1, D] with
    padding in row 0, `targets` [n] item indices 1..I, `history` the known items of these n users,
    in the same order. Candidates are items 1..I without the user's history, but always with the
    target (METHOD.md, section 2). Ties count against the target, so a model that gives every item
    the same score earns nothing. `lists` float32 [K, I]: counts of each item at each place of
    users' lists of K candidates; these users are added. Raises ValueError if a score is not finite
    or a target is not an item.
    """
    num_items = len(item_embeddings) - 1
    if len(targets) and (targets.min() < 1 or targets.max() > num_items):
        raise ValueError(
            f"targets must be items 1 to {num_items}, but span {targets.min()} to {targets.max()}"
        )
    ranks = np.empty(len(targets), dtype=np.int64)
    candidates = item_embeddings[1:].T  # [D, I]; item i is column i - 1
    step = max(_BLOCK_USERS, sizes_of(states.device).block_scores // num_items)
    # Sums of ones and zeros: float32 is exact up to 2^24.
    counted = torch.float32 if num_items <= 2**24 else torch.float64
    # One buffer: fresh memory for each block's scores took longer than the scores.
    buffer = states.new_empty(min(step, len(targets)), num_items)
    for start in range(0, len(targets), step):
        block = slice(start, min(start + step, len(targets)))
        scores = torch.mm(states[block], candidates, out=buffer[: block.stop - start])  # [b, I]
        if not _finite(scores):
            raise ValueError("scores must be finite to be ranked, but some are NaN or infinite")
        columns = torch.as_tensor(targets[block].astype(np.int64) - 1, device=scores.device)
        # From the same product, so that the target equals itself bit by bit.
        of_target = scores.gather(1, columns[:, None])  # [b, 1]
        scores[_known(history, block, scores.device)] = -torch.inf
        # A target is a candidate even if it is in the history.
        scores.scatter_(1, columns[:, None], of_target)
        if lists is not None:
            count_lists(scores, lists)
        above = scores.ge_(of_target).sum(dim=1, dtype=counted)
        ranks[block] = (above - 1).cpu().numpy()
    return ranks


def count_lists(scores: Tensor, lists: Tensor) -> None:
    """Add the best K items of each user to `lists` [K, I]; `scores` [b, I], -inf: no candidate."""
    places, num_items = lists.shape
    best, columns = scores.topk(min(places, num_items), dim=1)
    cells = columns + torch.arange(columns.shape[1], device=columns.device) * num_items
    there = cells[best > -torch.inf]
    # Whole numbers: exact in any order.
    lists.view(-1).index_add_(0, there, torch.ones_like(there, dtype=lists.dtype))


def _finite(scores: Tensor) -> bool:
    """Whether all are finite: first by one sum, which no NaN or infinity survives, then by each."""
    return bool(scores.sum().isfinite() or scores.isfinite().all())


def _known(history: Histories, block: slice, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns of the known items of a block's users in its scores."""
    offsets = history.offsets[block.start : block.stop + 1]
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    columns = history.items[offsets[0] : offsets[-1]].astype(np.int64) - 1
    return torch.as_tensor(rows, device=device), torch.as_tensor(columns, device=device)
