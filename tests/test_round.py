"""A round's accounts: the whole table of transitions, when it is over, and what comes out."""

import itertools
import re
from collections.abc import Mapping

import numpy as np
import pytest

from edge_fi import round as round_module
from edge_fi.errors import ProtocolError
from edge_fi.messages import Array, Fate, Form, Outcome, Status, Vote
from edge_fi.round import TRANSITIONS, Decide, Event, Round, RoundPolicy
from edge_fi.voting.panel import Key, Pooled
from edge_fi.voting.strategy import STRATEGIES, Ballots, Strategy, stack

NAMES = {1: "pi-1", 2: "pi-2", 3: "pi-3", 4: "pi-4"}
EVENTS: tuple[Event, ...] = ("vote", "abstain", "settle", "expire", "revoke")
TABLE: dict[tuple[Fate, str], Fate] = {
    (Fate.ASKED, "vote"): Fate.COUNTED,
    (Fate.ASKED, "abstain"): Fate.DECLINED,
    (Fate.ASKED, "settle"): Fate.SILENCED,
    (Fate.ASKED, "expire"): Fate.MISSING,
    (Fate.MISSING, "vote"): Fate.LATE,
    (Fate.MISSING, "abstain"): Fate.LATE,
    (Fate.SILENCED, "vote"): Fate.LATE,
    (Fate.SILENCED, "abstain"): Fate.LATE,
    (Fate.ASKED, "revoke"): Fate.REVOKED,
    (Fate.COUNTED, "revoke"): Fate.REVOKED,
    (Fate.DECLINED, "revoke"): Fate.REVOKED,
}


def vote(index: int, *probabilities: float, log_weight: float = 0.0) -> Vote:
    """A vote of this member; for class 1 of 3 where nothing else is said."""
    values = np.array(probabilities or (0.25, 0.5, 0.25))
    return Vote(device=NAMES[index], probabilities=values, log_weight=log_weight, form=Form.PROBS_8)


def deciding(strategy: Strategy) -> Decide:
    """Pools by this strategy, and by nothing else."""

    def decide(key: Key, votes: Mapping[int, Vote]) -> Pooled:
        return Pooled(strategy(stack([votes[index] for index in sorted(votes)])))

    return decide


def make_round(
    *,
    asked: tuple[int, ...] = (1, 2, 3),
    awaited: tuple[int, ...] | None = None,
    quorum: int = 1,
    stop_after: int = 0,
    strategy: str = "linear",
) -> Round:
    """A round opened at 1,000 us."""
    policy = RoundPolicy(quorum=quorum, stop_after=stop_after, strategy=strategy)
    awaited = asked if awaited is None else awaited
    return Round(
        seq=9,
        policy=policy,
        asked=asked,
        awaited=awaited,
        opened_us=1000,
        decide=deciding(STRATEGIES[strategy]),
        epoch=5,
    )


def close(its_round: Round) -> Outcome:
    """Close it a quarter of a second after it was opened."""
    return its_round.close(NAMES, now=251_000)


def books(its_round: Round) -> object:
    """All that a refused event must leave alone."""
    return (
        dict(its_round.fates),
        dict(its_round.votes),
        its_round.is_open,
        its_round.is_complete,
        its_round.silent(),
    )


def with_member_1(fate: Fate) -> Round:
    """A round in which member 1 met this fate."""
    its_round = make_round(stop_after=2 if fate is Fate.SILENCED else 0)
    match fate:
        case Fate.COUNTED:
            its_round.add(1, vote(1))
        case Fate.DECLINED:
            its_round.add(1, None)
        case Fate.SILENCED:
            its_round.add(2, vote(2))
            its_round.add(3, vote(3))
            close(its_round)
        case Fate.MISSING | Fate.LATE:
            close(its_round)
        case Fate.REVOKED:
            its_round.revoke(1)
    if fate is Fate.LATE:
        its_round.add(1, vote(1))
    assert its_round.fates[1] is fate
    return its_round


# The table


