"""A task's members as voters: what the gateway knows of each, and how their votes become one answer.

One query: `familiarity` before it is asked, `decide` when its votes are in, and `learn` if its answer is
known later. Gates are forgotten with the process; devices register them anew. What was learnt of members
outlives it as a snapshot. Pure: no clock, no I/O. Members go by their index in the roster.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edge_fi.errors import DecodeError
from edge_fi.messages import Array, Task, Tensor, Vote
from edge_fi.voting.calibration import Calibrator
from edge_fi.voting.conformal import LabelSets
from edge_fi.voting.contribution import Contribution, contributions
from edge_fi.voting.features import FeatureMap
from edge_fi.voting.gate import Gate, Gates
from edge_fi.voting.jury import Jury
from edge_fi.voting.strategy import Ballots, Strategy, first_choices, stack

_VERSION = b"PA1"
_LENGTH = struct.Struct(">I")
_FAR = 1000.0  # nats below what is usual: no weight at all
DECIDED_KEPT = 1024  # rounds whose answer can still be told, ...
DECIDED_VALUES = 4_000_000  # ... or fewer, where their votes fill 32 MB
LEAST_ROUNDS = 40  # that say anything of what members are worth
_COUNTED_ROUNDS = 300
_COUNTED_VALUES = 400_000  # probabilities: a second of a desk computer at most, a tenth for ten members

Key = tuple[int, int]
"""Of a query: its epoch and seq."""


class Pooled(NamedTuple):
    """What a panel says."""

    probabilities: Array | None
    """(classes,), sums to 1; None where there is no answer."""
    reason: str = ""
    """Why there is none."""
    label_set: tuple[int, ...] = ()
    """Classes that hold the right one as often as promised; empty while too few answers are known."""


@dataclass(slots=True)
class _Decided:
    """What is kept of a round for a while."""

    members: tuple[int, ...]
    probabilities: Array
    log_weights: Array
    """As the jury takes them."""
    pooled: Array
    is_learnt: bool = False
    """Whether its right answer is known."""
    is_canary: bool = False
    """Whether its right answer was known when it was asked."""


class Panel:
    """One task's. features: its map, where it has one."""

    def __init__(self, task: Task, features: FeatureMap | None = None, *, is_defended: bool = True) -> None:
        self.task = task
        self.features = features
        self.jury = Jury(task.classes)
        self.calibrator = Calibrator()
        self.label_sets = LabelSets()
        self.rounds = 0
        """Decided by this process."""
        self.changes = 0
        """Whatever can make its snapshot another one, counted."""
        self._is_defended = is_defended
        self._registered: dict[int, Gate] = {}
        self._gates: Gates | None = None
        self._decided: dict[Key, _Decided] = {}

    def register(self, member: int, content: bytes) -> None:
        """A member's gate, as bytes. Raises DecodeError("gate"), and then the one before stays."""
        if self.features is None:
            raise DecodeError("gate")
        gate = Gate.decode(content, self.features)
        if len(gate.coverage) != self.task.classes:
            raise DecodeError("gate")
        self._registered[member] = gate
        self._gates = None

    def forget(self, member: int) -> None:
        """It is a member no longer."""
        self.unregister(member)
        self.jury.forget(member)
        self.changes += 1

    def unregister(self, member: int) -> None:
        """It has no gate, or not this one."""
        if self._registered.pop(member, None) is not None:
            self._gates = None

    def coverage(self, member: int) -> Array | None:
        """(classes,): samples that it has of each class, where it has told."""
        gate = self._registered.get(member)
        return None if gate is None else gate.coverage

    def familiarity(self, tensor: Tensor) -> dict[int, float]:
        """Log weight in nats of each member with a registered gate; minus infinity where it is unfamiliar."""
        if self.features is None or not self._registered:
            return {}
        row = self.features.row(tensor)
        if self._gates is None:
            self._gates = Gates(list(self._registered.values()), self.features)
        return dict(zip(self._registered, self._gates.weigh(row).tolist(), strict=True))

    def decide(self, key: Key, votes: Mapping[int, Vote], strategy: Strategy) -> Pooled:
        """Pool a round's votes, of which there is at least one."""
        self.rounds += 1
        self.changes += 1
        members = sorted(votes)
        ballots = stack([votes[member] for member in members])
        said, claims = ballots.probabilities, ballots.log_weights
        if np.isneginf(claims).all():
            return Pooled(None, "unfamiliar")
        told = _told(claims)
        if self._is_defended:
            judged = self.jury.weigh(members, told)
            self.jury.note(members, said, told)
            is_heard = np.isfinite(judged)
            # Who told nothing, or is unfamiliar, stays so.
            with np.errstate(invalid="ignore"):
                lowered = (claims + judged - told)[is_heard]
            ballots = Ballots(said[is_heard], lowered, ballots.coverage[is_heard])
            if np.isneginf(lowered).all():
                return Pooled(None, "unfamiliar")
        pooled = strategy(ballots)
        self._remember(key, _Decided(tuple(members), said, told, pooled))
        self.calibrator.observe(pooled, strategy(first_choices(ballots)))
        label_set = () if self.label_sets.missing else tuple(sorted(self.label_sets.apply(pooled)))
        return Pooled(self.calibrator.apply(pooled), label_set=label_set)

    def learn(self, key: Key, label: int, *, is_canary: bool = False) -> bool:
        """The right answer to a query that was decided. False where it is not known any more, or told before.

        Canaries teach of members alone: which are asked is no fair draw of what clients ask.
        """
        if label >= self.task.classes:
            return False
        decided = self._decided.get(key)
        if decided is None or decided.is_learnt:
            return False
        decided.is_learnt, decided.is_canary = True, is_canary
        self.changes += 1
        if not is_canary:
            self.calibrator.note(decided.pooled, label)
            self.label_sets.note(decided.pooled, label)
        self.jury.note_truth(decided.members, decided.probabilities, decided.log_weights, label)
        return True

    def contributions(self) -> tuple[int, dict[int, Contribution]]:
        """Of how many rounds, and what each member was worth in these latest ones, by its index.

        No canaries. Empty below LEAST_ROUNDS, also where the votes of so many would be too many values.
        """
        known = [decided for decided in self._decided.values() if not decided.is_canary]
        members = sorted({member for decided in known for member in decided.members})
        most = _COUNTED_VALUES // max(1, len(members) * self.task.classes)
        known = known[-min(most, _COUNTED_ROUNDS) :] if most else []
        if len(known) < LEAST_ROUNDS:
            return len(known), {}
        column = {member: place for place, member in enumerate(members)}
        votes = np.full((len(known), len(members), self.task.classes), np.nan)
        log_weights = np.full((len(known), len(members)), -np.inf)
        for row, decided in enumerate(known):
            places = [column[member] for member in decided.members]
            votes[row, places] = decided.probabilities
            log_weights[row, places] = decided.log_weights
        return len(known), dict(zip(members, contributions(votes, log_weights), strict=True))

    def snapshot(self) -> bytes:
        """What was learnt of members and outcomes; no gate, and no query that still awaits its answer."""
        parts = (self.jury.snapshot(), self.calibrator.snapshot(), self.label_sets.snapshot())
        return _VERSION + b"".join(_LENGTH.pack(len(part)) + part for part in parts)

    def restore(self, snapshot: bytes) -> None:
        """As it was. Raises ValueError for no snapshot of such a panel, and then nothing has changed."""
        if snapshot[: len(_VERSION)] != _VERSION:
            raise ValueError("no snapshot of a panel, or one of another version")
        parts, at = [], len(_VERSION)
        for _ in range(3):
            if len(snapshot) < at + _LENGTH.size:
                raise ValueError("a snapshot of a panel is cut short")
            (length,) = _LENGTH.unpack_from(snapshot, at)
            at += _LENGTH.size
            parts.append(snapshot[at : at + length])
            at += length
        if at != len(snapshot):
            raise ValueError("a snapshot of a panel is cut short, or too long")
        jury = Jury.restore(parts[0], self.task.classes)
        if jury.snapshot() != parts[0]:
            raise ValueError("a snapshot of another task's jury")
        calibrator, label_sets = Calibrator.restore(parts[1]), LabelSets.restore(parts[2])
        self.jury, self.calibrator, self.label_sets = jury, calibrator, label_sets

    def _remember(self, key: Key, decided: _Decided) -> None:
        self._decided[key] = decided
        most = min(DECIDED_KEPT, max(1, DECIDED_VALUES // decided.probabilities.size))
        while len(self._decided) > most:
            del self._decided[next(iter(self._decided))]


def _told(claims: Array) -> Array:
    """Log weights as the jury takes them, finite: who says nothing of itself claims what is usual."""
    known = claims[np.isfinite(claims)]
    usual = float(np.median(known)) if len(known) else 0.0
    return np.maximum(np.where(np.isnan(claims), usual, claims), usual - _FAR)
