"""Links: when a message arrives, if at all, and how often."""

from dataclasses import dataclass

from firmware_sim.stream import Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One direction between a node and the broker. Jitter makes messages overtake one another."""

    delay_us: int = 0
    jitter_us: int = 0
    loss: float = 0.0
    """Probability that a message never arrives."""
    duplication: float = 0.0
    """Probability that it arrives twice."""

    def delays(self, stream: Stream) -> list[int]:
        """Microseconds until each arrival of one message."""
        if stream.chance() < self.loss:
            return []
        copies = 2 if stream.chance() < self.duplication else 1
        return [self.delay_us + int(stream.chance() * self.jitter_us) for _ in range(copies)]


PERFECT = Link()
