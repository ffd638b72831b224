"""The same round without any protection: what sealing is compared with.

Plain machines over the product's own pump and link: a query is the raw tensor behind a number, an
answer a label behind that number. No keys, no checks, no re-ask: as little as a round can be.
"""

import numpy as np

from edge_fi.effects import Deliver, Effect, Infer, Publish, Ticket
from edge_fi.messages import Array, Outcome, Status, Task, Tensor


class Quiet:
    """What a machine without presence, deadlines or farewell has."""

    will = None
    farewell: list[Effect] = []  # noqa: RUF012 - never changed

    def next_deadline(self) -> int | None:
        """Never."""
        return None

    def connected(self, *, now: int) -> list[Effect]:
        """Say nothing."""
        return []

    def disconnected(self, *, now: int) -> list[Effect]:
        """Say nothing."""
        return []

    def tick(self, *, now: int) -> list[Effect]:
        """Do nothing."""
        return []


class PlainDevice(Quiet):
    """Answers anything on its topic with the class of the greatest score."""

    def __init__(self, task: Task, topic: str, name: str) -> None:
        self.subscriptions = [f"{topic}/q"]
        self._task = task
        self._answer_topic = f"{topic}/a/{name}"

    def connected(self, *, now: int) -> list[Effect]:
        """Say that it is there."""
        return [Publish(self._answer_topic, b"here")]

    def receive(self, topic: str, payload: bytes, *, now: int) -> list[Effect]:
        """Infer whatever comes."""
        number = int.from_bytes(payload[:4], "big")
        return [Infer(Ticket(0, number), Tensor(self._task.dtype, self._task.shape, payload[4:]))]

    def inferred(self, ticket: Ticket, scores: Array | None, *, now: int) -> list[Effect]:
        """Publish the class."""
        assert scores is not None
        label = int(scores.argmax())
        return [Publish(self._answer_topic, ticket.seq.to_bytes(4, "big") + bytes([label]))]


class Echo(Quiet):
    """Sends every message back, for the bare round trip."""

    def __init__(self, topic: str) -> None:
        self.subscriptions = [f"{topic}/there"]
        self._back = f"{topic}/back"

    def receive(self, topic: str, payload: bytes, *, now: int) -> list[Effect]:
        """Send it back."""
        return [Publish(self._back, payload)]


class Caller(Quiet):
    """The other end of Echo: delivers each message that is back."""

    def __init__(self, topic: str) -> None:
        self.subscriptions = [f"{topic}/back"]
        self._there = f"{topic}/there"

    def call(self, payload: bytes) -> list[Effect]:
        """Send a message there."""
        return [Publish(self._there, payload)]

    def receive(self, topic: str, payload: bytes, *, now: int) -> list[Effect]:
        """It is back."""
        return [Deliver("echo", Outcome(status=Status.ANSWERED))]


class PlainGateway(Quiet):
    """Counts labels until everybody has answered."""

    def __init__(self, task: Task, topic: str) -> None:
        self.subscriptions = [f"{topic}/a/+"]
        self.online: set[str] = set()
        self._task = task
        self._topic = topic
        self._asked = 0
        self._opened_us = 0
        self._labels: dict[str, int] = {}

    def ask(self, tensor: Tensor, *, now: int) -> list[Effect]:
        """Publish a query."""
        self._asked += 1
        self._opened_us = now
        self._labels = {}
        return [Publish(f"{self._topic}/q", self._asked.to_bytes(4, "big") + tensor.content)]

    def receive(self, topic: str, payload: bytes, *, now: int) -> list[Effect]:
        """Count a label; with the last one, the outcome is there."""
        name = topic.rsplit("/", 1)[1]
        if len(payload) != 5:
            self.online.add(name)
            return []
        if int.from_bytes(payload[:4], "big") == self._asked:
            self._labels[name] = payload[4]
        if len(self._labels) < len(self.online):
            return []
        shares = np.bincount(list(self._labels.values()), minlength=self._task.classes)
        outcome = Outcome(
            status=Status.ANSWERED,
            label=int(shares.argmax()),
            elapsed_us=now - self._opened_us,
        )
        return [Deliver(self._asked, outcome)]
