"""The gateway's state: what was written is there, what was revoked stays revoked, what is burnt is burnt."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from stated import DAY, HOUR, NOW, Made, admit_of, invite, join, key, rows, token

from edge_fi.adapters.state import LONGEST_LIFETIME_S, State, Tally
from edge_fi.effects import Admit, Adopt
from edge_fi.errors import StateError
from edge_fi.messages import MAX_INDEX, Member
from edge_fi.roster import NotAdmittedError, Roster
from edge_fi.wire.payloads import Refusal


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "state.db")


@pytest.fixture
def state(made: Made) -> Iterator[State]:
    with made.create() as state:
        yield state


def refusal(state: State, admit: Admit) -> Refusal:
    """Why it is refused; and that nothing was written then."""
    before = rows(state.path)
    with pytest.raises(NotAdmittedError) as caught:
        state.admit(admit)
    assert rows(state.path) == before
    return caught.value.refusal


def spend_indices(state: State, highest: int) -> None:
    state.adopt(Adopt(version=0, highest=highest, revoked=frozenset()))


# Admission


def test_an_empty_state_is_an_empty_roster(state: State) -> None:
    assert state.roster() == Roster()
    assert state.entries() == [] and state.invitations() == [] and state.standing() == {}


def test_a_member_that_was_admitted_is_there_after_a_restart(made: Made, state: State) -> None:
    number = invite(state, "pi-07", task=3)
    member = Member(id="pi-07", index=1, role="device", public=key("pi-07"), task=3)
    roster = state.admit(Admit(number, member))
    assert roster.members == (member,) and roster.version == 1
    assert roster.invitations[0].redeemed_by == key("pi-07")
    with made.open() as again:
        assert again.roster() == roster
        (entry,) = again.entries()
        assert (entry.member, entry.label, entry.joined, entry.revoked) == (member, "", NOW, None)


def test_the_same_key_is_admitted_again_by_its_invite_and_nothing_is_written(
    made: Made, state: State
) -> None:
    number = invite(state, "pi-07")
    roster = state.admit(admit_of(state.roster(), number, key("pi-07")))
    before = rows(made.path)
    made.wall.at += HOUR
    assert state.admit(admit_of(roster, number, key("pi-07"))) == roster
    assert rows(made.path) == before


def test_another_key_is_refused_by_a_burnt_invite(state: State) -> None:
    number = invite(state, "pi-07")
    roster = state.admit(admit_of(state.roster(), number, key("pi-07")))
    assert refusal(state, admit_of(roster, number, key("thief"))) is Refusal.USED


def test_the_same_key_is_refused_when_it_was_revoked_or_its_invite_has_expired(
    made: Made, state: State
) -> None:
    first, second = invite(state, "pi-01"), invite(state, "pi-02")
    one = admit_of(state.roster(), first, key("pi-01"))
    state.admit(one)
    two = admit_of(state.roster(), second, key("pi-02"))
    state.admit(two)
    state.revoke("pi-01")
    assert refusal(state, one) is Refusal.USED
    made.wall.at += DAY
    assert refusal(state, two) is Refusal.USED


def test_an_invite_is_good_until_the_second_of_its_expiry(made: Made, state: State) -> None:
    number = invite(state, "pi-07", lifetime_s=60)
    admit = admit_of(state.roster(), number, key("pi-07"))
    made.wall.at = NOW + 60
    assert refusal(state, admit) is Refusal.EXPIRED
    made.wall.at = NOW + 59.9
    assert state.admit(admit).members == (admit.member,)


def test_an_invite_that_was_withdrawn_or_never_was_admits_nobody(state: State) -> None:
    number = invite(state, "pi-07")
    admit = admit_of(state.roster(), number, key("pi-07"))
    assert refusal(state, replace(admit, invite=number + 1)) is Refusal.WITHDRAWN
    assert [its.number for its in state.withdraw(number)] == [number]
    assert refusal(state, admit) is Refusal.WITHDRAWN


def test_a_name_that_was_taken_meanwhile_is_refused(state: State) -> None:
    first, second = invite(state, "pi-07"), invite(state, "pi-07")
    state.admit(admit_of(state.roster(), first, key("one")))
    assert refusal(state, admit_of(state.roster(), second, key("two"))) is Refusal.NAME_TAKEN


def test_whoever_replaces_a_member_gets_another_index_and_the_old_key_is_revoked(state: State) -> None:
    join(state, "pi-07")
    roster = join(state, "pi-07", public=key("new card"), replaces=True)
    assert [(member.index, member.public) for member in roster.members] == [(2, key("new card"))]
    assert roster.revoked == {1} and roster.version == 2
    assert [(its.member.index, its.revoked) for its in state.entries()] == [(1, NOW), (2, None)]


def test_an_index_that_was_given_meanwhile_is_not_given_again(state: State) -> None:
    first, second = invite(state, "pi-01"), invite(state, "pi-02")
    stale = admit_of(state.roster(), second, key("pi-02"))
    state.admit(admit_of(state.roster(), first, key("pi-01")))
    assert refusal(state, stale) is Refusal.BUSY
    for index in (4, MAX_INDEX):
        ahead = replace(stale, member=replace(stale.member, index=index))
        assert refusal(state, ahead) is Refusal.BUSY
    assert state.admit(admit_of(state.roster(), second, key("pi-02"))).highest == 2


def test_the_last_index_is_given_and_none_after_it(state: State) -> None:
    spend_indices(state, MAX_INDEX - 1)
    first, second = invite(state, "pi-01"), invite(state, "pi-02")
    late = admit_of(state.roster(), second, key("pi-02"))
    assert state.admit(admit_of(state.roster(), first, key("pi-01"))).highest == MAX_INDEX
    assert refusal(state, late) is Refusal.FULL


# Invites


def test_an_invite_tells_what_it_is_for(state: State) -> None:
    invitation, expires = state.invite(
        "laptop", "client", token=token(7), lifetime_s=HOUR, task=0, replaces=True
    )
    assert (invitation.number, invitation.id, invitation.role) == (1, "laptop", "client")
    assert invitation.token == token(7) and invitation.replaces and expires == NOW + HOUR
    (issued,) = state.invitations()
    assert issued.invitation == invitation and (issued.made, issued.expires) == (NOW, expires)
    assert issued.is_open and state.roster().invitations == (invitation,)


def test_the_number_of_an_invite_is_never_given_again(made: Made, state: State) -> None:
    assert [invite(state, "pi-01"), invite(state, "pi-02")] == [1, 2]
    state.withdraw(2)
    made.wall.at += 40 * DAY
    assert invite(state, "pi-03") == 3
    with made.open() as again:
        assert invite(again, "pi-04") == 4


def test_a_name_that_is_taken_says_how_to_replace_it(state: State) -> None:
    join(state, "pi-07")
    with pytest.raises(StateError, match=r"pi-07 is a member: choose another id, or, if .* add --replace"):
        invite(state, "pi-07")
    invite(state, "pi-07", replaces=True)
    state.revoke("pi-07")
    invite(state, "pi-07")


@pytest.mark.parametrize("name", ["Pi", "pi/1", "#", "gateway", "", "a" * 25])
def test_an_id_that_is_none_is_refused(state: State, name: str) -> None:
    with pytest.raises(StateError, match="must be 1 to 24"):
        invite(state, name)


def test_nobody_is_invited_when_all_indices_are_given(state: State) -> None:
    spend_indices(state, MAX_INDEX)
    with pytest.raises(StateError, match="all 65535 numbers of members are given"):
        invite(state, "pi-07")


@pytest.mark.parametrize("lifetime_s", [0, -1, LONGEST_LIFETIME_S + 1])
def test_a_lifetime_has_its_bounds(state: State, lifetime_s: int) -> None:
    with pytest.raises(ValueError, match="lifetime_s must be"):
        invite(state, "pi-07", lifetime_s=lifetime_s)


def test_invites_are_withdrawn_by_number_or_by_id(made: Made, state: State) -> None:
    for name in ("pi-01", "pi-01", "pi-02"):
        invite(state, name)
    assert [its.number for its in state.withdraw("pi-01")] == [1, 2]
    assert [its.is_open for its in state.invitations()] == [False, False, True]
    with pytest.raises(StateError, match="no invite for pi-01 is open"):
        state.withdraw("pi-01")
    made.wall.at += DAY
    with pytest.raises(StateError, match="no invite number 3 is open"):
        state.withdraw(3)


def test_an_invite_that_ended_long_ago_is_told_to_nobody_but_its_owner(made: Made, state: State) -> None:
    invite(state, "pi-07")
    made.wall.at += 30 * DAY
    assert state.roster().invitations[0].is_expired
    made.wall.at += DAY
    with made.open() as again:
        assert again.roster().invitations == () and len(again.invitations()) == 1


def test_several_are_invited_together_or_not_at_all(state: State) -> None:
    join(state, "pi-02")

    def invite_both() -> None:
        with state.together():
            invite(state, "pi-01")
            invite(state, "pi-02")

    with pytest.raises(StateError, match="pi-02 is a member"):
        invite_both()
    assert len(state.invitations()) == 1
    with state.together():
        assert [invite(state, "pi-03"), invite(state, "pi-04")] == [2, 3]
    assert len(state.roster().invitations) == 3


# Revocation


def test_a_revoked_member_is_known_for_ever_with_its_key(made: Made, state: State) -> None:
    join(state, "pi-07")
    made.wall.at += HOUR
    assert state.revoke("pi-07") == Member(id="pi-07", index=1, role="device", public=key("pi-07"))
    roster = state.roster()
    assert roster.members == () and roster.revoked == {1} and roster.version == 2
    (entry,) = state.entries()
    assert (entry.revoked, entry.member.public) == (NOW + HOUR, key("pi-07"))
    assert join(state, "pi-07").members[0].index == 2


def test_revoking_withdraws_the_invites_that_would_bring_the_member_back(state: State) -> None:
    join(state, "pi-07")
    back, other = invite(state, "pi-07", replaces=True), invite(state, "pi-08")
    admit = admit_of(state.roster(), back, key("pi-07"))
    state.revoke("pi-07")
    assert refusal(state, replace(admit, member=replace(admit.member, index=2))) is Refusal.WITHDRAWN
    assert state.admit(admit_of(state.roster(), other, key("pi-08"))).members


def test_who_is_no_member_cannot_be_revoked(state: State) -> None:
    join(state, "pi-07")
    with pytest.raises(StateError, match=r"no member 'pi-7': did you mean pi-07\?"):
        state.revoke("pi-7")
    with pytest.raises(StateError, match="no member 'laptop': 'edge-fi roster list' shows"):
        state.revoke("laptop")
    state.revoke("pi-07")
    with pytest.raises(StateError, match="pi-07 is no member any more: it was revoked at 2026-11-2"):
        state.revoke("pi-07")


def test_the_file_itself_refuses_to_forget(made: Made, state: State) -> None:
    join(state, "pi-07")
    invite(state, "pi-08")
    state.revoke("pi-07")
    connection = sqlite3.connect(made.path)
    for statement in (
        "UPDATE members SET revoked = NULL",
        "DELETE FROM members",
        "UPDATE members SET public = zeroblob(32)",
        "UPDATE invitations SET redeemed = NULL",
        "UPDATE federation SET version = 0",
        "UPDATE federation SET given = 0",
        "UPDATE federation SET invited = 0",
        "UPDATE federation SET name = 'other'",
        "INSERT INTO members VALUES (2, 'pi-09', 'admin', zeroblob(32), 0, '', 0, NULL)",
        "INSERT INTO members VALUES (65536, 'pi-09', 'device', zeroblob(32), 0, '', 0, NULL)",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute(statement)
    connection.close()


# The word of a former run


def test_what_a_former_run_revoked_is_revoked_again(state: State) -> None:
    join(state, "pi-01")
    join(state, "pi-02")
    roster = state.adopt(Adopt(version=9, highest=7, revoked=frozenset({2, 5})))
    assert [member.id for member in roster.members] == ["pi-01"]
    assert roster.revoked == {2, 5} and roster.highest == 7 and roster.version == 10
    assert join(state, "pi-03").members[-1].index == 8


def test_what_a_former_run_knew_is_adopted_once(made: Made, state: State) -> None:
    word = Adopt(version=9, highest=7, revoked=frozenset({2, 5}))
    roster = state.adopt(word)
    before = rows(made.path)
    made.wall.at += HOUR
    assert state.adopt(word) == roster
    assert state.adopt(Adopt(version=99, highest=3, revoked=frozenset())) == roster
    assert rows(made.path) == before


def test_a_version_of_ours_that_is_later_goes_on(state: State) -> None:
    for name in ("pi-01", "pi-02", "pi-03"):
        join(state, name)
    assert state.adopt(Adopt(version=1, highest=4, revoked=frozenset())).version == 4


def test_an_invite_of_a_state_that_lags_behind_may_be_burnt_and_is_withdrawn(state: State) -> None:
    burnt, open_one = invite(state, "pi-01"), invite(state, "pi-02")
    state.admit(admit_of(state.roster(), burnt, key("pi-01")))
    roster = state.adopt(Adopt(version=3, highest=2, revoked=frozenset()))
    assert [its.is_withdrawn for its in roster.invitations] == [False, True]
    assert refusal(state, admit_of(roster, open_one, key("pi-02"))) is Refusal.WITHDRAWN


# What else there is to tell


def test_a_label_is_for_people_and_changes_no_roster(state: State) -> None:
    version = join(state, "pi-07").version
    state.label("pi-07", "Büro, Fenster links")
    assert state.entries()[0].label == "Büro, Fenster links" and state.roster().version == version
    state.label("pi-07", "")
    assert state.entries()[0].label == ""


@pytest.mark.parametrize("text", ["a" * 65, "a\nb", "\x1b[31m", " a", "a\u202eb"])
def test_a_label_that_a_terminal_would_stumble_over_is_refused(state: State, text: str) -> None:
    join(state, "pi-07")
    with pytest.raises(StateError, match="a label must be 64 printable characters at most"):
        state.label("pi-07", text)


def test_an_epoch_that_was_asked_for_is_asked_for_once(state: State) -> None:
    version = join(state, "pi-07").version
    state.rotate()
    assert (state.roster().rotations, state.roster().version) == (1, version)


def test_tallies_add_up(made: Made, state: State) -> None:
    join(state, "pi-01")
    join(state, "pi-02")
    assert state.count({1: Tally(asked=4, counted=2, missing=1, late=1, last_heard=NOW)})
    assert state.count({1: Tally(asked=2, declined=1), 2: Tally(asked=1, missing=1)})
    state.revoke("pi-02")
    with made.open() as again:
        assert again.standing() == {
            1: Tally(asked=6, counted=2, declined=1, missing=1, late=1, last_heard=NOW),
            2: Tally(asked=1, missing=1),
        }


def test_counting_is_no_change_of_the_roster(state: State) -> None:
    roster = join(state, "pi-01")
    assert state.count({1: Tally(asked=1)})
    assert not state.has_changed(roster) and state.roster() is roster


def test_tallies_of_who_never_was_are_not_written(state: State) -> None:
    join(state, "pi-01")
    assert not state.count({1: Tally(asked=1), 2: Tally(asked=1)})
    assert state.standing() == {}


# Changes by others, and by time


def test_a_roster_is_the_same_object_until_it_changes(state: State) -> None:
    roster = join(state, "pi-01")
    assert state.roster() is roster and not state.has_changed(roster)
    invite(state, "pi-02")
    assert state.has_changed(roster) and state.roster() is not roster


@pytest.mark.parametrize(
    "change",
    [
        lambda other: invite(other, "pi-03"),
        lambda other: other.withdraw("pi-02"),
        lambda other: other.revoke("pi-01"),
        lambda other: other.rotate(),
        lambda other: other.adopt(Adopt(version=9, highest=9, revoked=frozenset())),
    ],
    ids=["invite", "withdraw", "revoke", "rotate", "adopt"],
)
def test_a_change_by_another_process_is_seen(
    made: Made, state: State, change: Callable[[State], object]
) -> None:
    join(state, "pi-01")
    invite(state, "pi-02")
    roster = state.roster()
    with made.open() as other:
        assert not state.has_changed(roster)
        change(other)
        assert state.has_changed(roster)
        changed = state.roster()
        assert changed == other.roster() != roster
        assert not state.has_changed(changed)


def test_a_change_is_not_missed_by_who_asked_for_the_roster_elsewhere(made: Made, state: State) -> None:
    roster = join(state, "pi-01")
    with made.open() as other:
        other.revoke("pi-01")
    state.roster()  # as for the broker's files, while the machine still goes by the former one
    assert state.has_changed(roster)


def test_a_change_is_not_missed_when_an_admission_fails(made: Made, state: State) -> None:
    join(state, "pi-01")
    number = invite(state, "pi-02")
    roster = state.roster()
    with made.open() as other:
        other.revoke("pi-01")
        other.withdraw(number)
    assert refusal(state, admit_of(roster, number, key("pi-02"))) is Refusal.WITHDRAWN
    assert state.has_changed(roster)


def test_an_admission_brings_what_others_have_changed(made: Made, state: State) -> None:
    join(state, "pi-01")
    number = invite(state, "pi-02")
    admit = admit_of(state.roster(), number, key("pi-02"))
    with made.open() as other:
        other.revoke("pi-01")
    roster = state.admit(admit)
    assert [member.id for member in roster.members] == ["pi-02"] and not state.has_changed(roster)


def test_an_invite_that_expires_changes_the_roster(made: Made, state: State) -> None:
    invite(state, "pi-01", lifetime_s=60)
    invite(state, "pi-02", lifetime_s=120)
    roster = state.roster()
    for second, expired in ((60, [True, False]), (120, [True, True])):
        made.wall.at = NOW + second - 0.5
        assert not state.has_changed(roster)
        made.wall.at = NOW + second
        assert state.has_changed(roster)
        roster = state.roster()
        assert [its.is_expired for its in roster.invitations] == expired
    assert not state.has_changed(roster)


def test_looking_for_changes_costs_microseconds(state: State) -> None:
    roster = join(state, "pi-01")
    began = time.perf_counter()
    for _ in range(1000):
        state.has_changed(roster)
    assert time.perf_counter() - began < 0.5


# The clock


def test_with_a_clock_at_1970_no_invite_is_good(made: Made, state: State) -> None:
    number = invite(state, "pi-07")
    roster = state.roster()
    made.wall.at = 10 * DAY
    assert state.has_changed(roster)
    assert state.roster().invitations[0].is_expired
    assert refusal(state, admit_of(roster, number, key("pi-07"))) is Refusal.EXPIRED
    problem = state.clock_problem()
    assert problem and "the clock says 1970-01-1" in problem and "changed at 2026-11-24" in problem
    with pytest.raises(StateError, match="would count as expired: the clock says 1970"):
        invite(state, "pi-08")
    state.revoke(join_before(made, state))
    made.wall.at = NOW + 60
    assert state.clock_problem() is None
    assert state.admit(admit_of(state.roster(), number, key("pi-07"))).members


def join_before(made: Made, state: State) -> str:
    """A member, admitted while the clock was right."""
    at, made.wall.at = made.wall.at, NOW
    join(state, "pi-01")
    made.wall.at = at
    return "pi-01"


def test_a_clock_that_was_set_back_a_little_keeps_no_invite_alive(made: Made, state: State) -> None:
    number = invite(state, "pi-07", lifetime_s=60)
    made.wall.at = NOW + 90
    state.rotate()
    made.wall.at = NOW - 0.5 * HOUR
    assert state.clock_problem() is None
    assert refusal(state, admit_of(state.roster(), number, key("pi-07"))) is Refusal.EXPIRED
    assert state.invite("pi-08", "device", token=token(1), lifetime_s=60)[1] == NOW + 150


def test_a_clock_that_was_in_the_future_can_be_trusted_again(made: Made, state: State) -> None:
    now = invite(state, "pi-01", lifetime_s=HOUR)
    made.wall.at = NOW + 3650 * DAY
    later = invite(state, "pi-02")
    made.wall.at = NOW + 60
    problem = state.clock_problem()
    assert problem and "edge-fi roster trust-clock" in problem
    assert [its.number for its in state.trust_clock()] == [later]
    assert state.clock_problem() is None
    roster = state.roster()
    assert refusal(state, admit_of(roster, later, key("pi-02"))) is Refusal.WITHDRAWN
    assert state.admit(admit_of(roster, now, key("pi-01"))).members
    made.wall.at = 60
    assert state.clock_problem()


# Secrets


def test_no_token_is_in_a_repr_or_an_error(state: State) -> None:
    secret = b"0123456789abcdef"
    invitation, _ = state.invite("pi-07", "device", token=secret, lifetime_s=60)
    with pytest.raises(NotAdmittedError) as caught:
        state.admit(replace(admit_of(state.roster(), 1, key("pi-07")), invite=2))
    shown = repr([invitation, state.invitations(), state.roster(), state, caught.value])
    assert "0123456789abcdef" not in shown and secret.hex() not in shown


def test_a_state_has_no_place_for_keys_of_sessions_or_epochs(made: Made, state: State) -> None:
    connection = sqlite3.connect(made.path)
    columns = {
        f"{table}.{column}"
        for table in rows(made.path)
        for _, column, kind, *_ in connection.execute(f"PRAGMA table_info({table})")
        if kind == "BLOB"
    }
    connection.close()
    of_panels = {"panels.snapshot", "canaries.input"}
    assert columns == {"federation.gateway", "members.public", "invitations.token"} | of_panels
