"""A federation between parties, as its owners run it: processes of the command line, a broker over TLS with
an account for each, members that joined by invite.
"""

import io
import json
import os
import signal
import ssl
import subprocess
import threading
import time
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
from live import EDGE_FI, PATIENCE_S, Process, eventually, free_port, need
from raw_mqtt import RawMqtt
from tap import Tap

from broker import production
from broker.embedded import EmbeddedBroker
from edge_fi import config
from edge_fi.adapters import keyfile
from edge_fi.adapters.state import State
from edge_fi.cli.main import edge_fi, main
from edge_fi.cli.run import load_model, make_client, make_member_link
from edge_fi.demo.members import ASSETS, heldout, members, task
from edge_fi.device import Device, Labelling
from edge_fi.effects import Deliver
from edge_fi.messages import Fate, Outcome
from edge_fi.pump import Notice, Pump, monotonic_us
from edge_fi.session import GatewayIdentity

HOST = "127.0.0.1"
DIGITS = ASSETS / "digits.toml"
OPEN = "open"
PAUSE_S = 0.01  # between one outcome and the next question of an Asker


@dataclass(frozen=True, slots=True)
class Done:
    """A verb that has ended."""

    code: int
    out: str
    err: str

    @property
    def fields(self) -> dict[str, Any]:
        """What it printed for programs."""
        parsed: dict[str, Any] = json.loads(self.out)
        return parsed


