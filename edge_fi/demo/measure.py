"""What the demo measures: a gateway that counts bytes, and the figures of a run."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_fi.adapters.mqtt import packet_bytes
from edge_fi.effects import Deliver, Effect, Publish, Rejected
from edge_fi.gateway import Gateway
from edge_fi.messages import Array, Fate, Outcome
from edge_fi.pump import Notice
from edge_fi.voting import scores
from edge_fi.voting.calibration import Calibrator
from edge_fi.voting.strategy import DEFAULT, STRATEGIES, Ballots, Strategy, certainty, first_choices, stack
from edge_fi.wire.frames import Type

MISLED = ("entropy", "linear")
"""Strategies beside which the picture shows the default."""


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

    def familiar(self, task: int) -> tuple[str, ...]:
        """Ids of the devices that are online and have registered their gates."""
        indices = {name: index for index, name in self._names.items()}
        return tuple(
            name for name in self.online(task) if self.panels[task].coverage(indices[name]) is not None
        )


@dataclass(frozen=True, slots=True)
class Score:
    """Of distributions: accuracy and calibration error in percent, log-likelihood in nats."""

    accuracy: float
    nll: float
    ece: float


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

    def strategy_scores(self) -> dict[str, Score]:
        """By strategy, the default first, the others by accuracy; each from the very votes that came.

        Each is calibrated after the pool, as the gateway does it: without labels, in the order of the
        queries. A query with no familiar member at all counts for each strategy, though it has no outcome.
        """
        numbers = sorted(self.outcomes)
        truth = self.truth[numbers]
        told = {}
        for name, strategy in STRATEGIES.items():
            _, said = calibrated(strategy, [stack(self.outcomes[number].votes) for number in numbers])
            told[name] = Score(scores.accuracy(said, truth), scores.nll(said, truth), scores.ece(said, truth))
        return dict(sorted(told.items(), key=lambda item: (item[0] != DEFAULT, -item[1].accuracy)))

    def answered_accuracy(self) -> float:
        """Percent of all queries whose outcome, as the gateway gave it, was right."""
        right = sum(bool(its.label == self.truth[number]) for number, its in self.outcomes.items())
        return 100 * right / len(self.outcomes)

    def latency_ms(self) -> dict[str, float]:
        """Median and 99th percentile from publish to outcome, at the gateway."""
        elapsed = [outcome.elapsed_us / 1000 for outcome in self.outcomes.values()]
        return {"p50": _quantile(elapsed, 50), "p99": _quantile(elapsed, 99)}

    def most_telling(self) -> int:
        """The query for the picture, by rule: the default is right and what it stands beside is wrong.

        Of these, the one that most members got wrong, and of such the first. Where there is none, the one
        that the federation got right and most members wrong; 0 where it got nothing right.
        """
        right = [number for number, outcome in self.outcomes.items() if outcome.label == self.truth[number]]
        telling = [number for number in right if self._misled(number) == len(MISLED)]

        def wrong(number: int) -> int:
            return sum(vote.label != self.truth[number] for vote in self.outcomes[number].votes)

        return max(telling or right, key=lambda number: (wrong(number), -number), default=0)

    def _misled(self, number: int) -> int:
        ballots = stack(self.outcomes[number].votes)
        return sum(int(STRATEGIES[name](ballots).argmax()) != self.truth[number] for name in MISLED)


def weights(name: str, ballots: Ballots) -> Array:
    """(n,): each vote's share of the weight in a linear pool: by familiarity, entropy or linear."""
    if name == "entropy":
        given = certainty(ballots.probabilities)
        return np.asarray(given / given.sum())
    # Of voters that each vote for themselves, the pool is the weights.
    return STRATEGIES[name](ballots._replace(probabilities=np.eye(len(ballots.probabilities))))


def calibrated(strategy: Strategy, rounds: Iterable[Ballots]) -> tuple[Array, Array]:
    """(n, classes) twice: as the strategy pools each round, and as the panel then says it, without labels."""
    calibrator, raw, said = Calibrator(), [], []
    for ballots in rounds:
        pooled = strategy(ballots)
        calibrator.observe(pooled, strategy(first_choices(ballots)))
        raw.append(pooled)
        said.append(calibrator.apply(pooled))
    return np.stack(raw), np.stack(said)


def _quantile(values: Sequence[float], percent: float) -> float:
    return round(float(np.percentile(values, percent)), 3)
