"""Training batches: next-item windows and their negatives, drawn without rejection.

U users, I items, B users per batch, T positions; item 0 is padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perpeft_ray.data.split import Histories
from perpeft_ray.errors import InputError


@dataclass(frozen=True)
class TrainingBatch:
    """A batch of B users; arrays [B, T] are padded with 0 on the left."""

    users: NDArray[np.int64]
    """User indices [B]."""
    inputs: NDArray[np.int64]
    """Items seen [B, T]; 0 marks padding in the arrays below too."""
    positives: NDArray[np.int64]
    """The item that follows each input [B, T]."""
    negatives: NDArray[np.int64]
    """For each position [B, T], an item that the user has no training interaction with."""
    outside_negatives: NDArray[np.int64] | None
    """A second negative from all items [B, T], if `negatives` come from a group's items and the
    loss uses both; else None."""

    def items(self) -> NDArray[np.int64]:
        """Inputs, positives, negatives and, if present, negatives from all items:
        [3 or 4, B, T]."""
        parts = [self.inputs, self.positives, self.negatives]
        return np.stack(
            parts if self.outside_negatives is None else [*parts, self.outside_negatives]
        )

    def distinct(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The distinct items [n], ascending, and the positions of `items()` among them."""
        return np.unique(self.items(), return_inverse=True)


class TrainingSampler:
    """Draws the training batches of all stages from the users' training histories.

    `num_items` is I; `length` is T. Raises InputError as `distinct_items`.
    """

    def __init__(self, histories: Histories, num_items: int, length: int) -> None:
        counts = np.diff(histories.offsets)
        self.trainable_users: NDArray[np.int64] = np.flatnonzero(counts >= 2)
        """Users with at least two training interactions; others have no position to learn."""
        self._all_items = np.arange(1, num_items + 1)
        # Positions 1..n-1 of a history of n are the positives, the ones before them the inputs.
        before = histories.offsets[1:, None] - length - 1 + np.arange(length)  # [U, T]
        real = before >= histories.offsets[:-1, None]
        self._inputs = _take(histories.items, before, real)
        self._positives = _take(histories.items, before + 1, real)
        self._distinct = distinct_items(histories, num_items, np.arange(len(counts)).astype(object))

    def sample(
        self,
        users: NDArray[np.int64],
        rng: np.random.Generator,
        *,
        pool: NDArray[np.integer] | None,
        weight: float,
    ) -> TrainingBatch:
        """The windows of `users` [B] with fresh negatives, uniform over the allowed items.

        An item is allowed if the user has no training interaction with it. Negatives come from all
        items if `pool` is None or `weight` (λ of METHOD.md section 5) is 0, else from `pool`, a
        group's items (distinct and ascending); if 0 < λ < 1, a second negative comes from all
        items. A user who has interacted with the whole pool gets negatives from all items.
        """
        inputs = self._inputs[users].astype(np.int64)
        real = inputs > 0
        if pool is None or weight == 0:
            negatives, outside = self._draw(users, self._all_items, rng), None
        else:
            negatives = self._draw(users, pool, rng)
            outside = self._draw(users, self._all_items, rng) * real if weight < 1 else None
        return TrainingBatch(
            users=users,
            inputs=inputs,
            positives=self._positives[users].astype(np.int64),
            negatives=negatives * real,
            outside_negatives=outside,
        )

    def _draw(
        self, users: NDArray[np.int64], pool: NDArray[np.integer], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Uniform draws [B, T] from `pool` without each user's items.

        A user's draw is a number r among the pool's allowed positions. The position of the r-th
        allowed item is r plus the number of taken positions before it; a taken position with g
        allowed ones before it counts if g <= r. One binary search does this for the whole batch.
        """
        taken, owners = self._places(users, pool)
        counts = np.bincount(owners, minlength=len(users))
        starts = np.cumsum(counts) - counts
        allowed = len(pool) - counts
        covered = allowed == 0
        draws = rng.integers(np.where(covered, 1, allowed)[:, None], size=(len(users), self.length))
        gaps = taken - (np.arange(len(taken)) - starts[owners])
        stride = len(pool) + 1
        rows = np.arange(len(users))[:, None]
        passed = np.searchsorted(owners * stride + gaps, rows * stride + draws, side="right")
        places = draws + passed - starts[:, None]
        places[covered] = 0
        drawn = pool[places].astype(np.int64)
        if covered.any():
            drawn[covered] = self._draw(users[covered], self._all_items, rng)
        return drawn

    def _places(
        self, users: NDArray[np.int64], pool: NDArray[np.integer]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions of the users' items in `pool`, ascending per user, and their users."""
        rows = select(self._distinct, users)
        owners = np.repeat(np.arange(len(users)), np.diff(rows.offsets))
        places = np.searchsorted(pool, rows.items)
        found = pool[np.minimum(places, len(pool) - 1)] == rows.items
        return places[found], owners[found]

    @property
    def length(self) -> int:
        """Positions of a window, T."""
        return int(self._inputs.shape[1])


def distinct_items(histories: Histories, num_items: int, users: NDArray[np.object_]) -> Histories:
    """Each user's distinct items, ascending. `users` [U]: their ids, for messages.

    Raises InputError if a user has all items 1..`num_items`, which leaves no negative to draw.
    """
    counts = np.diff(histories.offsets)
    keys = np.unique(np.repeat(np.arange(len(counts)), counts) * (num_items + 1) + histories.items)
    owners, items = np.divmod(keys, num_items + 1)
    distinct = np.bincount(owners, minlength=len(counts))
    (full,) = np.nonzero(distinct == num_items)
    if len(full):
        more = f" and {len(full) - 1} more have" if len(full) > 1 else " has"
        raise InputError(
            "`dataset` must leave every user an item without training interaction, but user "
            f"{users[full[0]]!r}{more} all items ({num_items}); leave out their interactions"
        )
    return Histories(_offsets(distinct), items.astype(np.int32))


def batches_of(
    users: NDArray[np.int64], batch_size: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Shuffle `users` [n] into ceil(n / batch_size) batches whose sizes differ by at most one.

    A short last batch would be a whole optimiser step on a few users, and a small group has few
    steps.
    """
    count = -(-len(users) // batch_size)
    return np.array_split(rng.permutation(users), count) if count else []


def last_inputs(histories: Histories, users: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """The last `length` items of each of `users` [n], padded with 0 on the left: [n, length]."""
    places = histories.offsets[users + 1][:, None] - length + np.arange(length)
    real = places >= histories.offsets[users][:, None]
    return _take(histories.items, places, real).astype(np.int64)


def select(histories: Histories, users: NDArray[np.int64]) -> Histories:
    """The histories of `users` [n] alone, in that order; a user may occur twice."""
    starts = histories.offsets[users]
    counts = histories.offsets[users + 1] - starts
    offsets = _offsets(counts)
    places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)
    return Histories(offsets, histories.items[places])


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(counts)), dtype=np.int64)


def _take(
    items: NDArray[np.int32], places: NDArray[np.int64], real: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """`items` at `places` where `real`, 0 elsewhere."""
    taken = np.zeros(places.shape, dtype=np.int32)
    taken[real] = items[places[real]]
    return taken
