"""What a service tells its manager: the real datagrams, on a real socket."""

import math
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_fi.adapters import systemd
from edge_fi.adapters.systemd import Notifier

INTERVAL_S = 0.2
WATCHED = {"WATCHDOG_USEC": "800000", "WATCHDOG_PID": str(os.getpid())}


class Manager:
    """Where systemd listens."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.setblocking(False)
        self.environment = {"NOTIFY_SOCKET": address.replace("\0", "@")}

    def heard(self) -> list[str]:
        """All datagrams since the last time."""
        told = []
        while True:
            try:
                told.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return told

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = (
        str(tmp_path / "notify") if request.param == "file" else f"\0edge-fi-test-{os.getpid()}-{id(request)}"
    )
    made = Manager(name)
    yield made
    made.close()


def test_a_service_says_when_it_is_ready_and_when_it_stops(manager: Manager) -> None:
    notifier = Notifier(manager.environment)
    notifier.ready()
    notifier.stopping()
    assert manager.heard() == ["READY=1", "STOPPING=1"]


def test_a_status_is_said_when_it_changes(manager: Manager) -> None:
    notifier = Notifier(manager.environment)
    for text in ("no broker", "no broker", "3 devices", "no broker"):
        notifier.status(text)
    assert manager.heard() == ["STATUS=no broker", "STATUS=3 devices", "STATUS=no broker"]


def test_a_status_is_one_line_whatever_is_in_it(manager: Manager) -> None:
    """It may hold what a broker said; each line of a datagram is an assignment of its own."""
    Notifier(manager.environment).status("refused:\nMAINPID=1\r\n\ud800")
    assert manager.heard() == ["STATUS=refused: MAINPID=1 ?"]


def test_life_is_told_no_oftener_than_is_asked_for(manager: Manager) -> None:
    notifier = Notifier(manager.environment | WATCHED)
    began = time.monotonic()
    turns = 0
    while time.monotonic() < began + 3.5 * INTERVAL_S:
        notifier.alive()
        turns += 1
        time.sleep(min(notifier.wait_s(), 0.01))
    told = manager.heard()
    assert set(told) == {"WATCHDOG=1"}
    assert 3 <= len(told) <= 4 < turns


def test_the_wait_is_until_life_must_be_told_again(manager: Manager) -> None:
    notifier = Notifier(manager.environment | WATCHED)
    assert notifier.wait_s() == 0.0
    notifier.alive()
    assert INTERVAL_S / 2 < notifier.wait_s() <= INTERVAL_S
    time.sleep(notifier.wait_s())
    assert notifier.wait_s() < 0.001
    notifier.alive()
    assert manager.heard() == ["WATCHDOG=1"] * 2


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_PID": str(os.getpid())},
        {"WATCHDOG_USEC": "800000", "WATCHDOG_PID": "1"},  # of a parent, who left it in the environment
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "-800000"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": ""},
    ],
)
def test_without_a_watchdog_nothing_is_told_and_nothing_waited_for(
    manager: Manager, environment: dict[str, str]
) -> None:
    notifier = Notifier(manager.environment | environment)
    assert notifier.wait_s() == math.inf
    notifier.alive()
    assert notifier.wait_s() == math.inf
    assert manager.heard() == []


def test_a_watchdog_without_a_pid_is_meant_for_us(manager: Manager) -> None:
    notifier = Notifier(manager.environment | {"WATCHDOG_USEC": "800000"})
    notifier.alive()
    assert manager.heard() == ["WATCHDOG=1"]


def say_everything(notifier: Notifier) -> None:
    notifier.ready()
    notifier.status("well")
    notifier.alive()
    notifier.stopping()


@pytest.mark.parametrize(
    "address", [None, "", "nowhere", "vsock:2:1234", "/nowhere/at/all", "@nobody-listens-here"]
)
def test_without_a_manager_nothing_happens(address: str | None) -> None:
    environment = {} if address is None else {"NOTIFY_SOCKET": address}
    say_everything(Notifier(environment | WATCHED))


def test_a_manager_that_has_gone_is_no_error(manager: Manager) -> None:
    notifier = Notifier(manager.environment | WATCHED)
    notifier.ready()
    manager.close()
    say_everything(notifier)


def test_a_manager_that_does_not_listen_stops_nobody(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    notifier = Notifier(manager.environment)
    said = 1000  # more than the queue of a socket takes
    monkeypatch.setattr(systemd, "PATIENCE_S", 0.0)
    for number in range(said):
        notifier.status(str(number))
    assert 0 < len(manager.heard()) < said


def test_the_environment_is_the_processs_own_by_default(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (manager.environment | WATCHED).items():
        monkeypatch.setenv(name, value)
    say_everything(Notifier())
    assert manager.heard() == ["READY=1", "STATUS=well", "WATCHDOG=1", "STOPPING=1"]
