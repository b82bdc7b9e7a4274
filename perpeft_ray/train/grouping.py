"""Stage 2: groups users by K-means on their SASRec outputs.

Letters: U users, G groups, D hidden units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perpeft_ray.data.split import Histories


@dataclass(frozen=True, eq=False)
class Grouping:
    """Every user's group, int32 [U], 0..G-1, and the centroids that give a new user's group."""

    valid: NDArray[np.int32]
    """From training histories: for training and validation."""
    test: NDArray[np.int32]
    """From training and validation histories, by the same centroids: for test."""
    states: NDArray[np.float32]
    """[U, D]: the clustered points, users' outputs after stage 1 from training histories."""
    centroids: NDArray[np.float32] | None
    """[G, D]; None for random groups."""

    def of(self, part: Literal["valid", "test"]) -> NDArray[np.int32]:
        """Every user's group for predicting `part`."""
        return self.valid if part == "valid" else self.test


def group_users(
    valid_states: NDArray[np.float32],
    test_states: NDArray[np.float32],
    groups: int,
    seed: int,
    *,
    shuffle: bool,
) -> Grouping:
    """K-means (up to 100 iterations, best of 10 starts) on users' SASRec outputs [U, D].

    `valid_states` come from the training histories and fit the centroids; `test_states` also know
    the validation items and are only assigned to centroids. `shuffle` keeps the groups' sizes but
    assigns users at random (`random_grouping`), the same for validation and test.

    Groups are numbered by size, largest first, then by smallest member. Random streams are keyed by
    group, so equal clusterings train alike whatever labels K-means gave them.
    """
    from sklearn.cluster import KMeans

    kmeans = KMeans(groups, max_iter=100, n_init=10, random_state=seed).fit(valid_states)
    labels = kmeans.labels_
    if shuffle:
        labels = np.random.default_rng(seed).permutation(labels)
    order = _canonical_order(labels, groups)
    number_of = np.argsort(order).astype(np.int32)
    valid = number_of[labels]
    if shuffle:
        return Grouping(valid, valid, valid_states, None)
    test = number_of[kmeans.predict(test_states)]
    return Grouping(valid, test, valid_states, kmeans.cluster_centers_[order].astype(np.float32))


def _canonical_order(labels: NDArray[np.integer], groups: int) -> NDArray[np.intp]:
    """The labels 0..groups-1 by number of members, descending, then by smallest member."""
    sizes = np.bincount(labels, minlength=groups)
    smallest = np.full(groups, len(labels))
    np.minimum.at(smallest, labels, np.arange(len(labels)))
    return np.lexsort((smallest, -sizes))


def nearest_centroids(
    states: NDArray[np.float32], centroids: NDArray[np.float32]
) -> NDArray[np.int32]:
    """The group of each state: states [n, D], centroids [G, D] -> int32 [n]."""
    distances = ((states[:, None] - centroids) ** 2).sum(axis=-1)  # [n, G]
    return distances.argmin(axis=1).astype(np.int32)  # type: ignore[no-any-return]  # NumPy says Any


def principal_components(states: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first two principal components of states [n, D], [n, 2]; signs make each axis's largest
    loading positive."""
    centred = states - states.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)  # eigenvalues in ascending order
    first_two = axes[:, :-3:-1]
    largest = np.abs(first_two).argmax(axis=0)
    return centred @ (first_two * np.sign(first_two[largest, [0, 1]]))  # type: ignore[no-any-return]  # NumPy says Any


def group_items(
    histories: Histories, groups_of_users: NDArray[np.int32], groups: int
) -> list[NDArray[np.int64]]:
    """For each group, the distinct items of its users' histories, ascending."""
    group_of_row = np.repeat(groups_of_users, np.diff(histories.offsets))
    return [np.unique(histories.items[group_of_row == g]).astype(np.int64) for g in range(groups)]
