"""The broker's files, in step with the roster: who may connect, and what each may read and write.

`edge-fi broker config` makes them once and leaves beside them how; from then on each change of roster or
invites writes them again and has a running broker read them. A folder without that note is left alone.
"""

import contextlib
import fcntl
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from edge_fi.config import GatewayConfig, load_tasks
from edge_fi.crypto.seal import join_password
from edge_fi.errors import ConfigError
from edge_fi.messages import Member
from edge_fi.roster import Roster
from edge_fi.session import GatewayIdentity

NOTE = "edge-fi.json"
"""In the broker's folder: how its files were made."""
UNREAD = ".unread"
"""There while files are written and the broker is told: who is killed then leaves it."""


class Account(Protocol):
    """Of the broker: a `broker.access.User`."""

    @property
    def name(self) -> str:
        """MQTT's user name."""

    @property
    def password(self) -> str:
        """Its password."""

    @property
    def write(self) -> tuple[str, ...]:
        """Filters of the topics that it may publish to."""

    @property
    def read(self) -> tuple[str, ...]:
        """Filters that it may subscribe to."""


def need_extra() -> None:
    """Raises ConfigError where the packages are missing that write a broker's files."""
    for package in ("bcrypt", "cryptography"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"the broker's files need the package {package}: pip install 'edge-fi[gateway]'"
            )


def users(settings: GatewayConfig, path: Path, identity: GatewayIdentity, roster: Roster) -> list[Account]:
    """Everybody who may connect: the gateway, its members, and who holds an invite."""
    from broker import access

    federation = identity.federation
    tasks = [task.number for task in load_tasks(path.parent, settings.tasks).values()]
    found: list[Account] = [access.gateway(federation, identity.mqtt_password)]
    found += [_member_user(member, identity, tasks) for member in roster.members]
    return found + [
        # Also a used or an expired one, as long as the state keeps it: its holder is told so by the gateway,
        # where the broker would only shut the door. Not a withdrawn one: it may be in the wrong hands.
        access.joiner(federation, its.number, join_password(its.token))
        for its in roster.invitations
        if not its.is_withdrawn
    ]


def _member_user(member: Member, identity: GatewayIdentity, tasks: list[int]) -> Account:
    """A member as the broker knows it. tasks: all of the federation."""
    from broker import access

    federation, password = identity.federation, identity.member_password(member)
    if member.role == "device":
        its_tasks = [member.task] if member.task else tasks
        return access.device(federation, member.id, password, its_tasks)
    its_role = access.client if member.role == "client" else access.helper
    return its_role(federation, member.id, password)


def make(
    path: Path,
    settings: GatewayConfig,
    identity: GatewayIdentity,
    read: Callable[[], Roster],
    how: dict[str, Any],
) -> list[Path]:
    """Make the broker's files, in the folder where its certificate is, and leave there how; which changed.

    how: `kind`, and the further arguments of broker.production.write.
    """
    from broker import files

    folder = path.parent / settings.broker_files
    files.make_folder(folder)
    with _locked(folder):
        changed = _write(path, settings, identity, read(), how)
        _write_note(folder, how)
    return changed


def follow(
    path: Path, settings: GatewayConfig, identity: GatewayIdentity, read: Callable[[], Roster]
) -> bool:
    """Bring the broker's files in step with the roster that `read` gives. Whether there are any.

    One process at a time, and the roster is read under the lock: an older one never overwrites a newer.
    """
    folder = path.parent / settings.broker_files
    how = read_note(folder)
    if how is None:
        return False
    need_extra()
    from broker import production

    with _locked(folder), _remembered(folder) as was_interrupted:
        if _write(path, settings, identity, read(), how) or was_interrupted:
            production.reload(folder, how["kind"])
    return True


def read_note(folder: Path) -> dict[str, Any] | None:
    """How the files in this folder were made; None if they are not ours."""
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read {folder / NOTE}: {error}; make it again with 'edge-fi broker config'"
        ) from None
    if not isinstance(note, dict) or not isinstance(note.get("kind"), str):
        raise ConfigError(f"{folder / NOTE} is not ours: make it again with 'edge-fi broker config'")
    return note


def _write(
    path: Path, settings: GatewayConfig, identity: GatewayIdentity, roster: Roster, how: dict[str, Any]
) -> list[Path]:
    from broker import production

    paths = {name: Path(how[name]) for name in ("certificate", "key") if how.get(name)}
    arguments = paths | {name: how[name] for name in ("address", "port") if name in how}
    folder = path.parent / settings.broker_files
    try:
        found: Any = users(settings, path, identity, roster)
        return production.write(folder, how["kind"], found, **arguments)
    except (TypeError, ValueError) as error:  # of a note that somebody has changed, or of --listen
        raise ConfigError(f"cannot make the broker's files in {folder}: {error}") from None


def _write_note(folder: Path, how: dict[str, Any]) -> None:
    from broker import files

    files.replace(folder / NOTE, json.dumps(how, indent=2).encode() + b"\n")


@contextlib.contextmanager
def _remembered(folder: Path) -> Iterator[bool]:
    """Whether a `with` like this one did not end well: it may have written what the broker never read."""
    mark = folder / UNREAD
    try:
        was_interrupted = mark.exists()
        mark.touch()
    except OSError as error:
        raise ConfigError(f"cannot write into {folder}: {error.strerror}") from None
    yield was_interrupted
    mark.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot write into {folder}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
