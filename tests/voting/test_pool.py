"""Opinion pools, worked out by hand."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_fi.messages import Array
from edge_fi.voting import pool


def rows(*distributions: list[float]) -> Array:
    """One vote a row."""
    return np.array(distributions)


def test_a_linear_pool_is_the_weighted_mean() -> None:
    # (3 * 0.8 + 1 * 0.4) / 4 = 0.7
    pooled = pool.linear(rows([0.8, 0.2], [0.4, 0.6]), np.array([3.0, 1.0]))
    np.testing.assert_allclose(pooled, [0.7, 0.3], rtol=1e-12)


def test_a_vote_without_weight_does_not_move_a_linear_pool() -> None:
    pooled = pool.linear(rows([0.8, 0.2], [0.0, 1.0]), np.array([0.5, 0.0]))
    np.testing.assert_allclose(pooled, [0.8, 0.2], rtol=1e-12)


def test_a_logarithmic_pool_is_the_geometric_mean_normalised() -> None:
    # sqrt(0.9 * 0.5) to sqrt(0.1 * 0.5) is 3 to 1.
    pooled = pool.logarithmic(rows([0.9, 0.1], [0.5, 0.5]), np.ones(2))
    np.testing.assert_allclose(pooled, [0.75, 0.25], rtol=1e-12)


def test_the_weights_of_a_logarithmic_pool_are_exponents() -> None:
    # (16 to 1) to the power of 3/4 is 8 to 1; the other vote is even.
    pooled = pool.logarithmic(rows([16 / 17, 1 / 17], [0.5, 0.5]), np.array([6.0, 2.0]))
    np.testing.assert_allclose(pooled, [8 / 9, 1 / 9], rtol=1e-12)


def test_a_zero_is_no_veto_in_a_logarithmic_pool() -> None:
    # 0 is read as 0.0001: sqrt(1 * 0.5) to sqrt(0.0001 * 0.5) is 100 to 1.
    pooled = pool.logarithmic(rows([1.0, 0.0], [0.5, 0.5]), np.ones(2))
    np.testing.assert_allclose(pooled, [100 / 101, 1 / 101], rtol=1e-12)


def test_two_certain_votes_that_disagree_cancel_out_in_a_logarithmic_pool() -> None:
    pooled = pool.logarithmic(rows([1.0, 0.0], [0.0, 1.0]), np.ones(2))
    np.testing.assert_allclose(pooled, [0.5, 0.5], rtol=1e-12)


@pytest.mark.parametrize("combine", [pool.linear, pool.logarithmic])
def test_one_vote_alone_is_the_pool_whatever_its_weight(combine: Callable[[Array, Array], Array]) -> None:
    for weight in (1e-9, 1.0, 1e9):
        pooled = combine(rows([0.2, 0.5, 0.3]), np.array([weight]))
        np.testing.assert_allclose(pooled, [0.2, 0.5, 0.3], rtol=1e-12)


@given(st.integers(1, 6), st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_a_pool_is_a_distribution(votes: int, classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.full(classes, 0.3), size=votes)
    weights = random.random(votes) + 1e-3
    for combine in (pool.linear, pool.logarithmic):
        pooled = combine(probabilities, weights)
        assert pooled.shape == (classes,)
        assert pooled.min() >= 0
        assert abs(pooled.sum() - 1) < 1e-9
