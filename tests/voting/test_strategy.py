"""Strategies, worked out by hand; none depends on the order in which votes come."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_fi.messages import Array, Form, Vote
from edge_fi.voting.strategy import STRATEGIES, aggregate

EVEN = np.zeros(3)
THREE = np.array([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.5, 0.2, 0.3]])


def vote(device: str, *probabilities: float, log_weight: float = 0.0) -> Vote:
    """A vote of this device."""
    return Vote(
        device=device, probabilities=np.array(probabilities), log_weight=log_weight, form=Form.PROBS_8
    )


def test_these_strategies_are_known_by_name() -> None:
    assert list(STRATEGIES) == ["hard", "linear", "logarithmic", "entropy", "confidence"]


# Each alone


def test_a_hard_vote_counts_first_choices() -> None:
    # Two of three say class 0, though the mean prefers class 1.
    pooled = STRATEGIES["hard"](THREE, EVEN)
    np.testing.assert_allclose(pooled, [2 / 3, 1 / 3, 0], atol=1e-6)
    assert pooled.argmax() == 0
    assert THREE.mean(axis=0).argmax() == 1


def test_a_tie_of_first_choices_falls_to_the_linear_pool() -> None:
    # One first choice each; the means are 0.35, 0.4, 0.25.
    tied = np.array([[0.6, 0.1, 0.3], [0.1, 0.7, 0.2]])
    pooled = STRATEGIES["hard"](tied, np.zeros(2))
    assert pooled.argmax() == 1
    np.testing.assert_allclose(pooled, [0.5, 0.5, 0], atol=1e-6)


def test_a_class_that_is_nobodys_first_choice_does_not_win_a_tie() -> None:
    # The means are 0.275, 0.275, 0.45.
    tied = np.array([[0.55, 0.0, 0.45], [0.0, 0.55, 0.45]])
    assert STRATEGIES["hard"](tied, np.zeros(2)).argmax() == 0


def test_a_hard_vote_overlooks_what_devices_claim_for_themselves() -> None:
    claims = np.array([-8.0, 0.0, -8.0])
    np.testing.assert_array_equal(STRATEGIES["hard"](THREE, claims), STRATEGIES["hard"](THREE, EVEN))


def test_the_first_choices_of_a_large_fleet_are_not_outweighed_by_the_tie_break() -> None:
    # 500 to 501 first choices: a difference of 1/1001, against means of 0.9995 and 0.0005.
    sure, unsure = [1.0, 0.0], [0.499, 0.501]
    pooled = STRATEGIES["hard"](np.array([sure] * 500 + [unsure] * 501), np.zeros(1001))
    assert pooled.argmax() == 1


def test_a_soft_vote_is_the_mean() -> None:
    pooled = STRATEGIES["linear"](THREE, np.array([-8.0, 0.0, -3.0]))
    np.testing.assert_allclose(pooled, [0.4, 13 / 30, 1 / 6], rtol=1e-12)


def test_a_logarithmic_vote_is_the_geometric_mean() -> None:
    # Cube roots of 0.03, 0.048 and 0.003.
    roots = np.array([0.03, 0.048, 0.003]) ** (1 / 3)
    pooled = STRATEGIES["logarithmic"](THREE, np.array([-8.0, 0.0, -3.0]))
    np.testing.assert_allclose(pooled, roots / roots.sum(), rtol=1e-12)


def test_an_entropy_vote_weighs_each_by_its_certainty() -> None:
    # Certain: weight 1. Two classes of four equally likely: ln 2 of ln 4, weight 1/2. Uniform: none.
    votes = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.25, 0.25, 0.25, 0.25]])
    pooled = STRATEGIES["entropy"](votes, np.array([-8.0, 0.0, 0.0]))
    np.testing.assert_allclose(pooled, [2 / 3, 1 / 6, 1 / 6, 0], atol=1e-8)


def test_an_entropy_weight_is_one_minus_the_share_of_the_greatest_entropy() -> None:
    certainty = 1 + (0.8 * math.log(0.8) + 0.2 * math.log(0.2)) / math.log(2)
    pooled = STRATEGIES["entropy"](np.array([[1.0, 0.0], [0.2, 0.8]]), np.zeros(2))
    np.testing.assert_allclose(pooled[0], (1 + 0.2 * certainty) / (1 + certainty), rtol=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 10, 17])
def test_uniform_votes_pool_to_a_uniform_one_under_entropy(classes: int) -> None:
    uniform = np.full((3, classes), 1 / classes)
    np.testing.assert_allclose(STRATEGIES["entropy"](uniform, EVEN), uniform[0], rtol=1e-12)


def test_a_confidence_vote_weighs_each_by_what_it_claims() -> None:
    # Weights 1 and 1/3.
    pooled = STRATEGIES["confidence"](np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0.0, -math.log(3)]))
    np.testing.assert_allclose(pooled, [0.75, 0.25], rtol=1e-12)


def test_only_differences_between_claims_count() -> None:
    claims = np.array([-1.0, -2.0, -3.0])
    np.testing.assert_allclose(
        STRATEGIES["confidence"](THREE, claims - 30_000), STRATEGIES["confidence"](THREE, claims), rtol=1e-9
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_vote_alone_decides(name: str) -> None:
    pooled = STRATEGIES[name](np.array([[0.1, 0.2, 0.7]]), np.array([-30_000.0]))
    assert pooled.argmax() == 2
    assert abs(pooled.sum() - 1) < 1e-12


@pytest.mark.parametrize("name", STRATEGIES)
@given(st.integers(1, 6), st.integers(2, 8), st.integers(0, 2**32 - 1), st.sampled_from([0.05, 1.0, 10.0]))
def test_every_outcome_is_a_distribution(
    name: str, votes: int, classes: int, seed: int, concentration: float
) -> None:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.full(classes, concentration), size=votes)
    pooled = STRATEGIES[name](probabilities, random.uniform(-40, 0, votes))
    assert pooled.shape == (classes,)
    assert pooled.min() >= 0
    assert abs(pooled.sum() - 1) < 1e-9


# Together


def test_aggregate_hands_a_strategy_the_votes_by_device() -> None:
    seen: list[tuple[list[list[float]], list[float]]] = []

    def remember(probabilities: Array, log_weights: Array) -> Array:
        seen.append((probabilities.tolist(), log_weights.tolist()))
        return np.asarray(probabilities[0])

    votes = [vote("pi-2", 0.2, 0.8, log_weight=-2.0), vote("pi-1", 0.1, 0.9, log_weight=-1.0)]
    assert aggregate(votes, remember).tolist() == [0.1, 0.9]
    assert seen == [([[0.1, 0.9], [0.2, 0.8]], [-1.0, -2.0])]


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_order_in_which_votes_come_changes_no_bit_of_the_outcome(name: str) -> None:
    votes = [
        vote("pi-1", 0.61, 0.28, 0.11, log_weight=-0.3),
        vote("pi-2", 0.13, 0.74, 0.13, log_weight=-1.7),
        vote("pi-3", 0.47, 0.22, 0.31, log_weight=-0.9),
        vote("pi-4", 1 / 3, 1 / 3, 1 / 3, log_weight=-5.1),
        vote("pi-5", 0.0, 0.0, 1.0, log_weight=-7.7),
    ]
    outcomes = {aggregate(order, STRATEGIES[name]).tobytes() for order in itertools.permutations(votes)}
    assert len(outcomes) == 1
