"""A gateway's state for tests: its keys, a wall clock that stands still, members admitted by the rules."""

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from edge_fi.adapters.state import State
from edge_fi.effects import Admit
from edge_fi.messages import Member
from edge_fi.roster import Roster

FEDERATION = "acme"
GATEWAY = bytes(range(32))
NOW = 1_795_531_800  # 2026-11-24, 14:50 UTC
HOUR = 3600
DAY = 86_400


@dataclass
class Wall:
    """A wall clock that goes on only when told to."""

    at: float = NOW

    def __call__(self) -> float:
        return self.at


@dataclass
class Made:
    """A state in a folder, and what made it."""

    path: Path
    wall: Wall = field(default_factory=Wall)

    def create(self) -> State:
        return State.create(self.path, FEDERATION, GATEWAY, wall=self.wall)

    def open(self) -> State:
        """Another connection to it: what another process has."""
        return State.open(self.path, FEDERATION, GATEWAY, wall=self.wall)


def key(name: str) -> bytes:
    """A public key, by name."""
    return name.encode().ljust(32, b".")


def token(number: int) -> bytes:
    """A token, by number."""
    return number.to_bytes(16, "big")


def invite(
    state: State,
    name: str,
    role: str = "device",
    *,
    replaces: bool = False,
    lifetime_s: int = DAY,
    task: int = 0,
) -> int:
    """The number of a new invite."""
    made, _ = state.invite(
        name, role, token=key(name)[:16], lifetime_s=lifetime_s, replaces=replaces, task=task
    )
    return made.number


def admit_of(roster: Roster, number: int, public: bytes) -> Admit:
    """What a machine with this roster wants written when this key comes with the invite of this number."""
    its = next(its for its in roster.invitations if its.number == number)
    holder = next((member for member in roster.members if member.public == its.redeemed_by), None)
    index = holder.index if holder is not None else roster.next_index
    assert index is not None
    return Admit(number, Member(id=its.id, index=index, role=its.role, public=public, task=its.task))


def join(
    state: State, name: str, role: str = "device", *, public: bytes = b"", replaces: bool = False
) -> Roster:
    """Invite and admit a member: the roster then."""
    number = invite(state, name, role, replaces=replaces)
    return state.admit(admit_of(state.roster(), number, public or key(name)))


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Everything that the file holds, by table."""
    connection = sqlite3.connect(path)
    try:
        names = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        ]
        return {name: connection.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for name in names}
    finally:
        connection.close()
