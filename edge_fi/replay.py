"""Replay protection: accept each number once, within a sliding window (RFC 6479).

Pure: no clock, no I/O. Numbers may come in any order; one that is older than the window is refused,
since whether it was seen can no longer be told.
"""

from edge_fi.errors import ProtocolError

WINDOW = 1024  # numbers; more than the queries a gateway ever has open at once


class ReplayWindow:
    """Which numbers of one key were seen. `check` before opening a frame, `accept` after."""

    def __init__(self) -> None:
        self._next = 0
        self._seen = 0
        """Bit n stands for the number n below `_next - 1`."""

    def check(self, number: int) -> None:
        """Raises ProtocolError("stale" | "replay") for a number that may not be accepted."""
        age = self._next - 1 - number
        if age >= WINDOW:
            raise ProtocolError("stale")
        if age >= 0 and self._seen >> age & 1:
            raise ProtocolError("replay")

    def accept(self, number: int) -> None:
        """Remember a number that check let pass."""
        ahead = number - (self._next - 1)
        if ahead > 0:
            # Past the whole window, shifting by the distance would only build a huge integer.
            self._seen = self._seen << ahead & (1 << WINDOW) - 1 if ahead < WINDOW else 0
            self._next = number + 1
            ahead = 0
        self._seen |= 1 << -ahead
