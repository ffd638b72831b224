"""A small federation for tests: keys, a gateway and devices, joined by a simulated link.

Beside it, each side of the protocol by hand: frames that a machine alone can be given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from edge_fi.client import Client
from edge_fi.crypto import seal
from edge_fi.crypto.aead import open_sealed
from edge_fi.crypto.aead import seal as aead_seal
from edge_fi.crypto.keys import KeyPair, SigningKey
from edge_fi.crypto.noise import HandshakeKK
from edge_fi.device import Device, Labelling, OwnGate
from edge_fi.effects import Deliver, Effect, Infer, Publish
from edge_fi.gateway import Gateway
from edge_fi.messages import VOTE_FORMS, Array, Fate, Form, Member, Outcome, Query, Task, Tensor, Trust
from edge_fi.roster import Roster
from edge_fi.round import RoundPolicy
from edge_fi.session import GatewayIdentity, Identity, Joiner, Peer, Session
from edge_fi.voting.features import FeatureMap
from edge_fi.voting.gate import gate_digest
from edge_fi.voting.strategy import STRATEGIES, Strategy
from edge_fi.wire import frames, payloads, votes
from edge_fi.wire.frames import Type
from edge_fi.wire.payloads import Ask, Feedback, Hello, Ready, Rekey, Welcome
from firmware_sim.fleet import Fleet, Model
from firmware_sim.link import PERFECT, Link
from firmware_sim.stream import Stream

FEDERATION = "acme"
TASK = Task(name="sorts", number=1, labels=("a", "b", "c", "d"), shape=(2,), dtype="uint8")
TENSOR = Tensor("uint8", (2,), b"\x01\x02")
MODEL = b"model-01"


def constant(*logits: float) -> Model:
    """A model that always says this."""
    return lambda tensor: np.array(logits)


def key_pair(name: str) -> KeyPair:
    """A key pair that depends on the name alone."""
    return KeyPair.from_private(Stream(f"static {name}")(32))


def gateway_identity(name: str = "gateway") -> GatewayIdentity:
    """A gateway's keys."""
    signing = SigningKey.from_seed(Stream(f"signing {name}")(32))
    return GatewayIdentity(federation=FEDERATION, static=key_pair(name), signing=signing)


def identity(name: str, index: int, role: str = "device") -> Identity:
    """A member's keys, trusting the gateway above."""
    gateway = gateway_identity()
    return Identity(
        federation=FEDERATION,
        role=role,
        id=name,
        index=index,
        static=key_pair(name),
        gateway_static=gateway.static.public,
    )


def member(name: str, index: int, role: str = "device") -> Member:
    """The roster's line for it."""
    return Member(id=name, index=index, role=role, public=key_pair(name).public)


def labelling(
    *,
    task: Task = TASK,
    model: bytes = MODEL,
    classes: tuple[int, ...] | None = None,
    forms: frozenset[Form] = frozenset(VOTE_FORMS),
) -> Labelling:
    """A model that knows every label, unless told otherwise."""
    known = tuple(range(task.classes)) if classes is None else classes
    return Labelling(task=task, model=model, classes=known, forms=forms)


