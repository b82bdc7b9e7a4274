"""The leave-one-out split: last interaction tests, second last validates, the rest trains.

Letters: U users (0..U-1), I items (1..I, 0 is padding), N interactions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perpeft_ray.data.interactions import Dataset
from perpeft_ray.errors import InputError

MIN_INTERACTIONS = 3
"""Interactions a user needs to be evaluated: one each to train, to validate and to test."""


@dataclass(frozen=True, eq=False)
class Histories:
    """Item sequences of all users in time order, one after the other (CSR)."""

    offsets: NDArray[np.int64]
    """int64 [U+1]: user u's items are `items[offsets[u]:offsets[u + 1]]`."""
    items: NDArray[np.int32]
    """int32 [N]: item indices, none 0."""

    def of(self, user: int) -> NDArray[np.int32]:
        """The user's item indices, oldest first: an int32 view, possibly empty."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """A dataset in indices, split by leave-one-out (`leave_one_out`)."""

    user_ids: NDArray[np.object_]
    """object [U]: user_id of each user index, in order of first appearance."""
    item_ids: NDArray[np.object_]
    """object [I]: item_id of item index 1..I at position index - 1."""
    train: Histories
    """Training items; all interactions of users that are not evaluated."""
    valid_item: NDArray[np.int32]
    """int32 [U]: the validation target, 0 for users that are not evaluated."""
    test_item: NDArray[np.int32]
    """int32 [U]: the test target, 0 for users that are not evaluated."""

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """I, padding not counted."""
        return len(self.item_ids)

    @property
    def evaluable(self) -> NDArray[np.int64]:
        """int64: indices of the users that are evaluated, ascending."""
        return np.flatnonzero(self.test_item).astype(np.int64)

    def known(self, part: Literal["valid", "test"]) -> Histories:
        """What is known of each user when `part` is predicted.

        Training items for `valid`; training items followed by the validation item for `test`.
        """
        if part == "valid":
            return self.train
        users = self.evaluable
        items = np.insert(self.train.items, self.train.offsets[users + 1], self.valid_item[users])
        added = np.concatenate([[0], np.cumsum(self.valid_item != 0)])  # [U+1]
        return Histories(offsets=self.train.offsets + added, items=items)


@dataclass(frozen=True)
class RepeatShares:
    """How much of a dataset is said twice, as shares from 0 to 1 (`repeat_shares`)."""

    targets_in_history: float
    """Of the test targets: those that the user had before, in training or as validation item.
    Such targets are easy to rank and raise every metric."""
    repeated_rows: float
    """Of the interactions: those with the same user, item and time as an earlier row."""


def repeat_shares(dataset: Dataset) -> RepeatShares:
    """The shares of repeated test targets and rows. Raises `InputError` as `leave_one_out` does."""
    split = leave_one_out(dataset)
    known = split.known("test")
    users = np.repeat(np.arange(split.num_users), np.diff(known.offsets))  # [N of known]
    pairs = users * (split.num_items + 1) + known.items
    evaluable = split.evaluable
    targets = evaluable * (split.num_items + 1) + split.test_item[evaluable]
    return RepeatShares(
        targets_in_history=float(np.isin(targets, pairs).mean()),
        repeated_rows=float(dataset.interactions.duplicated().mean()),
    )


def leave_one_out(dataset: Dataset) -> LeaveOneOut:
    """Split a dataset by leave-one-out; method.md section 2.

    A user's interactions are sorted stably by timestamp, so row order breaks ties; repeats stay.
    Users with fewer than 3 interactions only train. Raises `InputError` where no user is evaluable.
    """
    user_of_row, user_ids = pd.factorize(dataset.interactions["user_id"])  # [N], [U]
    item_index = pd.Index(dataset.items["item_id"])
    item_of_row = item_index.get_indexer(pd.Index(dataset.interactions["item_id"])) + 1
    timestamps = dataset.interactions["timestamp"].to_numpy()
    # lexsort sorts by its last key first, and stably: by user, then time, then row.
    order = np.lexsort((timestamps, user_of_row))
    items = item_of_row[order].astype(np.int32)  # [N]

    lengths = np.bincount(user_of_row, minlength=len(user_ids))  # [U]
    evaluated = lengths >= MIN_INTERACTIONS
    if not evaluated.any():
        raise InputError(
            f"`{dataset.uri}` needs at least one user with {MIN_INTERACTIONS} interactions, "
            f"but the longest history has {lengths.max(initial=0)}"
        )
    ends = np.cumsum(lengths)  # [U]
    valid_row = ends[evaluated] - 2
    trains = np.ones(len(items), dtype=bool)
    trains[valid_row] = trains[valid_row + 1] = False

    valid_item = np.zeros(len(user_ids), dtype=np.int32)
    test_item = np.zeros(len(user_ids), dtype=np.int32)
    valid_item[evaluated] = items[valid_row]
    test_item[evaluated] = items[valid_row + 1]
    offsets = np.zeros(len(user_ids) + 1, dtype=np.int64)
    np.cumsum(lengths - 2 * evaluated, out=offsets[1:])
    return LeaveOneOut(
        user_ids=np.asarray(user_ids, dtype=object),
        item_ids=np.asarray(item_index, dtype=object),
        train=Histories(offsets=offsets, items=items[trains]),
        valid_item=valid_item,
        test_item=test_item,
    )
