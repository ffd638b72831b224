"""One query's life at the gateway: who was asked, what became of each, and when it is over.

The rules, all of them:

    ASKED    --vote-->     COUNTED      while the round is open
    ASKED    --abstain-->  DECLINED     while the round is open
    ASKED    --settle-->   SILENCED     enough votes came; the others were told to stop
    ASKED    --expire-->   MISSING      the deadline passed
    MISSING  --vote | abstain-->  LATE  and so from SILENCED
    ASKED, COUNTED, DECLINED  --revoke-->  REVOKED  while the round is open
    anything else is refused as "duplicate", and changes nothing

A round is open until `close`. It is complete when nobody awaited is still ASKED, or when stop_after
votes are counted. A vote counts once, and is taken back only with the member that gave it. Pure: no
clock, no I/O, no keys.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from edge_fi.errors import ProtocolError
from edge_fi.messages import Fate, Form, Outcome, Status, Vote
from edge_fi.voting.panel import Key, Pooled
from edge_fi.voting.strategy import DEFAULT

Decide = Callable[[Key, Mapping[int, Vote]], Pooled]
"""Pools the votes of a query, of which there is at least one."""

Event = Literal["vote", "abstain", "settle", "expire", "revoke"]

TRANSITIONS: dict[tuple[Fate, Event], Fate] = {
    (Fate.ASKED, "vote"): Fate.COUNTED,
    (Fate.ASKED, "abstain"): Fate.DECLINED,
    (Fate.ASKED, "settle"): Fate.SILENCED,
    (Fate.ASKED, "expire"): Fate.MISSING,
    (Fate.MISSING, "vote"): Fate.LATE,
    (Fate.MISSING, "abstain"): Fate.LATE,
    (Fate.SILENCED, "vote"): Fate.LATE,
    (Fate.SILENCED, "abstain"): Fate.LATE,
    (Fate.ASKED, "revoke"): Fate.REVOKED,
    (Fate.COUNTED, "revoke"): Fate.REVOKED,
    (Fate.DECLINED, "revoke"): Fate.REVOKED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPolicy:
    """When a round is over, and how its votes are pooled."""

    timeout_s: float = 2.0
    """Longest wait, counted from publish."""
    quorum: int = 1
    """Votes without which there is no outcome."""
    stop_after: int = 0
    """Votes that are enough; 0 waits for everybody."""
    reask_s: float = 0.5
    """Silent devices are asked once more, each alone, after this long."""
    strategy: str = DEFAULT
    """One of voting.strategy.STRATEGIES, or of those given to the gateway."""
    least_confidence: float = 0.0
    """An outcome less sure than this is none: the round abstains."""
    forms: frozenset[Form] = frozenset({Form.LABEL})
    """Forms that an answer may take. A device uses the richest that it can."""

    def __post_init__(self) -> None:
        if not 0.001 <= self.timeout_s <= 86_400:
            raise ValueError("timeout_s must be 0.001 to 86400, a day")
        if not 0 < self.reask_s <= 86_400:
            raise ValueError("reask_s must be above 0 and at most 86400, a day")
        if self.quorum < 1 or self.stop_after < 0:
            raise ValueError("quorum must be 1 or more, stop_after 0 or more")
        if 0 < self.stop_after < self.quorum:
            raise ValueError("stop_after must be 0 or at least the quorum")
        if not 0 <= self.least_confidence < 1:
            raise ValueError("least_confidence must be 0 or more, and below 1")
        if not self.forms or Form.ABSTAIN in self.forms:
            raise ValueError("forms must name at least one form that states a vote")


class Round:
    """The accounts of one query. Members go by their index in the roster."""

    def __init__(
        self,
        *,
        seq: int,
        policy: RoundPolicy,
        asked: Iterable[int],
        awaited: Iterable[int],
        opened_us: int,
        decide: Decide,
        epoch: int = 0,
        familiarity: Mapping[int, float] | None = None,
    ) -> None:
        """decide: pools the votes. familiarity: log weights of those with a registered gate."""
        self.epoch = epoch
        self.seq = seq
        self.policy = policy
        self.opened_us = opened_us
        self.fates = dict.fromkeys(sorted(asked), Fate.ASKED)
        self.votes: dict[int, Vote] = {}
        self.is_open = True
        self._awaited = set(awaited) & set(self.fates)
        self.familiarity = familiarity or {}
        self._decide = decide

    @property
    def deadline_us(self) -> int:
        """When the round closes at the latest."""
        return self.opened_us + round(self.policy.timeout_s * 1_000_000)

    @property
    def reask_us(self) -> int:
        """When silent devices are asked once more."""
        return self.opened_us + round(self.policy.reask_s * 1_000_000)

    @property
    def is_complete(self) -> bool:
        """Whether waiting longer is of no use."""
        return not self._awaited or 0 < self.policy.stop_after <= len(self.votes)

    def silent(self) -> list[int]:
        """Indices of those asked of whom nothing came yet."""
        return [index for index, fate in self.fates.items() if fate is Fate.ASKED]

    def add(self, index: int, vote: Vote | None) -> Fate:
        """Book one member's vote, or None for its abstention. Returns its new fate.

        Raises ProtocolError("not_asked" | "duplicate"), and then nothing has changed.
        """
        if index not in self.fates:
            raise ProtocolError("not_asked")
        fate = TRANSITIONS.get((self.fates[index], "abstain" if vote is None else "vote"))
        if fate is None:
            raise ProtocolError("duplicate")
        self.fates[index] = fate
        self._awaited.discard(index)
        if vote is not None and fate is Fate.COUNTED:
            self.votes[index] = vote
        return fate

    def revoke(self, index: int) -> None:
        """A member is one no longer: what it said does not count. Only while the round is open."""
        fate = TRANSITIONS.get((self.fates[index], "revoke")) if index in self.fates else None
        if fate is not None:
            self.fates[index] = fate
            self._awaited.discard(index)
            self.votes.pop(index, None)

    def close(self, names: dict[int, str], *, now: int) -> Outcome:
        """End the round: settled if it is complete, expired if not. names: index to id."""
        is_complete = self.is_complete
        # Enough votes came, and a SETTLED says so; otherwise whoever is silent is missing, awaited or not.
        has_enough = 0 < self.policy.stop_after <= len(self.votes)
        event: Event = "settle" if has_enough else "expire"
        for index in self.silent():
            self.fates[index] = TRANSITIONS[self.fates[index], event]
        self.is_open = False
        status = self._status(is_complete=is_complete)
        fates = tuple((names[index], fate) for index, fate in self.fates.items())
        votes = tuple(self.votes[index] for index in sorted(self.votes))
        outcome = Outcome(
            status=status,
            reason="declined" if status is Status.ABSTAINED else "",
            fates=fates,
            votes=votes,
            epoch=self.epoch,
            seq=self.seq,
            elapsed_us=now - self.opened_us,
        )
        if status is not Status.ANSWERED:
            return outcome
        pooled = self._decide((self.epoch, self.seq), self.votes)
        if pooled.probabilities is None:
            return replace(outcome, status=Status.ABSTAINED, reason=pooled.reason)
        label = int(pooled.probabilities.argmax())
        told = replace(
            outcome,
            probabilities=tuple(pooled.probabilities.tolist()),
            label_set=pooled.label_set,
            agreement=sum(vote.label == label for vote in votes) / len(votes),
            strategy=self.policy.strategy,
        )
        if pooled.probabilities[label] < self.policy.least_confidence:
            return replace(told, status=Status.ABSTAINED, reason="unsure")
        return replace(told, label=label)

    def _status(self, *, is_complete: bool) -> Status:
        if len(self.votes) >= self.policy.quorum:
            return Status.ANSWERED
        if not self.fates:
            return Status.NO_MEMBERS
        # Whoever could still have voted was waited for: it is not a lack of answers.
        is_abstained = is_complete and not self.votes and Fate.DECLINED in self.fates.values()
        return Status.ABSTAINED if is_abstained else Status.NO_QUORUM