class HandGateway:
    """The gateway's side towards one member, frame by frame: what a test wants said, it says."""

    def __init__(self, name: str = "pi-1", index: int = 1, role: str = "device", *, life: int = 0) -> None:
        self.identity = gateway_identity()
        self.entropy = Stream(f"hand gateway {life}")
        self.peer = Peer(member(name, index, role), self.identity)
        self.boot = 0xB0070 + life
        self.key = self.entropy(32)
        self.epoch = seal.Epoch.from_key(7 + life, self.key)
        self.epochs = {self.epoch.number: self.epoch}
        self.secret = self.entropy(32)
        self.session: Session | None = None

    def welcome(
        self, hello: bytes, *, floor: int = 1, window_ms: int = 1000, wants_gate: bool = False
    ) -> bytes:
        """The WELCOME frame that answers this HELLO."""
        _, handshake = self.peer.read_hello(hello, entropy=self.entropy)
        assert isinstance(handshake, HandshakeKK)
        number = self.peer.next_number()
        payload = Welcome(session=number, boot=self.boot, rejoin_window_ms=window_ms)
        if self.peer.member.role == "device":
            payload = Welcome(
                session=number,
                boot=self.boot,
                rejoin_window_ms=window_ms,
                epoch=self.epoch.number,
                floor=floor,
                epoch_key=self.key,
                verify=self.identity.signing.public,
                wants_gate=wants_gate,
            )
        self.session = self.peer.welcome(hello, handshake, payload, task=1, model=MODEL)
        return self.session.welcome

    def query(
        self,
        seq: int,
        *,
        tensor: Tensor = TENSOR,
        task: int = 1,
        forms: frozenset[Form] = frozenset({Form.LABEL}),
        deadline_ms: int = 2000,
        epoch: seal.Epoch | None = None,
        plaintext: bytes | None = None,
        signing: SigningKey | None = None,
    ) -> bytes:
        """A QUERY frame, sealed and signed."""
        epoch = epoch or self.epoch
        preimage = seal.settle_preimage(self.secret, epoch.number, seq)
        query = Query(
            task=task,
            forms=forms,
            deadline_ms=deadline_ms,
            settle=seal.settle_digest(preimage, epoch.number, seq, FEDERATION),
            tensor=tensor,
        )
        header = frames.build_query_header(epoch.number, seq)
        encoded = payloads.encode_query(query) if plaintext is None else plaintext
        signed = header + epoch.seal_query(encoded, seq=seq, header=header)
        return signed + seal.sign_query(signing or self.identity.signing, FEDERATION, signed)

    def settled(self, seq: int, *, epoch: seal.Epoch | None = None) -> bytes:
        """The SETTLED frame of a query."""
        number = (epoch or self.epoch).number
        preimage = seal.settle_preimage(self.secret, number, seq)
        return frames.build_settled(number, seq, preimage)

    def rekey(self, *, grace_ms: int = 0, signing: SigningKey | None = None) -> bytes:
        """A REKEY frame: the next epoch, which queries are of from now on."""
        assert self.session is not None
        if signing is not None:
            self.identity = replace(self.identity, signing=signing)
        self.key = self.entropy(32)
        self.epoch = seal.Epoch.from_key(self.epoch.number + 1, self.key)
        self.epochs[self.epoch.number] = self.epoch
        rekey = Rekey(
            epoch=self.epoch.number,
            grace_ms=grace_ms,
            epoch_key=self.key,
            verify=self.identity.signing.public,
        )
        return self.session.seal(Type.REKEY, payloads.encode_rekey(rekey))

    def outcome(self, counter: int, outcome: Outcome) -> bytes:
        """An OUTCOME frame for a client."""
        assert self.session is not None
        return self.session.seal(Type.OUTCOME, payloads.encode_outcome(counter, outcome))

    def open(self, frame: bytes) -> bytes:
        """The payload of a READY or ASK frame."""
        assert self.session is not None
        return self.session.open(Type(frame[0]), frames.parse_session_frame(frame))

    def open_answer(self, frame: bytes, query: bytes) -> tuple[Form, bytes]:
        """Form and code of an ANSWER frame to that QUERY frame."""
        assert self.session is not None
        parsed = frames.parse_session_frame(frame)
        epoch = self.epochs[frames.parse_query(query).epoch]
        key = seal.answer_key(
            self.session.keys.answer,
            parsed.header,
            epoch=epoch.number,
            query_hash=epoch.query_hash(query),
            model=MODEL,
        )
        return Form(parsed.form), open_sealed(parsed.sealed, key=key, nonce=0, header=parsed.header)