def test_the_table_is_that_of_the_module_head() -> None:
    documented = set()
    for line in (round_module.__doc__ or "").splitlines():
        rule = re.match(r"    ([A-Z, ]+?)\s+--(.+)-->\s+([A-Z]+)", line)
        if rule:
            befores = rule[1].split(", ") + (["SILENCED"] if "and so from SILENCED" in line else [])
            for before, event in itertools.product(befores, rule[2].split(" | ")):
                documented.add((Fate[before], event, Fate[rule[3]]))
    assert documented == {(before, event, after) for (before, event), after in TABLE.items()}
    assert TRANSITIONS == TABLE


@pytest.mark.parametrize("event", ["vote", "abstain"])
@pytest.mark.parametrize("fate", Fate)
def test_an_answer_is_booked_as_the_table_says_or_refused(fate: Fate, event: str) -> None:
    its_round = with_member_1(fate)
    answer = vote(1) if event == "vote" else None
    expected = TABLE.get((fate, event))
    before = books(its_round)
    if expected is None:
        with pytest.raises(ProtocolError, match=r"^duplicate$"):
            its_round.add(1, answer)
        assert books(its_round) == before
    else:
        assert its_round.add(1, answer) is expected
        assert its_round.fates[1] is expected


OPEN_FATES = [Fate.ASKED, Fate.COUNTED, Fate.DECLINED, Fate.REVOKED]


@pytest.mark.parametrize("fate", OPEN_FATES)
def test_revoking_does_to_a_member_what_the_table_says(fate: Fate) -> None:
    its_round = with_member_1(fate)
    its_round.add(2, vote(2))
    its_round.revoke(1)
    assert its_round.fates[1] is TABLE.get((fate, "revoke"), fate) is Fate.REVOKED
    assert list(its_round.votes) == [2] and its_round.silent() == [3]


@pytest.mark.parametrize("event", ["settle", "expire"])
@pytest.mark.parametrize("fate", OPEN_FATES)
def test_closing_does_to_a_member_what_the_table_says(fate: Fate, event: str) -> None:
    # Settled by the votes of 2 and 3; expired with 2 and 3 still silent.
    its_round = make_round(stop_after=2 if event == "settle" else 0)
    if event == "settle":
        its_round.add(2, vote(2))
        if fate is not Fate.COUNTED:
            its_round.add(3, vote(3))
    if fate is Fate.REVOKED:
        its_round.revoke(1)
    elif fate is not Fate.ASKED:
        its_round.add(1, vote(1) if fate is Fate.COUNTED else None)
    assert its_round.is_complete == (event == "settle")
    close(its_round)
    assert its_round.fates[1] is TABLE.get((fate, event), fate)


@pytest.mark.parametrize("fate", [Fate.SILENCED, Fate.MISSING, Fate.LATE])
def test_closing_again_changes_nobodys_fate(fate: Fate) -> None:
    its_round = with_member_1(fate)
    before = books(its_round)
    close(its_round)
    assert books(its_round) == before


def test_every_pair_of_fate_and_event_is_tried_above_or_cannot_occur() -> None:
    answers = set(itertools.product(Fate, ("vote", "abstain")))
    closings = set(itertools.product(OPEN_FATES, ("settle", "expire")))
    revocations = set(itertools.product(OPEN_FATES, ("revoke",)))
    rest = set(itertools.product(Fate, EVENTS)) - answers - closings - revocations
    assert {fate for fate, _ in rest} == {Fate.SILENCED, Fate.MISSING, Fate.LATE}
    assert not rest & set(TRANSITIONS)


# Votes


def test_a_vote_counts_once() -> None:
    its_round = make_round()
    first = vote(1)
    its_round.add(1, first)
    with pytest.raises(ProtocolError, match=r"^duplicate$"):
        its_round.add(1, vote(1, 0.0, 0.0, 1.0))
    assert its_round.votes == {1: first}


def test_an_abstention_cannot_become_a_vote() -> None:
    its_round = make_round()
    its_round.add(1, None)
    with pytest.raises(ProtocolError, match=r"^duplicate$"):
        its_round.add(1, vote(1))
    assert its_round.votes == {}


@pytest.mark.parametrize("answer", [None, vote(4)])
def test_who_was_not_asked_has_no_vote(answer: Vote | None) -> None:
    its_round = make_round(asked=(1, 2, 3))
    before = books(its_round)
    with pytest.raises(ProtocolError, match=r"^not_asked$"):
        its_round.add(4, answer)
    assert books(its_round) == before


