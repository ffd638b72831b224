"""A federation over a real broker: real keys, real models, real connections.

A broker that is not installed skips its tests and says so; with REQUIRE_BROKERS=1 in the environment,
as in `.ci/run`, it fails them.
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from broker.embedded import PORTS, EmbeddedBroker, available
from edge_fi.adapters import keyfile
from edge_fi.adapters.mqtt import MqttLink, Version
from edge_fi.adapters.onnx import OnnxModel
from edge_fi.adapters.state import State
from edge_fi.demo.members import ASSETS, DemoMember, heldout, members, task
from edge_fi.device import Device, Labelling
from edge_fi.effects import Admit, Deliver, Rejected
from edge_fi.gateway import Gateway
from edge_fi.messages import Outcome, Tensor
from edge_fi.pump import Notice, Pump, monotonic_us
from edge_fi.roster import Roster
from edge_fi.round import RoundPolicy

EDGE_FI = [sys.executable, "-m", "edge_fi"]
PATIENCE_S = 30.0  # for what takes a second on an idle machine

SETTINGS: list[tuple[str, Version]] = [("mosquitto", "3.1.1"), ("mosquitto", "5"), ("nats", "3.1.1")]
"""Every broker with every MQTT version that it speaks."""


def need(kind: str) -> None:
    """Skip the test, or fail it where every broker is required, unless this broker is here."""
    if kind in available():
        return
    if os.environ.get("REQUIRE_BROKERS") == "1":
        pytest.fail(f"{kind} is required here, and is not installed")
    pytest.skip(f"{kind} is not installed")


def eventually(condition: Callable[[], bool], *, within_s: float = PATIENCE_S) -> None:
    """Wait until the condition holds; fail if it does not in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def make_state(folder: Path, federation: str, devices: list[str], clients: list[str]) -> None:
    """A gateway's key and state in which these are members, and their keys."""
    gateway = keyfile.make_gateway(folder / "gateway.key", federation, os.urandom)
    names = [("device", name) for name in devices] + [("client", name) for name in clients]
    lines = keyfile.introduce(folder, names, gateway, os.urandom)
    with State.create(folder / "state.db", federation, gateway.static.public) as state:
        for line in lines:
            invitation, _ = state.invite(line.id, line.role, token=os.urandom(16), lifetime_s=3600)
            state.admit(Admit(invitation.number, line))


def free_port() -> int:
    """One that nobody listens on, and that the kernel gives to no outgoing connection."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Process:
    """A verb that runs until it is told to stop; its log is read line by line."""

    def __init__(
        self,
        *arguments: str | Path,
        program: Sequence[str] = tuple(EDGE_FI),
        cwd: Path | None = None,
        **environment: str,
    ) -> None:
        # A file, for a pipe that nobody reads for a while stops who writes to it.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self.process = subprocess.Popen(
            [*program, *map(str, arguments), "--json"],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **environment},
        )
        self.said = b""
        """All of its output, as far as it was read."""
        self._read_to = 0
        self._events: list[dict[str, Any]] = []

    def events(self) -> list[dict[str, Any]]:
        """What it has logged, and objects that it has printed."""
        if not self._output.closed:
            self.said += os.pread(self._output.fileno(), 100_000_000, len(self.said))
        *lines, _ = self.said[self._read_to :].split(b"\n")
        self._read_to += sum(len(line) + 1 for line in lines)
        self._events += [json.loads(line) for line in lines if line.startswith(b"{")]
        return self._events

    def saw(self, name: str, **fields: object) -> bool:
        """Whether it has logged such an event."""
        return self.count(name, **fields) > 0

    def count(self, name: str, **fields: object) -> int:
        """How many such events it has logged."""
        return sum(its.get("event") == name and fields.items() <= its.items() for its in self.events())

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal, if it still runs, and wait; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(20)
        self.events()
        self._output.close()
        return code


def descendants(pid: int) -> set[int]:
    """Every process below this one."""
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            for child in map(int, children.read_text().split()):
                found |= {child} | descendants(child)
    return found


class DeviceThread:
    """One of the demo's devices on a thread of its own, with a connection of its own."""

    def __init__(self, folder: Path, member: DemoMember, port: int, version: Version) -> None:
        model = OnnxModel.load(
            ASSETS / member.model,
            task(),
            labels=member.labels,
            scores="logits" if member.scores == "logits" else "probabilities",
        )
        identity = keyfile.read_member(folder / f"{member.id}.key", "device")
        labelling = Labelling(task=task(), model=model.digest, classes=model.classes)
        machine = Device(identity, labelling, os.urandom)
        link = MqttLink(
            identity.mqtt_client_id,
            host="127.0.0.1",
            port=port,
            subscriptions=machine.subscriptions,
            will=machine.will,
            version=version,
        )
        self.notices: list[Notice] = []
        self.pump = Pump(machine, link, model=model, watch=self.notices.append)
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        """Begin to take turns."""
        self.pump.start()
        self._thread.start()

    def stop(self) -> None:
        """Leave the broker."""
        self.pump.stop()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        self.pump.run()
        self.pump.close()