class HandMember:
    """A member's side, frame by frame."""

    def __init__(self, name: str = "pi-1", index: int = 1, role: str = "device", *, life: int = 0) -> None:
        self.identity = identity(name, index, role)
        self.joiner = Joiner(self.identity, b"", Stream(f"hand {name} {life}"))
        self.topic = f"fi1/{FEDERATION}/{'a' if role == 'device' else 'ca'}/{name}"
        self.inbox = f"fi1/{FEDERATION}/{'d' if role == 'device' else 'cd'}/{name}"
        self.session: Session | None = None
        self.epoch: seal.Epoch | None = None
        self.epochs: dict[int, seal.Epoch] = {}
        """Every one that it was given, by number."""
        self.verify = b""
        self.trust = Trust.NOBODY
        self.gate = b""
        """What it registers, where its trust is GATE."""
        self.welcomed: Welcome | None = None

    def hello(self, *, model: bytes = MODEL, task: Task = TASK, payload: bytes | None = None) -> bytes:
        """A new HELLO frame."""
        is_device = self.identity.role == "device"
        name = gate_digest(self.gate)[:4] if self.trust is Trust.GATE else bytes(4)
        said = Hello(model, task.number, task.digest(), self.trust, name)
        usual = payloads.encode_hello(said) if is_device else b""
        self.joiner._payload = usual if payload is None else payload
        self.joiner.begin(at=0)
        assert self.joiner.due_us is not None
        hello = self.joiner.poll(now=self.joiner.due_us)
        assert hello is not None
        return hello

    def welcome(self, frame: bytes) -> "HandMember":
        """Take in a WELCOME frame."""
        self.session, self.welcomed = self.joiner.finish(frame, now=0)
        if self.identity.role == "device":
            self._hold(self.welcomed)
        return self

    def join(self, gateway: Gateway, *, now: int = 0, ready: bool = True) -> "HandMember":
        """HELLO and WELCOME, and READY unless told otherwise."""
        self.welcome(only_publish(gateway.receive(self.topic, self.hello(), now=now)).payload)
        if ready:
            gateway.receive(self.topic, self.ready(), now=now)
        return self

    def ready(self, payload: bytes | None = None) -> bytes:
        """A READY frame."""
        assert self.session is not None
        number = 0 if self.epoch is None else self.epoch.number
        usual = payloads.encode_ready(Ready(frozenset(VOTE_FORMS), number))
        return self.session.seal(Type.READY, usual if payload is None else payload)

    def rekey(self, frame: bytes) -> "HandMember":
        """Take in a REKEY frame."""
        assert self.session is not None
        plaintext = self.session.open(Type.REKEY, frames.parse_session_frame(frame))
        self._hold(payloads.decode_rekey(plaintext))
        return self

    def registration(self, content: bytes | None = None) -> bytes:
        """A GATE frame."""
        assert self.session is not None
        return self.session.seal(Type.GATE, self.gate if content is None else content)

    def feedback(self, epoch: int, seq: int, label: int) -> bytes:
        """An ASK frame that asks nothing: it tells what a query showed."""
        assert self.session is not None
        return self.session.seal(Type.ASK, payloads.encode_feedback(Feedback(epoch, seq, label)))

    def _hold(self, given: Welcome | Rekey) -> None:
        self.epoch = seal.Epoch.from_key(given.epoch, given.epoch_key)
        self.epochs[given.epoch] = self.epoch
        self.verify = given.verify

    def answer(
        self, query: bytes, code: bytes, *, form: Form = Form.LABEL, model: bytes = MODEL, seq: int = 0
    ) -> bytes:
        """An ANSWER frame to that QUERY frame; another seq may be claimed."""
        assert self.session is not None
        number = seq or frames.parse_query(query).seq
        session, epoch = self.session, self.epochs[frames.parse_query(query).epoch]
        header = frames.build_session_header(Type.ANSWER, session.number, session.index, number, form)
        key = seal.answer_key(
            session.keys.answer,
            header,
            epoch=epoch.number,
            query_hash=epoch.query_hash(query),
            model=model,
        )
        return header + aead_seal(code, key=key, nonce=0, header=header)

    def ask(self, *, task: int = 1, deadline_ms: int = 2000, tensor: Tensor = TENSOR) -> bytes:
        """An ASK frame."""
        assert self.session is not None
        return self.session.seal(Type.ASK, payloads.encode_ask(Ask(task, deadline_ms, tensor)))

    def open(self, frame: bytes) -> tuple[int, Outcome]:
        """Counter and outcome of an OUTCOME frame."""
        assert self.session is not None
        return payloads.decode_outcome(self.session.open(Type.OUTCOME, frames.parse_session_frame(frame)))


