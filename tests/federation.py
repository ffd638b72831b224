"""A small federation for tests: keys, a gateway and devices, joined by a simulated link."""

from collections.abc import Sequence

import numpy as np

from edge_fi.client import Client
from edge_fi.crypto.keys import KeyPair, SigningKey
from edge_fi.device import Device, Labelling
from edge_fi.gateway import Gateway
from edge_fi.messages import VOTE_FORMS, Array, Form, Outcome, Task, Tensor
from edge_fi.round import RoundPolicy
from edge_fi.session import GatewayIdentity, Identity, Member
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
        gateway_verify=gateway.signing.public,
    )


def member(name: str, index: int, role: str = "device") -> Member:
    """The roster's line for it."""
    return Member(id=name, index=index, role=role, public=key_pair(name).public)


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
    ) -> None:
        self.fleet = Fleet(seed)
        self.task = task
        self.policy = policy
        self.seed = seed
        self.link = link
        self.names = [f"pi-{number}" for number in range(1, len(models) + 1)]
        self.clients = [f"laptop-{number}" for number in range(1, clients + 1)]
        self.asked = 0
        self.start_gateway()
        for index, (name, model) in enumerate(zip(self.names, models, strict=True), 1):
            labelling = Labelling(task=task, model=MODEL, classes=tuple(range(task.classes)), forms=forms)
            machine = Device(identity(name, index), labelling, Stream(f"{seed} {name}"))
            self.fleet.add(name, machine, link=link, model=model)
        for index, name in enumerate(self.clients, 101):
            machine_ = Client(identity(name, index, "client"), Stream(f"{seed} {name}"))
            self.fleet.add(name, machine_, link=link)

    def start_gateway(self, boot: int = 0) -> None:
        """A gateway that remembers nothing of the one before."""
        roster = [member(name, index) for index, name in enumerate(self.names, 1)]
        roster += [member(name, index, "client") for index, name in enumerate(self.clients, 101)]
        self.gateway = Gateway(
            gateway_identity(),
            roster,
            [self.task],
            Stream(f"{self.seed} gateway {boot}"),
            policy=self.policy,
        )
        self.gateway_node = self.fleet.add("gateway", self.gateway, link=self.link)

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