def test_a_late_vote_does_not_change_a_closed_round() -> None:
    its_round = make_round()
    its_round.add(1, vote(1, 1.0, 0.0, 0.0))
    outcome = close(its_round)
    assert its_round.add(2, vote(2, 0.0, 0.0, 1.0)) is Fate.LATE
    assert list(its_round.votes) == [1]
    assert close(its_round).probabilities == outcome.probabilities == (1.0, 0.0, 0.0)


# Revocation


def test_the_vote_of_a_revoked_member_is_taken_back() -> None:
    its_round = make_round()
    its_round.add(1, vote(1, 1.0, 0.0, 0.0))
    its_round.add(2, vote(2, 0.0, 0.0, 1.0))
    its_round.revoke(1)
    outcome = close(its_round)
    assert (outcome.label, outcome.probabilities) == (2, (0.0, 0.0, 1.0))
    assert outcome.fates == (("pi-1", Fate.REVOKED), ("pi-2", Fate.COUNTED), ("pi-3", Fate.MISSING))
    assert [its_vote.device for its_vote in outcome.votes] == ["pi-2"]


def test_a_revoked_member_is_awaited_no_longer() -> None:
    its_round = make_round()
    its_round.add(2, vote(2))
    its_round.add(3, vote(3))
    assert not its_round.is_complete
    its_round.revoke(1)
    assert its_round.is_complete


def test_a_vote_that_is_taken_back_is_none_of_those_that_are_enough() -> None:
    its_round = make_round(asked=(1, 2, 3, 4), stop_after=2)
    its_round.add(1, vote(1))
    its_round.revoke(1)
    its_round.add(2, vote(2))
    assert not its_round.is_complete
    its_round.add(3, vote(3))
    assert its_round.is_complete


def test_with_its_vote_a_revoked_member_takes_the_quorum() -> None:
    its_round = make_round(quorum=2)
    its_round.add(1, vote(1))
    its_round.add(2, vote(2))
    its_round.revoke(2)
    its_round.add(3, None)
    assert close(its_round).status is Status.NO_QUORUM


def test_a_round_whose_members_are_all_revoked_is_over_and_has_no_outcome() -> None:
    its_round = make_round(asked=(1, 2))
    its_round.revoke(1)
    its_round.revoke(2)
    assert its_round.is_complete
    outcome = close(its_round)
    assert (outcome.status, outcome.label) == (Status.NO_QUORUM, None)
    assert outcome.members(Fate.REVOKED) == ("pi-1", "pi-2")


@pytest.mark.parametrize("fate", [Fate.SILENCED, Fate.MISSING, Fate.LATE])
def test_what_became_of_a_member_in_a_closed_round_stays_so(fate: Fate) -> None:
    its_round = with_member_1(fate)
    before = books(its_round)
    its_round.revoke(1)
    assert books(its_round) == before


def test_revoking_whoever_was_not_asked_changes_nothing() -> None:
    its_round = make_round(asked=(1, 2, 3))
    before = books(its_round)
    its_round.revoke(4)
    assert books(its_round) == before


# When it is over


def test_a_round_is_complete_when_everybody_asked_has_answered() -> None:
    its_round = make_round()
    for index in (3, 1):
        its_round.add(index, vote(index))
        assert not its_round.is_complete
    its_round.add(2, None)
    assert its_round.is_complete


def test_a_round_is_complete_when_enough_have_voted() -> None:
    its_round = make_round(stop_after=2)
    its_round.add(1, vote(1))
    assert not its_round.is_complete
    its_round.add(2, vote(2))
    assert its_round.is_complete


def test_an_abstention_is_not_enough_of_a_vote() -> None:
    its_round = make_round(stop_after=2)
    its_round.add(1, vote(1))
    its_round.add(2, None)
    assert not its_round.is_complete


def test_a_member_that_is_asked_and_not_awaited_does_not_hold_up_a_round() -> None:
    its_round = make_round(awaited=(1, 3))
    its_round.add(1, vote(1))
    assert not its_round.is_complete
    its_round.add(3, vote(3))
    assert its_round.is_complete
    assert its_round.silent() == [2]


def test_the_vote_of_a_member_that_is_not_awaited_counts() -> None:
    its_round = make_round(awaited=(1, 3))
    assert its_round.add(2, vote(2)) is Fate.COUNTED
    assert not its_round.is_complete
    assert list(its_round.votes) == [2]


