"""What `edge-fi roster` shows of members and invites: as fields for programs, as lines for people.

Times are UTC in fields, and of this machine's zone in lines. What is shown is public: no invite's token.
"""

import base64
import csv
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_fi.adapters.state import Tally
from edge_fi.adapters.state_panels import Worth
from edge_fi.adapters.state_tables import Entry, Issued

Fields = dict[str, Any]

_COLUMNS = (
    *("id", "role", "index", "task", "label", "public", "joined", "revoked", "last_heard"),
    *("asked", "counted", "declined", "missing", "late", "expelled"),
)
"""Of a member, as fields."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Shows members and invites of one federation."""

    tasks: Mapping[int, str]
    """Names by number. A task that has none is shown by its number."""
    standing: Mapping[int, Tally]
    """By index."""
    expelled: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """By index, the tasks whose jury does not count what the member says."""

    def member(self, entry: Entry) -> Fields:
        """A member, present or former."""
        its, tally = entry.member, self._tally(entry)
        values = (
            *(its.id, its.role, its.index, self._task(its.task), entry.label),
            *(base64.b64encode(its.public).decode(), utc(entry.joined), utc(entry.revoked)),
            *(utc(tally.last_heard), tally.asked, tally.counted, tally.declined, tally.missing, tally.late),
            " ".join(self.expelled.get(its.index, ())),
        )
        return dict(zip(_COLUMNS, values, strict=True))

    def invite(self, issued: Issued) -> Fields:
        """An invite."""
        its = issued.invitation
        return {
            "number": its.number,
            "id": its.id,
            "role": its.role,
            "task": self._task(its.task),
            "replaces": its.replaces,
            "made": utc(issued.made),
            "expires": utc(issued.expires),
        }

    def members(self, entries: Sequence[Entry]) -> str:
        """A table of members."""
        heads = ("id", "role", "index", "task", "label", "joined", "last heard", "answered")
        return _table(
            heads,
            [
                (
                    *(its.id, its.role, str(its.index), self._task_of(its.role, its.task)),
                    *(entry.label or "-", local(entry.joined), local(self._tally(entry).last_heard)),
                    _answered(self._tally(entry)) + self._verdict(entry),
                )
                for entry in entries
                for its in [entry.member]
            ],
        )

    def former(self, entries: Sequence[Entry]) -> str:
        """A table of former members."""
        heads = ("former", "role", "index", "label", "joined", "revoked")
        return _table(
            heads,
            [
                (
                    its.id,
                    its.role,
                    str(its.index),
                    entry.label or "-",
                    local(entry.joined),
                    local(entry.revoked),
                )
                for entry in entries
                for its in [entry.member]
            ],
        )

    def invites(self, all_issued: Sequence[Issued]) -> str:
        """A table of invites."""
        heads = ("invite", "for", "role", "task", "made", "expires", "")
        return _table(
            heads,
            [
                (
                    *(str(its.number), its.id, its.role, self._task_of(its.role, its.task)),
                    *(local(issued.made), local(issued.expires), "replaces its keys" if its.replaces else ""),
                )
                for issued in all_issued
                for its in [issued.invitation]
            ],
        )

    def details(self, entry: Entry) -> str:
        """Everything of one member."""
        its, tally = entry.member, self._tally(entry)
        label = f": {entry.label}" if entry.label else ""
        lines = [
            f"{its.role} {its.id}, index {its.index}{label}",
            f"  task        {self._task_of(its.role, its.task)}",
            f"  joined      {local(entry.joined)}",
            *([f"  revoked     {local(entry.revoked)}"] if entry.revoked is not None else []),
            f"  last heard  {local(tally.last_heard)}",
            f"  answered    {_answered(tally)}{self._verdict(entry)}",
            f"  asked       {tally.asked}: {tally.counted} counted, {tally.declined} declined, "
            f"{tally.missing} missing, {tally.late} late",
            f"  public key  {base64.b64encode(its.public).decode()}",
        ]
        return "\n".join(lines)

    def contributions(self, worths: Sequence[tuple[str, Worth]]) -> str:
        """A table of what members, each with its id, were worth."""
        heads = ("id", "task", "points", "share", "agreement", "rounds", "computed")
        return _table(
            heads,
            [
                (
                    *(id, self._task(its.task) or "", f"{worth.value:+.2f} +- {worth.error:.2f}"),
                    *(f"{worth.share:.1%}", f"{worth.agreement:.1f}", str(its.rounds), local(its.computed)),
                )
                for id, its in worths  # noqa: A001
                for worth in [its.contribution]
            ],
        )

    def contribution(self, id: str, its: Worth) -> Fields:  # noqa: A002
        """What one member was worth."""
        worth = its.contribution
        return {
            "id": id,
            "index": its.member,
            "task": self._task(its.task),
            "points": worth.value,
            "error": worth.error,
            "share": worth.share,
            "agreement": worth.agreement,
            "rounds": its.rounds,
            "computed": utc(its.computed),
        }

    def _verdict(self, entry: Entry) -> str:
        tasks = self.expelled.get(entry.member.index, ())
        return f", expelled by the jury of {', '.join(tasks)}" if tasks else ""

    def _tally(self, entry: Entry) -> Tally:
        return self.standing.get(entry.member.index) or Tally()

    def _task(self, number: int) -> str | None:
        return self.tasks.get(number, str(number)) if number else None

    def _task_of(self, role: str, number: int) -> str:
        return self._task(number) or ("any" if role == "device" else "-")


def as_csv(members: Sequence[Fields]) -> str:
    """Members as a spreadsheet takes them."""
    lines = io.StringIO()
    writer = csv.DictWriter(lines, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(members)
    return lines.getvalue()


def utc(at: int | None) -> str | None:
    """ISO 8601; None for never. at: seconds since 1970."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)) if at else None


def local(at: int | None) -> str:
    """`2026-11-24 14:30`. at: seconds since 1970, 0 or None for never."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) if at else "never"


def _answered(tally: Tally) -> str:
    """How many of its queries were answered in time, if by a word of abstaining. Those in which a device was
    silenced, since there were votes enough, do not count.
    """
    came = tally.counted + tally.declined
    due = came + tally.missing + tally.late
    return f"{came / due:.0%} of {due}" if due else "-"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
