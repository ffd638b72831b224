"""The simulator's keeper: by the rules of the state on a disk, which it stands for."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joining import token
from stated import Made, admit_of

from edge_fi.adapters.state import State
from edge_fi.effects import Admit, Adopt
from edge_fi.roster import Invitation, NotAdmittedError, Roster
from edge_fi.wire.payloads import Refusal
from firmware_sim.keeper import Keeper

NAMES = ["pi-1", "pi-2"]
KEYS = ["one", "two", "three"]
CHANGES = st.lists(
    st.one_of(
        st.tuples(
            st.just("invite"), st.sampled_from(NAMES), st.sampled_from(["device", "client"]), st.booleans()
        ),
        st.tuples(st.just("admit"), st.integers(0, 5), st.sampled_from(KEYS)),
        st.tuples(st.just("admit late"), st.integers(0, 5), st.sampled_from(KEYS)),
        st.tuples(st.just("withdraw"), st.integers(0, 5)),
        st.tuples(st.just("revoke"), st.integers(0, 5)),
        st.tuples(st.just("rotate")),
        st.tuples(st.just("adopt"), st.integers(0, 3), st.frozensets(st.integers(1, 4), max_size=2)),
    ),
    max_size=25,
)


class Both:
    """A keeper and a state, in step."""

    def __init__(self, state: State) -> None:
        self.state, self.keeper = state, Keeper()

    def change(self, what: str, *how: object) -> None:
        """The same change to both. One that cannot be is made to neither."""
        roster = self.keeper.roster
        match what, *how:
            case ["invite", str(name), str(role), bool(replaces)]:
                if replaces or not any(member.id == name for member in roster.members):
                    terms = token(f"{len(roster.invitations)}")
                    self.keeper.invite(name, role, token=terms, replaces=replaces)
                    self.state.invite(name, role, token=terms, lifetime_s=60, replaces=replaces)
            case ["admit" | "admit late", int(place), str(key)] if roster.invitations:
                self._admit(place, key, Roster() if what == "admit late" else roster)
            case ["withdraw", int(place)]:
                open_ = [its for its in roster.invitations if not (its.is_withdrawn or its.redeemed_by)]
                if open_:
                    number = open_[place % len(open_)].number
                    self.keeper.withdraw(number)
                    self.state.withdraw(number)
            case ["revoke", int(place)] if roster.members:
                name = roster.members[place % len(roster.members)].id
                assert self.keeper.revoke(name) == self.state.revoke(name)
            case ["rotate"]:
                self.keeper.rotate()
                self.state.rotate()
            case ["adopt", int(more), frozenset(revoked)]:
                adopt = Adopt(roster.version, max([more, *revoked]), revoked)
                assert self.keeper.adopt(adopt) is self.keeper.roster
                self.state.adopt(adopt)
            case _:
                pass

    def _admit(self, place: int, key: str, known: Roster) -> None:
        """known: what the gateway knew of the members when it judged."""
        roster = self.keeper.roster
        number = roster.invitations[place % len(roster.invitations)].number
        judged = replace(roster, members=known.members, revoked=known.revoked, given=known.given)
        admit = admit_of(judged, number, token(key) * 2)
        assert answer(self.keeper, admit) is answer(self.state, admit)

    def is_one(self) -> bool:
        """Whether both say the same of the roster."""
        return told(self.keeper.roster) == told(self.state.roster())


def answer(keeper: Keeper | State, admit: Admit) -> Refusal | None:
    """Why the member was not written down; None if it was."""
    try:
        keeper.admit(admit)
    except NotAdmittedError as error:
        return error.refusal
    return None


def told(roster: Roster) -> object:
    """A roster, whichever way the highest index in it is known."""
    return replace(roster, given=roster.highest)


@settings(max_examples=25, derandomize=True, database=None)
@given(changes=CHANGES)
def test_the_keeper_says_of_the_roster_what_the_state_on_a_disk_says(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, ...]]
) -> None:
    made = Made(tmp_path_factory.mktemp("state") / "state.db")
    with made.create() as state:
        both = Both(state)
        for what, *how in changes:
            both.change(what, *how)
            assert both.is_one()


def test_a_keeper_whose_invites_expire_says_so_of_those_alone() -> None:
    keeper = Keeper()
    for name in NAMES:
        keeper.invite(name, token=token(name))
    keeper.expire(2)
    assert [its.is_expired for its in keeper.roster.invitations] == [False, True]


def test_an_invite_that_the_keeper_has_not_is_refused_as_withdrawn() -> None:
    elsewhere = Keeper()
    elsewhere.invite("pi-7", token=token("elsewhere"))
    assert answer(Keeper(), admit_of(elsewhere.roster, 1, bytes(32))) is Refusal.WITHDRAWN


def test_a_full_disk_refuses_as_busy_and_nothing_else_as_such() -> None:
    keeper = Keeper()
    for name in NAMES:
        keeper.invite(name, token=token(name))
    keeper.withdraw(2)
    keeper.is_full = True
    judged = replace(keeper.roster, invitations=tuple(map(opened, keeper.roster.invitations)))
    written = keeper.roster
    refusals = [answer(keeper, admit_of(judged, number, bytes(32))) for number in (1, 2)]
    assert refusals == [Refusal.BUSY, Refusal.WITHDRAWN] and keeper.roster == written


def opened(its: Invitation) -> Invitation:
    return replace(its, is_withdrawn=False)
