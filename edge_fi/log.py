"""Logs: one event a line, for people or as JSON. Fields are names, reasons and counts: never keys,
tensors or votes.
"""

import json
import sys
import time
from typing import TextIO

from edge_fi.adapters.mqtt import Down, Up
from edge_fi.effects import Deliver, Joined, Noticed, Rejected
from edge_fi.messages import Fate, Status
from edge_fi.pump import Notice

Field = str | int | float | bool | list[str] | None

COUNTED_AT_MOST_EVERY_S = 10.0  # rejected frames: a flood of them must not become a flood of lines


class Log:
    """Writes events to a stream."""

    def __init__(self, *, is_json: bool = False, stream: TextIO | None = None) -> None:
        self._is_json = is_json
        self._stream = stream or sys.stderr
        self._rejected: dict[tuple[str, str], int] = {}
        self._next_count = 0.0

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
                self.event("presence", peer=peer, state=state)
            case Rejected(reason=reason, peer=peer):
                self._count(reason, peer)
            case Deliver(outcome=outcome):
                self.event(
                    "outcome",
                    status=Status(outcome.status).name.lower(),
                    label=outcome.label,
                    agreement=round(outcome.agreement, 3),
                    counted=len(outcome.members(Fate.COUNTED)),
                    asked=len(outcome.fates),
                    missing=list(outcome.members(Fate.MISSING)),
                    elapsed_ms=round(outcome.elapsed_us / 1000, 1),
                )

    def flush(self) -> None:
        """Write the counts that were held back."""
        for (reason, peer), count in self._rejected.items():
            self.event("rejected", reason=reason, peer=peer, count=count)
        self._rejected.clear()

    def _count(self, reason: str, peer: str) -> None:
        key = (reason, peer)
        self._rejected[key] = self._rejected.get(key, 0) + 1
        if time.monotonic() >= self._next_count:
            self._next_count = time.monotonic() + COUNTED_AT_MOST_EVERY_S
            self.flush()
