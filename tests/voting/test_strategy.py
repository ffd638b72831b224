"""Strategies, worked out by hand; none depends on the order in which votes come."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_fi.messages import Array, Form, Vote
from edge_fi.voting.strategy import DEFAULT, STRATEGIES, Ballots, aggregate, first_choices, stack

THREE = np.array([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.5, 0.2, 0.3]])
CERTAIN = np.eye(2)
MANY = 1e15
"""Samples of a voter whose log weight is beyond doubt."""


def ballots(probabilities: Array, log_weights: Array | None = None, coverage: Array | None = None) -> Ballots:
    """Of voters that told nothing but what is given."""
    return Ballots(
        probabilities,
        np.full(len(probabilities), np.nan) if log_weights is None else log_weights,
        np.full(probabilities.shape, np.nan) if coverage is None else coverage,
    )


def sure(probabilities: Array, *log_weights: float) -> Ballots:
    """Of voters that have very many samples, the same number of each class."""
    return ballots(probabilities, np.array(log_weights), np.full(probabilities.shape, MANY))


def vote(device: str, *probabilities: float, log_weight: float = 0.0, coverage: Array | None = None) -> Vote:
    """A vote of this device."""
    return Vote(device, np.array(probabilities), log_weight, Form.PROBS_8, coverage)


def test_these_strategies_are_known_by_name() -> None:
    assert list(STRATEGIES) == [
        "hard",
        "linear",
        "logarithmic",
        "entropy",
        "consensus",
        "spectral",
        "coverage",
        "coupled",
        "familiarity",
    ]
    assert DEFAULT == "familiarity"


# Each alone


def test_a_hard_vote_counts_first_choices() -> None:
    # Two of three say class 0, though the mean prefers class 1.
    pooled = STRATEGIES["hard"](ballots(THREE))
    np.testing.assert_allclose(pooled, [2 / 3, 1 / 3, 0], atol=1e-6)
    assert pooled.argmax() == 0
    assert THREE.mean(axis=0).argmax() == 1


def test_a_tie_of_first_choices_falls_to_the_linear_pool() -> None:
    # One first choice each; the means are 0.35, 0.4, 0.25.
    tied = np.array([[0.6, 0.1, 0.3], [0.1, 0.7, 0.2]])
    pooled = STRATEGIES["hard"](ballots(tied))
    assert pooled.argmax() == 1
    np.testing.assert_allclose(pooled, [0.5, 0.5, 0], atol=1e-6)


def test_a_class_that_is_nobodys_first_choice_does_not_win_a_tie() -> None:
    # The means are 0.275, 0.275, 0.45.
    tied = np.array([[0.55, 0.0, 0.45], [0.0, 0.55, 0.45]])
    assert STRATEGIES["hard"](ballots(tied)).argmax() == 0


@pytest.mark.parametrize("name", ["hard", "linear", "logarithmic", "entropy", "consensus", "spectral"])
def test_what_devices_tell_of_their_data_changes_nothing_where_only_votes_count(name: str) -> None:
    told = ballots(THREE, np.array([-8.0, 0.0, -np.inf]), np.array([[9.0, 0, 0], [0, 9, 0], [0, 0, 9]]))
    np.testing.assert_array_equal(STRATEGIES[name](told), STRATEGIES[name](ballots(THREE)))


def test_the_first_choices_of_a_large_fleet_are_not_outweighed_by_the_tie_break() -> None:
    # 500 to 501 first choices: a difference of 1/1001, against means of 0.9995 and 0.0005.
    votes = np.array([[1.0, 0.0]] * 500 + [[0.499, 0.501]] * 501)
    assert STRATEGIES["hard"](ballots(votes)).argmax() == 1


def test_a_soft_vote_is_the_mean() -> None:
    np.testing.assert_allclose(STRATEGIES["linear"](ballots(THREE)), [0.4, 13 / 30, 1 / 6], rtol=1e-12)


def test_a_logarithmic_vote_is_the_geometric_mean() -> None:
    # Cube roots of 0.03, 0.048 and 0.003.
    roots = np.array([0.03, 0.048, 0.003]) ** (1 / 3)
    np.testing.assert_allclose(STRATEGIES["logarithmic"](ballots(THREE)), roots / roots.sum(), rtol=1e-12)


def test_an_entropy_vote_weighs_each_by_its_certainty() -> None:
    # Certain: weight 1. Two classes of four equally likely: ln 2 of ln 4, weight 1/2. Uniform: none.
    votes = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.25, 0.25, 0.25, 0.25]])
    np.testing.assert_allclose(STRATEGIES["entropy"](ballots(votes)), [2 / 3, 1 / 6, 1 / 6, 0], atol=1e-8)


def test_an_entropy_weight_is_one_minus_the_share_of_the_greatest_entropy() -> None:
    certainty = 1 + (0.8 * math.log(0.8) + 0.2 * math.log(0.2)) / math.log(2)
    pooled = STRATEGIES["entropy"](ballots(np.array([[1.0, 0.0], [0.2, 0.8]])))
    np.testing.assert_allclose(pooled[0], (1 + 0.2 * certainty) / (1 + certainty), rtol=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 10, 17])
def test_uniform_votes_pool_to_a_uniform_one_under_entropy(classes: int) -> None:
    uniform = np.full((3, classes), 1 / classes)
    np.testing.assert_allclose(STRATEGIES["entropy"](ballots(uniform)), uniform[0], rtol=1e-12)


def test_a_consensus_weight_is_one_minus_the_divergence_from_the_mean_in_bits() -> None:
    # The mean is (3/4, 1/4). From (1, 0) in bits: H(7/8) - H(3/4) / 2; from (1/2, 1/2): 1/2 less, of 5/8.
    def bits(p: float) -> float:
        return -p * math.log2(p) - (1 - p) * math.log2(1 - p)

    first = 1 - (bits(7 / 8) - bits(3 / 4) / 2)
    second = 1 - (bits(5 / 8) - bits(3 / 4) / 2 - 1 / 2)
    pooled = STRATEGIES["consensus"](ballots(np.array([[1.0, 0.0], [0.5, 0.5]])))
    np.testing.assert_allclose(pooled[0], (first + second / 2) / (first + second), rtol=1e-12)


@pytest.mark.parametrize("name", ["consensus", "spectral"])
def test_who_stands_alone_weighs_less(name: str) -> None:
    votes = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.0, 1.0]])
    assert STRATEGIES[name](ballots(votes))[0] > votes[:, 0].mean() + 0.01


@pytest.mark.parametrize("name", ["linear", "entropy", "consensus", "spectral", "coverage", "familiarity"])
def test_votes_that_are_all_the_same_are_the_outcome(name: str) -> None:
    same = np.tile(THREE[0], (4, 1))
    np.testing.assert_allclose(STRATEGIES[name](ballots(same)), THREE[0], rtol=1e-9)


def test_spectral_weights_are_the_leading_eigenvector_of_the_similarities() -> None:
    # Of [[1, s, 0], [s, 1, s], [0, s, 1]] it is (1, sqrt 2, 1), whatever s is.
    votes = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    expected = [(1 + math.sqrt(2) / 2) / (2 + math.sqrt(2))] * 2
    np.testing.assert_allclose(STRATEGIES["spectral"](ballots(votes)), expected, rtol=1e-5)


def test_of_votes_with_nothing_in_common_the_place_draws_no_winner() -> None:
    np.testing.assert_allclose(STRATEGIES["spectral"](ballots(np.eye(3))), np.full(3, 1 / 3), rtol=1e-5)


def test_coverage_weighs_each_class_by_who_has_samples_of_it() -> None:
    # The same number of both classes in all: 3/4 and 1/4 of class 0, 1/4 and 3/4 of class 1.
    told = np.array([[3.0, 1.0], [1.0, 3.0]]) * MANY
    pooled = STRATEGIES["coverage"](ballots(np.array([[0.8, 0.2], [0.4, 0.6]]), coverage=told))
    scores = np.array([3 * 0.8 + 0.4, 0.2 + 3 * 0.6])
    np.testing.assert_allclose(pooled, scores / scores.sum(), rtol=1e-9)


@pytest.mark.parametrize("name", ["coverage", "coupled"])
def test_where_coverage_counts_who_told_none_has_no_say(name: str) -> None:
    told = np.array([[30.0, 10.0, 20.0], [np.nan] * 3, [10.0, 30.0, 20.0]])
    without = ballots(THREE[[0, 2]], coverage=told[[0, 2]])
    np.testing.assert_allclose(
        STRATEGIES[name](ballots(THREE, coverage=told)), STRATEGIES[name](without), rtol=1e-12
    )


def test_coverage_that_nobody_told_falls_to_entropy() -> None:
    np.testing.assert_array_equal(
        STRATEGIES["coverage"](ballots(THREE)), STRATEGIES["entropy"](ballots(THREE))
    )


@pytest.mark.parametrize("coverage", [None, np.zeros((3, 3))])
def test_without_any_sample_told_coupled_evidence_falls_to_the_logarithmic_pool(
    coverage: Array | None,
) -> None:
    pooled = STRATEGIES["coupled"](ballots(THREE, coverage=coverage))
    np.testing.assert_array_equal(pooled, STRATEGIES["logarithmic"](ballots(THREE)))


def test_coupled_evidence_is_what_a_posterior_says_beyond_its_prior() -> None:
    # Nine in ten samples of the first voter are of class 0, and 0.9 says nothing new of it.
    told = np.array([[9.0, 1.0], [5.0, 5.0]]) * MANY
    nothing_new = ballots(np.array([[0.9, 0.1], [0.5, 0.5]]), coverage=told)
    np.testing.assert_allclose(STRATEGIES["coupled"](nothing_new), [0.5, 0.5], rtol=1e-9)
    surprised = ballots(np.array([[0.8, 0.2], [0.5, 0.5]]), coverage=told)
    assert STRATEGIES["coupled"](surprised).argmax() == 1


def test_a_class_of_which_nobody_has_a_sample_is_no_outcome_of_coupled_evidence() -> None:
    told = np.array([[9.0, 9.0, 0.0]] * 3)
    assert STRATEGIES["coupled"](ballots(THREE, coverage=told))[2] == 0


# Familiarity


def test_a_familiarity_vote_weighs_each_by_its_density() -> None:
    # Weights 1 and 1/3.
    pooled = STRATEGIES["familiarity"](sure(CERTAIN, 0.0, -math.log(3)))
    np.testing.assert_allclose(pooled, [0.75, 0.25], rtol=1e-6)


def test_only_differences_between_log_weights_count() -> None:
    np.testing.assert_allclose(
        STRATEGIES["familiarity"](sure(THREE, -30_001.0, -30_002.0, -30_003.0)),
        STRATEGIES["familiarity"](sure(THREE, -1.0, -2.0, -3.0)),
        rtol=1e-9,
    )


@pytest.mark.parametrize("weight", [-5.0, 0.0, 300.0])
def test_voters_that_are_equally_familiar_weigh_alike(weight: float) -> None:
    pooled = STRATEGIES["familiarity"](ballots(THREE, np.full(3, weight)))
    np.testing.assert_allclose(pooled, THREE.mean(axis=0), rtol=1e-12)


@given(st.floats(0.01, 30), st.floats(1.1, 5), st.sampled_from([np.nan, 1.0, 50.0, 1e4]))
def test_the_more_familiar_weighs_more(ahead: float, factor: float, samples: float) -> None:
    def share(lead: float) -> float:
        told = np.full((2, 2), samples)
        return float(STRATEGIES["familiarity"](ballots(CERTAIN, np.array([lead, 0.0]), told))[0])

    assert 0.5 < share(ahead) <= share(factor * ahead)


def test_who_is_not_familiar_at_all_has_no_say() -> None:
    # The weights of the other two are 1 and 1.
    pooled = STRATEGIES["familiarity"](sure(THREE, 2.0, -np.inf, 2.0))
    np.testing.assert_allclose(pooled, [0.55, 0.25, 0.2], rtol=1e-9)


def test_whose_familiarity_is_not_known_weighs_as_the_median_of_the_others() -> None:
    votes = np.vstack([THREE, [[0.2, 0.2, 0.6]]])
    pooled = STRATEGIES["familiarity"](sure(votes, -4.0, np.nan, 0.0, -1.0))
    np.testing.assert_array_equal(pooled, STRATEGIES["familiarity"](sure(votes, -4.0, -1.0, 0.0, -1.0)))


def test_where_most_are_unfamiliar_who_does_not_know_is_taken_to_be_so_too() -> None:
    pooled = STRATEGIES["familiarity"](sure(THREE, np.nan, 0.0, -np.inf))
    np.testing.assert_allclose(pooled, THREE[1], rtol=1e-12)


@pytest.mark.parametrize("weights", [[np.nan] * 3, [-np.inf] * 3, [-np.inf, np.nan, -np.inf]])
def test_where_no_familiarity_is_known_class_coverage_decides_and_then_entropy(weights: list[float]) -> None:
    told = ballots(THREE, np.array(weights), np.array([[9.0, 1.0, 1.0], [1.0, 9.0, 1.0], [3.0, 3.0, 3.0]]))
    untold = ballots(THREE, np.array(weights))
    np.testing.assert_array_equal(STRATEGIES["familiarity"](told), STRATEGIES["coverage"](told))
    np.testing.assert_array_equal(STRATEGIES["familiarity"](untold), STRATEGIES["entropy"](untold))


# All


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("weight", [-30_000.0, 0.0, np.nan, -np.inf])
@pytest.mark.parametrize("samples", [np.nan, 0.0, 20.0])
def test_one_vote_alone_decides(name: str, weight: float, samples: float) -> None:
    alone = ballots(np.array([[0.1, 0.2, 0.7]]), np.array([weight]), np.full((1, 3), samples))
    pooled = STRATEGIES[name](alone)
    assert pooled.argmax() == 2
    assert abs(pooled.sum() - 1) < 1e-12


@pytest.mark.parametrize("name", STRATEGIES)
@given(st.integers(1, 6), st.integers(2, 8), st.integers(0, 2**32 - 1), st.sampled_from([0.05, 1.0, 10.0]))
def test_every_outcome_is_a_distribution(
    name: str, votes: int, classes: int, seed: int, concentration: float
) -> None:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.full(classes, concentration), size=votes)
    log_weights = random.choice([np.nan, -np.inf, 0, -40, 7.5], votes) + random.uniform(-40, 0, votes)
    told = random.integers(0, 40, (votes, classes)) * random.choice([np.nan, 0, 1, 1000], (votes, 1))
    pooled = STRATEGIES[name](Ballots(probabilities, log_weights, told))
    assert pooled.shape == (classes,)
    assert pooled.min() >= 0
    assert abs(pooled.sum() - 1) < 1e-9


# Votes


def test_first_choices_are_the_same_votes_with_nothing_beside_their_labels() -> None:
    told = sure(THREE, -1.0, np.nan, -np.inf)
    firsts = first_choices(told)
    assert firsts.probabilities.tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert firsts.log_weights is told.log_weights and firsts.coverage is told.coverage


def test_votes_become_ballots_in_their_order() -> None:
    told = stack([vote("pi-2", 0.2, 0.8, log_weight=-2.0), vote("pi-1", 0.1, 0.9, coverage=np.array([3, 4]))])
    assert told.probabilities.tolist() == [[0.2, 0.8], [0.1, 0.9]]
    assert told.log_weights.tolist() == [-2.0, 0.0]
    assert np.isnan(told.coverage[0]).all()
    assert told.coverage[1].tolist() == [3, 4]


def test_aggregate_hands_a_strategy_the_votes_by_device() -> None:
    seen: list[Ballots] = []

    def remember(told: Ballots) -> Array:
        seen.append(told)
        return np.asarray(told.probabilities[0])

    votes = [vote("pi-2", 0.2, 0.8, log_weight=-2.0), vote("pi-1", 0.1, 0.9, log_weight=-1.0)]
    assert aggregate(votes, remember).tolist() == [0.1, 0.9]
    assert seen[0].probabilities.tolist() == [[0.1, 0.9], [0.2, 0.8]]
    assert seen[0].log_weights.tolist() == [-1.0, -2.0]


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_order_in_which_votes_come_changes_no_bit_of_the_outcome(name: str) -> None:
    votes = [
        vote("pi-1", 0.61, 0.28, 0.11, log_weight=-0.3, coverage=np.array([7.0, 1.0, 2.0])),
        vote("pi-2", 0.13, 0.74, 0.13, log_weight=-1.7),
        vote("pi-3", 0.47, 0.22, 0.31, log_weight=math.nan, coverage=np.array([0.0, 5.0, 9.0])),
        vote("pi-4", 1 / 3, 1 / 3, 1 / 3, log_weight=-5.1),
        vote("pi-5", 0.0, 0.0, 1.0, log_weight=-math.inf),
    ]
    outcomes = {aggregate(order, STRATEGIES[name]).tobytes() for order in itertools.permutations(votes)}
    assert len(outcomes) == 1


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_strategy_depends_on_the_order_of_its_ballots(name: str) -> None:
    told = ballots(
        np.vstack([THREE, np.eye(3)]),
        np.array([0.0, -1.0, np.nan, -np.inf, 2.0, -3.0]),
        np.array([[7.0, 1, 2], [np.nan] * 3, [0, 5, 9], [4, 4, 4], [0, 0, 8], [np.nan] * 3]),
    )
    turned = Ballots(*(each[::-1] for each in told))
    np.testing.assert_allclose(STRATEGIES[name](turned), STRATEGIES[name](told), rtol=1e-6, atol=1e-12)