def code(label: int, *, weight: float = 0.0) -> bytes:
    """A label vote that is as sure as can be."""
    return votes.quantize(Form.LABEL, np.eye(4)[label], weight, scale=TASK.log_weight)


def lone_gateway(
    *names: str,
    clients: Sequence[str] = (),
    policy: RoundPolicy | None = None,
    life: int = 0,
    task: Task = TASK,
    features: FeatureMap | None = None,
    is_claiming: bool = False,
) -> Gateway:
    """A gateway that nobody drives, with these members; with pi-1 alone where no device is named."""
    return Gateway(
        gateway_identity(),
        roster_of(*(names or ("pi-1",)), clients=clients),
        [task],
        Stream(f"lone gateway {life}"),
        policy=policy,
        features=None if features is None else {task.number: features},
        is_claiming=is_claiming,
    )


def roster_of(*names: str, clients: Sequence[str] = ()) -> Roster:
    """Devices with the indices 1, 2, ..., clients with 101, 102, ..."""
    members = [member(name, index) for index, name in enumerate(names, 1)]
    members += [member(name, index, "client") for index, name in enumerate(clients, 101)]
    return Roster(members=tuple(members))


def without(roster: Roster, *names: str) -> Roster:
    """The roster after these members were revoked."""
    gone = {its.index for its in roster.members if its.id in names}
    assert len(gone) == len(names)
    return replace(
        roster,
        members=tuple(its for its in roster.members if its.index not in gone),
        revoked=roster.revoked | gone,
        version=roster.version + 1,
    )


def rotated(roster: Roster) -> Roster:
    """The roster after a new epoch was asked for."""
    return replace(roster, rotations=roster.rotations + 1)


def lone_device(
    name: str = "pi-1",
    index: int = 1,
    *,
    life: int = 0,
    its: Labelling | None = None,
    gate: OwnGate | None = None,
) -> Device:
    """A device that nobody drives."""
    return Device(identity(name, index), its or labelling(), Stream(f"lone {name} {life}"), gate=gate)


def lone_client(name: str = "laptop-1", index: int = 101, *, life: int = 0) -> Client:
    """A client that nobody drives."""
    return Client(identity(name, index, "client"), Stream(f"lone {name} {life}"))


def published(effects: Sequence[Effect]) -> list[Publish]:
    """The messages among these effects."""
    return [effect for effect in effects if isinstance(effect, Publish)]


def only_publish(effects: Sequence[Effect]) -> Publish:
    """The one message among these effects."""
    (message,) = published(effects)
    return message


def outcome_of(effects: Sequence[Effect]) -> Outcome:
    """The one outcome delivered among these effects."""
    (outcome,) = [effect.outcome for effect in effects if isinstance(effect, Deliver)]
    return outcome


def only_infer(effects: Sequence[Effect]) -> Infer:
    """These effects are one inference and nothing else."""
    (effect,) = effects
    assert isinstance(effect, Infer)
    return effect