def test_nobody_is_awaited_that_is_not_asked() -> None:
    its_round = make_round(asked=(1,), awaited=(1, 4))
    its_round.add(1, None)
    assert its_round.is_complete


def test_a_round_that_asks_nobody_is_complete() -> None:
    assert make_round(asked=()).is_complete


def test_the_silent_are_those_of_whom_nothing_came_in_the_order_of_their_index() -> None:
    its_round = make_round(asked=(4, 2, 3, 1))
    assert its_round.silent() == [1, 2, 3, 4]
    its_round.add(2, vote(2))
    its_round.add(4, None)
    assert its_round.silent() == [1, 3]


def test_a_round_is_open_until_it_is_closed() -> None:
    its_round = make_round(asked=(1,))
    its_round.add(1, vote(1))
    assert its_round.is_open
    close(its_round)
    assert not its_round.is_open


def test_times_are_counted_from_publish_in_microseconds() -> None:
    policy = RoundPolicy(timeout_s=1.5, reask_s=0.25)
    its_round = Round(
        seq=1,
        policy=policy,
        asked=(1,),
        awaited=(1,),
        opened_us=7_000_000,
        decide=deciding(STRATEGIES["linear"]),
    )
    assert (its_round.reask_us, its_round.deadline_us) == (7_250_000, 8_500_000)


# What comes out


def test_an_outcome_is_the_pool_of_the_counted_votes() -> None:
    its_round = make_round(quorum=2)
    its_round.add(3, vote(3, 0.75, 0.25, 0.0))
    its_round.add(1, vote(1, 0.25, 0.5, 0.25))
    outcome = close(its_round)
    assert outcome == Outcome(
        status=Status.ANSWERED,
        label=0,
        probabilities=(0.5, 0.375, 0.125),
        agreement=0.5,
        strategy="linear",
        fates=(("pi-1", Fate.COUNTED), ("pi-2", Fate.MISSING), ("pi-3", Fate.COUNTED)),
        votes=outcome.votes,
        epoch=5,
        seq=9,
        elapsed_us=250_000,
    )
    assert outcome.votes == (its_round.votes[1], its_round.votes[3])
    assert [its_vote.device for its_vote in outcome.votes] == ["pi-1", "pi-3"]


def test_agreement_is_the_share_of_votes_for_the_label_of_the_outcome() -> None:
    its_round = make_round(asked=(1, 2, 3, 4))
    for index in (1, 2, 3):
        its_round.add(index, vote(index, 0.8, 0.2))
    its_round.add(4, vote(4, 0.2, 0.8))
    assert close(its_round).agreement == 0.75


def test_the_policy_names_the_strategy() -> None:
    labels = {}
    for strategy in ("hard", "linear"):
        its_round = make_round(strategy=strategy)
        for index, share in ((1, 0.6), (2, 0.6), (3, 0.0)):
            its_round.add(index, vote(index, share, 1 - share))
        outcome = close(its_round)
        labels[outcome.strategy] = outcome.label
    assert labels == {"hard": 0, "linear": 1}


def test_a_strategy_given_with_the_round_is_used_under_the_name_in_the_policy() -> None:
    def last_class(ballots: Ballots) -> Array:
        return np.array([0.0, 0.25, 0.75])

    policy = RoundPolicy(strategy="ours")
    its_round = Round(
        seq=1, policy=policy, asked=(1,), awaited=(1,), opened_us=0, decide=deciding(last_class)
    )
    its_round.add(1, vote(1))
    outcome = its_round.close(NAMES, now=0)
    assert (outcome.label, outcome.strategy, outcome.agreement) == (2, "ours", 0.0)
    assert outcome.probabilities == (0.0, 0.25, 0.75)


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
def test_the_order_of_arrival_does_not_change_the_outcome(order: tuple[int, ...]) -> None:
    votes = {
        1: vote(1, 0.61, 0.28, 0.11, log_weight=-0.3),
        2: vote(2, 0.13, 0.74, 0.13, log_weight=-1.7),
        3: vote(3, 0.47, 0.22, 0.31, log_weight=-0.9),
    }
    outcomes = []
    for sequence in ((1, 2, 3), order):
        its_round = make_round(strategy="familiarity")
        for index in sequence:
            its_round.add(index, votes[index])
        outcomes.append(close(its_round))
    assert outcomes[0].probabilities == outcomes[1].probabilities
    assert outcomes[0].fates == outcomes[1].fates


