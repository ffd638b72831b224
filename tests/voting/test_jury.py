"""The jury on a made fleet: 10 members, 5 classes, each member at home in 2 of them."""

import struct
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_fi.messages import Array
from edge_fi.voting.jury import (
    ABSENT,
    Jury,
    JuryPolicy,
    agreement,
    cap_newcomers,
    cap_shares,
    share,
    weigh_claims,
)

CLASSES = 5
MEMBERS = list(range(20, 30))  # roster indices are no positions
MOST = 4.0  # nats: the highest claim

Round = tuple[int, Array, Array]
Lie = Callable[[Array, Array, int], None]


def rounds(count: int, *, seed: int = 0, homes: int = 2) -> Iterator[Round]:
    """Label, votes (10, 5) and log weights (10,). A member is nearly always right at home and claims it;
    elsewhere it says one of its home classes and claims little."""
    random = np.random.default_rng(seed)
    home = [[(k + i) % CLASSES for i in range(homes)] for k in range(10)]
    for _ in range(count):
        label = int(random.integers(CLASSES))
        said = [
            label if label in mine and random.random() < 0.95 else int(random.choice(mine)) for mine in home
        ]
        claims = [3.0 if label in mine else -3.0 for mine in home]
        yield label, np.eye(CLASSES)[said] * 0.9 + 0.02, np.array(claims) + random.normal(0, 0.5, 10)


def shifted(*liars: int, claim: float | None = None) -> Lie:
    """These positions name the class after the one they believe in, all in the same way."""

    def lie(votes: Array, claims: Array, at: int) -> None:
        for liar in liars:
            votes[liar] = np.roll(votes[liar], 1)
            if claim is not None:
                claims[liar] = claim

    return lie


def hear(jury: Jury, count: int, lie: Lie | None = None, *, seed: int = 0) -> float:
    """Play rounds to a jury; the accuracy of what its weights let a fleet say."""
    right = 0
    for at, (label, votes, claims) in enumerate(rounds(count, seed=seed)):
        if lie is not None:
            lie(votes, claims, at)
        weights = share(jury.weigh(MEMBERS, claims)[None], np.ones((1, 10), dtype=bool))
        right += (weights @ votes).argmax() == label
        jury.note(MEMBERS, votes, claims)
    return right / count


def check(jury: Jury, count: int, lie: Lie | None = None, *, label: int | None = None) -> None:
    """Ask canaries, of one class or of any."""
    asked = (truth for truth in rounds(1000, seed=77) if label is None or truth[0] == label)
    for at, (truth, votes, claims) in zip(range(count), asked, strict=False):
        if lie is not None:
            lie(votes, claims, at)
        jury.note_truth(MEMBERS, votes, claims, truth)


# Shares, claims, agreement


def test_a_share_is_what_a_linear_pool_would_give() -> None:
    logs = np.log([[1.0, 3.0, 4.0], [1.0, 3.0, 4.0]])
    present = np.array([[True, True, True], [True, True, False]])
    np.testing.assert_allclose(share(logs, present), [[0.125, 0.375, 0.5], [0.25, 0.75, 0]], rtol=1e-12)


def test_a_round_without_votes_has_no_shares() -> None:
    np.testing.assert_array_equal(share(np.zeros((1, 2)), np.zeros((1, 2), dtype=bool)), [[0, 0]])


def history(*columns: list[tuple[int, float]]) -> np.ndarray:
    """A history of (label, log weight), one list a member."""
    return np.array(
        [list(row) for row in zip(*columns, strict=True)], dtype=[("label", "<i2"), ("log_weight", "<f4")]
    )


def test_a_claim_weighs_what_its_rank_in_the_members_own_history_says() -> None:
    weights = weigh_claims(history([(0, -9.0), (0, 5.0)], [(0, 0.1), (0, 0.2)]))
    np.testing.assert_allclose(weights, np.array([[0.25, 0.25], [0.75, 0.75]]) ** 3)


def test_who_always_claims_the_most_claims_nothing() -> None:
    weights = weigh_claims(history([(0, 9.0)] * 4))
    np.testing.assert_allclose(weights, 0.5**3)


def test_who_did_not_answer_weighs_nothing() -> None:
    weights = weigh_claims(history([(ABSENT, 0.0), (1, 2.0)], [(ABSENT, 0.0)] * 2))
    np.testing.assert_allclose(weights, np.array([[0.0, 0.0], [0.125, 0.0]]))