class LiveFederation:
    """Gateway in this thread, the first devices of the demo in others, and a broker."""

    def __init__(
        self,
        folder: Path,
        kind: str,
        version: Version,
        *,
        devices: int = 3,
        policy: RoundPolicy | None = None,
    ) -> None:
        need(kind)
        self.folder = folder
        self.broker = EmbeddedBroker(kind)
        self.version: Version = version
        self.policy = policy or RoundPolicy(timeout_s=10)
        self.outcomes: dict[object, Outcome] = {}
        self.rejected: list[Rejected] = []
        self.devices: list[DeviceThread] = []
        self._size = devices

    def __enter__(self) -> "LiveFederation":
        self.broker.start()
        self.identity = keyfile.make_gateway(self.folder / "gateway.key", "live", os.urandom)
        names = [("device", member.id) for member in members()[: self._size]]
        lines = keyfile.introduce(self.folder, names, self.identity, os.urandom)
        self.roster = Roster(members=tuple(lines))
        self.start_gateway()
        for member in members()[: self._size]:
            self.devices.append(DeviceThread(self.folder, member, self.broker.port, self.version))
            self.devices[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        for device in self.devices:
            device.stop()
        self.pump.close()
        self.broker.stop()

    def start_gateway(self) -> None:
        """A gateway that remembers nothing of the one before."""
        self.gateway = Gateway(self.identity, self.roster, [task()], os.urandom, policy=self.policy)
        self.link = MqttLink(
            self.identity.mqtt_client_id(self.gateway.boot),
            host="127.0.0.1",
            port=self.broker.port,
            subscriptions=self.gateway.subscriptions,
            will=self.gateway.will,
            version=self.version,
        )
        self.pump = Pump(self.gateway, self.link, watch=self._watch)
        self.pump.start()

    def await_all(self, within_s: float = PATIENCE_S) -> None:
        """Until every device has joined."""
        everybody = lambda: len(self.gateway.online(task().number)) == self._size  # noqa: E731
        assert self.pump.run_until(everybody, timeout_s=within_s), "not every device joined"

    def start_round(self, number: int = 0) -> int:
        """Ask about one of the demo's images."""
        tensor: Tensor = heldout()[0][number]
        self.outcomes.pop(number, None)
        self.pump.perform(self.gateway.ask(task().number, tensor, reference=number, now=monotonic_us()))
        return number

    def ask(self, number: int = 0, within_s: float = PATIENCE_S) -> Outcome:
        """Ask, and wait for the outcome."""
        self.start_round(number)
        assert self.pump.run_until(lambda: number in self.outcomes, timeout_s=within_s), "no outcome"
        return self.outcomes[number]

    def _watch(self, notice: Notice) -> None:
        if isinstance(notice, Deliver):
            self.outcomes[notice.reference] = notice.outcome
        elif isinstance(notice, Rejected):
            self.rejected.append(notice)