# (what each of members 1, 2 and 3 does: v votes, a abstains, - is silent), quorum, status
@pytest.mark.parametrize(
    ("answers", "quorum", "status"),
    [
        ("vvv", 3, Status.ANSWERED),
        ("v--", 1, Status.ANSWERED),
        ("vaa", 1, Status.ANSWERED),
        ("vv-", 3, Status.NO_QUORUM),
        ("---", 1, Status.NO_QUORUM),
        ("vvv", 4, Status.NO_QUORUM),
        ("aa-", 1, Status.NO_QUORUM),
        ("va-", 2, Status.NO_QUORUM),
        ("aaa", 1, Status.ABSTAINED),
        ("vaa", 2, Status.NO_QUORUM),
        ("", 1, Status.NO_MEMBERS),
    ],
)
def test_a_round_ends_with_this_status(answers: str, quorum: int, status: Status) -> None:
    its_round = make_round(asked=tuple(range(1, len(answers) + 1)), quorum=quorum)
    for index, answer in enumerate(answers, 1):
        if answer != "-":
            its_round.add(index, vote(index) if answer == "v" else None)
    assert close(its_round).status is status


def test_without_a_quorum_there_are_votes_and_no_label() -> None:
    its_round = make_round(quorum=2)
    its_round.add(1, vote(1))
    outcome = close(its_round)
    assert (outcome.status, outcome.label, outcome.probabilities) == (Status.NO_QUORUM, None, ())
    assert outcome.votes == (its_round.votes[1],)
    assert outcome.fates == (("pi-1", Fate.COUNTED), ("pi-2", Fate.MISSING), ("pi-3", Fate.MISSING))
    assert (outcome.seq, outcome.elapsed_us) == (9, 250_000)


def test_who_is_told_to_stop_is_silenced_and_who_is_not_is_missing() -> None:
    stopped = make_round(stop_after=2)
    waited = make_round(awaited=(1, 2))
    for its_round in (stopped, waited):
        its_round.add(1, vote(1))
        its_round.add(2, vote(2))
        assert its_round.is_complete
        close(its_round)
    assert stopped.fates[3] is Fate.SILENCED
    assert waited.fates[3] is Fate.MISSING


def test_at_its_deadline_a_round_that_has_not_enough_votes_silences_nobody() -> None:
    its_round = make_round(stop_after=2)
    its_round.add(1, vote(1))
    close(its_round)
    assert its_round.fates[2] is Fate.MISSING


# Policies


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"timeout_s": 0}, "timeout_s must be 0.001 to 86400"),
        ({"timeout_s": -1}, "timeout_s must be 0.001 to 86400"),
        ({"timeout_s": 86_400.1}, "timeout_s must be 0.001 to 86400"),
        ({"timeout_s": float("nan")}, "timeout_s must be 0.001 to 86400"),
        ({"timeout_s": float("inf")}, "timeout_s must be 0.001 to 86400"),
        ({"quorum": 0}, "quorum must be 1 or more"),
        ({"stop_after": -1}, "stop_after 0 or more"),
        ({"reask_s": 0}, "reask_s must be above 0 and at most 86400"),
        ({"reask_s": float("nan")}, "reask_s must be above 0 and at most 86400"),
        ({"reask_s": float("inf")}, "reask_s must be above 0 and at most 86400"),
        ({"reask_s": 86_400.1}, "reask_s must be above 0 and at most 86400"),
        ({"quorum": 3, "stop_after": 2}, "stop_after must be 0 or at least the quorum"),
        ({"forms": frozenset()}, "forms must name at least one form that states a vote"),
        ({"forms": frozenset({Form.LABEL, Form.ABSTAIN})}, "forms must name at least one form"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoundPolicy(**fields)  # type: ignore[arg-type]


def test_a_policy_may_be_at_its_limits() -> None:
    RoundPolicy(timeout_s=86_400, quorum=3, stop_after=3, reask_s=1e-6, forms=frozenset({Form.LOGITS_8}))
    RoundPolicy(reask_s=86_400)
