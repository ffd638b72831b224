"""The tables of the gateway's state: transactions over them, the time they go by, and rows as values.

Times are wall time in whole seconds since 1970. Time does not go back here: it is the wall's, but never
before that of the latest change. A wall clock that is far behind it was lost (1970, no RTC), and every
invite counts as expired until it is right again.
"""

import contextlib
import difflib
import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from edge_fi.adapters import state_file
from edge_fi.errors import StateError
from edge_fi.messages import Member
from edge_fi.roster import Invitation, Roster

CLOCK_BACK_S = 3_600  # behind the latest change: no correction of a clock, but a clock that was lost
TOLD_S = 30 * 86_400  # so long after its expiry the holder of an invite is still told why it is refused

_COUNT = """
INSERT INTO reputation (member_index, asked, counted, declined, missing, late, last_heard)
VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET
    asked = asked + excluded.asked, counted = counted + excluded.counted,
    declined = declined + excluded.declined, missing = missing + excluded.missing,
    late = late + excluded.late, last_heard = max(last_heard, excluded.last_heard)
"""

Value = str | bytes | int | float | None
"""What a column holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A member, present or former, and what the state tells of it."""

    member: Member
    label: str
    """For people; empty if there is none."""
    joined: int
    revoked: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """An invitation, and its time."""

    invitation: Invitation
    made: int
    expires: int

    @property
    def is_open(self) -> bool:
        """Whether it can still make a member."""
        its = self.invitation
        return not (its.is_expired or its.is_withdrawn or its.redeemed_by)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Of one member: in how many rounds it was asked, and what became of that."""

    asked: int = 0
    """The sum of the others, and of the rounds in which it was silenced or revoked."""
    counted: int = 0
    declined: int = 0
    missing: int = 0
    late: int = 0
    last_heard: int = 0
    """Wall time in seconds since 1970; 0 for never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The roster as it was at one moment, and by what it is known that this moment is over."""

    roster: Roster
    changes: int
    """SQLite's number for what others have changed."""
    is_clock_right: bool
    expires: float
    """When the first of its invites does; infinite if none will."""


