"""Stage 2 and the sharing-out of groups."""

from __future__ import annotations

import numpy as np
import pytest

from perpeft_ray.data.split import Histories
from perpeft_ray.train.grouping import (
    group_items,
    group_users,
    nearest_centroids,
    principal_components,
)


def _blobs(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    planted = np.arange(count) % 3
    centres = 10 * np.eye(3, 4)
    return (centres[planted] + rng.normal(size=(count, 4))).astype(np.float32), planted


def test_kmeans_finds_blobs_and_is_seeded():
    states, planted = _blobs()
    first = group_users(states, states, 3, 0, shuffle=False)
    again = group_users(states, states, 3, 0, shuffle=False)
    assert np.array_equal(first.valid, again.valid)
    assert np.array_equal(first.valid, first.test)
    pairs = set(zip(first.valid.tolist(), planted.tolist(), strict=True))
    assert len(pairs) == 3  # one to one


@pytest.mark.parametrize("seed", range(5))
def test_group_numbers_do_not_depend_on_kmeans_labels(seed):
    """Blobs of 10, 20, 20 and 30: by size, the two equal ones by smallest member."""
    planted = np.repeat([3, 2, 0, 1, 0], [10, 20, 10, 20, 20])
    rng = np.random.default_rng(0)
    states = (10 * np.eye(4)[planted] + rng.normal(size=(80, 4))).astype(np.float32)
    grouping = group_users(states, states, 4, seed, shuffle=False)
    assert grouping.valid.tolist() == np.array([0, 2, 1, 3])[planted].tolist()
    assert grouping.centroids is not None
    assert np.array_equal(nearest_centroids(states, grouping.centroids), grouping.valid)


def test_random_groups_are_numbered_by_size_and_smallest_member():
    states, _ = _blobs(61)
    dealt = group_users(states, states, 3, 0, shuffle=True).valid
    sizes = np.bincount(dealt)
    first = [int(np.flatnonzero(dealt == group)[0]) for group in range(3)]
    assert sizes.tolist() == [21, 20, 20]
    assert first[1] < first[2]


def test_test_groups_follow_the_test_states_by_the_same_centroids():
    states, _ = _blobs()
    moved = states.copy()
    moved[0] = states[1]
    grouping = group_users(states, moved, 3, 0, shuffle=False)
    assert grouping.test[0] == grouping.valid[1] != grouping.valid[0]
    assert np.array_equal(grouping.test[1:], grouping.valid[1:])


def test_random_grouping_keeps_sizes_only():
    states, _ = _blobs()
    grouped = group_users(states, states, 3, 0, shuffle=False)
    dealt = group_users(states, states, 3, 0, shuffle=True)
    assert np.array_equal(np.sort(grouped.valid), np.sort(dealt.valid))
    assert not np.array_equal(grouped.valid, dealt.valid)
    assert np.array_equal(dealt.valid, dealt.test)


def test_items_of_groups():
    histories = Histories(np.array([0, 2, 3, 5]), np.array([4, 2, 7, 2, 9], dtype=np.int32))
    pools = group_items(histories, np.array([0, 1, 0], dtype=np.int32), 3)
    assert [pool.tolist() for pool in pools] == [[2, 4, 9], [7], []]


def test_principal_components_are_those_of_scikit_learn():
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    states = (rng.normal(size=(50, 6)) * [5, 3, 1, 1, 0.5, 0.1]).astype(np.float32)
    found = principal_components(states)
    expected = PCA(2).fit_transform(states)
    for axis in (0, 1):  # up to the sign
        sign = np.sign(found[0, axis] * expected[0, axis])
        np.testing.assert_allclose(found[:, axis], sign * expected[:, axis], atol=1e-4)
    np.testing.assert_allclose(principal_components(states), found)
