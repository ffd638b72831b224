"""The gateway machine: admits members, asks queries, opens answers, closes rounds.

Pure: every input is a method that takes `now` in microseconds, every output a list of effects. It
never raises for hostile input. A query is encoded, sealed and signed once; a re-ask is those bytes
(R1). Epoch keys are random at each start and live in memory only (R2). Every query that `ask` takes
is delivered an outcome: at once, when its round is complete, or at its deadline. What must survive
it does not keep but hands out, as Admit and Adopt, and goes on when that is written.

Not here: the roster's file, the clock, the link; who may ask locally.
"""

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

from edge_fi.admission import Admissions
from edge_fi.asks import Asks, ClientAsk
from edge_fi.claim import Claim
from edge_fi.crypto import seal
from edge_fi.crypto.aead import open_sealed
from edge_fi.crypto.keys import Entropy
from edge_fi.effects import Admit, Deliver, Effect, Halt, Joined, Noticed, Publish, Rejected, Restless
from edge_fi.epoch import Asked, TaskEpoch
from edge_fi.errors import DecodeError, ProtocolError
from edge_fi.messages import Fate, Form, Member, Outcome, Status, Task, Tensor, Trust, Vote
from edge_fi.roster import Roster
from edge_fi.round import Round, RoundPolicy
from edge_fi.session import GatewayIdentity, Peer, Session
from edge_fi.voting.features import FeatureMap
from edge_fi.voting.gate import gate_digest
from edge_fi.voting.panel import Panel
from edge_fi.voting.strategy import STRATEGIES, Strategy
from edge_fi.wire import frames, payloads, presence, topics, votes
from edge_fi.wire.frames import SessionFrame, Type
from edge_fi.wire.payloads import GATE_NAME_BYTES, Feedback, Refusal, Rekey, Welcome

MAX_NAME_BYTES = 255  # of a strategy's name, in an OUTCOME
MISSED_UNTIL_SILENT = 3  # rounds in a row without a sign; such a member is asked, but not awaited
REJOIN_MS_PER_MEMBER = 5  # a handshake costs the gateway under a millisecond
LEAST_REJOIN_WINDOW_MS = 100
AGAIN_US = (1_000_000, 4_000_000, 16_000_000)
"""A WELCOME or REKEY that no frame answers is resent after these waits: READY may have been lost."""
STATE_EVERY_US = 1_000_000  # correcting a wrong retained state: no faster than this
CATCH_UP_EVERY_US = 1_000_000  # a member that says READY again and again is sent open queries no faster
CATCH_UP_BYTES = 1_000_000  # of open queries sent to a member that is back; the oldest first
CLAIM_US = 1_000_000  # for another run of this gateway to answer a claim
EPOCH_US = 82_800_000_000  # 23 h; then a new epoch begins. Not a day: sessions are renewed then, all alike
# In the heap, in the place of a task's number:
_AGAIN_WAKE, _STATE_WAKE, _CATCH_UP_WAKE, _CLAIM_WAKE, _EPOCH_WAKE = 0, -1, -2, -3, -4


