"""Liars: what each attack does to votes, and that it touches no honest member's."""

import numpy as np
import pytest

from edge_fi.messages import Array
from firmware_sim import liars
from firmware_sim.stream import Stream


@pytest.fixture
def votes() -> Array:
    """Of 5 members, 40 queries and 6 classes."""
    return np.random.default_rng(0).dirichlet(np.ones(6), size=(5, 40))


@pytest.mark.parametrize("classes", [2, 3, 10, 26])
def test_a_derangement_leaves_no_class_in_its_place(classes: int) -> None:
    for seed in range(20):
        order = liars.derangement(classes, Stream(str(seed)))
        assert sorted(order) == list(range(classes))
        assert all(order[label] != label for label in range(classes))


@pytest.mark.parametrize("name", liars.ATTACKS)
def test_an_attack_changes_the_liars_votes_alone_and_leaves_the_given_as_they_were(
    name: str, votes: Array
) -> None:
    before = votes.copy()
    lies = liars.ATTACKS[name](votes, [1, 3], Stream("dice"))
    np.testing.assert_array_equal(votes, before)
    np.testing.assert_array_equal(lies[[0, 2, 4]], votes[[0, 2, 4]])
    assert (lies[[1, 3]].argmax(axis=2) != votes[[1, 3]].argmax(axis=2)).any(axis=1).all()
    np.testing.assert_allclose(lies.sum(axis=2), 1)


@pytest.mark.parametrize("name", liars.ATTACKS)
def test_an_attack_is_a_function_of_its_seed(name: str, votes: Array) -> None:
    first, second, third = (liars.ATTACKS[name](votes, [1, 3], Stream(seed)) for seed in ("a", "a", "b"))
    np.testing.assert_array_equal(first, second)
    assert name in ("copy",) or (first != third).any()


def test_a_flipped_vote_never_names_the_class_that_its_member_believes_in(votes: Array) -> None:
    lies = liars.flip(votes, [1, 3], Stream("dice"))
    assert (lies[[1, 3]].argmax(axis=2) != votes[[1, 3]].argmax(axis=2)).all()


def test_colluders_flip_alike_and_a_chorus_speaks_with_one_voice(votes: Array) -> None:
    same = votes.copy()
    same[3] = votes[1]
    lies = liars.collude(same, [1, 3], Stream("dice"))
    np.testing.assert_array_equal(lies[1], lies[3])
    voices = liars.chorus(votes, [1, 3], Stream("dice"))
    np.testing.assert_array_equal(voices[1], voices[3])


def test_a_swap_is_of_two_classes(votes: Array) -> None:
    lies = liars.swap(votes, [2], Stream("dice"))
    changed = (lies[2] != votes[2]).any(axis=0)
    assert changed.sum() == 2
    one, other = np.flatnonzero(changed)
    np.testing.assert_array_equal(lies[2][:, one], votes[2][:, other])


def test_a_constant_liar_says_one_class_and_a_guesser_many(votes: Array) -> None:
    assert len(set(liars.constant(votes, [0], Stream("dice"))[0].argmax(axis=1))) == 1
    assert len(set(liars.guess(votes, [0], Stream("dice"))[0].argmax(axis=1))) > 3


def test_a_copycat_echoes_an_honest_member(votes: Array) -> None:
    lies = liars.copy(votes, [0, 1], Stream("dice"))
    for liar in (0, 1):
        assert any((lies[liar] == votes[honest]).all() for honest in (2, 3, 4))


def test_who_claims_most_claims_it_always() -> None:
    honest = np.full((3, 4), -2.0)
    np.testing.assert_array_equal(liars.claim_most(honest, [1], 0.0), [[-2.0] * 4, [0.0] * 4, [-2.0] * 4])
    assert honest.max() == -2.0


def test_a_sleeper_is_honest_until_it_turns(votes: Array) -> None:
    lies = liars.flip(votes, [2], Stream("dice"))
    both = liars.asleep(votes, lies, turn=30)
    np.testing.assert_array_equal(both[:, :30], votes[:, :30])
    np.testing.assert_array_equal(both[:, 30:], lies[:, 30:])


def test_a_class_that_one_member_alone_knows_is_given_by_no_other(votes: Array) -> None:
    certain = votes.copy()
    certain[4, 0] = np.eye(6)[2]
    alone = liars.leave_alone(certain, 1, 2)
    np.testing.assert_array_equal(alone[1], certain[1])
    assert alone[[0, 2, 3, 4]][:, :, 2].max() == 0
    np.testing.assert_allclose(alone.sum(axis=2), 1)
    np.testing.assert_allclose(alone[4, 0], [0.2, 0.2, 0, 0.2, 0.2, 0.2])