def test_agreement_lacks_the_member_and_its_best_voucher_and_chance() -> None:
    # Two classes in turn. 0 and 1 vouch for each other, 2 and 3 and 4 for one another.
    labels = np.array([[0, 0, 1, 1, 1], [1, 1, 0, 0, 0]])
    found = agreement(labels, np.ones((2, 5)), np.ones(5, dtype=bool))
    # Without 0 and 1 nobody agrees with 0: 0, less the 1/2 of labels in other rounds. Without 2 and 3:
    # one of three agrees with 2.
    np.testing.assert_allclose(found.score, [-1 / 2, -1 / 2, 1 / 3 - 1 / 2, 1 / 3 - 1 / 2, 1 / 3 - 1 / 2])
    np.testing.assert_allclose(found.rounds, 2)
    np.testing.assert_allclose(found.spread, [1 / 2, 1 / 2, 1 / 6, 1 / 6, 1 / 6])


def test_who_is_not_in_the_pool_neither_vouches_nor_counts() -> None:
    labels = np.array([[0, 0, 0, 1], [1, 1, 1, 0]])
    found = agreement(labels, np.ones((2, 4)), np.array([True, True, True, False]))
    np.testing.assert_allclose(found.score, [1 / 2, 1 / 2, 1 / 2, np.inf])


def test_a_constant_answer_agrees_by_chance_alone() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(random.integers(3, size=(200, 1)), 5, axis=1)
    labels[:, 0] = 1
    found = agreement(labels, np.ones((200, 5)), np.ones(5, dtype=bool))
    assert abs(found.score[0]) < 1e-9
    assert found.score[1:].min() > 0.3


def test_a_mean_share_above_the_cap_is_lowered_to_it_and_no_other() -> None:
    logs = np.tile(np.log([8.0, 1.0, 1.0]), (4, 1))
    lowered = cap_shares(logs, np.ones((4, 3), dtype=bool), 0.5)
    np.testing.assert_allclose(lowered, [np.log(4), 0, 0], atol=2e-3)


# Newcomers


def test_a_newcomers_share_is_cut_to_the_cap() -> None:
    weights = cap_newcomers(np.array([9.0, 2.0, 1.0]), np.array([True, False, False]), 0.25)
    np.testing.assert_allclose(weights, [1, 2, 1])


def test_newcomers_that_exceed_the_cap_only_once_others_are_cut_are_cut_too() -> None:
    weights = cap_newcomers(np.array([90.0, 3.0, 4.0]), np.array([True, True, False]), 0.3)
    np.testing.assert_allclose(weights / weights.sum(), [0.3, 0.3, 0.4])


@pytest.mark.parametrize(
    ("weights", "is_new"), [([9.0, 3.0, 2.0], [True, True, False]), ([9.0, 3.0], [True, True])]
)
def test_newcomers_that_cannot_all_be_held_below_the_cap_are_made_equal(
    weights: list[float], is_new: list[bool]
) -> None:
    capped = cap_newcomers(np.array(weights), np.array(is_new), 0.5 if len(weights) == 3 else 0.2)
    assert capped[0] == capped[1] or capped[0] <= 0.5 * capped.sum() + 1e-9


def test_who_joins_an_old_fleet_cannot_take_a_round() -> None:
    jury = Jury(CLASSES)
    hear(jury, 60)
    _, _, claims = next(rounds(1))
    members = [*MEMBERS[1:], 99]
    logs = jury.weigh(members, np.append(claims[1:], 50.0))
    assert share(logs[None], np.ones((1, 10), dtype=bool))[0, -1] == pytest.approx(0.35)


def test_a_newcomer_of_little_weight_keeps_it() -> None:
    jury = Jury(CLASSES)
    hear(jury, 60)
    members = [*MEMBERS[1:], 99]
    claims = np.append(np.zeros(9), -5.0)
    np.testing.assert_allclose(jury.weigh(members, claims), claims, atol=1e-9)


def test_a_newcomer_beside_an_expelled_member_and_one_of_no_weight() -> None:
    jury = Jury(CLASSES)
    hear(jury, 100, shifted(0, claim=MOST))
    logs = jury.weigh([*MEMBERS, 99], np.array([0.0] * 10 + [-3000.0]))
    assert logs[0] == -np.inf and np.isneginf(logs[10])
    np.testing.assert_allclose(logs[1:10], 0, atol=1e-9)


