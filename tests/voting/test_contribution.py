"""Contribution: Shapley values worked out by hand, and what free riders earn."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_fi.messages import Array
from edge_fi.voting import contribution
from edge_fi.voting.contribution import (
    LEAST_AGREEMENT,
    Contribution,
    contributions,
    correlated_agreement,
    labelled_contributions,
)

ROUNDS, MEMBERS, CLASSES = 400, 6, 4


def history(
    *, rounds: int = ROUNDS, members: int = MEMBERS, seed: int = 0
) -> tuple[Array, Array, NDArray[np.int64]]:
    """Votes, log weights and truth of members that each know two classes best and err at different rates."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, CLASSES, rounds)
    knows = np.arange(members)[None] % CLASSES == truth[:, None]
    knows |= (np.arange(members)[None] + 1) % CLASSES == truth[:, None]
    is_right = random.random((rounds, members)) < np.where(knows, np.linspace(0.95, 0.7, members), 0.3)
    said = np.where(is_right, truth[:, None], random.integers(0, CLASSES, (rounds, members)))
    votes = 0.1 / CLASSES + 0.9 * np.eye(CLASSES)[said]
    return votes, 2.0 * knows + random.normal(0, 0.3, (rounds, members)), truth


def with_member(votes: Array, log_weights: Array, own: Array, claims: Array) -> tuple[Array, Array]:
    """The same history with one member more, the last."""
    return np.concatenate([votes, own[:, None]], axis=1), np.column_stack([log_weights, claims])


def values(report: tuple[Contribution, ...]) -> Array:
    """The value of each member."""
    return np.array([member.value for member in report])


def riders() -> dict[str, Array]:
    """Votes of members that never look at the input."""
    random = np.random.default_rng(1)
    constant = np.tile(np.eye(CLASSES)[2], (ROUNDS, 1))
    prior = np.tile([0.2, 0.3, 0.4, 0.1], (ROUNDS, 1))
    dice = np.eye(CLASSES)[random.integers(0, CLASSES, ROUNDS)]
    return {"constant": constant, "prior": prior, "random": dice}


# By hand


def test_two_members_share_what_they_earn_together() -> None:
    # Class 0 is true in 3 of 4 rounds, so nobody earns 3/4. The first member is always right, the second
    # always says 1 (right in 1 of 4) and weighs more: v = 0.75; 1, 0.25; together 0.25.
    votes = np.eye(2)[[[0, 1], [0, 1], [0, 1], [1, 1]]]
    log_weights = np.array([[0.0, 1.0]] * 4)
    report = labelled_contributions(votes, log_weights, np.array([0, 0, 0, 1]))
    # First: ((1 - 0.75) + (0.25 - 0.25)) / 2. Second: ((0.25 - 0.75) + (0.25 - 1)) / 2.
    np.testing.assert_allclose(values(report), [12.5, -62.5])
    assert [member.share for member in report] == [1.0, 0.0]


def test_values_are_the_mean_gain_over_all_orders_of_joining() -> None:
    votes, log_weights, truth = history(rounds=30, members=4)
    commonest = np.bincount(truth).argmax()

    def earned(members: tuple[int, ...]) -> float:
        if not members:
            return float((truth == commonest).mean())
        pooled = (votes * np.exp(log_weights)[:, :, None])[:, list(members)].sum(axis=1)
        return float((pooled.argmax(axis=1) == truth).mean())

    expected = np.zeros(4)
    for order in itertools.permutations(range(4)):
        for place, member in enumerate(order):
            gain = earned(order[: place + 1]) - earned(order[:place])
            expected[member] += 100 * gain / math.factorial(4)
    np.testing.assert_allclose(values(labelled_contributions(votes, log_weights, truth)), expected)


def test_values_sum_to_what_the_whole_pool_gains() -> None:
    votes, log_weights, truth = history()
    pooled = (votes * np.exp(log_weights)[:, :, None]).sum(axis=1)
    gain = (pooled.argmax(axis=1) == truth).mean() - (truth == np.bincount(truth).argmax()).mean()
    total = values(labelled_contributions(votes, log_weights, truth)).sum()
    np.testing.assert_allclose(total, 100 * gain)


def test_without_labels_a_first_choice_earns_its_probability_in_the_consensus() -> None:
    votes, log_weights, _ = history()
    pooled = (votes * np.exp(log_weights)[:, :, None]).sum(axis=1)
    beliefs = pooled / pooled.sum(axis=1, keepdims=True)
    gain = beliefs.max(axis=1).mean() - beliefs.mean(axis=0).max()
    report = contributions(votes, log_weights)
    assert min(member.agreement for member in report) > LEAST_AGREEMENT
    np.testing.assert_allclose(values(report).sum(), 100 * gain)