class Gateway:
    """One federation's gateway. Give it to a pump, or to a simulator.

    features: the feature maps of tasks that have one, by the tasks' numbers.
    is_claiming: whether it serves only after no other run of it has answered for CLAIM_US.
    """

    def __init__(
        self,
        identity: GatewayIdentity,
        roster: Roster,
        tasks: Iterable[Task],
        entropy: Entropy,
        *,
        policy: RoundPolicy | None = None,
        strategies: Mapping[str, Strategy] = STRATEGIES,
        features: Mapping[int, FeatureMap] | None = None,
        is_claiming: bool = False,
    ) -> None:
        if not all(name.isascii() and 1 <= len(name) <= MAX_NAME_BYTES for name in strategies):
            raise ValueError(f"a strategy's name must be 1 to {MAX_NAME_BYTES} ASCII characters")
        self.identity = identity
        self.policy = policy or RoundPolicy()
        self.is_open = not is_claiming
        """Whether it serves: it holds the claim, as far as it knows."""
        self._strategies = strategies
        self._entropy = entropy
        self._boot = int.from_bytes(entropy(4), "big")
        settle_secret = entropy(32)
        self._epochs = {task.number: TaskEpoch(task, entropy, settle_secret) for task in tasks}
        self.panels = {
            number: Panel(epoch.task, (features or {}).get(number)) for number, epoch in self._epochs.items()
        }
        """Of each task, by its number: what it knows of its members as voters."""
        self._roster = roster
        self._admissions = Admissions(identity, entropy)
        self._admissions.update(roster)
        self._claim = Claim(identity.static.private, entropy)
        self._is_claiming = is_claiming
        self._open_us: int | None = None
        """When it serves, if no other run answers the claim that was made last."""
        self._peers: dict[int, Peer] = {}
        self._senders: dict[str, Peer] = {}
        self._names: dict[int, str] = {}
        """Also of former members: a round that asked one tells of it by name."""
        for member in roster.members:
            self._add(member)
        self._asks = Asks()
        self._again: dict[int, tuple[int, int]] = {}
        """Per member with an unanswered frame: when it is sent again, and how often it was."""
        self._wakes: list[tuple[int, int, int]] = []
        """Heap of (time, task, seq) at which a round wants a look, or of (time, what else, whose)."""
        federation = identity.federation
        self._state_topic = topics.gateway_state(federation)
        self._roster_topic = topics.gateway_roster(federation)
        self._claim_topic = topics.gateway_claim(federation)
        self._join_topic = topics.join(federation)
        self._next_state_us = 0
        self._is_state_due = False
        self._is_connected = False
        self._has_begun = False

    @property
    def boot(self) -> int:
        """Names this run, u32."""
        return self._boot

    @property
    def subscriptions(self) -> list[str]:
        """Topic filters; to be subscribed to on every connect, before `connected`."""
        federation = self.identity.federation
        return [
            topics.from_device(federation, "+"),
            topics.presence(federation, "+"),
            topics.from_client(federation, "+"),
            self._join_topic,
            self._state_topic,
            self._roster_topic,
            self._claim_topic,
        ]

    @property
    def will(self) -> Publish:
        """What the broker shall say when this gateway is gone."""
        return Publish(self._state_topic, presence.LOST, qos=1, retain=True)

    @property
    def farewell(self) -> list[Effect]:
        """What to say before leaving on purpose; the Will is not sent then."""
        # A run that found another one must not say that the gateway is gone.
        is_open = self.is_open
        return [Publish(self._state_topic, presence.DISCONNECTED, qos=1, retain=True)] if is_open else []

    def online(self, task: int) -> tuple[str, ...]:
        """Ids of the devices that have a session for this task, in the order of the roster."""
        return tuple(self._names[index] for index in self._cohort(task))

    def latest_policy(self, task: int) -> RoundPolicy:
        """Of the latest query of a task, for one that must look like it: clients can want it sooner."""
        return self._epochs[task].latest_policy or self.policy

    def next_deadline(self) -> int | None:
        """When to call `tick`, in microseconds."""
        return self._wakes[0][0] if self._wakes else None

    def connected(self, *, now: int) -> list[Effect]:
        """The link is up and every subscription is in place."""
        self._is_connected = True
        effects: list[Effect] = []
        if not self._has_begun:
            self._has_begun = True
            for number in self._epochs:
                heapq.heappush(self._wakes, (now + EPOCH_US, _EPOCH_WAKE, number))
        if self._is_claiming:
            effects.append(Publish(self._claim_topic, self._claim.begin()))
            self._open_us = now + CLAIM_US
            heapq.heappush(self._wakes, (self._open_us, _CLAIM_WAKE, 0))
        return effects + (self._present() if self.is_open else [])

    def disconnected(self, *, now: int) -> list[Effect]:
        """The link is gone. Rounds go on: their deadlines are promises."""
        self._is_connected = False
        self._open_us = None  # nobody may have heard the claim
        return []

    def update(self, roster: Roster, *, now: int, identity: GatewayIdentity | None = None) -> list[Effect]:
        """The roster is this now; and the identity, where its signing key was changed.

        Former members are gone at once, with their votes, and a new epoch begins for the others.
        """
        before, self._roster = self._roster, roster
        self._admissions.update(roster)
        if identity is not None:
            self.identity = identity
        present = {member.index: member for member in roster.members}
        effects: list[Effect] = []
        for index in [index for index, peer in self._peers.items() if present.get(index) != peer.member]:
            effects += self._drop(self._peers[index], now=now)
        for member in roster.members:
            if member.index not in self._peers:
                self._add(member)
        is_asked_for = identity is not None or roster.rotations != before.rotations
        lost = [member for member in before.members if present.get(member.index) != member]
        for number in self._epochs:
            has_lost = any(member.role == "device" and member.task in (0, number) for member in lost)
            if is_asked_for or has_lost:
                effects += self._rotate(number, now=now)
        if roster.version != before.version and self.is_open and self._is_connected:
            effects.append(self._roster_word())
        return effects

    def admitted(self, admit: Admit, roster: Roster, *, now: int) -> list[Effect]:
        """The member is written down, and this is the roster with it."""
        effects = self.update(roster, now=now)
        tasks = [epoch.task for number, epoch in self._epochs.items() if admit.member.task in (0, number)]
        maps = [self.panels[task.number].features for task in tasks]
        frame = self._admissions.accept(admit, tasks, [b"" if its is None else its.encoded for its in maps])
        return [*effects, self._to_joiner(admit.invite, frame)]

    def not_admitted(self, admit: Admit, refusal: Refusal, *, now: int) -> list[Effect]:
        """Nothing was written; the joiner is told why."""
        frame = self._admissions.refuse(admit.invite, refusal)
        rejected = Rejected(reason=refusal.name.lower(), peer=admit.member.id)
        return [rejected, self._to_joiner(admit.invite, frame)]

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
        if epoch.is_full:
            return self._deliver(reference, Outcome(status=Status.OVERLOADED))
        effects = self._rotate(task, now=now) if epoch.is_spent else []
        awaited = [i for i in cohort if self._peers[i].missed < MISSED_UNTIL_SILENT]
        its_round = Round(
            seq=epoch.next_seq(),
            policy=policy,
            asked=cohort,
            # With nobody left to wait for, waiting for all of them is the better guess.
            awaited=awaited or cohort,
            opened_us=now,
            decide=partial(self.panels[task].decide, strategy=self._strategies[policy.strategy]),
            epoch=epoch.number,
            familiarity=self.panels[task].familiarity(tensor),
        )
        asked = epoch.ask(self.identity, its_round, tensor, reference)
        if policy.reask_s < policy.timeout_s:
            heapq.heappush(self._wakes, (its_round.reask_us, task, its_round.seq))
        heapq.heappush(self._wakes, (its_round.deadline_us, task, its_round.seq))
        return [*effects, self._broadcast(epoch.task, asked.frame)]

    def learn(self, epoch: int, seq: int, label: int) -> Outcome:
        """What a query showed, told later: ANSWERED, or REFUSED where no such query is known any more."""
        is_known = any(panel.learn((epoch, seq), label) for panel in self.panels.values())
        return Outcome(status=Status.ANSWERED if is_known else Status.REFUSED, epoch=epoch, seq=seq)

    def tick(self, *, now: int) -> list[Effect]:
        """Time has come: re-ask silent devices, close rounds at their deadline."""
        effects: list[Effect] = []
        while self._wakes and self._wakes[0][0] <= now:
            due_us, task, whose = heapq.heappop(self._wakes)
            if task > 0:
                effects += self._look(self._epochs[task], whose, due_us, now=now)
            elif task == _CATCH_UP_WAKE and whose in self._peers:
                self._peers[whose].is_catching_up = False
                effects += self._catch_up(self._peers[whose], now=now)
            elif task == _STATE_WAKE:
                self._is_state_due = False
                effects += self._own_state(b"", now=now)
            elif task == _AGAIN_WAKE and whose in self._peers:
                effects += self._send_again(self._peers[whose], due_us, now=now)
            elif task == _EPOCH_WAKE:
                heapq.heappush(self._wakes, (now + EPOCH_US, _EPOCH_WAKE, whose))
                effects += self._rotate(whose, now=now)
            elif task == _CLAIM_WAKE and due_us == self._open_us and not self.is_open:
                self.is_open = True
                effects += self._present()
        return effects

    def receive(self, topic: str, payload: bytes, *, now: int) -> list[Effect]:
        """A message came. Drops what is not acceptable, with its reason."""
        peer = self._senders.get(topic)
        try:
            if topic == self._claim_topic:
                return self._other_run(payload)
            if topic == self._roster_topic:
                return self._own_roster(payload)
            if not self.is_open:
                if peer is None and topic != self._join_topic:
                    return []  # what the broker remembers of us and of others; it is heard when we serve
                raise ProtocolError("closed")
            if peer is None:
                return self._other(topic, payload, now=now)
            kind = frames.parse_type(payload)
            if kind is Type.ANSWER and peer.member.role == "device":
                return self._answer(peer, payload, now=now)
            if kind is Type.HELLO:
                return self._hello(peer, payload, now=now)
            if kind is Type.READY and peer.member.role == "device":
                return self._ready(peer, payload, now=now)
            if kind is Type.GATE and peer.member.role == "device":
                return self._gate(peer, payload, now=now)
            if kind is Type.ASK and peer.member.role == "client":
                return self._client_ask(peer, payload, now=now)
            raise ProtocolError("direction")
        except ProtocolError as error:
            return [Rejected(reason=error.reason, peer="" if peer is None else peer.member.id)]

    def _other(self, topic: str, payload: bytes, *, now: int) -> list[Effect]:
        """What comes on no member's topic: our own word, a joiner's, a presence, or nothing of ours."""
        if topic == self._state_topic:
            return self._own_state(payload, now=now)
        if topic == self._join_topic:
            return self._join(payload, now=now)
        level, name = topics.parse_member(topic, self.identity.federation)
        if level == "s" and not payload:
            return []  # a presence was removed, perhaps by us
        if level != "s" or topics.from_device(self.identity.federation, name) not in self._senders:
            raise ProtocolError("stranger")
        # Anybody may write there, and what is noticed is logged: the known words alone pass.
        if payload not in presence.STATES:
            raise ProtocolError("presence")
        return [Noticed(name, payload.decode())]

    def _present(self) -> list[Effect]:
        """What to say on a link that is up: who we are, and every open query."""
        effects: list[Effect] = [self._state()]
        if self._roster.version:
            effects.append(self._roster_word())
        for epoch in self._epochs.values():
            effects += [self._broadcast(epoch.task, asked.frame) for asked in epoch.open.values()]
        return effects

    def _state(self) -> Publish:
        state = presence.build_gateway_state(self._boot)
        return Publish(self._state_topic, state, qos=1, retain=True)

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

    def _roster_word(self) -> Publish:
        word = self._claim.seal_roster(self._roster)
        return Publish(self._roster_topic, word, qos=1, retain=True)

    def _own_roster(self, payload: bytes) -> list[Effect]:
        """What a run of ours said of the roster: news where ours was restored from a backup."""
        if frames.parse_type(payload) is not Type.ROSTER:
            raise ProtocolError("direction")
        word = self._claim.open_roster(payload)
        is_known = word.revoked <= self._roster.revoked and word.highest <= self._roster.highest
        return [] if is_known else [word]

    def _other_run(self, payload: bytes) -> list[Effect]:
        """Another process claims to be this gateway, or says that it is."""
        kind = frames.parse_type(payload)
        if kind is Type.CLAIM:
            answer = self._claim.answer(payload, is_open=self.is_open)
            return [Publish(self._claim_topic, answer)] if answer else []
        if kind is not Type.HELD:
            raise ProtocolError("direction")
        if not self._claim.is_lost(payload):
            return []
        self.is_open, self._open_us = False, None
        return [
            Halt(
                "another process runs as this gateway, perhaps on another machine: stop it first; "
                "two gateways need two federations"
            )
        ]

    def _join(self, payload: bytes, *, now: int) -> list[Effect]:
        if frames.parse_type(payload) is not Type.JOIN:
            raise ProtocolError("direction")
        verdict = self._admissions.receive(payload, now=now)
        if isinstance(verdict, Admit):
            return [verdict]
        invite, frame = verdict
        answer = self._to_joiner(invite, frame)
        if frame[0] != Type.REFUSED:
            return [answer]
        refusal = Refusal(frames.parse_joining(frame).message[0])
        name = next(its.id for its in self._roster.invitations if its.number == invite)
        return [Rejected(reason=refusal.name.lower(), peer=name), answer]

    def _to_joiner(self, invite: int, frame: bytes) -> Publish:
        return Publish(topics.joined(self.identity.federation, invite), frame)

    def _add(self, member: Member) -> None:
        self._names[member.index] = member.id
        if member.role == "helper":
            return  # in the roster and with keys, but without a session in this version
        peer = self._peers[member.index] = Peer(member, self.identity)
        self._senders[self._topic_from(peer)] = peer

    def _drop(self, peer: Peer, *, now: int) -> list[Effect]:
        """A member is one no longer: its sessions, its questions and its votes in open rounds go."""
        index = peer.member.index
        del self._peers[index], self._senders[self._topic_from(peer)]
        self._asks.forget(index)
        self._again.pop(index, None)
        if peer.member.role != "device":
            return []
        for panel in self.panels.values():
            panel.forget(index)
        topic = topics.presence(self.identity.federation, peer.member.id)
        effects: list[Effect] = [Publish(topic, b"", qos=1, retain=True)]
        for epoch in self._epochs.values():
            for asked in list(epoch.open.values()):
                asked.round.revoke(index)
                if asked.round.is_complete:
                    effects += self._close(epoch, asked, now=now)
        return effects

    def _rotate(self, task: int, *, now: int) -> list[Effect]:
        """A new epoch, and its key to each device that holds a session: under that, one by one."""
        self._epochs[task].rotate(self._entropy)
        return self._rekey(self._epochs[task], self._cohort(task), now=now)

    def _rekey(self, epoch: TaskEpoch, indices: Iterable[int], *, now: int) -> list[Effect]:
        """The epoch's key to each of these, under its session."""
        open_until_us = max((asked.round.deadline_us for asked in epoch.open.values()), default=now)
        rekey = payloads.encode_rekey(
            Rekey(
                epoch=epoch.number,
                grace_ms=max(0, open_until_us - now + 999) // 1000,
                epoch_key=epoch.key,
                verify=self.identity.signing.public,
            )
        )
        effects: list[Effect] = []
        for index in indices:
            peer = self._peers[index]
            assert peer.current is not None
            peer.rekey = peer.current.seal(Type.REKEY, rekey)
            peer.current.epochs.add(epoch.number)
            self._send_later(index, 0, now=now)
            effects.append(Publish(self._topic_to(peer), peer.rekey))
        return effects

    def _look(self, epoch: TaskEpoch, seq: int, due_us: int, *, now: int) -> list[Effect]:
        asked = epoch.open.get(seq)
        if asked is None:
            return []
        if due_us >= asked.round.deadline_us:
            return self._close(epoch, asked, now=now)
        return self._ask_again(asked, asked.round.silent())

    def _answer(self, peer: Peer, payload: bytes, *, now: int) -> list[Effect]:
        frame = self._session_frame(peer, payload)
        session = peer.find(frame.session)
        epoch = self._epochs[session.task]
        asked = epoch.find(frame.number)
        if asked is None:
            raise ProtocolError("unknown_query")
        form = Form(frame.form)
        if form is not Form.ABSTAIN and form not in asked.forms:
            raise ProtocolError("form")
        key = seal.answer_key(
            session.keys.answer,
            frame.header,
            epoch=asked.epoch,
            query_hash=asked.query_hash,
            model=session.model,
        )
        code = open_sealed(frame.sealed, key=key, nonce=0, header=frame.header)
        effects = self._promote(peer, session, now=now)
        try:
            vote = self._read_vote(session, asked.round, peer.member, form, code)
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

    def _read_vote(
        self, session: Session, its_round: Round, member: Member, form: Form, code: bytes
    ) -> Vote | None:
        task = self._epochs[session.task].task
        if form is Form.ABSTAIN:
            if code:
                raise DecodeError("vote")
            return None
        probabilities, claim = votes.dequantize(form, code, task.classes, scale=task.log_weight)
        log_weight = its_round.familiarity.get(member.index, math.nan)
        if session.trust is Trust.DEVICE:
            log_weight = claim if claim > task.log_weight[0] else -math.inf
        coverage = self.panels[task.number].coverage(member.index)
        return Vote(member.id, probabilities, log_weight, form, coverage)

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
        if epoch is None or epoch.task.digest() != hello.task_digest or member.task not in (0, hello.task):
            # Authentic, and still of no use: its task file and ours differ, or it was invited for another.
            raise ProtocolError("task_mismatch")
        welcome = replace(
            welcome,
            epoch=epoch.number,
            floor=epoch.floor,
            epoch_key=epoch.key,
            verify=self.identity.signing.public,
            wants_gate=hello.trust is Trust.GATE and peer.gate[:GATE_NAME_BYTES] != hello.gate,
        )
        session = peer.welcome(
            payload, handshake, welcome, task=hello.task, model=hello.model, trust=hello.trust
        )
        self._send_later(member.index, 0, now=now)
        return [Publish(self._topic_to(peer), session.welcome)]

    def _send_later(self, index: int, sent: int, *, now: int) -> None:
        """One series of resends a member, whatever it has not answered; of two wakes the sooner counts."""
        due_us = now + AGAIN_US[sent]
        waiting_us, _ = self._again.get(index, (due_us + 1, 0))
        if due_us < waiting_us:
            heapq.heappush(self._wakes, (due_us, _AGAIN_WAKE, index))
        self._again[index] = min(due_us, waiting_us), sent

    def _send_again(self, peer: Peer, due_us: int, *, now: int) -> list[Effect]:
        index, frame = peer.member.index, peer.unanswered
        waiting_us, sent = self._again.get(index, (0, 0))
        if waiting_us != due_us:
            return []  # a sooner wake took its place
        del self._again[index]
        if not frame:
            return []
        if sent + 1 < len(AGAIN_US):
            self._send_later(index, sent + 1, now=now)
        return [Publish(self._topic_to(peer), frame)]

    def _ready(self, peer: Peer, payload: bytes, *, now: int) -> list[Effect]:
        frame = self._session_frame(peer, payload)
        session = peer.find(frame.session)
        ready = payloads.decode_ready(session.open(Type.READY, frame))
        peer.missed = 0
        is_current = session is peer.current
        effects = self._promote(peer, session, forms=ready.forms, now=now)
        if ready.epoch == self._epochs[session.task].number:
            peer.rekey = b""
        elif peer.rekey and is_current:
            # It was away when the epoch changed. What it missed opens only under the new key.
            effects.append(Publish(self._topic_to(peer), peer.rekey))
        return [*effects, *self._catch_up(peer, now=now)]

    def _gate(self, peer: Peer, payload: bytes, *, now: int) -> list[Effect]:
        frame = self._session_frame(peer, payload)
        session = peer.find(frame.session)
        content = session.open(Type.GATE, frame)
        effects = self._promote(peer, session, now=now)
        session.is_gate_due = False
        try:
            if session.trust is not Trust.GATE:
                raise DecodeError("gate")
            self.panels[session.task].register(peer.member.index, content)
        except ProtocolError as error:
            return [*effects, Rejected(reason=error.reason, peer=peer.member.id)]
        peer.gate = gate_digest(content)
        return effects

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
        left = CATCH_UP_BYTES
        effects: list[Effect] = []
        for asked in self._epochs[session.task].open.values():
            is_due = asked.round.fates.get(index) is Fate.ASKED and asked.epoch in session.epochs
            if is_due and len(asked.frame) <= left:
                left -= len(asked.frame)
                effects.append(Publish(self._topic_to(peer), asked.frame))
        if effects:
            peer.caught_up_us = now
        return effects

    def _client_ask(self, peer: Peer, payload: bytes, *, now: int) -> list[Effect]:
        frame = self._session_frame(peer, payload)
        session = peer.find(frame.session)
        reference = ClientAsk.of(peer.member.index, frame.number, payload)
        outcome = self._asks.outcome(reference)
        if outcome is not None:
            # The very bytes that opened before: its outcome was lost or is still awaited.
            return [Publish(self._topic_to(peer), outcome)] if outcome else []
        body = session.open(Type.ASK, frame)
        effects = self._promote(peer, session, now=now)
        if not self._asks.remember(reference):
            return effects + self._deliver(reference, Outcome(status=Status.OVERLOADED))
        try:
            ask = payloads.decode_ask(body)
            if isinstance(ask, Feedback):
                return effects + self._deliver(reference, self.learn(ask.epoch, ask.seq, ask.label))
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

    def _promote(
        self, peer: Peer, session: Session, *, now: int, forms: frozenset[Form] = frozenset()
    ) -> list[Effect]:
        if not peer.promote(session):
            return []
        index = peer.member.index
        if session.trust is not Trust.GATE and peer.gate:
            peer.gate = b""
            for panel in self.panels.values():
                panel.unregister(index)
        # Counters begin anew with a session: what is kept of the old one's asks names nothing now.
        self._asks.forget(peer.member.index)
        effects: list[Effect] = [Joined(peer.member.id, forms)]
        if peer.is_restless(now=now):
            effects.append(Restless(peer.member.id))
        epoch = self._epochs.get(session.task)
        if epoch is not None and epoch.number not in session.epochs:
            # It changed between WELCOME and now.
            effects += self._rekey(epoch, [peer.member.index], now=now)
        return effects

    def _ask_again(self, asked: Asked, indices: Iterable[int]) -> list[Effect]:
        """The very same bytes, to each alone (R1); before them the epoch's key, where it seems to lack."""
        effects: list[Effect] = []
        for peer in (self._peers[index] for index in indices):
            assert peer.current is not None
            if asked.epoch not in peer.current.epochs:
                continue  # its session is newer than the query's epoch: it could not read it
            frames_due = [peer.rekey, asked.frame] if peer.rekey else [asked.frame]
            effects += [Publish(self._topic_to(peer), frame) for frame in frames_due]
        return effects

    def _close(self, epoch: TaskEpoch, asked: Asked, *, now: int) -> list[Effect]:
        its_round = asked.round
        outcome = its_round.close(self._names, now=now)
        epoch.close(asked)
        for index, fate in its_round.fates.items():
            if fate is Fate.MISSING:
                self._peers[index].missed += 1
        effects = self._deliver(asked.reference, outcome)
        if Fate.SILENCED in its_round.fates.values():
            effects.append(self._broadcast(epoch.task, epoch.settled(asked)))
        return effects

    def _deliver(self, reference: object, outcome: Outcome) -> list[Effect]:
        effects: list[Effect] = [Deliver(reference, outcome)]
        if not isinstance(reference, ClientAsk) or self._asks.outcome(reference) is None:
            return effects  # nobody else's, or of a client whose session is another since, or that is gone
        peer = self._peers[reference.client]
        assert peer.current is not None
        payload = payloads.encode_outcome(reference.counter, outcome)
        frame = peer.current.seal(Type.OUTCOME, payload)
        self._asks.answer(reference, frame)
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
