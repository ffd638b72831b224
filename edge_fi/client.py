"""The client machine: holds a session with the gateway, asks, and hands out outcomes.

Pure, as the other machines are. Every query that `ask` takes is delivered an outcome: the gateway's,
or UNREACHABLE when none came in time. A question asked before there is a session waits for one.
"""

from dataclasses import dataclass

from edge_fi.crypto.keys import Entropy
from edge_fi.effects import Deliver, Effect, Joined, Publish, Rejected
from edge_fi.errors import ProtocolError
from edge_fi.messages import MAX_DEADLINE_MS, Outcome, Status, Task, Tensor
from edge_fi.session import Identity, Joiner, Session
from edge_fi.wire import frames, payloads, presence, topics
from edge_fi.wire.frames import Type
from edge_fi.wire.payloads import Ask, Feedback

RESEND_US = 1_000_000  # an ASK that nothing answers is resent, the same bytes
GRACE_US = 1_000_000  # beyond the deadline, for the outcome to travel
MAX_OPEN = 64  # as many as the gateway keeps outcomes for


@dataclass(slots=True)
class _Open:
    """A question on its way."""

    reference: object
    payload: bytes
    resend_us: int
    expires_us: int
    frame: bytes = b""


class Client:
    """One client. Give it to a pump, or to a simulator."""

    def __init__(self, identity: Identity, entropy: Entropy) -> None:
        self.identity = identity
        self._joiner = Joiner(identity, b"", entropy)
        self._send_topic = topics.from_client(identity.federation, identity.id)
        self._receive_topic = topics.to_client(identity.federation, identity.id)
        self._gateway_topic = topics.gateway_state(identity.federation)
        self._is_connected = False
        self._session: Session | None = None
        self._open: list[_Open] = []

    @property
    def subscriptions(self) -> list[str]:
        """Topic filters; to be subscribed to on every connect, before `connected`."""
        return [self._receive_topic, self._gateway_topic]

    @property
    def will(self) -> None:
        """Nobody follows a client's presence."""
        return None

    @property
    def farewell(self) -> list[Effect]:
        """Nothing to say before leaving."""
        return []

    def next_deadline(self) -> int | None:
        """When to call `tick`, in microseconds."""
        times = [asked.expires_us for asked in self._open]
        if self._is_connected:
            times += [asked.resend_us for asked in self._open if asked.frame]
            times += [] if self._joiner.due_us is None else [self._joiner.due_us]
        return min(times, default=None)

    def connected(self, *, now: int) -> list[Effect]:
        """The link is up and every subscription is in place."""
        self._is_connected = True
        self._joiner.connected(now=now)
        return [*self._send_all(now=now), *self.tick(now=now)]

    def disconnected(self, *, now: int) -> list[Effect]:
        """The link is gone. Questions wait, until their deadline."""
        self._is_connected = False
        return []

    def ask(
        self, task: Task, tensor: Tensor, *, deadline_ms: int, reference: object, now: int
    ) -> list[Effect]:
        """Put a query to the gateway. The outcome comes as Deliver(reference, ...).

        Raises ValueError for a tensor that is not the task's, and for a deadline beyond a day.
        """
        _check_deadline(deadline_ms)
        if not tensor.fits(task):
            raise ValueError(f"task {task.name} takes {task.dtype} {list(task.shape)}")
        payload = payloads.encode_ask(Ask(task.number, deadline_ms, tensor))
        return self._open_up(payload, deadline_ms, reference, now=now)

    def _open_up(self, payload: bytes, deadline_ms: int, reference: object, *, now: int) -> list[Effect]:
        if len(self._open) >= MAX_OPEN:
            return [Deliver(reference, Outcome(status=Status.OVERLOADED))]
        expires_us = now + deadline_ms * 1000 + GRACE_US
        asked = _Open(reference, payload, now, expires_us)
        self._open.append(asked)
        return self._send(asked, now=now) if self._is_connected else []

    def feedback(self, feedback: Feedback, *, deadline_ms: int, reference: object, now: int) -> list[Effect]:
        """Tell the gateway what an earlier query showed. Deliver(reference, ...) says ANSWERED, or REFUSED
        where the gateway does not know that query any more. Raises ValueError for a deadline beyond a day.
        """
        _check_deadline(deadline_ms)
        return self._open_up(payloads.encode_feedback(feedback), deadline_ms, reference, now=now)

    def tick(self, *, now: int) -> list[Effect]:
        """Time has come: resend what is not answered, give up what is overdue."""
        effects: list[Effect] = []
        overdue = [asked for asked in self._open if asked.expires_us <= now]
        for asked in overdue:
            self._open.remove(asked)
            effects.append(Deliver(asked.reference, Outcome(status=Status.UNREACHABLE)))
        if not self._is_connected:
            return effects
        if overdue and not self._joiner.is_waiting:
            # The gateway may not hold our session any more, and has no way to tell us so.
            self._joiner.begin(at=now)
        hello = self._joiner.poll(now=now)
        if hello is not None:
            effects.append(Publish(self._send_topic, hello))
        for asked in self._open:
            if asked.frame and asked.resend_us <= now:
                effects += self._send(asked, now=now)
        return effects

    def receive(self, topic: str, payload: bytes, *, now: int) -> list[Effect]:
        """A message came. Drops what is not acceptable, with its reason."""
        try:
            if topic == self._gateway_topic:
                return self._gateway_state(payload, now=now)
            kind = frames.parse_type(payload)
            if kind is Type.WELCOME and topic == self._receive_topic:
                return self._welcome(payload, now=now)
            if kind is Type.OUTCOME and topic == self._receive_topic:
                return self._outcome(payload)
            raise ProtocolError("direction")
        except ProtocolError as error:
            return [Rejected(reason=error.reason)]

    def _welcome(self, payload: bytes, *, now: int) -> list[Effect]:
        self._session, _ = self._joiner.finish(payload, now=now)
        for asked in self._open:
            asked.frame = b""  # sealed for the session before
        return [Joined("gateway"), *self._send_all(now=now)]

    def _outcome(self, payload: bytes) -> list[Effect]:
        frame = frames.parse_session_frame(payload)
        session = self._session
        if session is None or (session.number, session.index) != (frame.session, frame.index):
            raise ProtocolError("session")
        counter, outcome = payloads.decode_outcome(session.open(Type.OUTCOME, frame))
        for asked in self._open:
            if asked.frame and frames.parse_session_frame(asked.frame).number == counter:
                self._open.remove(asked)
                return [Deliver(asked.reference, outcome)]
        raise ProtocolError("unknown_query")

    def _gateway_state(self, payload: bytes, *, now: int) -> list[Effect]:
        """Advisory: it can hasten a HELLO, and nothing else."""
        boot = presence.parse_gateway_state(payload)
        if boot is not None:
            self._joiner.announced(boot, now=now)
        return []

    def _send_all(self, *, now: int) -> list[Effect]:
        return [effect for asked in self._open for effect in self._send(asked, now=now)]

    def _send(self, asked: _Open, *, now: int) -> list[Effect]:
        """Send a question, or send it again: the same bytes within a session."""
        if self._session is None:
            return []
        asked.resend_us = now + RESEND_US
        asked.frame = asked.frame or self._session.seal(Type.ASK, asked.payload)
        return [Publish(self._send_topic, asked.frame)]


def _check_deadline(deadline_ms: int) -> None:
    if not 1 <= deadline_ms <= MAX_DEADLINE_MS:
        raise ValueError(f"deadline_ms must be 1 to {MAX_DEADLINE_MS}")
