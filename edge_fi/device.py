"""The device machine: holds a session with the gateway, answers queries of one task with one model.

Pure: every input is a method that takes `now` in microseconds, every output a list of effects. It
never raises for hostile input. What it does with a query, by the query's state (rule R6):

    new       window, open, verify, decode, fits the task  -> Infer, pending
    pending   the same bytes again -> nothing              inferred -> sealed, or declined
    sealed    the same bytes again -> the cached answer
    declined  the same bytes again -> nothing

Other bytes under a known seq are a conflict (R4). Window, cache and pending inferences belong to the
session and die with it (R5). A new epoch comes under the session; what was asked under the one before
is answered for as long as such queries may be open. Not here: the model, the clock, the link, the
tensor's meaning.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edge_fi.crypto import seal
from edge_fi.crypto.aead import seal as aead_seal
from edge_fi.crypto.keys import Entropy
from edge_fi.effects import Effect, Infer, Joined, Publish, Rejected, Ticket
from edge_fi.errors import ProtocolError
from edge_fi.messages import VOTE_FORMS, Array, Form, Task, Tensor, Trust
from edge_fi.replay import WINDOW
from edge_fi.session import Identity, Joiner, Session
from edge_fi.voting.features import FeatureMap
from edge_fi.voting.gate import Gate, gate_digest
from edge_fi.wire import frames, payloads, presence, topics, votes
from edge_fi.wire.frames import QueryFrame, Type
from edge_fi.wire.payloads import GATE_NAME_BYTES, Hello, Ready

CHECK_EVERY_US = 1_000_000  # verifying a signature of an epoch that is not held: once a second
PRESENCE_EVERY_US = 1_000_000  # correcting a wrong retained presence: no faster than this
SHORT_LINK_US = 5_000_000  # a link that was up for less may have been taken over, and the session with it


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelling:
    """How a model's outputs and a task's labels correspond, and what answers may look like."""

    task: Task
    model: bytes
    """8 bytes: BLAKE2b of the model file."""
    classes: tuple[int, ...]
    """The task's class of each of the model's outputs; a model may know only some."""
    forms: frozenset[Form] = frozenset(VOTE_FORMS)
    """Forms that the owner allows."""

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError("a model needs at least one class, each of them once")
        if not all(0 <= label < self.task.classes for label in self.classes):
            raise ValueError("a model's class is none of the task's")


@dataclass(frozen=True, kw_only=True)
class OwnGate:
    """How a device tells its familiarity with a query. Raises ValueError where gate and map do not fit."""

    gate: Gate
    features: FeatureMap
    is_registered: bool
    """Whether the gateway is given the gate; else the device weighs each query itself, and claims that."""

    def __post_init__(self) -> None:
        if self.gate.map_digest != self.features.digest:
            raise ValueError("the gate is of another feature map")

    @property
    def trust(self) -> Trust:
        """As HELLO says it."""
        return Trust.GATE if self.is_registered else Trust.DEVICE

    @cached_property
    def content(self) -> bytes:
        """What is registered."""
        return self.gate.encode(self.features)

    @property
    def name(self) -> bytes:
        """4 bytes: by which HELLO names what is registered; zeros where nothing is."""
        digest = gate_digest(self.content) if self.is_registered else bytes(GATE_NAME_BYTES)
        return digest[:GATE_NAME_BYTES]

    def claim(self, tensor: Tensor) -> float:
        """Log weight that an answer claims; 0 where the gateway knows better."""
        return 0.0 if self.is_registered else self.gate.weigh(self.features.row(tensor), self.features)


@dataclass(slots=True)
class _Asked:
    """What is remembered of a query: not its tensor, or 1,024 of them would fill a small device."""

    query_hash: bytes
    settle: bytes
    forms: frozenset[Form]
    epoch: int
    claim: float
    """Its log weight, as the answer will state it."""
    expires_us: int
    state: str = "pending"
    answer: bytes = b""


@dataclass(frozen=True, slots=True)
class _Held:
    """An epoch that the device can read, and the gateway's signing key of that time."""

    keys: seal.Epoch
    verify: bytes


