"""Clusters: right where they can be seen, and never of single rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_fi.messages import Array
from edge_fi.voting import clusters
from edge_fi.voting.clusters import LEAST, LEAST_SPREAD, PER_CLUSTER


def heaps(*centres: tuple[float, float], each: int = 40, width: float = 0.1) -> Array:
    """So many rows around each centre."""
    noise = np.random.default_rng(1).normal(0, width, (len(centres), each, 2))
    return np.asarray((np.array(centres)[:, None] + noise).reshape(-1, 2))


def test_one_cluster_is_the_mean_and_the_mean_squared_distance_from_it() -> None:
    # Corners of a square of side 2, each five times.
    rows = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]] * 5) + 3
    found = clusters.fit(rows, 1)
    np.testing.assert_allclose(found.centres, [[3, 3]])
    assert found.counts.tolist() == [20]
    np.testing.assert_allclose(found.spreads, [2])


def test_heaps_far_apart_are_not_mixed() -> None:
    rows = heaps((0, 0), (10, 0), (0, 10), (10, 10))
    found = clusters.fit(rows, 16)
    near = np.abs(found.centres[:, None] - np.array([[0, 0], [10, 0], [0, 10], [10, 10]])).max(axis=2) < 0.5
    assert near.any(axis=0).all() and near.any(axis=1).all()
    assert found.spreads.max() < 0.1
    np.testing.assert_array_equal(near.T @ found.counts, [40] * 4)


def test_the_same_rows_give_the_same_clusters() -> None:
    rows = heaps((0, 0), (3, 0), width=1)
    for one, other in zip(clusters.fit(rows, 5), clusters.fit(rows.copy(), 5), strict=True):
        np.testing.assert_array_equal(one, other)


@given(st.integers(LEAST, 150), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 30]))
def test_no_cluster_is_of_fewer_rows_than_the_least(n: int, most: int, seed: int, values: int) -> None:
    # Of few values rows stand on one another, and some of the drawn centres have no row.
    rows = np.random.default_rng(seed).integers(0, values, (n, 2)).astype(float)
    found = clusters.fit(rows, most)
    assert 1 <= len(found.counts) <= max(1, min(most, n // PER_CLUSTER))
    assert found.centres.shape == (len(found.counts), 2)
    assert found.counts.min() >= LEAST and found.counts.sum() == n
    assert found.spreads.min() >= LEAST_SPREAD
    np.testing.assert_allclose(found.counts @ found.centres / n, rows.mean(axis=0), atol=1e-9)


def test_an_outlier_is_no_cluster_of_its_own() -> None:
    rows = np.vstack([heaps((0, 0), (10, 0)), [[500.0, 500.0]]])
    found = clusters.fit(rows, 100)
    assert found.counts.min() >= LEAST and found.counts.sum() == 81
    assert (np.abs(found.centres - 500).max(axis=1) > 10).all()


def test_rows_that_are_all_the_same_have_the_least_spread() -> None:
    found = clusters.fit(np.full((30, 3), 0.7), 3)
    np.testing.assert_allclose(found.centres, [[0.7] * 3])
    assert found.counts.tolist() == [30]
    assert found.spreads.tolist() == [LEAST_SPREAD]


def test_the_least_spread_survives_the_float32_it_travels_in() -> None:
    assert float(np.float32(LEAST_SPREAD)) == LEAST_SPREAD


def test_near_copies_are_not_pointed_at_by_a_tight_cluster() -> None:
    rows = np.vstack([heaps((0, 0), (20, 0), (0, 20), width=1), heaps((20, 20), width=1e-6)])
    found = clusters.fit(rows, 16)
    tight = np.abs(found.centres - 20).max(axis=1) < 1
    assert tight.any() and not tight.all()
    assert found.spreads[tight].min() > 0.01


def test_fewer_rows_than_one_cluster_needs_are_refused() -> None:
    with pytest.raises(ValueError, match=f"{LEAST - 1} rows are too few for a cluster: {LEAST} at least"):
        clusters.fit(np.zeros((LEAST - 1, 2)), 1)
    assert clusters.fit(np.zeros((LEAST, 2)), 9).counts.tolist() == [LEAST]
