"""A production broker's files on disk, and telling a running broker to read them again.

Starting and stopping the broker is for a service manager.
"""

import os
import pwd
import signal
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from broker import certificates, files, mosquitto, nats
from broker.access import User
from broker.deployment import MAX_CONNECTIONS, MQTT_TLS_PORT, Deployment
from broker.kinds import find
from edge_fi.errors import ConfigError, TransportError

START_S = 5.0  # from a broker's start until it survives a reload; usual are some ms
POLL_S = 0.01


def _mosquitto_heeds_signals(_: Path, pid: int) -> bool:
    """It writes its pid file first; until it has asked for SIGHUP, that would end it."""
    return bool(int(_status(pid)["SigCgt"], 16) >> (signal.SIGHUP - 1) & 1)


def _nats_listens(folder: Path, pid: int) -> bool:
    """It writes its pid file first, and ends when it is told to reload while it starts JetStream.

    The file about its ports is the last that it writes. One older than the pid file is of a process that
    was killed and had the same number, as is usual in containers.
    """
    try:
        ports = (folder / f"nats-server_{pid}.ports").stat()
    except FileNotFoundError:
        return False
    return ports.st_mtime_ns >= (folder / nats.PID_FILE).stat().st_mtime_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class _Format:
    """What one kind of broker reads and writes in its folder."""

    render: Callable[[Sequence[User], Deployment], dict[str, str]]
    configuration: str
    pid_file: str
    store: str
    is_ready: Callable[[Path, int], bool]
    """Whether a process, by its folder and number, has come so far that it survives a reload."""


_FORMATS = {
    "mosquitto": _Format(
        render=mosquitto.render,
        configuration=mosquitto.CONFIGURATION,
        pid_file=mosquitto.PID_FILE,
        store=mosquitto.STORE,
        is_ready=_mosquitto_heeds_signals,
    ),
    "nats": _Format(
        render=nats.render,
        configuration=nats.CONFIGURATION,
        pid_file=nats.PID_FILE,
        store=nats.STORE,
        is_ready=_nats_listens,
    ),
}


def write(
    folder: Path,
    kind: str,
    users: Sequence[User],
    *,
    certificate: Path | None = None,
    key: Path | None = None,
    address: str = "",
    port: int = MQTT_TLS_PORT,
    max_connections: int = MAX_CONNECTIONS,
) -> list[Path]:
    """Write all that a broker of this kind reads; afterwards exactly these users exist.

    certificate, key: PEM files of one's own; those that `certificates.make` left in the folder if None.
    Returns the files that changed: none means that there is nothing to reload. Raises ConfigError where
    something cannot be written or the broker could not start with it, ValueError for an impossible setting,
    TransportError for an unknown kind.
    """
    find(kind)
    folder = Path(os.path.abspath(folder))
    certificate = Path(os.path.abspath(certificate or folder / certificates.SERVER))
    key = Path(os.path.abspath(key or folder / certificates.SERVER_KEY))
    _refuse_unusable(certificate, key)
    _refuse_twins(users)
    files.make_folder(folder)
    form = _FORMATS[kind]
    files.make_folder(folder / form.store, inside=True)
    deployment = Deployment(
        folder=folder,
        certificate=certificate,
        key=key,
        account=_account(files.owner(folder)),
        address=address,
        port=port,
        max_connections=max_connections,
    )
    contents = form.render(users, deployment)
    return [folder / name for name, text in contents.items() if files.replace(folder / name, text.encode())]


def command(folder: Path, kind: str) -> list[str]:
    """What starts the broker on the files in this folder. Raises TransportError if it is not installed."""
    program = find(kind).path()
    if program is None:
        raise TransportError(f"the broker {kind} was not found: {find(kind).install}, or choose another")
    return [program, "-c", os.path.abspath(folder / _FORMATS[kind].configuration)]


def reload(folder: Path, kind: str) -> bool:
    """Have the broker that runs on this folder read accounts and certificate again. False if none runs.

    Some milliseconds later it cuts the connections of who has no account any more, or another password; all
    others stay. Waits for one that is just starting. Raises TransportError if it is not ours to signal.
    """
    program, form = find(kind).program, _FORMATS[kind]
    try:
        pid = int((folder / form.pid_file).read_text())
        with _held(pid) as process:
            deadline = time.monotonic() + START_S
            while _runs(pid, program) and time.monotonic() < deadline:
                if form.is_ready(folder, pid):
                    signal.pidfd_send_signal(process, signal.SIGHUP)
                    return True
                time.sleep(POLL_S)
    except PermissionError:
        raise TransportError(
            f"the broker of {folder / form.pid_file} belongs to another account: reload it as that account "
            "or as root"
        ) from None
    except (OSError, OverflowError, ValueError):  # it has ended, or no process ever had such a number
        pass
    return False


@contextmanager
def _held(pid: int) -> Iterator[int]:
    """A descriptor of the process: no later one of the same number is mistaken for it."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _runs(pid: int, program: str) -> bool:
    status = _status(pid)
    return status["Name"] == program and not status["State"].startswith("Z")


def _status(pid: int) -> dict[str, str]:
    """Of a process, by proc(5)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _account(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # in a container; what is no root does not change to it
        return str(number)


def _refuse_unusable(certificate: Path, key: Path) -> None:
    """A broker does not start with a certificate that is missing or not its key's."""
    try:
        # The password of an encrypted key would be asked for on the terminal.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, lambda: b"")
    except ssl.SSLError:
        raise ConfigError(
            f"{certificate} and {key} are not a certificate and its private key in PEM without a password: "
            "name the right files"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot read the certificate {certificate} or its key {key}: {error.strerror}; make them, or "
            "name your own"
        ) from None


def _refuse_twins(users: Sequence[User]) -> None:
    name, times = max(Counter(user.name for user in users).items(), key=itemgetter(1), default=("", 0))
    if times > 1:
        raise ValueError(
            f"user {name} is given {times} times: a broker would take one of them and not say which"
        )
