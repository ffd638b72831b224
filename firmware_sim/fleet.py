"""A fleet: machines, a broker's rules and links, under one virtual clock.

Each node is the product's own machine; this pump performs its effects as production's does. The
broker here keeps MQTT's rules for what the machines use: topic filters, retained messages, Wills.
QoS 1 is taken as a promise between broker and node, so such messages are never lost on a link.
"""

from collections import Counter
from collections.abc import Callable

from edge_fi.effects import (
    Admit,
    Adopt,
    Deliver,
    Effect,
    Halt,
    Infer,
    InferringMachine,
    Machine,
    Publish,
    Rejected,
    Ticket,
)
from edge_fi.messages import Array, Outcome, Tensor
from edge_fi.roster import AdmittingMachine, Keeper, NotAdmittedError
from edge_fi.wire.topics import matches
from firmware_sim.clock import Clock
from firmware_sim.link import PERFECT, Link
from firmware_sim.stream import Stream

Model = Callable[[Tensor], Array | None]


class Node:
    """A machine with its link, for a device its model, and for a gateway what survives it."""

    def __init__(
        self,
        name: str,
        machine: Machine,
        link: Link,
        *,
        model: Model | None,
        infer_us: int,
        keeper: Keeper | None,
    ) -> None:
        self.name = name
        self.machine = machine
        self.link = link
        self.model = model
        self.infer_us = infer_us
        self.keeper = keeper
        self.is_connected = False
        self.halted = ""
        """Why it ended itself; empty while it goes on."""
        self.outcomes: dict[object, Outcome] = {}
        self.rejected: Counter[str] = Counter()
        self.effects: list[Effect] = []
        """Everything the machine ever wanted done, in order."""


class Fleet:
    """Nodes around one broker."""

    def __init__(self, seed: str = "fleet") -> None:
        self.clock = Clock()
        self.nodes: dict[str, Node] = {}
        self.published: list[tuple[str, bytes]] = []
        """Everything the broker ever saw, in order."""
        self._stream = Stream(seed)
        self._retained: dict[str, bytes] = {}

    def add(
        self,
        name: str,
        machine: Machine,
        *,
        link: Link = PERFECT,
        model: Model | None = None,
        infer_us: int = 0,
        keeper: Keeper | None = None,
    ) -> Node:
        """A node, not yet connected."""
        node = Node(name, machine, link, model=model, infer_us=infer_us, keeper=keeper)
        self.nodes[name] = node
        return node

    def connect(self, name: str) -> None:
        """The node's link comes up: `connected`; then what the broker retained arrives."""
        node = self.nodes[name]
        node.is_connected = True
        self.perform(node, node.machine.connected(now=self.clock.now))
        for topic, payload in list(self._retained.items()):
            if any(matches(f, topic) for f in node.machine.subscriptions):
                self._deliver(node, topic, payload, reliable=True)

    def disconnect(self, name: str, *, is_clean: bool = False) -> None:
        """The node's link goes down; unless that is clean, the broker says its Will."""
        node = self.nodes[name]
        node.is_connected = False
        will = node.machine.will
        if will is not None and not is_clean:
            self.publish(will)
        self.perform(node, node.machine.disconnected(now=self.clock.now))

    def restart_broker(self) -> None:
        """Every link drops and what was retained is gone; nobody's Will is said."""
        for node in self.nodes.values():
            if node.is_connected:
                self.disconnect(node.name, is_clean=True)
        self._retained.clear()

    def publish(self, message: Publish, *, link: Link = PERFECT) -> None:
        """A message reaches the broker, over this link, and goes on to whoever subscribed."""
        for delay in link.delays(self._stream) if message.qos == 0 else [link.delay_us]:
            self.clock.at(self.clock.now + delay, lambda: self._route(message))

    def perform(self, node: Node, effects: list[Effect]) -> None:
        """Do what a machine wants done, in order."""
        for effect in effects:
            node.effects.append(effect)
            match effect:
                case Publish() if node.is_connected:
                    self.publish(effect, link=node.link)
                case Infer(ticket=ticket, tensor=tensor):
                    self._infer(node, ticket, tensor)
                case Deliver(reference=reference, outcome=outcome):
                    node.outcomes[reference] = outcome
                case Rejected(reason=reason):
                    node.rejected[reason] += 1
                case Admit():
                    self._admit(node, effect)
                case Adopt():
                    self._adopt(node, effect)
                case Halt(reason=reason):
                    node.halted = reason
                    self.disconnect(node.name, is_clean=True)
                case _:
                    pass
        self._wake(node)

    def run(self, seconds: float) -> None:
        """Let this much virtual time pass."""
        self.clock.run(self.clock.now + round(seconds * 1_000_000))

    def _admit(self, node: Node, admit: Admit) -> None:
        machine, now = node.machine, self.clock.now
        if node.keeper is None or not isinstance(machine, AdmittingMachine):
            return
        try:
            roster = node.keeper.admit(admit)
        except NotAdmittedError as error:
            self.perform(node, machine.not_admitted(admit, error.refusal, now=now))
            return
        self.perform(node, machine.admitted(admit, roster, now=now))

    def _adopt(self, node: Node, adopt: Adopt) -> None:
        machine = node.machine
        if node.keeper is not None and isinstance(machine, AdmittingMachine):
            roster = node.keeper.adopt(adopt)
            self.perform(node, machine.update(roster, now=self.clock.now))

    def _infer(self, node: Node, ticket: Ticket, tensor: Tensor) -> None:
        def finish() -> None:
            machine, model = node.machine, node.model
            if model is not None and isinstance(machine, InferringMachine):
                effects = machine.inferred(ticket, model(tensor), now=self.clock.now)
                self.perform(node, effects)

        self.clock.at(self.clock.now + node.infer_us, finish)

    def _wake(self, node: Node) -> None:
        due = node.machine.next_deadline()
        if due is None:
            return

        def tick() -> None:
            wanted = node.machine.next_deadline()
            if wanted is not None and wanted <= self.clock.now and not node.halted:
                self.perform(node, node.machine.tick(now=self.clock.now))

        self.clock.at(due, tick)

    def _route(self, message: Publish) -> None:
        self.published.append((message.topic, message.payload))
        if message.retain:
            self._retained[message.topic] = message.payload
            if not message.payload:  # MQTT 3.1.1 section 3.3.1.3: an empty one clears the topic
                del self._retained[message.topic]
        for node in self.nodes.values():
            if any(matches(f, message.topic) for f in node.machine.subscriptions):
                self._deliver(node, message.topic, message.payload, reliable=message.qos > 0)

    def _deliver(self, node: Node, topic: str, payload: bytes, *, reliable: bool) -> None:
        def arrive() -> None:
            if node.is_connected:
                effects = node.machine.receive(topic, payload, now=self.clock.now)
                self.perform(node, effects)

        for delay in [node.link.delay_us] if reliable else node.link.delays(self._stream):
            self.clock.at(self.clock.now + delay, arrive)