class Tables:
    """Those of one open file."""

    def __init__(self, path: Path, connection: sqlite3.Connection, wall: Callable[[], float]) -> None:
        self.connection = connection
        self.path = path
        self._wall = wall
        self._latest = 0
        """The time of the latest change, as far as it was read."""

    @contextlib.contextmanager
    def transaction(self, *, is_change: bool) -> Iterator[int]:
        """One transaction, as of the time that it gives; undone where the `with` raises. Inside of another
        it is a part of that. Raises StateError where the file cannot be read or written.
        """
        connection = self.connection
        if connection.in_transaction:
            yield self._now()
            return
        with state_file.failures(self.path, "write" if is_change else "read"):
            connection.execute("BEGIN IMMEDIATE" if is_change else "BEGIN")
            try:
                now = self._now()
                latest, before = self._latest, connection.total_changes
                yield now
                if connection.total_changes != before and now > latest:
                    self.run("UPDATE federation SET latest = ?", now)
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")  # where SQLite has not done so itself
                raise

    def query(self, statement: str, *values: Value) -> list[Any]:
        """The rows that this gives."""
        return self.connection.execute(statement, values).fetchall()

    def run(self, statement: str, *values: Value) -> int:
        """How many rows this changed."""
        return self.connection.execute(statement, values).rowcount

    def snapshot(self, now: int) -> Snapshot:
        """The roster, within a transaction."""
        ((version, given, rotations),) = self.query("SELECT version, given, rotations FROM federation")
        members = self.query(
            "SELECT id, member_index, role, public, task FROM members WHERE revoked IS NULL "
            "ORDER BY member_index"
        )
        revoked = self.query(
            "SELECT member_index FROM members WHERE revoked IS NOT NULL "
            "UNION ALL SELECT member_index FROM unknown_members"
        )
        issued = self.issued(now, "expires > ?", now - TOLD_S)
        roster = Roster(
            members=tuple(_member(row) for row in members),
            version=version,
            invitations=tuple(one.invitation for one in issued),
            revoked=frozenset(index for (index,) in revoked),
            given=given,
            rotations=rotations,
        )
        return Snapshot(
            roster=roster,
            changes=self._changes(),
            is_clock_right=self._is_clock_right(),
            expires=min((one.expires for one in issued if one.expires > now), default=math.inf),
        )

    def roster_of(self, id: str, now: int) -> Roster:  # noqa: A002
        """As much of the roster as decides on who may join in the name of this id."""
        ((given,),) = self.query("SELECT given FROM federation")
        return Roster(
            members=tuple(entry.member for entry in self.entries("id = ? AND revoked IS NULL", id)),
            invitations=tuple(issued.invitation for issued in self.issued(now, "id = ?", id)),
            given=given,
        )

    def is_over(self, snapshot: Snapshot) -> bool:
        """Whether another connection, or time, has changed what it tells. Takes microseconds."""
        with state_file.failures(self.path, "read"):
            seen = self._changes(), self._is_clock_right()
        return seen != (snapshot.changes, snapshot.is_clock_right) or self._wall() >= snapshot.expires

    def entries(self, condition: str = "TRUE", *values: Value) -> list[Entry]:
        """Members, present and former, by index."""
        rows = self.query(
            "SELECT id, member_index, role, public, task, label, joined, revoked FROM members "  # noqa: S608
            f"WHERE {condition} ORDER BY member_index",
            *values,
        )
        return [
            Entry(member=_member(row[:5]), label=label, joined=joined, revoked=revoked)
            for row in rows
            for label, joined, revoked in [row[5:]]
        ]

    def entry(self, id: str) -> Entry:  # noqa: A002 - it is called so everywhere
        """The member of this id. Raises StateError, with an id that is alike."""
        found = self.entries("id = ?", id)
        for entry in found:
            if entry.revoked is None:
                return entry
        if found:
            raise StateError(f"{id} is no member any more: it was revoked at {_told(found[-1].revoked or 0)}")
        ids = [its.member.id for its in self.entries("revoked IS NULL")]
        close = difflib.get_close_matches(id, ids, 1)
        hint = f"did you mean {close[0]}?" if close else "'edge-fi roster list' shows the members"
        raise StateError(f"no member {id!r}: {hint}")

    def issued(self, now: int, condition: str = "TRUE", *values: Value) -> list[Issued]:
        """Invitations by number, as of now."""
        is_clock_right = self._is_clock_right()
        rows = self.query(
            "SELECT number, id, role, task, token, replaces, made, expires, withdrawn IS NOT NULL, "  # noqa: S608
            "(SELECT public FROM members WHERE member_index = redeemed) "
            f"FROM invitations WHERE {condition} ORDER BY number",
            *values,
        )
        return [
            Issued(
                invitation=Invitation(
                    number=number,
                    role=role,
                    id=id,
                    token=token,
                    task=task,
                    replaces=bool(replaces),
                    is_expired=expires <= now or not is_clock_right,
                    is_withdrawn=bool(is_withdrawn),
                    redeemed_by=redeemed_by or b"",
                ),
                made=made,
                expires=expires,
            )
            for number, id, role, task, token, replaces, made, expires, is_withdrawn, redeemed_by in rows  # noqa: A001
        ]

    def count(self, tallies: Mapping[int, Tally]) -> None:
        """Add to what is known of members, by index."""
        rows = [(index, *astuple(tally)) for index, tally in tallies.items()]
        # What a loss of power takes of these is no loss, and the pump need not wait for the disk.
        with self.soon(), self.transaction(is_change=True):
            self.connection.executemany(_COUNT, rows)

    @contextlib.contextmanager
    def soon(self) -> Iterator[None]:
        """Changes within the `with` are on the disk not at once, but soon. Raises StateError."""
        with state_file.failures(self.path, "write"):
            self.connection.execute("PRAGMA synchronous=NORMAL")
            try:
                yield
            finally:
                self.connection.execute("PRAGMA synchronous=FULL")

    def standing(self) -> dict[int, Tally]:
        """What is known of members, by index."""
        rows = self.query(
            "SELECT member_index, asked, counted, declined, missing, late, last_heard FROM reputation "
            "ORDER BY member_index"
        )
        names = ("asked", "counted", "declined", "missing", "late", "last_heard")
        return {index: Tally(**dict(zip(names, counts, strict=True))) for index, *counts in rows}

    def clock_problem(self) -> str | None:
        """What is wrong with the clock, for a person; None if nothing is known to be."""
        with self.transaction(is_change=False):
            if self._is_clock_right():
                return None
        return (
            f"the clock says {_told(self._wall())}, but the state was changed at {_told(self._latest)}: set "
            "the clock, or, if it is right now and was wrong then, run 'edge-fi roster trust-clock'"
        )

    def trust_clock(self) -> int:
        """Within a transaction: the time of the latest change is the wall's, which is returned."""
        self._latest = int(self._wall())
        self.run("UPDATE federation SET latest = ?", self._latest)
        return self._latest

    def _now(self) -> int:
        ((self._latest,),) = self.query("SELECT latest FROM federation")
        return max(int(self._wall()), self._latest)

    def _is_clock_right(self) -> bool:
        return self._wall() >= self._latest - CLOCK_BACK_S

    def _changes(self) -> int:
        ((number,),) = self.query("PRAGMA data_version")
        return int(number)


def _member(row: tuple[str, int, str, bytes, int]) -> Member:
    id, index, role, public, task = row  # noqa: A001
    return Member(id=id, index=index, role=role, public=public, task=task)


def _told(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
