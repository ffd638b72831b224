"""What a machine wants done. A machine returns a list of these; the pump performs them in order."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from edge_fi.messages import Array, Form, Member, Outcome, Tensor


@dataclass(frozen=True, slots=True)
class Publish:
    """Send an MQTT message."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False


@dataclass(frozen=True, slots=True)
class Ticket:
    """Names one inference, so that an answer to a question of a dead session finds no taker."""

    session: int
    """Counts a device's sessions since its start."""
    seq: int


@dataclass(frozen=True, slots=True)
class Infer:
    """Run the model on this tensor and come back with `inferred(ticket, logits)`."""

    ticket: Ticket
    tensor: Tensor


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand this outcome to whoever asked with this reference."""

    reference: object
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """An input did not count. Nothing else changed, but for the books of its round. Counted by reason."""

    reason: str
    peer: str = ""
    """Who the input claims to come from; empty where that is not known."""
    seq: int = 0
    """The query it claims to be about."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A session with this peer has begun."""

    peer: str
    forms: frozenset[Form] = frozenset()
    """Forms that a device offers to answer in, where it has said so."""


@dataclass(frozen=True, slots=True)
class Noticed:
    """A peer's presence, as the broker tells it: for logs, never trusted."""

    peer: str
    state: str


@dataclass(frozen=True, slots=True)
class Restless:
    """Session after session of this member in a minute: another device may hold a copy of its key."""

    peer: str


@dataclass(frozen=True, slots=True)
class Admit:
    """Write this member into the roster and burn the invite, in one durable step.

    Come back with `admitted`, or with `not_admitted` and the reason, and then nothing was written.
    """

    invite: int
    member: Member


@dataclass(frozen=True, slots=True)
class Adopt:
    """The gateway's own word, from a run that knew more: write it down, then `update`.

    So that a state restored from an old backup revokes again whom it had forgotten to have revoked.
    """

    version: int
    highest: int
    """The highest index ever given."""
    revoked: frozenset[int]


@dataclass(frozen=True, slots=True)
class Halt:
    """The machine must not go on; why, in one sentence. The process ends."""

    reason: str


Effect = Publish | Infer | Deliver | Rejected | Joined | Noticed | Restless | Admit | Adopt | Halt


class Machine(Protocol):
    """What a pump drives. `now` is microseconds of a clock that never goes back."""

    @property
    def subscriptions(self) -> list[str]:
        """Topic filters; to be subscribed to on every connect, before `connected`."""

    @property
    def will(self) -> Publish | None:
        """What the broker shall say when this machine is gone."""

    @property
    def farewell(self) -> list[Effect]:
        """What to say before leaving on purpose; the Will is not sent then."""

    def next_deadline(self) -> int | None:
        """When to call `tick`."""

    def connected(self, *, now: int) -> list[Effect]:
        """The link is up and every subscription is in place."""

    def disconnected(self, *, now: int) -> list[Effect]:
        """The link is gone."""

    def tick(self, *, now: int) -> list[Effect]:
        """Time has come."""

    def receive(self, topic: str, payload: bytes, *, now: int) -> list[Effect]:
        """A message came. Drops what is not acceptable, with its reason."""


@runtime_checkable
class InferringMachine(Protocol):
    """What a pump drives that wants a model."""

    def inferred(self, ticket: Ticket, scores: Array | None, *, now: int) -> list[Effect]:
        """The model's logits for a query, or None where it failed."""
