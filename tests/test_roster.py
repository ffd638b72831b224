"""The roster: who it may name, and which index comes next."""

import pytest
from federation import member, roster_of

from edge_fi.errors import EdgeFiError
from edge_fi.messages import MAX_INDEX, Member
from edge_fi.roster import Invitation, NotAdmittedError, Roster
from edge_fi.wire.payloads import Refusal


@pytest.mark.parametrize(
    ("members", "revoked"),
    [
        ([member("pi-1", 1), member("pi-2", 1)], ()),
        ([member("pi-1", 1), member("laptop-1", 1, "client")], ()),
        ([member("pi-1", 0)], ()),
        ([member("pi-1", 1), member("pi-2", 0)], ()),
        ([member("pi-1", 1)], (1,)),
        ([member("pi-1", 1)], (2, 0)),
    ],
    ids=["twice", "in two roles", "0", "0 again", "a former member's", "a former 0"],
)
def test_a_roster_gives_each_index_once_and_none_is_0(
    members: list[Member], revoked: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="an index twice, or the index 0"):
        Roster(members=tuple(members), revoked=frozenset(revoked))


@pytest.mark.parametrize(
    ("role", "other"),
    [("device", "device"), ("client", "client"), ("device", "client"), ("client", "helper")],
)
def test_a_roster_gives_each_id_once_whatever_the_role(role: str, other: str) -> None:
    with pytest.raises(ValueError, match="an id twice"):
        Roster(members=(member("pi-1", 1, role), member("pi-1", 2, other)))


def test_an_id_may_be_a_former_members() -> None:
    roster = Roster(members=(member("pi-1", 2),), revoked=frozenset({1}))
    assert roster.next_index == 3


def test_a_roster_of_nobody_gives_the_index_1() -> None:
    assert (Roster().highest, Roster().next_index) == (0, 1)


@pytest.mark.parametrize(
    ("roster", "highest"),
    [
        (roster_of("pi-1", "pi-2"), 2),
        (roster_of("pi-1", clients=["laptop-1"]), 101),
        (Roster(members=(member("pi-1", 3),), revoked=frozenset({9})), 9),
        (Roster(members=(member("pi-1", 3),), given=12), 12),
        (Roster(members=(member("pi-1", 3),), given=2), 3),
        (Roster(revoked=frozenset({5}), given=4), 5),
    ],
)
def test_no_index_is_given_again_not_even_a_former_members(roster: Roster, highest: int) -> None:
    assert (roster.highest, roster.next_index) == (highest, highest + 1)


def test_after_the_last_index_there_is_none() -> None:
    assert Roster(given=MAX_INDEX - 1).next_index == MAX_INDEX == 65_535
    assert Roster(given=MAX_INDEX).next_index is None
    assert Roster(members=(member("pi-1", MAX_INDEX),)).next_index is None


def test_an_invitation_does_not_show_its_token() -> None:
    shown = repr(Invitation(number=1, role="device", id="pi-1", token=b"t" * 16))
    assert "tttt" not in shown and b"tttt".hex() not in shown
    assert "tttt" not in repr(Roster(invitations=(Invitation(number=1, role="x", id="y", token=b"t" * 16),)))


def test_whoever_is_not_admitted_is_told_why() -> None:
    error = NotAdmittedError(Refusal.NAME_TAKEN)
    assert isinstance(error, EdgeFiError)
    assert (error.refusal, str(error)) == (Refusal.NAME_TAKEN, "name_taken")