def test_when_a_task_begins_all_are_new_and_none_is_held() -> None:
    claims = np.arange(10.0)
    np.testing.assert_array_equal(Jury(CLASSES).weigh(MEMBERS, claims), claims)


# Verdicts


@pytest.mark.parametrize("seed", range(3))
def test_without_liars_nothing_changes(seed: int) -> None:
    jury = Jury(CLASSES)
    hear(jury, 400, seed=seed)
    assert jury.expelled == frozenset()
    assert jury.suspects() == {}
    claims = np.linspace(-8, 0, 10)
    np.testing.assert_array_equal(jury.weigh(MEMBERS, claims), claims)


@pytest.mark.parametrize("liars", [(0,), (2, 7), (1, 4, 9)])
@pytest.mark.parametrize("claim", [MOST, None])
def test_liars_are_expelled_and_only_they(liars: tuple[int, ...], claim: float | None) -> None:
    jury = Jury(CLASSES)
    hear(jury, 200, shifted(*liars, claim=claim))
    assert jury.expelled == {MEMBERS[liar] for liar in liars}
    logs = jury.weigh(MEMBERS, np.zeros(10))
    assert [place for place in range(10) if logs[place] == -np.inf] == list(liars)


def test_two_liars_that_claim_the_most_cost_little() -> None:
    jury = Jury(CLASSES)
    hear(jury, 50, shifted(3, 6, claim=MOST))
    assert hear(jury, 200, shifted(3, 6, claim=MOST), seed=1) > 0.9


def test_an_expelled_member_that_becomes_honest_comes_back() -> None:
    jury = Jury(CLASSES)
    hear(jury, 100, shifted(4))
    assert jury.expelled == {MEMBERS[4]}
    hear(jury, 300, seed=1)
    assert jury.expelled == frozenset()


@pytest.mark.parametrize("claim", [MOST, None])
def test_a_sleeper_is_expelled_within_50_lies(claim: float | None) -> None:
    jury = Jury(CLASSES)
    hear(jury, 300)
    assert jury.expelled == frozenset()
    hear(jury, 50, shifted(5, claim=claim), seed=1)
    assert jury.expelled == {MEMBERS[5]}


def test_who_begins_to_claim_the_most_is_lowered_at_the_next_judgement() -> None:
    def claim_most(votes: Array, claims: Array, at: int) -> None:
        claims[5] = 30.0

    jury = Jury(CLASSES)
    hear(jury, 300)
    hear(jury, 10, claim_most, seed=1)
    logs = jury.weigh(MEMBERS, np.zeros(10))
    assert logs[5] < -7 and logs[:5].max() == 0
    assert MEMBERS[5] in jury.suspects()


def test_never_more_than_half_are_expelled() -> None:
    def guess(votes: Array, claims: Array, at: int) -> None:
        votes[:] = np.eye(CLASSES)[np.random.default_rng(at).integers(CLASSES, size=10)]

    jury = Jury(CLASSES)
    hear(jury, 100, guess)
    assert len(jury.expelled) <= 5
    check(jury, 60, guess)
    jury.judge()
    assert len(jury.expelled) == 5


def test_a_round_of_the_expelled_alone_is_left_as_it_is() -> None:
    jury = Jury(CLASSES)
    hear(jury, 100, shifted(0, 3))
    claims = np.array([-1.0, -2.0])
    np.testing.assert_array_equal(jury.weigh([20, 23], claims), claims)


def test_members_that_answer_now_and_then_are_judged_by_what_they_said() -> None:
    jury = Jury(CLASSES)
    lie = shifted(0)
    for at, (_, votes, claims) in enumerate(rounds(400)):
        lie(votes, claims, at)
        here = [place for place in range(10) if (at + place) % 3]
        jury.note([MEMBERS[place] for place in here], votes[here], claims[here])
    assert jury.expelled == {MEMBERS[0]}


def test_a_single_member_is_never_expelled() -> None:
    jury = Jury(CLASSES)
    for _, votes, claims in rounds(100):
        jury.note([7], votes[:1], claims[:1])
    assert jury.expelled == frozenset()
    np.testing.assert_allclose(jury.weigh([7], np.array([-1.0])), [-1.0])


