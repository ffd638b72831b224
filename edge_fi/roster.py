"""The roster: who belongs to a federation, who no longer does, and who is invited.

A snapshot, as the gateway's state has it at one moment; a gateway is given the next one whole. Not
here: how it is stored, and what time it is: whether an invitation has expired is said, not computed.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from edge_fi.effects import Admit, Adopt, Effect
from edge_fi.errors import EdgeFiError
from edge_fi.messages import MAX_INDEX, Member
from edge_fi.wire.payloads import Refusal


class NotAdmittedError(EdgeFiError):
    """An applicant cannot be written into the roster; nothing was."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.name.lower())
        self.refusal = refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """One invite, as the gateway keeps it; `wire.invites.Invite` is what its holder has."""

    number: int
    role: str
    id: str
    """Whom it makes a member."""
    token: bytes = field(repr=False)
    task: int = 0
    """As of the member that it makes."""
    replaces: bool = False
    """Whether it may take the place of a member of this id, whose keys are lost."""
    is_expired: bool = False
    is_withdrawn: bool = False
    redeemed_by: bytes = b""
    """The public key of whoever burnt it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """Members and invitations. Raises ValueError where an index or an id stands twice."""

    members: tuple[Member, ...] = ()
    """In the order of their index."""
    version: int = 0
    """Grows with every change of members."""
    invitations: tuple[Invitation, ...] = ()
    revoked: frozenset[int] = frozenset()
    """Indices of former members."""
    given: int = 0
    """The highest index ever given, where that is none of the above."""
    rotations: int = 0
    """How often a new epoch was asked for."""

    def __post_init__(self) -> None:
        indices = [member.index for member in self.members]
        if len({*indices, *self.revoked, 0}) <= len(indices) + len(self.revoked):
            raise ValueError("the roster gives an index twice, or the index 0")
        if len({member.id for member in self.members}) < len(indices):
            raise ValueError("the roster gives an id twice")

    @property
    def highest(self) -> int:
        """The highest index ever given: no number is given twice, or old frames would count again."""
        return max([self.given, *self.revoked, *(member.index for member in self.members)])

    @property
    def next_index(self) -> int | None:
        """For the next member; None where all are given."""
        return self.highest + 1 if self.highest < MAX_INDEX else None


class Keeper(Protocol):
    """What survives a gateway, as whoever drives it needs it. Durable when a method returns."""

    def admit(self, admit: Admit) -> Roster:
        """The roster with the new member. Raises NotAdmittedError, and then nothing was written."""

    def adopt(self, adopt: Adopt) -> Roster:
        """The roster after the word of a former run."""


@runtime_checkable
class AdmittingMachine(Protocol):
    """A machine that has a roster, as whoever drives it needs it."""

    def update(self, roster: Roster, *, now: int) -> list[Effect]:
        """The roster is this now."""

    def admitted(self, admit: Admit, roster: Roster, *, now: int) -> list[Effect]:
        """The member is written down, and this is the roster with it."""

    def not_admitted(self, admit: Admit, refusal: Refusal, *, now: int) -> list[Effect]:
        """Nothing was written."""
