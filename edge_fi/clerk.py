"""The clerk: what a running gateway's panels learn of members is kept in its state, and asked for.

Snapshots of panels, what members are worth, and canaries where a jury has suspects. The jury's own
memory is what is kept: no query is on the disk, but the first choices of each member in the last rounds are.
"""

import math
from collections.abc import Callable, Mapping

from edge_fi.adapters.state_panels import StatePanels
from edge_fi.canaries import Canaries, CanaryAsk
from edge_fi.effects import Deliver, Effect
from edge_fi.errors import StateError
from edge_fi.gateway import Gateway
from edge_fi.log import Log
from edge_fi.pump import Notice, monotonic_us
from edge_fi.roster import Roster
from edge_fi.voting.panel import LEAST_ROUNDS

KEEP_EVERY_S = 30.0
WORTH_EVERY_S = 600.0  # it stops the pump for a tenth of a second, for many members and classes for one


class Clerk:
    """Of one running gateway. Call `look` before each turn of its pump, and `close` at the end."""

    def __init__(
        self,
        panels: StatePanels,
        machine: Gateway,
        canaries: Mapping[int, Canaries],
        *,
        log: Log,
        trouble: Callable[[str, str], None],
        clock: Callable[[], int] = monotonic_us,
    ) -> None:
        """canaries: by task. trouble: told an event and its reason. clock: the machine's, in microseconds."""
        self._panels = panels
        self._machine = machine
        self._canaries = canaries
        self._log = log
        self._trouble = trouble
        self._clock = clock
        self._names = {number: panel.task.name for number, panel in machine.panels.items()}
        self._kept = dict.fromkeys(machine.panels, 0)
        """Of each panel, the changes that are on the disk."""
        self._judged = dict.fromkeys(machine.panels, 0)
        """The rounds after which its members' worth was computed."""
        now_s = self._now_s()
        self._next_keep_s = now_s + KEEP_EVERY_S
        self._next_worth_s = now_s + WORTH_EVERY_S
        self._seen = dict.fromkeys(canaries, 0)
        """The rounds that have earned canaries."""
        self._told_spent: set[int] = set()

    def begin(self, roster: Roster) -> None:
        """Give the panels back what they knew. Raises StateError where the state cannot be read."""
        for number, snapshot in self._panels.snapshots().items():
            panel = self._machine.panels.get(number)
            if panel is None:
                continue  # of a task that is not served now
            try:
                panel.restore(snapshot)
            except ValueError as error:
                self._log.event("panel_forgotten", task=self._names[number], reason=str(error))
                continue
            for index in roster.revoked:  # perhaps while the gateway did not run
                panel.forget(index)
        for number, canaries in self._canaries.items():
            canaries.spend(self._panels.spent(number))

    def watch(self, notice: Notice) -> bool:
        """Whether it was a canary's outcome, which is nobody else's business."""
        match notice:
            case Deliver(reference=CanaryAsk(task=task, label=label), outcome=outcome):
                key = outcome.epoch, outcome.seq
                is_learnt = self._machine.panels[task].learn(key, label, is_canary=True)
                self._log.event("canary", task=self._names[task], seq=outcome.seq, learnt=is_learnt)
                return True
            case _:
                return False

    def look(self, perform: Callable[[list[Effect]], None]) -> float:
        """Do what is due. perform: does what the machine wants done. Seconds until the next look."""
        now_s = self._now_s()
        if now_s >= self._next_keep_s:
            self._next_keep_s = now_s + KEEP_EVERY_S
            self._keep()
        if now_s >= self._next_worth_s:
            self._next_worth_s = now_s + WORTH_EVERY_S
            self._compute(LEAST_ROUNDS)
        waits = [self._ask(number, perform) for number in self._canaries]
        return min([self._next_keep_s - now_s, *waits])

    def close(self) -> None:
        """Write what is not yet written."""
        self._compute(1)
        self._keep()

    def _keep(self) -> None:
        for number, panel in self._machine.panels.items():
            changes = panel.changes
            if changes == self._kept[number]:
                continue
            try:
                self._panels.keep(number, panel.snapshot(), panel.jury.expelled)
            except StateError as error:
                self._trouble("state_unwritable", str(error))  # and tried again
                return
            self._kept[number] = changes

    def _compute(self, least: int) -> None:
        """What members are worth, of each task in which this many rounds were decided since."""
        for number, panel in self._machine.panels.items():
            if panel.rounds - self._judged[number] < least:
                continue
            rounds, worths = panel.contributions()
            if not worths:
                continue
            try:
                self._panels.keep_worths(number, rounds, worths)
            except StateError as error:
                self._trouble("state_unwritable", str(error))
                return
            self._judged[number] = panel.rounds

    def _ask(self, number: int, perform: Callable[[list[Effect]], None]) -> float:
        """Ask a canary of this task if one is due. Seconds until one may be."""
        canaries, panel = self._canaries[number], self._machine.panels[number]
        canaries.earn(panel.rounds - self._seen[number])
        self._seen[number] = panel.rounds
        if not canaries.is_affordable:
            return math.inf
        suspects = panel.jury.suspects()
        if suspects and not canaries.left and number not in self._told_spent:
            self._told_spent.add(number)
            self._log.event("canaries_spent", task=self._names[number])
        is_wanted = bool(suspects) and self._machine.is_open and bool(self._machine.online(number))
        wait_s = canaries.wait_s(self._now_s(), is_wanted=is_wanted)
        if wait_s > 0:
            return wait_s
        canary = canaries.draw(suspects)
        try:
            self._panels.spend(number, canary.digest)
        except StateError as error:
            self._trouble("state_unwritable", str(error))  # it is left, and not asked
            return math.inf
        canaries.spend([canary.digest])
        perform(
            self._machine.ask(
                number,
                canary.tensor,
                reference=CanaryAsk(number, canary.label),
                now=self._clock(),
                policy=self._machine.latest_policy(number),
            )
        )
        return math.inf

    def _now_s(self) -> float:
        return self._clock() / 1_000_000
