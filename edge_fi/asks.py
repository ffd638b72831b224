"""What a gateway remembers of its clients' questions: each ASK frame, and the OUTCOME that answered it.

A resent ASK gets the same OUTCOME bytes. Counters begin anew with each session, and a round can
outlive one: an outcome belongs to the very frame that asked, not to its counter.
"""

import hashlib
from dataclasses import dataclass

OUTCOMES_KEPT = 64  # of a client: a resent ASK gets the same OUTCOME frame. As many may be open at once
DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class ClientAsk:
    """The reference of a query that came from a client."""

    client: int
    counter: int
    digest: bytes
    """Of the ASK frame."""

    @classmethod
    def of(cls, client: int, counter: int, frame: bytes) -> "ClientAsk":
        """The reference of this ASK frame."""
        return cls(client, counter, hashlib.blake2b(frame, digest_size=DIGEST_BYTES).digest())


@dataclass(slots=True)
class _Asked:
    digest: bytes
    outcome: bytes = b""
    """The OUTCOME frame; empty while the round is open."""


class Asks:
    """Per client, the asks of its current session."""

    def __init__(self) -> None:
        self._asks: dict[int, dict[int, _Asked]] = {}

    def outcome(self, ask: ClientAsk) -> bytes | None:
        """What answered this very frame; empty while it is open, None if it is not known."""
        known = self._find(ask)
        return None if known is None else known.outcome

    def remember(self, ask: ClientAsk) -> bool:
        """A new frame came. Whether its client has room for one more open question."""
        asks = self._asks.setdefault(ask.client, {})
        answered = [counter for counter, asked in asks.items() if asked.outcome]
        has_room = len(asks) - len(answered) < OUTCOMES_KEPT
        asks[ask.counter] = _Asked(ask.digest)
        if answered and len(asks) > OUTCOMES_KEPT:
            del asks[answered[0]]
        return has_room

    def answer(self, ask: ClientAsk, outcome: bytes) -> None:
        """It is answered, by this OUTCOME frame. Only for one that `outcome` knows."""
        known = self._find(ask)
        assert known is not None
        known.outcome = outcome

    def forget(self, client: int) -> None:
        """The client's session is another now, or it is gone."""
        self._asks.pop(client, None)

    def _find(self, ask: ClientAsk) -> _Asked | None:
        known = self._asks.get(ask.client, {}).get(ask.counter)
        return known if known is not None and known.digest == ask.digest else None