def test_a_policy_says_when_the_jury_judges() -> None:
    jury = Jury(CLASSES, JuryPolicy(every=50))
    hear(jury, 49, shifted(0))
    assert jury.expelled == frozenset()
    hear(jury, 1, shifted(0))
    assert jury.expelled == {MEMBERS[0]}


# Canaries


def lone_holder(votes: Array, claims: Array, at: int) -> None:
    """Member 0 alone knows class 0, says nothing else, and claims to know nothing else. The other three
    that had it say what else they know, and those without any knowledge say anything."""
    is_its = votes[5].argmax() == 0 and claims[5] > 0
    for member, other in ((4, 4), (5, 1), (9, 4)):
        if votes[member].argmax() == 0:
            votes[member] = np.eye(CLASSES)[other] * 0.9 + 0.02
            claims[member] = -3.0
    votes[0] = np.eye(CLASSES)[0]
    claims[0] = 5.0 if is_its else -5.0


def test_who_alone_holds_a_class_looks_like_a_liar_until_canaries_of_it_come() -> None:
    jury = Jury(CLASSES)
    hear(jury, 300, lone_holder)
    assert jury.expelled == {MEMBERS[0]}
    assert jury.suspects()[MEMBERS[0]] == 0
    check(jury, 6, lone_holder, label=0)
    jury.judge()
    assert jury.expelled == frozenset()
    assert MEMBERS[0] not in jury.suspects()


def test_canaries_that_a_member_does_not_claim_to_know_do_not_count() -> None:
    jury = Jury(CLASSES)
    hear(jury, 300, lone_holder)
    check(jury, 30, lone_holder, label=3)
    jury.judge()
    assert jury.expelled == {MEMBERS[0]}
    assert MEMBERS[0] in jury.suspects()


def test_canaries_expel_a_liar_without_any_judgement_by_others() -> None:
    jury = Jury(CLASSES, JuryPolicy(least=-9.0))
    hear(jury, 50, shifted(8))
    assert jury.expelled == frozenset()
    check(jury, 60, shifted(8))
    jury.judge()
    assert jury.expelled == {MEMBERS[8]}
    assert jury.suspects() == {}


def test_what_canaries_showed_fades() -> None:
    jury = Jury(CLASSES, JuryPolicy(history=100))
    hear(jury, 100, lone_holder)
    check(jury, 8, lone_holder, label=0)
    jury.judge()
    assert jury.expelled == frozenset()
    hear(jury, 300, lone_holder)
    assert jury.expelled == {MEMBERS[0]}


def test_the_highest_claim_is_the_highest_in_any_precision() -> None:
    # 0.7 is less in 32 bits than in 64, and 0.1 is more.
    for claim in (0.1, 0.7):
        jury = Jury(CLASSES, JuryPolicy(least=-9.0))
        hear(jury, 20, shifted(8, claim=claim))
        check(jury, 40, shifted(8, claim=claim))
        jury.judge()
        assert jury.expelled == {MEMBERS[8]}


def test_canaries_do_not_excuse_who_has_turned() -> None:
    jury = Jury(CLASSES)
    hear(jury, 300)
    check(jury, 40)
    hear(jury, 60, shifted(5), seed=1)
    assert jury.expelled == {MEMBERS[5]}


def test_a_canary_passes_over_strangers() -> None:
    jury = Jury(CLASSES)
    check(jury, 1)
    assert jury.suspects() == {}


# Leaving, and restarts


def test_who_leaves_is_forgotten() -> None:
    jury = Jury(CLASSES)
    hear(jury, 100, shifted(4))
    jury.forget(MEMBERS[4])
    jury.forget(99)
    assert jury.expelled == frozenset()
    jury.judge()
    assert jury.expelled == frozenset()
    claims = np.zeros(10)
    np.testing.assert_array_equal(jury.weigh(MEMBERS, claims), claims)


def test_the_others_keep_their_places_when_one_leaves() -> None:
    jury = Jury(CLASSES)
    hear(jury, 100, shifted(4))
    jury.forget(MEMBERS[0])
    assert jury.expelled == {MEMBERS[4]}
    jury.judge()
    assert jury.expelled == {MEMBERS[4]}


