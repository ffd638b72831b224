"""The pump: drives one machine in production. One thread owns machine and link; there are no locks.

A turn waits for the link or for the machine's next deadline, takes in what came, gives it to the
machine and performs the effects in order. Queries that came in one turn are inferred in one batch, or,
where the model is slow, in several with turns between them, so that the link's keep-alive lives on.
The model runs on this thread: for the models of the edge that is sooner done than a change of thread,
and while it runs, TCP is the inbox. A bug in a machine ends the process.
"""

import select
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from edge_fi.adapters.mqtt import READ_AT_ONCE, Down, MqttLink, Received, Up
from edge_fi.effects import (
    Admit,
    Adopt,
    Deliver,
    Effect,
    Halt,
    Infer,
    InferringMachine,
    Joined,
    Machine,
    Noticed,
    Publish,
    Rejected,
    Restless,
)
from edge_fi.errors import AlreadyRunningError
from edge_fi.messages import Array, Tensor
from edge_fi.roster import AdmittingMachine, Keeper, NotAdmittedError

LONGEST_WAIT_S = 60.0  # a bound for a clock that errs; link, machine and signals end a wait sooner
BATCH_S = 1.0  # of inference in one turn, unless a single query takes longer
WAITING_QUERIES = 64  # that a slow model may be behind: each can hold 900 kB, and the newest are of most use

Notice = Deliver | Joined | Noticed | Rejected | Restless | Admit | Adopt | Up | Down
"""What a pump tells whoever watches it. An Admit is told when it is written down."""


class Infers(Protocol):
    """A model, as the pump needs it."""

    def infer(self, tensors: Sequence[Tensor]) -> list[Array | None]:
        """Logits of each tensor, or None where the model failed on it."""


def monotonic_us() -> int:
    """The clock of the machines in production."""
    return time.monotonic_ns() // 1000


class Pump:
    """A machine, its link, for a device its model, and for a gateway what survives it."""

    def __init__(
        self,
        machine: Machine,
        link: MqttLink,
        *,
        model: Infers | None = None,
        keeper: Keeper | None = None,
        watch: Callable[[Notice], None],
    ) -> None:
        self._machine = machine
        self._link = link
        self._model = model
        self._inferring = machine if isinstance(machine, InferringMachine) else None
        self._keeper = keeper
        self._admitting = machine if isinstance(machine, AdmittingMachine) else None
        self._watch = watch
        self._pending: list[Infer] = []
        self._batch_size = 1  # until the model's pace is known
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

    def run(self, before_turn: Callable[[], float] = lambda: LONGEST_WAIT_S) -> None:
        """Take turns until `stop`.

        before_turn: called before each; returns for how many seconds that turn may wait.
        """
        while not self._is_stopped:
            self.turn(longest_s=min(LONGEST_WAIT_S, before_turn()))

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
                case Admit():
                    self._admit(effect)
                case Adopt():
                    self._adopt(effect)
                case Halt(reason=reason):
                    raise AlreadyRunningError(reason)
                case _:
                    self._watch(effect)

    def _admit(self, admit: Admit) -> None:
        machine = self._admitting
        if self._keeper is None or machine is None:
            return
        try:
            roster = self._keeper.admit(admit)
        except NotAdmittedError as error:
            self.perform(machine.not_admitted(admit, error.refusal, now=monotonic_us()))
            return
        self._watch(admit)
        self.perform(machine.admitted(admit, roster, now=monotonic_us()))

    def _adopt(self, adopt: Adopt) -> None:
        machine = self._admitting
        if self._keeper is None or machine is None:
            return
        roster = self._keeper.adopt(adopt)
        self._watch(adopt)
        self.perform(machine.update(roster, now=monotonic_us()))

    def _infer(self) -> None:
        if not self._pending or self._model is None or self._inferring is None:
            return
        size = self._batch_size
        batch, self._pending = self._pending[:size], self._pending[size:]
        began = time.monotonic()
        scores = self._model.infer([effect.tensor for effect in batch])
        took_s = max(time.monotonic() - began, 1e-6)
        self._batch_size = max(1, min(READ_AT_ONCE, int(BATCH_S * len(batch) / took_s)))
        for effect, its_scores in zip(batch, scores, strict=True):
            now = monotonic_us()
            self.perform(self._inferring.inferred(effect.ticket, its_scores, now=now))
        if len(self._pending) > WAITING_QUERIES:
            self._refuse_oldest(self._inferring)

    def _refuse_oldest(self, machine: InferringMachine) -> None:
        """More queries come than the model can answer: the oldest are given back without scores."""
        refused, self._pending = self._pending[:-WAITING_QUERIES], self._pending[-WAITING_QUERIES:]
        for effect in refused:
            self.perform(machine.inferred(effect.ticket, None, now=monotonic_us()))

    def _wait(self, longest_s: float) -> list[int]:
        """The descriptors that are ready."""
        is_busy = bool(self._pending) and self._model is not None
        wakes = [self._link.next_service() - time.monotonic(), 0.0 if is_busy else longest_s]
        due = self._machine.next_deadline()
        if due is not None:
            wakes.append((due - monotonic_us()) / 1_000_000)
        poll = select.poll()
        for descriptor, also_write in self._link.descriptors():
            poll.register(descriptor, select.POLLIN | (select.POLLOUT if also_write else 0))
        return [descriptor for descriptor, _ in poll.poll(max(0.0, min(wakes)) * 1000)]
