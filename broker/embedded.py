"""A broker of one's own: a child process on a loopback port, for tests, demos and first steps.

Anonymous and unencrypted, reachable from this machine only, nothing survives it. It ends with the process
that started it, however that ends (see `supervise`). POSIX only; for one thread at a time; start it after
daemonizing, since it takes the death of the process that called `start` for the end.
"""

import errno
import os
import random
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Self

from broker import supervise
from broker.kinds import BROKERS, Kind, available, find, preferred, versions
from broker.supervise import GRACE_S, KILL, STARTED, STOP
from edge_fi.errors import TransportError

__all__ = ["BROKERS", "EmbeddedBroker", "available", "versions"]

HOST = "127.0.0.1"
# Below what Linux (32768) and macOS (49152) give to outgoing connections. A port that bind(0) finds lies
# among those: any connection may take it before the broker does or while it restarts, even a client's own
# attempt to reconnect, which TCP then connects to itself. Below 30000 because Kubernetes has that.
PORTS = range(20_000, 30_000)
PORT_ATTEMPTS = 20
READY_S = 10.0  # longest wait for readiness; usual are some 10 ms
POLL_S = 0.002
LAST_WORDS_LINES = 5

# MQTT 3.1.1 section 3.1: clean session, keep alive 10 s, an empty client id for the broker to replace.
_CONNECT = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x0a\x00\x00"
_CONNACK_ACCEPTED = b"\x20\x02\x00\x00"
_DISCONNECT = b"\xe0\x00"


class _PortTakenError(Exception):
    """Somebody else listens there."""


class EmbeddedBroker:
    """A broker that runs between `start` and `stop`, or inside a `with`.

    A port once chosen stays: after `stop` or `kill`, `start` brings the broker back where its clients look.
    """

    def __init__(self, kind: str | None = None, *, port: int = 0) -> None:
        """kind: one of `BROKERS`, or None for the preferred one that is installed. port: 0 for a free one.

        Raises TransportError if the kind is unknown.
        """
        self.host = HOST
        self.port = port
        self._kind = kind if kind is None else find(kind).name
        self._supervisor: _Supervisor | None = None

    @property
    def kind(self) -> str:
        """Raises TransportError when it was left open and no broker is installed."""
        return self._kind or preferred()

    @property
    def pid(self) -> int:
        """The broker's process. Raises TransportError while it does not run."""
        if self._supervisor is None:
            raise TransportError("the embedded broker does not run: call start() first")
        return self._supervisor.broker_pid

    def start(self) -> None:
        """Return when the broker accepts MQTT. Raises TransportError, and then leaves nothing behind."""
        if self._supervisor is not None:
            raise TransportError(f"the embedded broker runs already on port {self.port}: call stop() first")
        kind = find(self.kind)
        program = kind.path()
        if program is None:
            raise TransportError(f"the broker {kind.name} was not found: {kind.install}, or choose another")
        for port in [self.port] if self.port else _random_ports():
            try:
                self._supervisor = _start(kind, program, port)
            except _PortTakenError:
                continue
            self._kind, self.port = kind.name, port
            return
        tried = f"port {self.port}" if self.port else f"every port tried from {PORTS.start} to {PORTS.stop}"
        raise TransportError(f"{tried} of {HOST} is taken: stop what listens there, or choose another port")

    def stop(self) -> None:
        """Return when the broker's process and its files are gone. Does nothing if it does not run."""
        self._end(STOP)

    def kill(self) -> None:
        """Like a power cut: SIGKILL, no DISCONNECT, no will. For tests of a lost broker."""
        self._end(KILL)

    def _end(self, command: bytes) -> None:
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.end(command)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


