"""What the demo measures: a gateway that counts bytes, and the figures of a run."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_fi.adapters.mqtt import packet_bytes
from edge_fi.effects import Deliver, Effect, Publish, Rejected
from edge_fi.gateway import Gateway
from edge_fi.messages import Fate, Outcome
from edge_fi.pump import Notice
from edge_fi.voting.strategy import STRATEGIES, aggregate
from edge_fi.wire.frames import Type


class MeasuredGateway(Gateway):
    """The gateway, with a scale at its door."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.query_bytes: list[int] = []
        self.answer_bytes: list[int] = []

    def receive(self, topic: str, payload: bytes, *, now: int) -> list[Effect]:
        """As the gateway does; the packet of an answer is weighed."""
        if payload[:1] == bytes([Type.ANSWER]):
            self.answer_bytes.append(packet_bytes(Publish(topic, payload)))
        return super().receive(topic, payload, now=now)


@dataclass(slots=True)
class Figures:
    """What is noted during a run, and what follows from it."""

    truth: NDArray[np.int64]
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    """By the number of the query in the run."""
    rejected: Counter[str] = field(default_factory=Counter)
    _late: set[tuple[int, str]] = field(default_factory=set)

    def watch(self, notice: Notice) -> None:
        """Note what the gateway's pump tells."""
        if isinstance(notice, Deliver) and isinstance(notice.reference, int):
            self.outcomes[notice.reference] = notice.outcome
        elif isinstance(notice, Rejected):
            self.rejected[notice.reason] += 1
            if notice.reason == "late":
                self._late.add((notice.seq, notice.peer))

    @property
    def lost(self) -> int:
        """Answers asked for, and neither counted, late, declined nor silenced."""
        missing = [
            (outcome.seq, device)
            for outcome in self.outcomes.values()
            for device in outcome.members(Fate.MISSING)
        ]
        return len(set(missing) - self._late)

    def member_accuracy(self, device: str) -> float:
        """Percent of all queries on which this member's own first choice was right."""
        right = [
            bool(vote.label == self.truth[number])
            for number, outcome in self.outcomes.items()
            for vote in outcome.votes
            if vote.device == device
        ]
        return 100 * sum(right) / len(self.outcomes)

    def strategy_accuracy(self) -> dict[str, float]:
        """Percent right, by strategy, each from the very votes that came over the wire."""
        return {
            name: 100
            * sum(
                bool(outcome.votes) and int(aggregate(outcome.votes, strategy).argmax()) == self.truth[number]
                for number, outcome in self.outcomes.items()
            )
            / len(self.outcomes)
            for name, strategy in STRATEGIES.items()
        }

    def latency_ms(self) -> dict[str, float]:
        """Median and 99th percentile from publish to outcome, at the gateway."""
        elapsed = [outcome.elapsed_us / 1000 for outcome in self.outcomes.values()]
        return {"p50": _quantile(elapsed, 50), "p99": _quantile(elapsed, 99)}

    def most_telling(self) -> int:
        """The query that the federation got right and most of its members wrong; 0 if none is."""
        telling = {
            number: sum(vote.label != self.truth[number] for vote in outcome.votes)
            for number, outcome in self.outcomes.items()
            if outcome.label == self.truth[number]
        }
        return max(telling, key=lambda number: (telling[number], -number), default=0)


def _quantile(values: Sequence[float], percent: float) -> float:
    return round(float(np.percentile(values, percent)), 3)
