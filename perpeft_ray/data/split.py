"""Training, validation and test: leave-one-out per user, or by time for all users at once.

Letters: U users (0..U-1), I items (1..I, 0 is padding), N interactions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perpeft_ray.config import DataSettings
from perpeft_ray.data.interactions import Dataset
from perpeft_ray.errors import InputError

MIN_INTERACTIONS = 3
"""Interactions per user that leave-one-out needs: one each to train, validate and test."""

Part = Literal["valid", "test"]


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

    @property
    def first(self) -> NDArray[np.int32]:
        """int32 [U]: each user's first item, 0 without any."""
        first = np.zeros(len(self.offsets) - 1, dtype=np.int32)
        (users,) = np.nonzero(np.diff(self.offsets))
        first[users] = self.items[self.offsets[users]]
        return first


@dataclass(frozen=True, eq=False)
class Split:
    """A split dataset in indices (`split_dataset`)."""

    user_ids: NDArray[np.object_]
    """object [U]: user_id of each user index, in order of first appearance."""
    item_ids: NDArray[np.object_]
    """object [I]: item_id of item index 1..I at position index - 1."""
    train: Histories
    """Training items; every user has at least one."""
    validation: Histories
    """Items between training and test; the first is the validation target."""
    test_item: NDArray[np.int32]
    """int32 [U]: the test target, 0 for users that are not tested."""

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """I, without padding."""
        return len(self.item_ids)

    @cached_property
    def valid_item(self) -> NDArray[np.int32]:
        """int32 [U]: the validation target, 0 for users that are not validated."""
        return self.validation.first

    def target(self, part: Part) -> NDArray[np.int32]:
        """int32 [U]: each user's target, 0 for users that are not evaluated."""
        return self.valid_item if part == "valid" else self.test_item

    def evaluated(self, part: Part) -> NDArray[np.int64]:
        """int64: indices of the evaluated users, ascending."""
        return np.flatnonzero(self.target(part)).astype(np.int64)

    @property
    def occurrences(self) -> NDArray[np.int64]:
        """int64 [I]: how often each item occurs in training."""
        return np.bincount(self.train.items - 1, minlength=self.num_items)

    def known(self, part: Part) -> Histories:
        """Each user's known items for predicting `part`.

        Training items for `valid`; training items followed by `validation` for `test`.
        """
        if part == "valid":
            return self.train
        ends = np.repeat(self.train.offsets[1:], np.diff(self.validation.offsets))
        return Histories(
            offsets=self.train.offsets + self.validation.offsets,
            items=np.insert(self.train.items, ends, self.validation.items),
        )


@dataclass(frozen=True)
class RepeatShares:
    """Shares of repeats in a dataset, from 0 to 1 (`repeat_shares`)."""

    targets_in_history: float
    """Share of test targets that the user had before, in training or validation.
    Such targets are easy to rank and raise every metric."""
    repeated_rows: float
    """Share of interactions with the same user, item and time as an earlier row."""


def repeat_shares(dataset: Dataset, data: DataSettings | None = None) -> RepeatShares:
    """The shares of repeated test targets and rows. Raises `InputError` as `split_dataset` does."""
    split = split_dataset(dataset, data)
    known = split.known("test")
    users = np.repeat(np.arange(split.num_users), np.diff(known.offsets))  # [N of known]
    pairs = users * (split.num_items + 1) + known.items
    tested = split.evaluated("test")
    targets = tested * (split.num_items + 1) + split.test_item[tested]
    return RepeatShares(
        targets_in_history=float(np.isin(targets, pairs).mean()),
        repeated_rows=float(dataset.interactions.duplicated().mean()),
    )


def split_dataset(dataset: Dataset, data: DataSettings | None = None) -> Split:
    """Split a dataset according to `data`, by default leave-one-out; METHOD.md section 2.

    A user's interactions are sorted stably by timestamp, so row order breaks ties; repeats stay.

    `leave_one_out`: the last interaction is test, the one before it validation; users with fewer
    than 3 interactions only train.

    `time`: with N interactions and share s, the test begins at the time of the k-th latest
    interaction, k = round(s N) but at least 1, and validation at that of the 2k-th; interactions at
    exactly that time are after the cut. Training has everything before validation. The target of
    validation, and of test, is a user's first interaction in that span; later ones in the test span
    are not used. Users without training interactions are dropped; users without interactions in a
    span are not evaluated there.

    Raises `InputError` if nobody can be validated or tested.
    """
    data = data or DataSettings()
    user_of_row, user_ids = pd.factorize(dataset.interactions["user_id"])  # [N], [U]
    item_index = pd.Index(dataset.items["item_id"])
    item_of_row = item_index.get_indexer(pd.Index(dataset.interactions["item_id"])) + 1
    timestamps = dataset.interactions["timestamp"].to_numpy()
    # lexsort sorts by its last key first, and stably: by user, then time, then row.
    order = np.lexsort((timestamps, user_of_row))
    users, items = user_of_row[order], item_of_row[order].astype(np.int32)  # [N]
    if data.split == "time":
        part = _parts_by_time(dataset.uri, timestamps[order], data.test_share)
        kept = np.bincount(users[part == 0], minlength=len(user_ids)) > 0  # [U]
        rows, user_ids = kept[users], np.asarray(user_ids)[kept]
        users, items, part = (np.cumsum(kept) - 1)[users[rows]], items[rows], part[rows]
    else:
        part = _parts_leaving_one_out(dataset.uri, users, len(user_ids))

    def histories(number: int) -> Histories:
        lengths = np.bincount(users[part == number], minlength=len(user_ids))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Histories(offsets=offsets, items=items[part == number])

    split = Split(
        user_ids=np.asarray(user_ids, dtype=object),
        item_ids=np.asarray(item_index, dtype=object),
        train=histories(0),
        validation=histories(1),
        test_item=histories(2).first,
    )
    for name, targets in (("validation", split.valid_item), ("test", split.test_item)):
        if not targets.any():
            raise InputError(
                f"`{dataset.uri}` must have a user with interactions before validation and in the "
                f"{name} span of `data.split` time, but at `data.test_share` {data.test_share:g} "
                "none has"
            )
    return split


def _parts_leaving_one_out(uri: str, users: NDArray[np.int64], count: int) -> NDArray[np.int8]:
    """0 training, 1 validation, 2 test for each row; int8 [N]. `users`: ascending."""
    lengths = np.bincount(users, minlength=count)  # [U]
    evaluated = lengths >= MIN_INTERACTIONS
    if not evaluated.any():
        raise InputError(
            f"`{uri}` needs at least one user with {MIN_INTERACTIONS} interactions, "
            f"but the longest history has {lengths.max(initial=0)}"
        )
    last = np.cumsum(lengths)[evaluated] - 1
    part = np.zeros(len(users), dtype=np.int8)
    part[last - 1], part[last] = 1, 2
    return part


def _parts_by_time(uri: str, times: NDArray[np.int64], share: float) -> NDArray[np.int8]:
    """0 training, 1 validation, 2 test for each row; int8 [N]."""
    ascending = np.sort(times)
    count = max(1, round(share * len(times)))
    first = ascending[max(0, len(times) - 2 * count)]
    second = ascending[len(times) - count]
    if not ascending[0] < first < second:
        raise InputError(
            f"`{uri}` must have times before and between the cuts of `data.split` time, but its "
            f"first time is {ascending[0]} and the cuts are at {first} and {second}"
        )
    part: NDArray[np.int8] = (times >= first).astype(np.int8) + (times >= second)
    return part