def verb(*arguments: str | Path, stdin: str = "", cwd: Path | None = None, **environment: str) -> Done:
    """Run a verb to its end."""
    done = subprocess.run(
        [*EDGE_FI, *map(str, arguments)], input=stdin, cwd=cwd, env={**os.environ, **environment},
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


def here(*arguments: str | Path) -> None:
    """A verb in this process, and in this thread: where a process of its own would show nothing more.

    Raises EdgeFiError.
    """
    assert edge_fi.main(list(map(str, arguments)), standalone_mode=False) in (None, 0)


def main_here(*arguments: str | Path, stdin: str = "") -> Done:
    """As `verb`, in this process: the same sentences and exit codes, without what a start costs."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["edge-fi", *map(str, arguments)])
        patch.setattr("sys.stdin", io.StringIO(stdin))
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
    return Done(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def done(*arguments: str | Path, **how: Any) -> Done:
    """Run a verb that must end well."""
    ended = verb(*arguments, **how)
    assert ended.code == 0, f"{arguments}: {ended.err}{ended.out}"
    return ended


class Parties:
    """A federation `acme` in a folder, inside a `with`: first its broker runs, and nothing else.

    kind: of the broker, over TLS and with accounts; or `open`, for one as `--start-broker` starts it, where
    it is the gateway that must refuse.
    """

    def __init__(self, folder: Path, kind: str, *, is_tapped: bool = False) -> None:
        if kind != OPEN:
            need(kind)
        self.folder = folder
        self.kind = kind
        self.home = folder / "acme"
        self.config = self.home / "gateway.toml"
        self.broker_folder = self.home / "broker"
        self.port = free_port()
        self.broker_port = free_port() if is_tapped else self.port
        self.tap: Tap | None = None
        """What the broker's operator records, where it does."""
        self.processes: list[Process] = []
        self._broker: subprocess.Popen[bytes] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        new: list[str | Path] = [
            "--federation",
            "acme",
            "--task",
            DIGITS,
            "--port",
            str(self.port),
            "--out",
            self.home,
        ]
        if self.kind == OPEN:
            here("gateway", "new", *new)
            self._stack.enter_context(EmbeddedBroker(port=self.port))
            return self
        here("gateway", "new", *new, "--host", HOST)
        self.configure_broker()
        self.start_broker()
        if self.broker_port != self.port:
            self.tap = self._stack.enter_context(Tap(self.port, self.broker_port, self.broker_folder))
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.end(signal.SIGKILL)
        self._stack.close()
        self.stop_broker()

    @property
    def identity(self) -> GatewayIdentity:
        """The gateway's keys."""
        return keyfile.read_gateway(self.home / "gateway.key")

    def state(self) -> State:
        """The gateway's state, as another process opens it."""
        identity = self.identity
        return State.open(self.home / "state.db", identity.federation, identity.static.public)

    # The broker

    def configure_broker(self) -> None:
        """Write its files, for loopback alone."""
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("EDGE_FI_BROKER__PORT", str(self.broker_port))
            self.ask_for("broker", "config", self.kind, "--listen", HOST)

    def start_broker(self) -> None:
        """Return when it takes the gateway."""
        with (self.folder / "broker.log").open("ab") as log:
            command = production.command(self.broker_folder, self.kind)
            self._broker = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        eventually(self._broker_listens)

    def stop_broker(self, number: int = signal.SIGTERM) -> None:
        """End it."""
        if self._broker is not None:
            self._broker.send_signal(number)
            self._broker.wait()
            self._broker = None

    def _broker_listens(self) -> bool:
        assert self._broker is not None
        assert self._broker.poll() is None, (self.folder / "broker.log").read_text()
        try:
            self.certificate()
        except OSError:
            return False
        return True

    def certificate(self) -> str:
        """That which the broker presents now, in PEM."""
        return ssl.get_server_certificate((HOST, self.broker_port))

    # Verbs

    def ask_for(self, *arguments: str | Path) -> dict[str, Any]:
        """What a verb of the gateway's owner prints for programs. In this process."""
        ended = main_here(*arguments, "--config", self.config, "--json")
        assert ended.code == 0, ended
        return ended.fields

    def start(self, *arguments: str | Path, **how: Any) -> Process:
        """A verb that runs until it is told to stop."""
        process = Process(*arguments, **how)
        self.processes.append(process)
        return process

    def start_gateway(self, home: Path | None = None) -> Process:
        """Return when it serves."""
        gateway = self.start("gateway", "run", "--config", (home or self.home) / "gateway.toml")
        eventually(lambda: gateway.saw("serving"))
        return gateway

    def invite(self, *names: str, role: str = "device", options: tuple[str, ...] = ()) -> Path:
        """A folder with an invite for each."""
        folder = self.folder / "invites"
        folder.mkdir(exist_ok=True)
        where = ("--file", folder, "--config", self.config)
        main_here("gateway", "invite", *names, "--role", role, *where, *options)
        return folder

    def join(self, *names: str, role: str = "device") -> list[Path]:
        """Invite these and have them join, all at once, each in a process; their configuration files."""
        arguments = self._joining(names, role)
        processes = [self.start(*its) for its in arguments]
        assert [process.process.wait(PATIENCE_S) for process in processes] == [0] * len(names)
        return [self.folder / name / f"{role}.toml" for name in names]

    def join_here(self, *names: str, role: str = "device") -> list[Path]:
        """As above, one after the other in this process."""
        for arguments in self._joining(names, role):
            here(*arguments)
        return [self.folder / name / f"{role}.toml" for name in names]

    def _joining(self, names: tuple[str, ...], role: str) -> list[list[str | Path]]:
        invites = self.invite(*names, role=role)
        arguments: list[list[str | Path]] = []
        for name in names:
            where: list[str | Path] = ["--file", invites / f"{name}.invite", "--out", self.folder / name]
            arguments.append([role, "join", *where, *(model_options(name) if role == "device" else [])])
        return arguments

    def start_devices(self, *paths: Path) -> list[Process]:
        """Return when each has a session."""
        devices = [self.start("device", "run", "--config", path) for path in paths]
        eventually(lambda: all(device.saw("joined", peer="gateway") for device in devices))
        return devices

    def thread(self, path: Path) -> "DeviceHere":
        """A device of these files in a thread of the test, until it is stopped or the test ends."""
        device = DeviceHere(path)
        self._stack.callback(device.stop)
        eventually(lambda: device.machine._session is not None)
        return device

    def connect(self, member: str) -> RawMqtt:
        """A connection with the account of this member, or of the gateway, beside its own."""
        identity = self.identity
        with self.state() as state:
            its = {one.id: identity.member_password(one) for one in state.roster().members}
        password = its.get(member, identity.mqtt_password)
        raw = RawMqtt(self.broker_port, self.broker_folder / "ca.pem", member, password)
        return self._stack.enter_context(raw)

    def asker(self, path: Path) -> "Asker":
        """A client of these files that asks without pause, until it is stopped or the test ends."""
        asker = Asker(path)
        self._stack.callback(asker.stop)
        return asker


def model_options(name: str) -> list[str | Path]:
    """What `device join` is told of the demo's model for the device of this name, `...-01` to `...-05`."""
    member = members()[(int(name[-2:]) - 1) % len(members())]
    model: list[str | Path] = ["--model", ASSETS / member.model]
    return [*model, "--labels", ",".join(member.labels), "--scores", member.scores]


class DeviceHere:
    """A device as `edge-fi device run` makes it, in a thread: what it holds can be looked at."""

    def __init__(self, path: Path) -> None:
        settings = config.load(path, config.DeviceConfig)
        self.identity = keyfile.read_member(path.parent / settings.key, "device")
        self.model = load_model(path, settings)
        labelling = Labelling(task=task(), model=self.model.digest, classes=self.model.classes)
        self.machine = Device(self.identity, labelling, os.urandom)
        self.notices: list[Notice] = []
        self.link = make_member_link(self.machine, self.identity, path, settings.broker)
        self.pump = Pump(self.machine, self.link, model=self.model, watch=self.notices.append)
        self.pump.start()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Leave the broker."""
        self.pump.stop()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        self.pump.run()
        self.pump.close()


class Asker:
    """A client that asks one question after the other, in a thread, and keeps the outcomes."""

    def __init__(self, path: Path, *, deadline_ms: int = 20_000) -> None:
        self.client, self.link, _ = make_client(path)
        self.outcomes: list[Outcome] = []
        self._deadline_ms = deadline_ms
        self._asked = 0
        self._next_s = 0.0
        self._pump = Pump(self.client, self.link, watch=self._watch)
        self._pump.start()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> list[Outcome]:
        """End, with the outcomes of all that was asked."""
        self._pump.stop()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return self.outcomes

    def go_on(self, rounds: int = 20) -> list[Outcome]:
        """The next outcomes, so many of them."""
        at = len(self.outcomes)
        eventually(lambda: len(self.outcomes) >= at + rounds)
        return self.outcomes[at:]

    def _run(self) -> None:
        self._pump.run(self._before_turn)
        self._pump.close()

    def _before_turn(self) -> float:
        if self._asked == len(self.outcomes) and time.monotonic() >= self._next_s:
            tensor = heldout_tensor(self._asked)
            ask = self.client.ask(
                task(), tensor, deadline_ms=self._deadline_ms, reference="", now=monotonic_us()
            )
            self._asked += 1
            self._pump.perform(ask)
        return max(PAUSE_S, self._next_s - time.monotonic())

    def _watch(self, notice: Notice) -> None:
        if isinstance(notice, Deliver):
            self._next_s = time.monotonic() + PAUSE_S
            self.outcomes.append(notice.outcome)


_TENSORS = heldout()[0]


def heldout_tensor(number: int) -> Any:
    """One of the demo's images."""
    return _TENSORS[number % len(_TENSORS)]


def counted(outcomes: list[Outcome]) -> list[set[str]]:
    """Who was counted, each different set once."""
    return [set(its) for its in {frozenset(outcome.members(Fate.COUNTED)) for outcome in outcomes}]