def test_the_error_is_that_of_batch_means() -> None:
    # One member that always says 1, true in the first 30 of 40 rounds.
    votes = np.tile(np.eye(2)[1], (40, 1, 1))
    labels = np.repeat([1, 0], [30, 10])
    (member,) = labelled_contributions(votes, np.zeros((40, 1)), labels)
    # The commonest class is 1, which the member says too: no gain, in any batch.
    assert (member.value, member.error) == (0.0, 0.0)
    (member,) = labelled_contributions(1 - votes, np.zeros((40, 1)), labels)
    # Says 0: 30 batches at -100 points and 10 at 100.
    assert member.value == -50
    assert member.error == pytest.approx(np.std([-100] * 30 + [100] * 10, ddof=1) / np.sqrt(40))


def test_shares_are_proportional_to_positive_values() -> None:
    votes, log_weights, _ = history()
    report = contributions(votes, log_weights)
    gains = np.maximum(values(report), 0)
    np.testing.assert_allclose([member.share for member in report], gains / gains.sum())


# Against the truth


def test_values_without_labels_follow_those_with_labels() -> None:
    votes, log_weights, truth = history(rounds=1500)
    unlabelled = values(contributions(votes, log_weights))
    labelled = values(labelled_contributions(votes, log_weights, truth))
    assert np.corrcoef(unlabelled, labelled)[0, 1] > 0.8


# Free riders


@pytest.mark.parametrize("kind", riders())
def test_a_free_rider_earns_nothing_whatever_it_claims(kind: str) -> None:
    votes, log_weights, _ = history()
    claims = np.full(ROUNDS, 20.0)
    report = contributions(*with_member(votes, log_weights, riders()[kind], claims))
    assert (report[-1].value, report[-1].error, report[-1].share) == (0, 0, 0)
    assert report[-1].agreement < LEAST_AGREEMENT


@pytest.mark.parametrize("kind", riders())
def test_a_free_rider_does_not_change_what_the_others_earn(kind: str) -> None:
    votes, log_weights, _ = history()
    honest = contributions(votes, log_weights)
    among = contributions(*with_member(votes, log_weights, riders()[kind], np.full(ROUNDS, 20.0)))
    np.testing.assert_allclose(values(among)[:-1], values(honest), rtol=1e-9)


def test_two_that_say_the_same_at_random_cannot_vouch_for_each_other() -> None:
    votes, log_weights, _ = history()
    for _ in range(2):
        votes, log_weights = with_member(votes, log_weights, riders()["random"], np.full(ROUNDS, 20.0))
    assert values(contributions(votes, log_weights))[-2:].tolist() == [0, 0]


def test_with_the_truth_a_constant_that_claims_most_does_harm() -> None:
    votes, log_weights, truth = history()
    among = with_member(votes, log_weights, riders()["constant"], np.full(ROUNDS, 20.0))
    report = labelled_contributions(*among, truth)
    assert report[-1].value < -20
    assert report[-1].share == 0


@pytest.mark.parametrize("kind", riders())
def test_a_free_rider_earns_nothing_by_the_gate_of_another(kind: str) -> None:
    votes, log_weights, _ = history()
    report = contributions(*with_member(votes, log_weights, riders()[kind], log_weights[:, 0]))
    assert (report[-1].value, report[-1].share) == (0, 0)


def test_a_member_of_one_class_may_speak_by_its_familiarity() -> None:
    votes, log_weights, truth = history()
    gate = np.where(truth == 2, 3.0, -3.0)
    among = with_member(votes, log_weights, riders()["constant"], gate)
    assert contributions(*among)[-1].agreement == 0
    report = contributions(*among, by_familiarity=True)
    assert report[-1].agreement > LEAST_AGREEMENT
    assert report[-1].value > 0


@pytest.mark.parametrize("kind", riders())
def test_a_free_rider_that_claims_always_the_most_has_no_familiarity_to_speak_by(kind: str) -> None:
    votes, log_weights, _ = history()
    among = with_member(votes, log_weights, riders()[kind], np.full(ROUNDS, 20.0))
    assert correlated_agreement(*among, by_familiarity=True)[-1] < LEAST_AGREEMENT


def test_agreement_does_not_depend_on_the_scale_of_claims() -> None:
    votes, log_weights, _ = history()
    louder = log_weights.copy()
    louder[:, 0] = 3 * louder[:, 0] + 50
    np.testing.assert_allclose(correlated_agreement(votes, louder), correlated_agreement(votes, log_weights))


def test_of_two_each_vouches_for_the_other() -> None:
    votes, log_weights, _ = history(members=2)
    assert (correlated_agreement(votes, log_weights) > LEAST_AGREEMENT).all()


def test_a_lone_member_has_no_peer_to_agree_with() -> None:
    votes, log_weights, _ = history(members=1)
    assert contributions(votes, log_weights) == (
        Contribution(value=0.0, error=np.inf, agreement=0.0, share=1.0),
    )


def test_nothing_is_known_of_a_short_history() -> None:
    votes, log_weights, _ = history(rounds=39, members=4)
    nothing = Contribution(value=0.0, error=np.inf, agreement=0.0, share=0.25)
    assert contributions(votes, log_weights) == (nothing,) * 4
    assert contributions(votes[:0], log_weights[:0]) == (nothing,) * 4