class _Supervisor:
    """The parent's side of `supervise.py`."""

    def __init__(self, process: subprocess.Popen[bytes], directory: str) -> None:
        self.broker_pid = 0
        self._process = process
        self._directory = directory
        self._owner = os.getpid()
        self._said = b""

    def wait_for_start(self, deadline: float) -> bool:
        """Whether there is a broker process; if not, `last_words` have the reason."""
        while b"\n" not in self._said:
            if not self.has_spoken(deadline - time.monotonic()) or not self._hear():
                break
        line, _, rest = self._said.partition(b"\n")
        if not line.startswith(STARTED):
            return False
        self.broker_pid, self._said = int(line.removeprefix(STARTED)), rest
        return True

    def has_spoken(self, timeout_s: float) -> bool:
        """Whether there is something to hear: after the start, only the broker's end."""
        assert self._process.stdout is not None
        # Not select.select: it cannot watch descriptors past 1023, which a host of many clients has.
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            return bool(selector.select(max(0.0, timeout_s)))

    def last_words(self) -> str:
        """The end of the broker's log, on one line. Complete after `end`."""
        lines = self._said.decode(errors="replace").splitlines()
        return " / ".join(line.strip() for line in lines[-LAST_WORDS_LINES:])

    def end(self, command: bytes) -> None:
        # A fork of the parent that unwinds through somebody's `with` must not end the parent's broker.
        if os.getpid() != self._owner:
            return
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):  # it ended before us
            process.stdin.write(command)
        process.stdin.close()
        deadline = time.monotonic() + 2 * GRACE_S
        while self.has_spoken(deadline - time.monotonic()) and self._hear():
            pass
        process.stdout.close()
        # If the supervisor was killed or hangs, the broker still is in its process group; otherwise this hits
        # nobody. Before wait(), as long as the group's number cannot belong to anyone else.
        with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM if all are dead
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _hear(self) -> bool:
        """False at the end-of-file."""
        assert self._process.stdout is not None
        words: bytes = os.read(self._process.stdout.fileno(), 65_536)
        self._said += words
        return bool(words)


def _start(kind: Kind, program: str, port: int) -> _Supervisor:
    """Raises _PortTakenError, or TransportError with the broker's own words."""
    _refuse_taken(port)
    deadline = time.monotonic() + READY_S
    try:
        supervisor = _launch(kind.configuration.substitute(port=port), os.path.abspath(program))
    except OSError as error:
        raise TransportError(f"cannot start a broker: {error}; correct that and start again") from error
    try:
        is_ready = supervisor.wait_for_start(deadline) and _wait_until_ready(supervisor, port, deadline)
    except BaseException:  # also Ctrl-C
        supervisor.end(STOP)
        raise
    if is_ready:
        return supervisor
    supervisor.end(STOP)
    words = supervisor.last_words()
    if os.strerror(errno.EADDRINUSE).lower() in words.lower():
        raise _PortTakenError
    raise TransportError(
        f"the broker {kind.name} did not become ready on port {port}: {words or 'it did not say why'}; "
        f"correct that, or choose another of {', '.join(BROKERS)}"
    )


def _launch(configuration: str, program: str) -> _Supervisor:
    # Not tempfile.gettempdir(): it tries the directory with a file, which a parent killed right then leaves.
    temporary = os.path.abspath(os.environ.get("TMPDIR") or "/tmp")  # noqa: S108 - the name in it is random
    directory = os.path.join(temporary, f"edge_fi-broker-{os.urandom(8).hex()}")
    # A session of its own: Ctrl-C in the terminal is for the parent alone, which may still have to say
    # goodbye to the broker. Popen makes both pipes close-on-exec: no other child gets the lifeline.
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", supervise.__file__, str(os.getpid()), directory, configuration, program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        start_new_session=True,
    )
    return _Supervisor(process, directory)


def _wait_until_ready(supervisor: _Supervisor, port: int, deadline: float) -> bool:
    while (left_s := deadline - time.monotonic()) > 0:
        is_ready = _accepts_connections(port, left_s)
        # Looked at after the answer: it may have come from another broker, to which ours just lost the port.
        if supervisor.has_spoken(0.0 if is_ready else POLL_S):
            return False
        if is_ready:
            return True
    return False


def _accepts_connections(port: int, timeout_s: float) -> bool:
    """Whether MQTT is spoken there. A TCP accept would not do: the NATS server listens before it can."""
    answer = b""
    with suppress(OSError), socket.create_connection((HOST, port), timeout=timeout_s) as connection:
        connection.sendall(_CONNECT)
        while len(answer) < len(_CONNACK_ACCEPTED) and (piece := connection.recv(len(_CONNACK_ACCEPTED))):
            answer += piece
        connection.sendall(_DISCONNECT)
    return answer == _CONNACK_ACCEPTED


def _refuse_taken(port: int) -> None:
    with socket.socket() as candidate:
        # As the brokers do: connections of a broker that was here before, in TIME_WAIT, are no obstacle.
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _PortTakenError from None
            raise TransportError(f"cannot listen on port {port}: {error.strerror}; choose another") from error


def _random_ports() -> Iterator[int]:
    for _ in range(PORT_ATTEMPTS):
        yield random.choice(PORTS)  # noqa: S311 - no secret
