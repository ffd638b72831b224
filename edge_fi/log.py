"""Logs: one event a line, for people or as JSON. Fields are names, reasons and counts: never keys,
tensors or votes.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from edge_fi.adapters.mqtt import Down, Up
from edge_fi.effects import Admit, Adopt, Deliver, Joined, Noticed, Rejected, Restless
from edge_fi.messages import Fate, Status
from edge_fi.pump import Notice

Field = str | int | float | bool | list[str] | None

COUNTED_AT_MOST_EVERY_S = 10.0  # rejected frames: a flood of them must not become a flood of lines
PRESENCE_AT_MOST_EVERY_S = 1.0  # of one peer: anybody may publish it


@dataclass(slots=True)
class _Presence:
    """Of one peer."""

    state: str = ""
    changes: int = 0
    """Since the last line."""
    next_line_s: float = 0.0


class Log:
    """Writes events to a stream. What it holds back, `tick` writes in its time and `flush` at once."""

    def __init__(
        self,
        *,
        is_json: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_json = is_json
        self._stream = stream or sys.stderr
        self._clock = clock
        self._rejected: dict[tuple[str, str], int] = {}
        self._next_count_s = 0.0
        self._presence: dict[str, _Presence] = {}
        """One entry a peer; machines notice members of the roster alone."""
        self._due_s = math.inf
        """When something that is held back may be written."""

    def event(self, name: str, **fields: Field) -> None:
        """Write one event."""
        if self._is_json:
            line = json.dumps({"time": round(time.time(), 3), "event": name, **fields})
        else:
            stamp = time.strftime("%H:%M:%S")
            told = " ".join(
                f"{key}={','.join(value) if isinstance(value, list) else value}"
                for key, value in fields.items()
                if value not in (None, [], "")
            )
            line = f"{stamp} {name.replace('_', ' ')} {told}".rstrip()
        self._stream.write(line + "\n")
        self._stream.flush()

    def watch(self, notice: Notice) -> None:
        """Write what a pump tells."""
        match notice:
            case Up():
                self.event("connected")
            case Down(reason=reason, was_up=was_up):
                self.event("disconnected" if was_up else "broker_unreachable", reason=reason)
            case Joined(peer=peer, forms=forms):
                self.event("joined", peer=peer, forms=[form.title for form in sorted(forms)])
            case Noticed(peer=peer, state=state):
                self._notice(peer, state)
            case Admit(invite=invite, member=member):
                self.event("admitted", peer=member.id, role=member.role, invite=invite)
            case Adopt(version=version, revoked=revoked):
                self.event("roster_recovered", version=version, revoked=len(revoked))
            case Restless(peer=peer):
                self.event(
                    "restless",
                    peer=peer,
                    hint="session after session: does another device hold a copy of its key?",
                )
            case Rejected(reason=reason, peer=peer):
                self._count(reason, peer)
            case Deliver(outcome=outcome):
                self.event(
                    "outcome",
                    seq=outcome.seq,
                    status=Status(outcome.status).name.lower(),
                    class_index=outcome.label,
                    agreement=round(outcome.agreement, 3),
                    counted=len(outcome.members(Fate.COUNTED)),
                    asked=len(outcome.fates),
                    missing=list(outcome.members(Fate.MISSING)),
                    elapsed_ms=round(outcome.elapsed_us / 1000, 1),
                )

    def tick(self) -> float:
        """Write what was held back and is due. Seconds until the next of it; infinite if there is none."""
        if self._due_s == math.inf:
            return math.inf
        now = self._clock()
        if now >= self._due_s:
            self._write_held(now)
        return self._due_s - now

    def flush(self) -> None:
        """Write everything that was held back."""
        self._write_held(math.inf)

    def _write_held(self, now: float) -> None:
        if self._rejected and now >= self._next_count_s:
            self._write_counts()
        for peer, presence in self._presence.items():
            if presence.changes and now >= presence.next_line_s:
                self._write_presence(peer, presence)
        times = [presence.next_line_s for presence in self._presence.values() if presence.changes]
        times += [self._next_count_s] if self._rejected else []
        self._due_s = min(times, default=math.inf)

    def _count(self, reason: str, peer: str) -> None:
        key = (reason, peer)
        self._rejected[key] = self._rejected.get(key, 0) + 1
        if self._clock() >= self._next_count_s:
            self._write_counts()
        else:
            self._due_s = min(self._due_s, self._next_count_s)

    def _write_counts(self) -> None:
        for (reason, peer), count in self._rejected.items():
            self.event("rejected", reason=reason, peer=peer, count=count)
        self._rejected.clear()
        self._next_count_s = self._clock() + COUNTED_AT_MOST_EVERY_S

    def _notice(self, peer: str, state: str) -> None:
        presence = self._presence.setdefault(peer, _Presence())
        if state == presence.state:
            return
        presence.state = state
        presence.changes += 1
        if self._clock() >= presence.next_line_s:
            self._write_presence(peer, presence)
        else:
            self._due_s = min(self._due_s, presence.next_line_s)

    def _write_presence(self, peer: str, presence: _Presence) -> None:
        more: dict[str, Field] = {"changes": presence.changes} if presence.changes > 1 else {}
        self.event("presence", peer=peer, state=presence.state, **more)
        presence.changes = 0
        presence.next_line_s = self._clock() + PRESENCE_AT_MOST_EVERY_S