class Device:
    """One device. Give it to a pump, or to a simulator."""

    def __init__(
        self, identity: Identity, labelling: Labelling, entropy: Entropy, *, gate: OwnGate | None = None
    ) -> None:
        self.identity = identity
        self.labelling = labelling
        self._gate = gate
        federation, task = identity.federation, labelling.task
        hello = Hello(labelling.model, task.number, task.digest())
        if gate is not None:
            hello = Hello(labelling.model, task.number, task.digest(), gate.trust, gate.name)
        self._joiner = Joiner(identity, payloads.encode_hello(hello), entropy)
        self._query_topic = topics.query(federation, task.number)
        self._direct_topic = topics.to_device(federation, identity.id)
        self._answer_topic = topics.from_device(federation, identity.id)
        self._presence_topic = topics.presence(federation, identity.id)
        self._gateway_topic = topics.gateway_state(federation)
        self._is_connected = False
        self._connected_us = 0
        self._was_short = False
        """Whether the link before was up for less than SHORT_LINK_US."""
        self._sessions = 0
        self._session: Session | None = None
        self._epoch: _Held | None = None
        self._former: _Held | None = None
        """The epoch before, until `_former_until_us`."""
        self._former_until_us = 0
        self._is_gate_wanted = False
        """Whether the gateway asked for the gate as it began the session."""
        self._rekey = b""
        """The frame that began the current epoch, where that was no WELCOME."""
        self._floor = 0
        self._highest = 0
        self._asked: dict[int, _Asked] = {}
        self._next_check_us = 0
        self._next_presence_us = 0
        self._is_presence_due = False

    @property
    def subscriptions(self) -> list[str]:
        """Topic filters; to be subscribed to on every connect, before `connected`."""
        return [self._query_topic, self._direct_topic, self._gateway_topic, self._presence_topic]

    @property
    def will(self) -> Publish:
        """What the broker shall say when this device is gone."""
        return Publish(self._presence_topic, presence.LOST, qos=1, retain=True)

    @property
    def farewell(self) -> list[Effect]:
        """What to say before leaving on purpose; the Will is not sent then."""
        return [Publish(self._presence_topic, presence.DISCONNECTED, qos=1, retain=True)]

    def next_deadline(self) -> int | None:
        """When to call `tick`, in microseconds."""
        if not self._is_connected:
            return None
        times = [] if self._joiner.due_us is None else [self._joiner.due_us]
        times += [self._next_presence_us] if self._is_presence_due else []
        return min(times, default=None)

    def connected(self, *, now: int) -> list[Effect]:
        """The link is up and every subscription is in place."""
        self._is_connected = True
        self._connected_us = now
        self._joiner.connected(now=now)
        ready = [] if self._session is None else [self._ready(self._session)]
        effects = [self._presence(), *ready, *self.tick(now=now)]
        if self._was_short and ready:
            # Whoever has a copy of our key took the link, and may have begun a session: ours would be dead,
            # and nothing that is sealed for us would say so.
            self._joiner.hint(now=now)
        return effects

    def disconnected(self, *, now: int) -> list[Effect]:
        """The link is gone. The session stays: the gateway may never notice."""
        self._is_connected = False
        self._was_short = now - self._connected_us < SHORT_LINK_US
        return []

    def tick(self, *, now: int) -> list[Effect]:
        """Time has come."""
        effects: list[Effect] = []
        if self._is_presence_due and now >= self._next_presence_us:
            self._is_presence_due = False
            effects += self._own_presence(b"", now=now)
        hello = self._joiner.poll(now=now)
        if hello is not None:
            effects.append(Publish(self._answer_topic, hello))
        return effects

    def receive(self, topic: str, payload: bytes, *, now: int) -> list[Effect]:
        """A message came. Drops what is not acceptable, with its reason."""
        try:
            if topic == self._gateway_topic:
                return self._gateway_state(payload, now=now)
            if topic == self._presence_topic:
                return self._own_presence(payload, now=now)
            kind = frames.parse_type(payload)
            # The topic is no part of a query: both copies share one window (R3).
            if kind is Type.QUERY and topic in (self._query_topic, self._direct_topic):
                return self._query(payload, now=now)
            if kind is Type.SETTLED and topic == self._query_topic:
                return self._settled(payload)
            if kind is Type.WELCOME and topic == self._direct_topic:
                return self._welcome(payload, now=now)
            if kind is Type.REKEY and topic == self._direct_topic:
                return self._rekeyed(payload, now=now)
            raise ProtocolError("direction")
        except ProtocolError as error:
            return [Rejected(reason=error.reason)]

    def inferred(self, ticket: Ticket, scores: Array | None, *, now: int) -> list[Effect]:
        """The model's logits for a query, (model classes,), or None where it failed."""
        asked = self._asked.get(ticket.seq)
        session = self._session
        if session is None or asked is None or ticket.session != self._sessions or asked.state != "pending":
            return [Rejected(reason="ticket", seq=ticket.seq)]
        if now > asked.expires_us:
            asked.state = "declined"
            return [Rejected(reason="expired", seq=ticket.seq)]
        form, code = self._vote(asked, scores)
        header = frames.build_session_header(Type.ANSWER, session.number, session.index, ticket.seq, form)
        key = seal.answer_key(
            session.keys.answer,
            header,
            epoch=asked.epoch,
            query_hash=asked.query_hash,
            model=self.labelling.model,
        )
        # The key serves this one answer, and the state keeps it from being made twice.
        asked.answer = header + aead_seal(code, key=key, nonce=0, header=header)
        asked.state = "sealed"
        return [Publish(self._answer_topic, asked.answer)]

    def _query(self, payload: bytes, *, now: int) -> list[Effect]:
        frame = frames.parse_query(payload)
        epoch = self._held(frame.epoch, now=now)
        if epoch is None:
            return self._unknown_epoch(frame, now=now)
        if frame.seq < self._floor or frame.seq <= self._highest - WINDOW:
            raise ProtocolError("stale")
        query_hash = epoch.keys.query_hash(payload)
        asked = self._asked.get(frame.seq)
        if asked is not None and asked.query_hash == query_hash:
            return [Publish(self._answer_topic, asked.answer)] if asked.state == "sealed" else []
        plaintext = epoch.keys.open_query(frame.sealed, seq=frame.seq, header=frame.header)
        seal.verify_query(epoch.verify, self.identity.federation, frame.signed, frame.signature)
        if asked is not None:
            raise ProtocolError("conflict")
        query = payloads.decode_query(plaintext)
        if query.task != self.labelling.task.number or not query.tensor.fits(self.labelling.task):
            raise ProtocolError("task")
        expires_us = now + query.deadline_ms * 1000
        claim = 0.0 if self._gate is None else self._gate.claim(query.tensor)
        asked = _Asked(query_hash, query.settle, query.forms, frame.epoch, claim, expires_us)
        self._remember(frame.seq, asked)
        return [Infer(Ticket(self._sessions, frame.seq), query.tensor)]

    def _held(self, number: int, *, now: int) -> _Held | None:
        """The epoch of this number, if the device can read it."""
        if self._epoch is not None and self._epoch.keys.number == number:
            return self._epoch
        former = self._former
        if former is not None and former.keys.number == number and now <= self._former_until_us:
            return former
        return None

    def _unknown_epoch(self, frame: QueryFrame, *, now: int) -> list[Effect]:
        """The gateway may have begun a new epoch without us; a stranger may also say so."""
        if self._epoch is None or now < self._next_check_us:
            raise ProtocolError("epoch")
        self._next_check_us = now + CHECK_EVERY_US
        seal.verify_query(self._epoch.verify, self.identity.federation, frame.signed, frame.signature)
        # Proven to be the gateway's, but perhaps of an epoch long past, and replayed.
        self._joiner.hint(now=now)
        return [Rejected(reason="epoch", seq=frame.seq)]

    def _settled(self, payload: bytes) -> list[Effect]:
        epoch, seq, preimage = frames.parse_settled(payload)
        asked = self._asked.get(seq)
        if asked is None or epoch != asked.epoch:
            raise ProtocolError("unknown_query")
        seal.check_settled(asked.settle, preimage, epoch, seq, self.identity.federation)
        if asked.state == "pending":
            asked.state = "declined"
        return []

    def _welcome(self, payload: bytes, *, now: int) -> list[Effect]:
        if self._session is not None and payload == self._session.welcome:
            return [self._ready(self._session), *self._register(self._session)]  # it has not heard us
        session, welcome = self._joiner.finish(payload, now=now)
        self._session = session
        self._sessions += 1
        self._epoch = _Held(seal.Epoch.from_key(welcome.epoch, welcome.epoch_key), welcome.verify)
        self._former, self._rekey = None, b""
        self._is_gate_wanted = welcome.wants_gate
        self._floor = self._highest = welcome.floor
        self._asked = {}
        return [Joined("gateway"), self._ready(session), *self._register(session), self._presence()]

    def _rekeyed(self, payload: bytes, *, now: int) -> list[Effect]:
        """A new epoch, under the session that is."""
        frame = frames.parse_session_frame(payload)
        session = self._session
        if session is None or (session.number, session.index) != (frame.session, frame.index):
            raise ProtocolError("session")
        if payload == self._rekey:
            return [self._ready(session)]  # the gateway has not heard us
        if self._rekey and frame.number < frames.parse_session_frame(self._rekey).number:
            raise ProtocolError("stale")  # the one that it was sent before has overtaken it
        rekey = payloads.decode_rekey(session.open(Type.REKEY, frame))
        self._former, self._former_until_us = self._epoch, now + rekey.grace_ms * 1000
        self._epoch = _Held(seal.Epoch.from_key(rekey.epoch, rekey.epoch_key), rekey.verify)
        self._rekey = payload
        return [self._ready(session)]

    def _gateway_state(self, payload: bytes, *, now: int) -> list[Effect]:
        """Advisory: it can hasten a HELLO, and nothing else."""
        boot = presence.parse_gateway_state(payload)
        if boot is not None:
            self._joiner.announced(boot, now=now)
        return []

    def _own_presence(self, payload: bytes, *, now: int) -> list[Effect]:
        """The broker may hold an old Will, or somebody else's claim."""
        own = self._presence()
        if payload == own.payload or self._is_presence_due:
            return []
        if now < self._next_presence_us:
            self._is_presence_due = True
            return []
        self._next_presence_us = now + PRESENCE_EVERY_US
        return [own]

    def _ready(self, session: Session) -> Publish:
        assert self._epoch is not None  # it comes with the session
        ready = Ready(self.labelling.forms, self._epoch.keys.number)
        frame = session.seal(Type.READY, payloads.encode_ready(ready))
        return Publish(self._answer_topic, frame)

    def _register(self, session: Session) -> list[Effect]:
        """The gate, where the gateway has asked for it."""
        if self._gate is None or not self._gate.is_registered or not self._is_gate_wanted:
            return []
        return [Publish(self._answer_topic, session.seal(Type.GATE, self._gate.content))]

    def _presence(self) -> Publish:
        state = presence.INIT if self._session is None else presence.READY
        return Publish(self._presence_topic, state, qos=1, retain=True)

    def _remember(self, seq: int, asked: _Asked) -> None:
        self._asked[seq] = asked
        if seq > self._highest:
            # What leaves the window now; a walk over all that is remembered would cost more than a vote.
            for old in range(self._highest - WINDOW + 1, min(self._highest, seq - WINDOW) + 1):
                self._asked.pop(old, None)
            self._highest = seq

    def _vote(self, asked: _Asked, scores: Array | None) -> tuple[Form, bytes]:
        """The answer's form and code: the richest form that query and owner both allow."""
        allowed = asked.forms & self.labelling.forms
        classes = self.labelling.classes
        if not allowed or scores is None or scores.shape != (len(classes),) or not np.isfinite(scores).all():
            return Form.ABSTAIN, b""
        task = self.labelling.task
        form = votes.cheapest_first(list(allowed), task.classes)[-1]
        top = float(1 / np.exp(scores - scores.max()).sum())
        if form is Form.LABEL:  # the usual form needs no distribution over the task's classes
            label = classes[int(scores.argmax())]
            code = votes.quantize_label(label, top, asked.claim, classes=task.classes, scale=task.log_weight)
            return form, code
        probabilities = spread(scores, classes, task.classes)
        return form, votes.quantize(form, probabilities, asked.claim, scale=task.log_weight)


def spread(logits: Array, classes: Sequence[int], task_classes: int) -> Array:
    """Softmax over the model's classes, at their places among the task's; 0 at the others."""
    exponentials = np.exp(logits - logits.max())
    probabilities = np.zeros(task_classes)
    probabilities[list(classes)] = exponentials / exponentials.sum()
    return probabilities
