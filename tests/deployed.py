"""A production broker as written by `broker.production`, running on loopback, and connections to it."""

import os
import random
import secrets
import signal
import socket
import subprocess
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from live import eventually, need
from raw_mqtt import HOST, ClosedError, RawMqtt, RefusedError

from broker import access, certificates, production
from broker.access import User
from broker.embedded import PORTS

_EVERYTHING = ("fi1/+/+", "fi1/+/+/+", "fi1/+/+/+/+")
AUDITOR = User("auditor", secrets.token_urlsafe(24), write=_EVERYTHING, read=_EVERYTHING)
"""Sees and says everything: no role of edge_fi, only the tests' means to know what a broker delivers."""


def password() -> str:
    return secrets.token_urlsafe(24)


def federation() -> list[User]:
    """Two of each role, one of each kind of task, and the gateway."""
    return [
        access.gateway("acme", password()),
        access.device("acme", "pi-01", password(), [1]),
        access.device("acme", "pi-02", password(), [2]),
        access.client("acme", "laptop", password()),
        access.client("acme", "tablet", password()),
        access.helper("acme", "bank", password()),
        access.helper("acme", "vault", password()),
        access.joiner("acme", 7, password()),
        access.joiner("acme", 8, password()),
    ]


class DeployedBroker:
    """A broker of this kind, with these users and the auditor, inside a `with`."""

    def __init__(self, folder: Path, kind: str, users: Iterable[User], **settings: Any) -> None:
        need(kind)
        self.folder = folder
        self.kind = kind
        self.users = {user.name: user for user in (*users, AUDITOR)}
        self.port = _free_port()
        self._settings = settings
        self._connections = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        certificates.make(self.folder, "acme", [HOST, "localhost"])
        self.write()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._connections.close()
        self.stop()

    @property
    def log(self) -> str:
        """All that the broker has said."""
        return self._log_path.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """The broker's process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Return when the broker takes members."""
        self.launch()
        self.await_ready()

    def await_ready(self) -> None:
        """Return when the broker takes members. Fails if it has ended."""
        eventually(self._takes_the_auditor)

    def launch(self) -> None:
        """Start the process, and wait for nothing."""
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                production.command(self.folder, self.kind), stdout=log, stderr=subprocess.STDOUT
            )

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it; by default it may save what it keeps."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    def write(self) -> list[str]:
        """Write the files for the users of now; returns the names of those that changed."""
        users = list(self.users.values())
        changed = production.write(
            self.folder, self.kind, users, address=HOST, port=self.port, **self._settings
        )
        return [path.name for path in changed]

    def reload(self) -> None:
        """Write the files, and have the running broker read them."""
        self.write()
        assert production.reload(self.folder, self.kind), "it does not run"

    def connect(self, name: str, password: str | None = None, **how: Any) -> RawMqtt:
        """A connection of this user, with its own password if none is given; closed at the latest at the end.

        Raises RefusedError.
        """
        return self.open(name, password or self.users[name].password, **how)

    def open(self, name: str | None, password: str | None, **how: Any) -> RawMqtt:
        """A connection with exactly these credentials. Raises RefusedError."""
        connection = RawMqtt(self.port, self.folder / certificates.AUTHORITY, name, password, **how)
        return self._connections.enter_context(connection)

    def refuses(self, name: str | None, password: str | None) -> bool:
        """Whether it takes no connection with these credentials."""
        try:
            self.open(name, password).close()
        except RefusedError:
            return True
        return False

    def _takes_the_auditor(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the broker ended: {self.log}"
        try:
            self.connect(AUDITOR.name).close()
        except (ClosedError, ConnectionError, RefusedError):
            return False
        return True

    @property
    def _log_path(self) -> Path:
        return self.folder.parent / f"{self.folder.name}.log"


def _free_port() -> int:
    """One that nobody listens on, and that the kernel gives to no outgoing connection."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind((HOST, port))
            except OSError:
                continue
            return port


def nonce() -> bytes:
    """What nobody else says."""
    return os.urandom(8).hex().encode()
