"""The gateway machine: admits members, asks queries, opens answers, closes rounds.

Pure: every input is a method that takes `now` in microseconds, every output a list of effects. It
never raises for hostile input. A query is encoded, sealed and signed once; a re-ask is those bytes
(R1). Epoch keys are random at each start and live in memory only (R2). Every query that `ask` takes
is delivered an outcome: at once, when its round is complete, or at its deadline.

Not here: the roster's file, the clock, the link; who may ask locally.
"""

import hashlib
import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from edge_fi.crypto import seal
from edge_fi.crypto.aead import open_sealed
from edge_fi.crypto.keys import Entropy
from edge_fi.effects import Deliver, Effect, Joined, Noticed, Publish, Rejected
from edge_fi.errors import DecodeError, ProtocolError
from edge_fi.messages import Fate, Form, Outcome, Query, Status, Task, Tensor, Vote
from edge_fi.round import Round, RoundPolicy
from edge_fi.session import GatewayIdentity, Member, Peer, Session
from edge_fi.voting.strategy import STRATEGIES, Strategy
from edge_fi.wire import frames, payloads, presence, topics, votes
from edge_fi.wire.frames import SessionFrame, Type
from edge_fi.wire.payloads import Welcome

MAX_NAME_BYTES = 255  # of a strategy's name, in an OUTCOME
MAX_AHEAD = 512  # open queries of one task; half of what a device's window remembers
CLOSED_KEPT = 256  # closed rounds kept per task, so that a late answer is counted as late
MISSED_UNTIL_SILENT = 3  # rounds in a row without a sign; such a member is asked, but not awaited
REJOIN_MS_PER_MEMBER = 5  # a handshake costs the gateway under a millisecond
LEAST_REJOIN_WINDOW_MS = 100
OUTCOMES_KEPT = 64  # of a client: a resent ASK gets the same OUTCOME frame. As many may be open at once
WELCOME_AGAIN_US = (1_000_000, 4_000_000, 16_000_000)
"""A WELCOME that no frame answers is resent after these waits: READY may have been lost."""
STATE_EVERY_US = 1_000_000  # correcting a wrong retained state: no faster than this
CATCH_UP_EVERY_US = 1_000_000  # a member that says READY again and again is sent open queries no faster
CATCH_UP_BYTES = 1_000_000  # of open queries sent to a member that is back; the oldest first
MAX_SEQ = 0xFFFFFFFF
_WELCOME_WAKE, _STATE_WAKE, _CATCH_UP_WAKE = 0, -1, -2  # in the place of a task's number


@dataclass(frozen=True, slots=True)
class ClientAsk:
    """The reference of a query that came from a client."""

    client: int
    counter: int
    digest: bytes
    """Of the ASK frame: counters begin anew with each session, and a round can outlive one."""


@dataclass(slots=True)
class _Asked:
    """One ASK frame of a client's session, and what answers it."""

    digest: bytes
    outcome: bytes = b""
    """The OUTCOME frame; empty while the round is open."""


@dataclass(slots=True)
class _Open:
    """A round, with what it takes to check its answers."""

    round: Round
    reference: object
    frame: bytes
    query_hash: bytes
    forms: frozenset[Form]


@dataclass(slots=True)
class _Epoch:
    """One task's epoch: its key, its open rounds, and the latest closed ones."""

    task: Task
    keys: seal.Epoch
    key: bytes = field(repr=False)
    next_seq: int = 1
    open: dict[int, _Open] = field(default_factory=dict)
    closed: dict[int, _Open] = field(default_factory=dict)

    @property
    def floor(self) -> int:
        """Lowest seq still open."""
        return next(iter(self.open), self.next_seq)  # they were opened in the order of their seq