def test_only_the_commonest_classes_are_compared() -> None:
    votes, log_weights, _ = history()
    wide = np.concatenate([np.zeros((ROUNDS, MEMBERS, 70)), votes], axis=2)
    expected = correlated_agreement(votes, log_weights)
    np.testing.assert_allclose(correlated_agreement(wide, log_weights), expected)


# Absence


def test_who_is_absent_from_a_round_earns_nothing_in_it() -> None:
    votes, log_weights, truth = history(rounds=60, members=3)
    absent, silent = votes.copy(), log_weights.copy()
    absent[:, 1] = np.nan
    silent[:, 1] = np.nan
    report = labelled_contributions(absent, silent, truth)
    without = labelled_contributions(votes[:, [0, 2]], log_weights[:, [0, 2]], truth)
    np.testing.assert_allclose(values(report), np.insert(values(without), 1, 0.0), atol=1e-12)
    unfamiliar = log_weights.copy()
    unfamiliar[:, 1] = -np.inf
    assert values(labelled_contributions(votes, unfamiliar, truth)).tolist() == values(report).tolist()


def test_a_member_that_is_familiar_with_nothing_earns_nothing_and_vouches_for_nobody() -> None:
    votes, log_weights, _ = history(members=2)
    log_weights[:, 1] = -np.inf
    report = contributions(votes, log_weights)
    assert report[1].value == 0
    assert report[0].agreement == 0
    assert report[1].agreement > LEAST_AGREEMENT


def test_a_round_without_an_answer_is_no_round() -> None:
    votes, log_weights, _ = history()
    gap = np.full((7, MEMBERS, CLASSES), np.nan)
    some = contributions(np.concatenate([votes, gap]), np.vstack([log_weights, np.zeros((7, MEMBERS))]))
    np.testing.assert_allclose(values(some), values(contributions(votes, log_weights)))


def test_votes_may_be_missing_at_random() -> None:
    votes, log_weights, _ = history(rounds=1500)
    whole = values(contributions(votes, log_weights))
    votes[np.random.default_rng(2).random((1500, MEMBERS)) < 0.3] = np.nan
    assert np.corrcoef(values(contributions(votes, log_weights)), whole)[0, 1] > 0.8


# Sampled orders


def test_sampled_orders_come_near_to_all_coalitions(monkeypatch: pytest.MonkeyPatch) -> None:
    votes, log_weights, truth = history()
    exact = labelled_contributions(votes, log_weights, truth)
    monkeypatch.setattr(contribution, "MOST_EXACT", MEMBERS - 1)
    sampled = labelled_contributions(votes, log_weights, truth)
    for one, other in zip(exact, sampled, strict=True):
        assert abs(one.value - other.value) < one.error
        assert 0.7 < other.error / one.error < 1.4
    np.testing.assert_allclose(values(sampled).sum(), values(exact).sum())


def test_sampled_orders_follow_the_seed() -> None:
    votes, log_weights, _ = history(members=13)
    first = contributions(votes, log_weights, seed=b"a")
    assert contributions(votes, log_weights, seed=b"a") == first
    assert contributions(votes, log_weights, seed=b"b") != first


def test_a_long_history_is_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    votes, log_weights, _ = history()
    whole = contributions(votes, log_weights)
    monkeypatch.setattr(contribution, "_CHUNK_VALUES", 1)
    np.testing.assert_allclose(values(contributions(votes, log_weights)), values(whole))


# Extremes


def test_members_far_less_familiar_than_another_still_have_an_order() -> None:
    # Alone, the last two must follow the heavier of them, though both weigh nothing beside the first.
    votes = np.eye(3)[[[0, 1, 2]]]
    log_weights = np.array([[0.0, -400.0, -500.0]])
    report = labelled_contributions(votes, log_weights, np.array([1]))
    # Class 1 is the commonest, so only the others' errors count; the first always wins, the last seldom.
    # 1 alone errs: -1. 3 joining nobody: -1. 2 joining 3: +1.
    np.testing.assert_allclose(values(report), [-100 * 5 / 6, 100 / 6, -100 / 3])
    assert report[0].error == np.inf


def test_what_is_no_history_is_refused() -> None:
    votes, log_weights, _ = history(rounds=30, members=3)
    with pytest.raises(ValueError, match="do not fit"):
        contributions(votes, log_weights[:, :2])
    with pytest.raises(ValueError, match="do not fit"):
        correlated_agreement(votes[0], log_weights[0])
    for weight in (np.nan, np.inf):
        log_weights[3, 1] = weight
        with pytest.raises(ValueError, match="without a weight"):
            contributions(votes, log_weights)


@pytest.mark.parametrize("labels", [[0] * 29, [0] * 29 + [CLASSES], [-1] + [0] * 29])
def test_labels_that_do_not_fit_are_refused(labels: list[int]) -> None:
    votes, log_weights, _ = history(rounds=30, members=3)
    with pytest.raises(ValueError, match="not one class for each of 30 rounds"):
        labelled_contributions(votes, log_weights, np.array(labels))
