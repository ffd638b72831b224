"""What a gateway must not forget: members, revocations, invites and their burning, in one SQLite file.

Each change is one transaction, durable when its method returns: a process that is killed, and a disk
that is full, leave the state before it or the state after it. Not here, and never on a disk: keys of
epochs and sessions, and sequence numbers (rule R2). One thread owns a State; other processes may
have the same file open.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from edge_fi.adapters import state_file
from edge_fi.adapters.state_panels import StatePanels
from edge_fi.adapters.state_tables import Entry, Issued, Snapshot, Tables, Tally
from edge_fi.admission import judge
from edge_fi.effects import Admit, Adopt
from edge_fi.errors import StateError
from edge_fi.messages import Member
from edge_fi.roster import Invitation, NotAdmittedError, Roster
from edge_fi.wire.payloads import Refusal
from edge_fi.wire.topics import check_id

__all__ = ["State", "Tally"]

LONGEST_LIFETIME_S = 366 * 86_400  # of an invite: a longer one is forgotten somewhere, and found
MAX_NUMBER = 0xFFFFFFFF  # of an invite
LONGEST_LABEL = 64  # characters

_OPEN = "withdrawn IS NULL AND redeemed IS NULL"  # or expired


class State:
    """The state of one gateway. Make one with `create` or `open`, and close it, or use it in a `with`.

    Every method raises StateError where the file cannot be read or written; nothing was changed then.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, wall: Callable[[], float]) -> None:
        self.path = path
        self._tables = Tables(path, connection, wall)
        self.panels = StatePanels(self._tables)
        self._given: Snapshot | None = None
        """What `roster` last returned."""

    @classmethod
    def create(
        cls, path: Path, federation: str, gateway: bytes, *, wall: Callable[[], float] = time.time
    ) -> "State":
        """Make an empty state. gateway: its public X25519 key. wall: seconds since 1970."""
        state_file.make(path, federation, gateway, now=int(wall()))
        return cls.open(path, federation, gateway, wall=wall)

    @classmethod
    def open(
        cls, path: Path, federation: str, gateway: bytes, *, wall: Callable[[], float] = time.time
    ) -> "State":
        """Open a state. Raises KeyFileError where others may read it, and StateError where it is missing,
        damaged, of a later version of edge_fi, or another gateway's.
        """
        return cls(path, state_file.connect(path, federation, gateway), wall)

    def close(self) -> None:
        """Close the file."""
        self._tables.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # For the running gateway

    def roster(self) -> Roster:
        """The roster as it is now: the very same object for as long as nothing has changed."""
        if self._given is None or self._tables.is_over(self._given):
            with self._tables.transaction(is_change=False) as now:
                snapshot = self._tables.snapshot(now)
            self._given = snapshot
        return self._given.roster

    def has_changed(self, roster: Roster) -> bool:
        """Whether this is no longer the roster, by anybody's change or by time. Takes microseconds."""
        return self._given is None or self._given.roster is not roster or self._tables.is_over(self._given)

    def admit(self, admit: Admit) -> Roster:
        """Write the member down and burn its invite. Raises NotAdmittedError, and then nothing was written;
        where the file is the reason, the StateError is its cause.
        """
        try:
            with self._tables.transaction(is_change=True) as now:
                if _is_news(admit, self._tables.roster_of(admit.member.id, now)):
                    self._write_member(admit, now)
                snapshot = self._tables.snapshot(now)
        except StateError as error:
            raise NotAdmittedError(Refusal.BUSY) from error
        self._given = snapshot
        return snapshot.roster

    def adopt(self, adopt: Adopt) -> Roster:
        """Revoke whom another run of this gateway had revoked, and never give an index that it gave.

        That there was such a run means that this state is an old one: an invite that is open in it may
        have been burnt since, and so all of them are withdrawn.
        """
        run = self._tables.run
        with self._tables.transaction(is_change=True) as now:
            snapshot = self._tables.snapshot(now)
            roster = snapshot.roster
            news = adopt.revoked - roster.revoked
            highest = max(roster.highest, adopt.highest)
            if news or highest > roster.highest:
                for index in sorted(news):
                    if not run("UPDATE members SET revoked = ? WHERE member_index = ?", now, index):
                        run("INSERT INTO unknown_members VALUES (?, ?)", index, now)
                version = max(roster.version, adopt.version) + 1
                run("UPDATE federation SET version = ?, given = ?", version, highest)
                run(f"UPDATE invitations SET withdrawn = ? WHERE {_OPEN}", now)  # noqa: S608
                snapshot = self._tables.snapshot(now)
        self._given = snapshot
        return snapshot.roster

    def count(self, tallies: Mapping[int, Tally]) -> bool:
        """Add to what is known of members, by index. False where that fails; then nothing was added."""
        try:
            self._tables.count(tallies)
        except StateError:
            return False
        return True

    # For whoever owns it

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """All changes within the `with` are made at its end; none where it raises."""
        with self._change():
            yield

    def invite(
        self,
        id: str,  # noqa: A002 - it is called so everywhere
        role: str,
        *,
        token: bytes,
        lifetime_s: int,
        task: int = 0,
        replaces: bool = False,
    ) -> tuple[Invitation, int]:
        """An invitation, and when it expires, in seconds since 1970. token: 16 random bytes.

        Raises StateError where the id is none or is taken, where all numbers are given, and where the clock
        is wrong.
        """
        if not 0 < lifetime_s <= LONGEST_LIFETIME_S:
            raise ValueError(f"lifetime_s must be 1 to {LONGEST_LIFETIME_S}")
        try:
            check_id(id)
        except ValueError as error:
            raise StateError(str(error)) from None
        with self._change() as now:
            if problem := self._tables.clock_problem():
                raise StateError(f"an invite made now would count as expired: {problem}")
            roster = self._tables.roster_of(id, now)
            if roster.members and not replaces:
                raise StateError(
                    f"{id} is a member: choose another id, or, if that member's keys are lost, add --replace"
                )
            if roster.next_index is None:
                raise StateError("all 65535 numbers of members are given: begin a new federation")
            ((number,),) = self._tables.query("UPDATE federation SET invited = invited + 1 RETURNING invited")
            expires = now + lifetime_s
            self._tables.run(
                "INSERT INTO invitations (number, id, role, task, token, replaces, made, expires) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                *(number, id, role, task, token, replaces, now, expires),
            )
        invitation = Invitation(number=number, role=role, id=id, token=token, task=task, replaces=replaces)
        return invitation, expires

    def withdraw(self, which: int | str) -> list[Invitation]:
        """Withdraw the invite of this number, or all that are open for this id. Raises StateError."""
        column = "number" if isinstance(which, int) else "id"
        with self._change() as now:
            condition = f"{column} = ? AND expires > ? AND {_OPEN}"
            found = [its.invitation for its in self._tables.issued(now, condition, which, now)]
            if not found:
                raise StateError(
                    f"no invite {'number' if isinstance(which, int) else 'for'} {which} is open: "
                    "'edge-fi roster list --invites' shows those that are"
                )
            self._tables.run(f"UPDATE invitations SET withdrawn = ? WHERE {condition}", now, which, now)  # noqa: S608
        return found

    def revoke(self, id: str) -> Member:  # noqa: A002
        """Take a member from the roster for ever, and withdraw the invites that could bring it back."""
        with self._change() as now:
            member = self._tables.entry(id).member
            self._tables.run("UPDATE members SET revoked = ? WHERE member_index = ?", now, member.index)
            self._tables.run(f"UPDATE invitations SET withdrawn = ? WHERE id = ? AND {_OPEN}", now, id)  # noqa: S608
            self._tables.run("UPDATE federation SET version = version + 1")
        return member

    def label(self, id: str, text: str) -> None:  # noqa: A002
        """What people call a member; empty for its id alone."""
        if len(text) > LONGEST_LABEL or not text.isprintable() or text != text.strip():
            raise StateError(
                f"a label must be {LONGEST_LABEL} printable characters at most, with no space at its ends"
            )
        with self._change():
            index = self._tables.entry(id).member.index
            self._tables.run("UPDATE members SET label = ? WHERE member_index = ?", text, index)

    def rotate(self) -> None:
        """Ask for a new epoch of every task."""
        with self._change():
            self._tables.run("UPDATE federation SET rotations = rotations + 1")

    def find(self, id: str) -> Entry:  # noqa: A002
        """The member of this id. Raises StateError, with an id that is alike."""
        with self._tables.transaction(is_change=False):
            return self._tables.entry(id)

    def entries(self) -> list[Entry]:
        """Members, present and former, by index."""
        with self._tables.transaction(is_change=False):
            return self._tables.entries()

    def invitations(self) -> list[Issued]:
        """Every invite there ever was, by number."""
        with self._tables.transaction(is_change=False) as now:
            return self._tables.issued(now)

    def standing(self) -> dict[int, Tally]:
        """What is known of members by index, as far as anything is."""
        with self._tables.transaction(is_change=False):
            return self._tables.standing()

    def clock_problem(self) -> str | None:
        """What is wrong with the clock, for a person; None if nothing is known to be.

        While it is wrong every invite counts as expired: a clock at 1970 would keep all of them alive.
        """
        return self._tables.clock_problem()

    def trust_clock(self) -> list[Invitation]:
        """The clock is right, and was wrong: the invites that were made in that future are withdrawn."""
        with self._change():
            now = self._tables.trust_clock()
            found = [its.invitation for its in self._tables.issued(now, f"made > ? AND {_OPEN}", now)]
            self._tables.run(f"UPDATE invitations SET withdrawn = ? WHERE made > ? AND {_OPEN}", now, now)  # noqa: S608
        return found

    def backup(self, target: Path) -> None:
        """Write a consistent copy, in one private file. Raises StateError, also where that exists."""
        with state_file.placed(target) as new, state_file.failures(target, "write"):
            state_file.copy(self._tables.connection, new).close()

    @contextlib.contextmanager
    def _change(self) -> Iterator[int]:
        """A transaction after which what `roster` gave is over."""
        try:
            with self._tables.transaction(is_change=True) as now:
                yield now
        finally:
            self._given = None

    def _write_member(self, admit: Admit, now: int) -> None:
        run, its = self._tables.run, admit.member
        run("UPDATE members SET revoked = ? WHERE id = ? AND revoked IS NULL", now, its.id)
        run(
            "INSERT INTO members (member_index, id, role, public, task, joined) VALUES (?, ?, ?, ?, ?, ?)",
            *(its.index, its.id, its.role, its.public, its.task, now),
        )
        run("UPDATE invitations SET redeemed = ? WHERE number = ?", its.index, admit.invite)
        run("UPDATE federation SET version = version + 1, given = ?", its.index)


def _is_news(admit: Admit, roster: Roster) -> bool:
    """Whether the member is to be written down; not if it is. Raises NotAdmittedError if it may not be.

    The machine has judged by its roster; here it is judged by the roster as it is.
    """
    invitation = next((its for its in roster.invitations if its.number == admit.invite), None)
    if invitation is None:
        raise NotAdmittedError(Refusal.WITHDRAWN)
    verdict = judge(invitation, admit.member.public, roster)
    if isinstance(verdict, Refusal):
        raise NotAdmittedError(verdict)
    if verdict != admit.member.index:
        raise NotAdmittedError(Refusal.BUSY)  # another one was given this index; ask again
    return not invitation.redeemed_by
