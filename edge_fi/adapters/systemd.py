"""What a service of systemd tells its manager (sd_notify(3), sd_watchdog_enabled(3)).

Without the manager's variables in the environment, nothing is said.
"""

import contextlib
import math
import os
import socket
import time
from collections.abc import Mapping

ALIVE_PER_WATCHDOG = 4  # times that a service says so in the time after which it is taken for dead
PATIENCE_S = 1.0  # with a manager that does not take what is said; libsystemd would wait for ever


class Notifier:
    """The line to the manager. For one thread."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._every_s = _watchdog_s(environment) / ALIVE_PER_WATCHDOG
        self._next_s = -math.inf
        self._status = ""

    def ready(self) -> None:
        """The service runs."""
        self._say("READY=1")

    def status(self, text: str) -> None:
        """What it is doing, in one line, for `systemctl status`. Said when it changes."""
        text = " ".join(text.split())  # another line would be another word to the manager
        if text != self._status:
            self._status = text
            self._say(f"STATUS={text}")

    def alive(self) -> None:
        """It has got something done. Call it after each turn: it is said often enough, and no oftener."""
        now = time.monotonic()
        if now >= self._next_s and self._every_s < math.inf:
            self._next_s = now + self._every_s
            self._say("WATCHDOG=1")

    def wait_s(self) -> float:
        """Seconds until `alive` must be called again; infinite without a watchdog."""
        return math.inf if self._every_s == math.inf else max(0.0, self._next_s - time.monotonic())

    def stopping(self) -> None:
        """The service is about to end."""
        self._say("STOPPING=1")

    def _say(self, state: str) -> None:
        if self._address[:1] not in ("/", "@"):
            return
        address = os.fsencode(self._address)
        if address.startswith(b"@"):
            address = b"\0" + address[1:]  # of Linux's abstract names
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line,
            contextlib.suppress(OSError),  # a manager that does not listen is no reason to stop
        ):
            line.settimeout(PATIENCE_S)
            line.sendto(state.encode(errors="replace"), address)


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """After how many seconds of silence the manager acts; infinite if it does not watch this process."""
    told = environment.get("WATCHDOG_USEC", "")
    whose = environment.get("WATCHDOG_PID", str(os.getpid()))
    if not told.isdecimal() or int(told) == 0 or whose != str(os.getpid()):
        return math.inf
    return int(told) / 1_000_000
