"""The pump: drives one machine in production. One thread owns machine and link; there are no locks.

A turn waits for the link or for the machine's next deadline, takes in what came, gives it to the
machine and performs the effects in order. Queries that came in one turn are inferred in one batch.
The model runs on this thread: for the models of the edge that is sooner done than a change of thread,
and while it runs, TCP is the inbox. A bug in a machine ends the process.
"""

import select
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from edge_fi.adapters.mqtt import Down, MqttLink, Received, Up
from edge_fi.effects import (
    Deliver,
    Effect,
    Infer,
    InferringMachine,
    Joined,
    Machine,
    Noticed,
    Publish,
    Rejected,
)
from edge_fi.messages import Array, Tensor

LONGEST_WAIT_S = 60.0  # a bound for a clock that errs; link, machine and signals end a wait sooner

Notice = Deliver | Joined | Noticed | Rejected | Up | Down
"""What a pump tells whoever watches it."""


class Infers(Protocol):
    """A model, as the pump needs it."""

    def infer(self, tensors: Sequence[Tensor]) -> list[Array | None]:
        """Logits of each tensor, or None where the model failed on it."""


def monotonic_us() -> int:
    """The clock of the machines in production."""
    return time.monotonic_ns() // 1000


class Pump:
    """A machine, its link, and for a device its model."""

    def __init__(
        self,
        machine: Machine,
        link: MqttLink,
        *,
        model: Infers | None = None,
        watch: Callable[[Notice], None],
    ) -> None:
        self._machine = machine
        self._link = link
        self._model = model
        self._inferring = machine if isinstance(machine, InferringMachine) else None
        self._watch = watch
        self._pending: list[Infer] = []
        self._is_stopped = False

    def start(self) -> None:
        """Connect at the next turn."""
        self._link.start()

    def turn(self, *, longest_s: float = LONGEST_WAIT_S) -> None:
        """Wait this long at the most, then do whatever is due."""
        self._link.service(self._wait(longest_s))
        while self._link.events:
            event = self._link.events.popleft()
            now = monotonic_us()
            match event:
                case Received(topic, payload):
                    self.perform(self._machine.receive(topic, payload, now=now))
                case Up():
                    self._watch(event)
                    self.perform(self._machine.connected(now=now))
                case Down(was_up=was_up):
                    self._watch(event)
                    if was_up:
                        self.perform(self._machine.disconnected(now=now))
        self._infer()
        due = self._machine.next_deadline()
        if due is not None and due <= monotonic_us():
            self.perform(self._machine.tick(now=monotonic_us()))

    def run(self) -> None:
        """Take turns until `stop`."""
        while not self._is_stopped:
            self.turn()

    def run_until(self, condition: Callable[[], bool], *, timeout_s: float) -> bool:
        """Take turns until the condition holds. Whether it did in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.turn(longest_s=left)
        return True

    def stop(self) -> None:
        """End `run` after this turn, or before its first. Safe in a signal handler and another thread."""
        self._is_stopped = True
        self._link.wake()

    def close(self) -> None:
        """Say farewell and leave the broker."""
        if self._link.is_up:
            self.perform(self._machine.farewell)
        self._link.close()

    def perform(self, effects: list[Effect]) -> None:
        """Do what a machine wants done, in order."""
        for effect in effects:
            match effect:
                case Publish():
                    self._link.publish(effect)
                case Infer():
                    self._pending.append(effect)
                case _:
                    self._watch(effect)

    def _infer(self) -> None:
        if not self._pending or self._model is None or self._inferring is None:
            return
        pending, self._pending = self._pending, []
        scores = self._model.infer([effect.tensor for effect in pending])
        for effect, its_scores in zip(pending, scores, strict=True):
            now = monotonic_us()
            self.perform(self._inferring.inferred(effect.ticket, its_scores, now=now))

    def _wait(self, longest_s: float) -> list[int]:
        """The descriptors that are ready."""
        wakes = [self._link.next_service() - time.monotonic(), longest_s]
        due = self._machine.next_deadline()
        if due is not None:
            wakes.append((due - monotonic_us()) / 1_000_000)
        poll = select.poll()
        for descriptor, also_write in self._link.descriptors():
            poll.register(descriptor, select.POLLIN | (select.POLLOUT if also_write else 0))
        return [descriptor for descriptor, _ in poll.poll(max(0.0, min(wakes)) * 1000)]