class Gateway:
    """One federation's gateway. Give it to a pump, or to a simulator."""

    def __init__(
        self,
        identity: GatewayIdentity,
        roster: Iterable[Member],
        tasks: Iterable[Task],
        entropy: Entropy,
        *,
        policy: RoundPolicy | None = None,
        strategies: Mapping[str, Strategy] = STRATEGIES,
    ) -> None:
        members = list(roster)
        if len({member.index for member in members} | {0}) <= len(members):
            raise ValueError("the roster gives an index twice, or the index 0")
        if len({(member.role, member.id) for member in members}) < len(members):
            raise ValueError("the roster gives an id twice")
        if not all(name.isascii() and 1 <= len(name) <= MAX_NAME_BYTES for name in strategies):
            raise ValueError(f"a strategy's name must be 1 to {MAX_NAME_BYTES} ASCII characters")
        self.identity = identity
        self.policy = policy or RoundPolicy()
        self._strategies = strategies
        self._entropy = entropy
        self._boot = int.from_bytes(entropy(4), "big")
        self._settle_secret = entropy(32)
        self._epochs = {task.number: self._new_epoch(task) for task in tasks}
        self._peers = {member.index: Peer(member, identity) for member in members}
        self._senders = {self._topic_from(peer): peer for peer in self._peers.values()}
        self._names = {index: peer.member.id for index, peer in self._peers.items()}
        self._asks: dict[int, dict[int, _Asked]] = {}
        """Per client, by counter: the asks of its current session."""
        self._welcomes: dict[int, tuple[int, int]] = {}
        """Per member with a pending session: when its WELCOME is sent again, and how often it was."""
        self._wakes: list[tuple[int, int, int]] = []
        """Heap of (time, task, seq) at which a round wants a look, or of (time, what else, whose)."""
        self._gateway_topic = topics.gateway_state(identity.federation)
        self._next_state_us = 0
        self._is_state_due = False

    @property
    def subscriptions(self) -> list[str]:
        """Topic filters; to be subscribed to on every connect, before `connected`."""
        federation = self.identity.federation
        return [
            topics.from_device(federation, "+"),
            topics.presence(federation, "+"),
            topics.from_client(federation, "+"),
            self._gateway_topic,
        ]

    @property
    def will(self) -> Publish:
        """What the broker shall say when this gateway is gone."""
        return Publish(self._gateway_topic, presence.LOST, qos=1, retain=True)

    @property
    def farewell(self) -> list[Effect]:
        """What to say before leaving on purpose; the Will is not sent then."""
        return [Publish(self._gateway_topic, presence.DISCONNECTED, qos=1, retain=True)]

    def online(self, task: int) -> tuple[str, ...]:
        """Ids of the devices that have a session for this task, in the order of the roster."""
        return tuple(self._names[index] for index in self._cohort(task))

    def next_deadline(self) -> int | None:
        """When to call `tick`, in microseconds."""
        return self._wakes[0][0] if self._wakes else None

    def connected(self, *, now: int) -> list[Effect]:
        """The link is up and every subscription is in place."""
        effects: list[Effect] = [self._state()]
        for epoch in self._epochs.values():
            for asked in epoch.open.values():
                effects.append(self._broadcast(epoch.task, asked.frame))
        return effects

    def disconnected(self, *, now: int) -> list[Effect]:
        """The link is gone. Rounds go on: their deadlines are promises."""
        return []

    def ask(
        self,
        task: int,
        tensor: Tensor,
        *,
        reference: object,
        now: int,
        policy: RoundPolicy | None = None,
    ) -> list[Effect]:
        """Put a query to every device of a task. The outcome comes as Deliver(reference, ...).

        Raises ValueError for a task, tensor or strategy that this gateway does not have: the
        caller's mistake, found before anything is sent.
        """
        policy = policy or self.policy
        epoch = self._epochs.get(task)
        if epoch is None:
            raise ValueError(f"no task number {task}")
        if not tensor.fits(epoch.task):
            raise ValueError(
                f"task {epoch.task.name} takes {epoch.task.dtype} {list(epoch.task.shape)}, "
                f"not {tensor.dtype} {list(tensor.shape)} of {len(tensor.content)} bytes"
            )
        if policy.strategy not in self._strategies:
            raise ValueError(f"no strategy {policy.strategy!r}")
        cohort = self._cohort(task)
        if not cohort:
            return self._deliver(reference, Outcome(status=Status.NO_MEMBERS))
        if epoch.next_seq - epoch.floor >= MAX_AHEAD or epoch.next_seq > MAX_SEQ:
            return self._deliver(reference, Outcome(status=Status.OVERLOADED))
        seq, epoch.next_seq = epoch.next_seq, epoch.next_seq + 1
        asked = self._open_round(epoch, seq, tensor, policy, cohort, reference, now=now)
        epoch.open[seq] = asked
        if policy.reask_s < policy.timeout_s:
            heapq.heappush(self._wakes, (asked.round.reask_us, task, seq))
        heapq.heappush(self._wakes, (asked.round.deadline_us, task, seq))
        return [self._broadcast(epoch.task, asked.frame)]

    def tick(self, *, now: int) -> list[Effect]:
        """Time has come: re-ask silent devices, close rounds at their deadline."""
        effects: list[Effect] = []
        while self._wakes and self._wakes[0][0] <= now:
            due_us, task, seq = heapq.heappop(self._wakes)
            if task == _CATCH_UP_WAKE:
                self._peers[seq].is_catching_up = False
                effects += self._catch_up(self._peers[seq], now=now)
                continue
            if task == _STATE_WAKE:
                self._is_state_due = False
                effects += self._own_state(b"", now=now)
                continue
            if task == _WELCOME_WAKE:
                effects += self._welcome_again(self._peers[seq], due_us, now=now)
                continue
            asked = self._epochs[task].open.get(seq)
            if asked is None:
                continue
            if due_us >= asked.round.deadline_us:
                effects += self._close(self._epochs[task], asked, now=now)
            else:
                effects += self._ask_again(asked, asked.round.silent())
        return effects

    def receive(self, topic: str, payload: bytes, *, now: int) -> list[Effect]:
        """A message came. Drops what is not acceptable, with its reason."""
        if topic == self._gateway_topic:
            return self._own_state(payload, now=now)
        peer = self._senders.get(topic)
        if peer is None:
            return [self._other(topic, payload)]
        try:
            kind = frames.parse_type(payload)
            if kind is Type.ANSWER and peer.member.role == "device":
                return self._answer(peer, payload, now=now)
            if kind is Type.HELLO:
                return self._hello(peer, payload, now=now)
            if kind is Type.READY and peer.member.role == "device":
                return self._ready(peer, payload, now=now)
            if kind is Type.ASK and peer.member.role == "client":
                return self._client_ask(peer, payload, now=now)
            raise ProtocolError("direction")
        except ProtocolError as error:
            return [Rejected(reason=error.reason, peer=peer.member.id)]

    def _other(self, topic: str, payload: bytes) -> Effect:
        """What comes on no member's topic: a device's presence, or nothing of ours."""
        try:
            level, name = topics.parse_member(topic, self.identity.federation)
        except ProtocolError as error:
            return Rejected(reason=error.reason)
        device = topics.from_device(self.identity.federation, name)
        if level != "s" or device not in self._senders:
            return Rejected(reason="stranger")
        # Anybody may write there, and what is noticed is logged: the known words alone pass.
        known = payload in presence.STATES
        return Noticed(name, payload.decode()) if known else Rejected(reason="presence")

    def _state(self) -> Publish:
        state = presence.build_gateway_state(self._boot)
        return Publish(self._gateway_topic, state, qos=1, retain=True)

    def _own_state(self, payload: bytes, *, now: int) -> list[Effect]:
        """The broker may hold an old Will, or somebody else's claim.

        Members that missed our start know of it by nothing else: where all did, there is nobody to
        send a query to, whose epoch would tell them.
        """
        own = self._state()
        if payload == own.payload or self._is_state_due:
            return []
        if now < self._next_state_us:
            self._is_state_due = True
            heapq.heappush(self._wakes, (self._next_state_us, _STATE_WAKE, 0))
            return []
        self._next_state_us = now + STATE_EVERY_US
        return [own]

    def _answer(self, peer: Peer, payload: bytes, *, now: int) -> list[Effect]:
        frame = self._session_frame(peer, payload)
        session = peer.find(frame.session)
        epoch = self._epochs[session.task]
        asked = epoch.open.get(frame.number) or epoch.closed.get(frame.number)
        if asked is None:
            raise ProtocolError("unknown_query")
        form = Form(frame.form)
        if form is not Form.ABSTAIN and form not in asked.forms:
            raise ProtocolError("form")
        key = seal.answer_key(
            session.keys.answer,
            frame.header,
            epoch=epoch.keys.number,
            query_hash=asked.query_hash,
            model=session.model,
        )
        code = open_sealed(frame.sealed, key=key, nonce=0, header=frame.header)
        effects = self._promote(peer, session)
        try:
            vote = self._read_vote(epoch.task, peer.member, form, code)
            fate = asked.round.add(peer.member.index, vote)
            if fate is not Fate.LATE or now < asked.round.deadline_us:
                # Only now: a replayed answer is no sign of life. One that came before the deadline is,
                # though others were faster; to be later than that always is not to be awaited.
                peer.missed = 0
            if fate is Fate.LATE:
                raise ProtocolError("late")
        except ProtocolError as error:
            # The frame opened, so the session stands, whatever the vote is worth.
            rejected = Rejected(reason=error.reason, peer=peer.member.id, seq=frame.number)
            return [*effects, rejected]
        if asked.round.is_open and asked.round.is_complete:
            effects += self._close(epoch, asked, now=now)
        return effects

    def _read_vote(self, task: Task, member: Member, form: Form, code: bytes) -> Vote | None:
        if form is Form.ABSTAIN:
            if code:
                raise DecodeError("vote")
            return None
        probabilities, log_weight = votes.dequantize(form, code, task.classes, scale=task.log_weight)
        return Vote(device=member.id, probabilities=probabilities, log_weight=log_weight, form=form)

    def _hello(self, peer: Peer, payload: bytes, *, now: int) -> list[Effect]:
        body, handshake = peer.read_hello(payload, entropy=self._entropy)
        if isinstance(handshake, Session):
            return [Publish(self._topic_to(peer), handshake.welcome)]
        member = peer.member
        welcome = Welcome(
            session=peer.next_number(), boot=self._boot, rejoin_window_ms=self._rejoin_window_ms
        )
        if member.role == "client":
            # Its resent HELLO and its ASK do what READY does for a device.
            session = peer.welcome(payload, handshake, welcome)
            return [Publish(self._topic_to(peer), session.welcome)]
        hello = payloads.decode_hello(body)
        epoch = self._epochs.get(hello.task)
        if epoch is None or epoch.task.digest() != hello.task_digest:
            # Authentic, and still of no use: its task file and ours differ.
            raise ProtocolError("task_mismatch")
        welcome = replace(welcome, epoch=epoch.keys.number, floor=epoch.floor, epoch_key=epoch.key)
        session = peer.welcome(payload, handshake, welcome, task=hello.task, model=hello.model)
        self._welcome_later(member.index, 0, now=now)
        return [Publish(self._topic_to(peer), session.welcome)]

    def _welcome_later(self, index: int, sent: int, *, now: int) -> None:
        """One series of resends a member, however many HELLOs come; of two wakes the sooner counts."""
        due_us = now + WELCOME_AGAIN_US[sent]
        waiting_us, _ = self._welcomes.get(index, (due_us + 1, 0))
        if due_us < waiting_us:
            heapq.heappush(self._wakes, (due_us, _WELCOME_WAKE, index))
        self._welcomes[index] = min(due_us, waiting_us), sent

    def _welcome_again(self, peer: Peer, due_us: int, *, now: int) -> list[Effect]:
        index, latest = peer.member.index, peer.latest_pending
        waiting_us, sent = self._welcomes.get(index, (0, 0))
        if waiting_us != due_us:
            return []  # a sooner wake took its place
        del self._welcomes[index]
        if latest is None:
            return []
        if sent + 1 < len(WELCOME_AGAIN_US):
            self._welcome_later(index, sent + 1, now=now)
        return [Publish(self._topic_to(peer), latest.welcome)]

    def _ready(self, peer: Peer, payload: bytes, *, now: int) -> list[Effect]:
        frame = self._session_frame(peer, payload)
        session = peer.find(frame.session)
        forms = payloads.decode_ready(session.open(Type.READY, frame))
        peer.missed = 0
        return [*self._promote(peer, session, forms=forms), *self._catch_up(peer, now=now)]

    def _catch_up(self, peer: Peer, *, now: int) -> list[Effect]:
        """Open queries that the device was asked and may have missed: it was away."""
        session, index = peer.current, peer.member.index
        if session is None or peer.is_catching_up:
            return []
        wait_until_us = peer.caught_up_us + CATCH_UP_EVERY_US
        if now < wait_until_us:
            peer.is_catching_up = True
            heapq.heappush(self._wakes, (wait_until_us, _CATCH_UP_WAKE, index))
            return []
        left, effects = CATCH_UP_BYTES, []
        for asked in self._epochs[session.task].open.values():
            if asked.round.fates.get(index) is Fate.ASKED and len(asked.frame) <= left:
                left -= len(asked.frame)
                effects += self._ask_again(asked, [index])
        if effects:
            peer.caught_up_us = now
        return effects

    def _client_ask(self, peer: Peer, payload: bytes, *, now: int) -> list[Effect]:
        frame = self._session_frame(peer, payload)
        session = peer.find(frame.session)
        index, counter = peer.member.index, frame.number
        digest = hashlib.blake2b(payload, digest_size=16).digest()
        known = self._asks.get(index, {}).get(counter)
        if known is not None and known.digest == digest:
            # The very bytes that opened before: its outcome was lost or is still awaited.
            return [Publish(self._topic_to(peer), known.outcome)] if known.outcome else []
        body = session.open(Type.ASK, frame)
        effects = self._promote(peer, session)
        asks = self._asks.setdefault(index, {})
        answered = [number for number, asked in asks.items() if asked.outcome]
        is_too_much = len(asks) - len(answered) >= OUTCOMES_KEPT
        asks[counter] = _Asked(digest)
        if answered and len(asks) > OUTCOMES_KEPT:
            del asks[answered[0]]
        reference = ClientAsk(index, counter, digest)
        if is_too_much:
            return effects + self._deliver(reference, Outcome(status=Status.OVERLOADED))
        try:
            ask = payloads.decode_ask(body)
            policy = self._policy_within(ask.deadline_ms)
            return effects + self.ask(ask.task, ask.tensor, reference=reference, now=now, policy=policy)
        except (ProtocolError, ValueError):
            return effects + self._deliver(reference, Outcome(status=Status.REFUSED))

    def _policy_within(self, deadline_ms: int) -> RoundPolicy:
        """The gateway's policy, with the client's deadline where that is sooner."""
        return replace(self.policy, timeout_s=min(self.policy.timeout_s, deadline_ms / 1000))

    def _session_frame(self, peer: Peer, payload: bytes) -> SessionFrame:
        frame = frames.parse_session_frame(payload)
        if frame.index != peer.member.index:
            raise ProtocolError("index")
        return frame

    def _promote(self, peer: Peer, session: Session, *, forms: frozenset[Form] = frozenset()) -> list[Effect]:
        if not peer.promote(session):
            return []
        # Counters begin anew with a session: what is kept of the old one's asks names nothing now.
        self._asks.pop(peer.member.index, None)
        return [Joined(peer.member.id, forms)]

    def _open_round(
        self,
        epoch: _Epoch,
        seq: int,
        tensor: Tensor,
        policy: RoundPolicy,
        cohort: list[int],
        reference: object,
        *,
        now: int,
    ) -> _Open:
        identity, keys = self.identity, epoch.keys
        preimage = seal.settle_preimage(self._settle_secret, keys.number, seq)
        query = Query(
            task=epoch.task.number,
            forms=policy.forms,
            deadline_ms=round(policy.timeout_s * 1000),
            settle=seal.settle_digest(preimage, keys.number, seq, identity.federation),
            tensor=tensor,
        )
        header = frames.build_query_header(keys.number, seq)
        signed = header + keys.seal_query(payloads.encode_query(query), seq=seq, header=header)
        frame = signed + seal.sign_query(identity.signing, identity.federation, signed)
        awaited = [i for i in cohort if self._peers[i].missed < MISSED_UNTIL_SILENT]
        its_round = Round(
            seq=seq,
            policy=policy,
            asked=cohort,
            # With nobody left to wait for, waiting for all of them is the better guess.
            awaited=awaited or cohort,
            opened_us=now,
            strategy=self._strategies[policy.strategy],
        )
        return _Open(its_round, reference, frame, keys.query_hash(frame), policy.forms)

    def _ask_again(self, asked: _Open, indices: Iterable[int]) -> list[Effect]:
        """The very same bytes, to each alone (R1)."""
        return [Publish(self._topic_to(self._peers[index]), asked.frame) for index in indices]

    def _close(self, epoch: _Epoch, asked: _Open, *, now: int) -> list[Effect]:
        its_round = asked.round
        outcome = its_round.close(self._names, now=now)
        del epoch.open[its_round.seq]
        epoch.closed[its_round.seq] = asked
        # What is kept serves to tell late answers, and must stay small: the votes are the outcome's now.
        asked.frame = b""
        its_round.votes.clear()
        if len(epoch.closed) > CLOSED_KEPT:
            del epoch.closed[next(iter(epoch.closed))]
        fates = its_round.fates
        for index in fates:
            if fates[index] is Fate.MISSING:
                self._peers[index].missed += 1
        effects = self._deliver(asked.reference, outcome)
        if Fate.SILENCED in fates.values():
            number = epoch.keys.number
            preimage = seal.settle_preimage(self._settle_secret, number, its_round.seq)
            settled = frames.build_settled(number, its_round.seq, preimage)
            effects.append(self._broadcast(epoch.task, settled))
        return effects

    def _deliver(self, reference: object, outcome: Outcome) -> list[Effect]:
        effects: list[Effect] = [Deliver(reference, outcome)]
        if not isinstance(reference, ClientAsk):
            return effects
        peer = self._peers[reference.client]
        asked = self._asks.get(reference.client, {}).get(reference.counter)
        if peer.current is None or asked is None or asked.digest != reference.digest:
            return effects  # the client began a new session since
        payload = payloads.encode_outcome(reference.counter, outcome)
        frame = peer.current.seal(Type.OUTCOME, payload)
        asked.outcome = frame
        return [*effects, Publish(self._topic_to(peer), frame)]

    def _cohort(self, task: int) -> list[int]:
        return [
            index
            for index, peer in self._peers.items()
            if peer.current is not None and peer.current.task == task
        ]

    def _broadcast(self, task: Task, frame: bytes) -> Publish:
        return Publish(topics.query(self.identity.federation, task.number), frame)

    def _topic_to(self, peer: Peer) -> str:
        build = topics.to_device if peer.member.role == "device" else topics.to_client
        return build(self.identity.federation, peer.member.id)

    def _topic_from(self, peer: Peer) -> str:
        build = topics.from_device if peer.member.role == "device" else topics.from_client
        return build(self.identity.federation, peer.member.id)

    @property
    def _rejoin_window_ms(self) -> int:
        return min(max(len(self._peers) * REJOIN_MS_PER_MEMBER, LEAST_REJOIN_WINDOW_MS), 0xFFFF)

    def _new_epoch(self, task: Task) -> _Epoch:
        key = self._entropy(32)
        number = int.from_bytes(self._entropy(4), "big")
        return _Epoch(task, seal.Epoch.from_key(number, key), key)