def test_a_jury_without_members_judges_nobody() -> None:
    jury = Jury(CLASSES)
    jury.judge()
    jury.note(MEMBERS[:1], np.eye(CLASSES)[:1], np.zeros(1))
    jury.forget(MEMBERS[0])
    jury.judge()
    assert jury.expelled == frozenset() and jury.suspects() == {}


def test_a_jury_survives_a_restart() -> None:
    jury = Jury(CLASSES)
    hear(jury, 310, lone_holder)
    check(jury, 6, lone_holder, label=0)
    jury.judge()
    again = Jury.restore(jury.snapshot(), CLASSES)
    assert again.snapshot() == jury.snapshot()
    for number in (1, 2):
        hear(jury, 55, shifted(number), seed=number)
        hear(again, 55, shifted(number), seed=number)
    assert again.expelled == jury.expelled
    assert again.snapshot() == jury.snapshot()
    claims = np.linspace(-8, 0, 10)
    np.testing.assert_array_equal(again.weigh(MEMBERS, claims), jury.weigh(MEMBERS, claims))


@pytest.mark.parametrize("jury", [Jury(CLASSES), Jury(CLASSES, JuryPolicy(history=10))])
def test_an_empty_jury_survives_a_restart(jury: Jury) -> None:
    assert Jury.restore(jury.snapshot(), CLASSES, jury.policy).snapshot() == jury.snapshot()


def test_a_snapshot_is_small() -> None:
    jury = Jury(10)
    hear(jury, 1)
    assert len(jury.snapshot()) == 11 + 10 * 10 + 300 * 10 * 6


SNAPSHOT_OF = Jury(CLASSES, JuryPolicy(history=12))
for _, some_votes, some_claims in rounds(12):
    SNAPSHOT_OF.note(MEMBERS, some_votes, some_claims)
GOOD = SNAPSHOT_OF.snapshot()
EMPTY = Jury(CLASSES, SNAPSHOT_OF.policy).snapshot()


def changed(at: int, form: str, value: float) -> bytes:
    """The snapshot with one number of it replaced."""
    data = bytearray(GOOD)
    struct.pack_into(form, data, at, value)
    return bytes(data)


@pytest.mark.parametrize(
    "snapshot",
    [
        b"",
        GOOD[:10],
        GOOD[:40],
        GOOD[:-1],
        GOOD[:-6],
        GOOD + b"\0" * 6,
        changed(0, "<B", 2),
        changed(1, "<H", 6),
        changed(3, "<H", 0),
        changed(3, "<H", 6),
        changed(9, "<H", 0),
        changed(9, "<H", 65535),
        changed(11, "<H", 21),  # two members of one index
        changed(13, "<f", -1.0),
        changed(13, "<f", 3.0),
        changed(17, "<f", float("inf")),
        changed(17, "<f", float("nan")),
        changed(111, "<h", CLASSES),
        changed(111, "<h", -2),
        changed(113, "<f", float("nan")),
        changed(113, "<f", float("inf")),
    ],
)
def test_bytes_that_are_no_snapshot_of_this_jury_make_an_empty_one(snapshot: bytes) -> None:
    assert Jury.restore(GOOD, CLASSES, SNAPSHOT_OF.policy).snapshot() == GOOD
    assert Jury.restore(snapshot, CLASSES, SNAPSHOT_OF.policy).snapshot() == EMPTY


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=8))
@settings(max_examples=40, deadline=None)
def test_a_jury_of_damaged_bytes_still_works(damage: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for at, value in damage:
        data[at] = value
    jury = Jury.restore(bytes(data), CLASSES, SNAPSHOT_OF.policy)
    _, votes, claims = next(rounds(1))
    assert not np.isnan(jury.weigh(MEMBERS, claims)).any()
    for _ in range(10):
        jury.note(MEMBERS, votes, claims)
    jury.suspects()


def test_of_many_members_those_that_say_the_same_are_looked_at_as_vouchers() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 200)
    labels = np.where(rng.random((200, 20)) < 0.7, truth[:, None], rng.integers(0, 5, (200, 20)))
    labels[:, :2] = (truth[:, None] + 1) % 5  # a pair that vouch for each other
    found = agreement(labels, np.ones((200, 20)), np.ones(20, dtype=bool))
    assert found.score[:2].max() < 0 < found.score[2:].min()
