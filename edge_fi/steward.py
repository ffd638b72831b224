"""The steward: keeps a running gateway and its state on the disk in step.

The state can be changed by another process, a verb of the command line: it is looked at twice a second,
and what changed is given to the machine whole. What the machine wants written is written here, and the
broker's files follow the roster, before the new member is told that it is one.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping

from edge_fi.adapters.state import State, Tally
from edge_fi.adapters.state_hold import Hold
from edge_fi.canaries import Canaries
from edge_fi.clerk import Clerk
from edge_fi.effects import Admit, Adopt, Deliver, Joined
from edge_fi.errors import EdgeFiError, StateError
from edge_fi.gateway import Gateway
from edge_fi.log import Log
from edge_fi.messages import Fate
from edge_fi.pump import Notice, Pump, monotonic_us
from edge_fi.roster import NotAdmittedError, Roster
from edge_fi.session import GatewayIdentity

LOOK_EVERY_S = 0.5  # how soon a revocation takes effect
TROUBLE_EVERY_S = 60.0  # one reason: what lasts for a day must not fill the log
COUNT_EVERY_S = 10.0  # so that a busy gateway does not write to its disk for every round


class Steward:
    """Of one running gateway. Call `look` before each turn of its pump, and `close` at the end."""

    def __init__(
        self,
        state: State,
        hold: Hold,
        machine: Gateway,
        *,
        read_identity: Callable[[], GatewayIdentity],
        follow: Callable[[], object],
        log: Log,
        canaries: Mapping[int, Canaries] | None = None,
    ) -> None:
        """read_identity: reads the key file. follow: brings the broker's files in step with the roster.
        canaries: by the tasks' numbers.
        """
        self._state = state
        self._hold = hold
        self._machine = machine
        self._read_identity = read_identity
        self._follow = follow
        self._log = log
        self._clerk = Clerk(state.panels, machine, canaries or {}, log=log, trouble=self._trouble)
        self._roster = Roster()
        self._fates: Counter[tuple[str, Fate]] = Counter()
        self._heard: set[str] = set()
        self._troubles: dict[str, tuple[str, float]] = {}
        """The latest reason of each event, and when it may be told again."""
        self._has_served = False
        self._is_broker_behind = False
        self._next_look_s = -math.inf
        self._next_count_s = time.monotonic() + COUNT_EVERY_S

    def begin(self, roster: Roster) -> None:
        """The machine was made with this roster."""
        self._clerk.begin(roster)
        self._accept(roster)

    def admit(self, admit: Admit) -> Roster:
        """Write a new member down. Raises NotAdmittedError, and then nothing was written."""
        try:
            roster = self._state.admit(admit)
        except NotAdmittedError as error:
            if isinstance(error.__cause__, StateError):  # and not the invite
                self._trouble("state_unwritable", str(error.__cause__))
            raise
        self._accept(roster)
        return roster

    def adopt(self, adopt: Adopt) -> Roster:
        """Write down what a former run of this gateway knew."""
        roster = self._state.adopt(adopt)
        self._accept(roster)
        return roster

    def watch(self, notice: Notice) -> None:
        """Count what members do, and learn from what was known before."""
        if self._clerk.watch(notice):
            return
        match notice:
            case Joined(peer=peer):
                self._heard.add(peer)
            case Deliver(outcome=outcome):
                self._fates.update(outcome.fates)
            case _:
                pass

    def look(self, pump: Pump) -> float:
        """Give the machine what changed. Seconds until the next look."""
        now = time.monotonic()
        if self._machine.is_open and not self._has_served:
            self._has_served = True
            self._log.event("serving")  # no other run of this gateway has answered its claim
        if now >= self._next_count_s:
            self._count()
        if now >= self._next_look_s:
            self._next_look_s = now + LOOK_EVERY_S
            self._take_in(pump)
            if self._is_broker_behind:
                self._follow_roster()
        return min(self._next_look_s - now, self._clerk.look(pump.perform))

    def close(self) -> None:
        """Write what was counted and learnt."""
        self._count()
        self._clerk.close()

    def _take_in(self, pump: Pump) -> None:
        try:
            if not self._state.has_changed(self._roster):
                return
            roster = self._state.roster()
            is_signing_new = roster.rotations != self._roster.rotations
            identity = self._read_identity() if is_signing_new else self._machine.identity
        except EdgeFiError as error:
            self._trouble("state_unreadable", str(error))  # and tried again at the next look
            return
        is_same = identity.signing.public == self._machine.identity.signing.public
        pump.perform(self._machine.update(roster, now=monotonic_us(), identity=None if is_same else identity))
        gone = [member.id for member in self._roster.members if member not in roster.members]
        if gone:
            self._log.event("revoked", members=gone)
        self._accept(roster)

    def _accept(self, roster: Roster) -> None:
        """The machine goes by this roster, or is about to."""
        self._roster = roster
        self._follow_roster()
        self._hold.applied(roster.version, roster.rotations)
        problem = self._state.clock_problem()
        if problem:
            self._trouble("clock", problem)

    def _follow_roster(self) -> None:
        try:
            self._follow()
        except EdgeFiError as error:
            # A member that the broker does not know must not stop those that it knows; but one that was
            # revoked must not stay there: it is tried again at each look.
            self._is_broker_behind = True
            self._trouble("broker_files_behind", str(error))
        else:
            self._is_broker_behind = False

    def _trouble(self, event: str, reason: str) -> None:
        """Into the log, but not as often as it is met."""
        now = time.monotonic()
        if self._troubles.get(event, ("", 0.0))[0] != reason or now >= self._troubles[event][1]:
            self._troubles[event] = reason, now + TROUBLE_EVERY_S
            self._log.event(event, reason=reason)

    def _count(self) -> None:
        self._next_count_s = time.monotonic() + COUNT_EVERY_S
        indices = {member.id: member.index for member in self._roster.members}
        names = self._heard | {name for name, _ in self._fates}
        tallies = {indices[name]: self._tally(name) for name in names if name in indices}
        if not tallies:
            return
        if self._state.count(tallies):
            self._fates.clear()
            self._heard.clear()
        else:
            self._trouble("state_unwritable", "counts of rounds wait in memory: is the disk full?")

    def _tally(self, name: str) -> Tally:
        of = {fate: self._fates[name, fate] for fate in Fate}
        is_heard = name in self._heard or of[Fate.COUNTED] + of[Fate.DECLINED] > 0
        return Tally(
            asked=sum(of.values()),
            counted=of[Fate.COUNTED],
            declined=of[Fate.DECLINED],
            missing=of[Fate.MISSING],
            late=of[Fate.LATE],
            last_heard=int(time.time()) if is_heard else 0,
        )