class Federation:
    """A gateway and devices pi-1, pi-2, ... with one model each, around a simulated broker."""

    def __init__(
        self,
        models: Sequence[Model],
        *,
        task: Task = TASK,
        policy: RoundPolicy | None = None,
        link: Link = PERFECT,
        seed: str = "federation",
        clients: int = 0,
        forms: frozenset[Form] = frozenset(VOTE_FORMS),
        classes: Mapping[str, tuple[int, ...]] | None = None,
        strategies: Mapping[str, Strategy] = STRATEGIES,
    ) -> None:
        self.fleet = Fleet(seed)
        self.task = task
        self.policy = policy
        self.seed = seed
        self.link = link
        self.names = [f"pi-{number}" for number in range(1, len(models) + 1)]
        self.clients = [f"laptop-{number}" for number in range(1, clients + 1)]
        self.forms = forms
        self.classes = classes or {}
        self.strategies = strategies
        self.asked = 0
        self.roster = roster_of(*self.names, clients=self.clients)
        self.start_gateway()
        for name, its_model in zip(self.names, models, strict=True):
            self.start_device(name, its_model)
        for index, name in enumerate(self.clients, 101):
            machine_ = Client(identity(name, index, "client"), Stream(f"{seed} {name}"))
            self.fleet.add(name, machine_, link=link)

    def start_gateway(self, boot: int = 0) -> None:
        """A gateway that remembers of the one before its roster alone."""
        self.gateway = Gateway(
            gateway_identity(),
            self.roster,
            [self.task],
            Stream(f"{self.seed} gateway {boot}"),
            policy=self.policy,
            strategies=self.strategies,
        )
        self.gateway_node = self.fleet.add("gateway", self.gateway, link=self.link)

    def restart_gateway(self, boot: int = 1) -> None:
        """The gateway dies and comes back, with no memory of before but its roster."""
        self.fleet.disconnect("gateway")
        self.start_gateway(boot)
        self.fleet.connect("gateway")

    def update(self, roster: Roster) -> None:
        """The gateway's roster is this now."""
        self.roster = roster
        self.fleet.perform(self.gateway_node, self.gateway.update(roster, now=self.fleet.clock.now))

    def start_device(self, name: str, its_model: Model, *, boot: int = 0, model: bytes = MODEL) -> None:
        """A device that remembers nothing of the one before."""
        index = 1 + self.names.index(name)
        its = labelling(task=self.task, model=model, classes=self.classes.get(name), forms=self.forms)
        machine = Device(identity(name, index), its, Stream(f"{self.seed} {name} {boot}"))
        self.fleet.add(name, machine, link=self.link, model=its_model)

    def reboot(self, name: str, *, boot: int = 1, model: bytes = MODEL) -> None:
        """A device dies and comes back, with no memory of before."""
        its_model = self.fleet.nodes[name].model
        assert its_model is not None
        self.fleet.disconnect(name)
        self.start_device(name, its_model, boot=boot, model=model)
        self.fleet.connect(name)

    def fate(self, outcome: Outcome, name: str) -> Fate:
        """What became of this member in that round."""
        return dict(outcome.fates)[name]

    def client_asks(
        self, reference: object, *, tensor: Tensor = TENSOR, deadline_ms: int = 5000, name: str = "laptop-1"
    ) -> None:
        """A client puts a query, without waiting."""
        now = self.fleet.clock.now
        effects = self.client(name).ask(
            self.task, tensor, deadline_ms=deadline_ms, reference=reference, now=now
        )
        self.fleet.perform(self.fleet.nodes[name], effects)

    def inject(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Somebody publishes this."""
        self.fleet.publish(Publish(f"fi1/{FEDERATION}/{topic}", payload, retain=retain))

    def device(self, name: str) -> Device:
        """The machine of this device."""
        machine = self.fleet.nodes[name].machine
        assert isinstance(machine, Device)
        return machine

    def client(self, name: str = "laptop-1") -> Client:
        """The machine of this client."""
        machine = self.fleet.nodes[name].machine
        assert isinstance(machine, Client)
        return machine

    def join(self, seconds: float = 10) -> "Federation":
        """Connect everybody and let them join."""
        for name in self.fleet.nodes:
            self.fleet.connect(name)
        self.fleet.run(seconds)
        return self

    def start(self, tensor: Tensor = TENSOR, policy: RoundPolicy | None = None) -> int:
        """Ask, and return the reference without waiting."""
        self.asked += 1
        effects = self.gateway.ask(
            self.task.number,
            tensor,
            reference=self.asked,
            now=self.fleet.clock.now,
            policy=policy,
        )
        self.fleet.perform(self.gateway_node, effects)
        return self.asked

    def ask(self, tensor: Tensor = TENSOR, policy: RoundPolicy | None = None, seconds: float = 30) -> Outcome:
        """Ask, let time pass, return the outcome."""
        reference = self.start(tensor, policy)
        self.fleet.run(seconds)
        return self.gateway_node.outcomes[reference]

    def frames(self, topic_level: str, kind: int) -> list[bytes]:
        """Every frame of this type that passed the broker on topics of this level."""
        return [
            payload
            for topic, payload in self.fleet.published
            if topic.split("/")[2] == topic_level and payload[:1] == bytes([kind])
        ]


def softmax(*logits: float) -> Array:
    """What a device makes of these logits."""
    exponentials = np.exp(np.array(logits) - max(logits))
    return np.asarray(exponentials / exponentials.sum())
