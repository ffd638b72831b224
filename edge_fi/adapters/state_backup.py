"""Putting a gateway's state back from a backup, but never over one that knows more.

Who was revoked stays revoked, and no index is given twice. An invite that is open in a backup may have
been burnt since: in what is restored, all of them are withdrawn.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from edge_fi.adapters import state_file
from edge_fi.adapters.state_hold import Hold
from edge_fi.adapters.state_tables import Tables
from edge_fi.errors import StateError
from edge_fi.roster import Roster


def restore(
    source: Path, path: Path, federation: str, gateway: bytes, *, wall: Callable[[], float] = time.time
) -> None:
    """Make the state at `path` what the backup `source` says; whole, or not at all.

    gateway: the gateway's public X25519 key. Raises StateError where `source` is no backup of its state, or
    where the one at `path` knows more; AlreadyRunningError while a gateway runs on that.
    """
    with (
        Hold.take(path),
        contextlib.closing(state_file.connect(source, federation, gateway, is_backup=True)) as backup,
    ):
        if not path.exists():
            with state_file.placed(path) as new, state_file.failures(path, "write"):
                _write(backup, new, path, wall).close()
            return
        with (
            contextlib.closing(state_file.connect(path, federation, gateway)) as state,
            state_file.scratch(path) as new,
        ):
            old, now = _roster(source, backup, wall), _roster(path, state, wall)
            if now.version >= old.version or now.revoked - old.revoked or now.highest > old.highest:
                raise StateError(
                    f"{state_file.show(path)} knows more (roster version {now.version}) than the backup "
                    f"(version {old.version}), and a roster is never rolled back: leave it as it is; if it "
                    "cannot be used, move it away, restore again, and revoke anew who was revoked since"
                )
            with (
                state_file.failures(path, "write"),
                contextlib.closing(_write(backup, new, path, wall)) as restored,
            ):
                restored.backup(state)


def _write(
    backup: sqlite3.Connection, new: Path, path: Path, wall: Callable[[], float]
) -> sqlite3.Connection:
    """What `path` is to be, in this scratch file."""
    connection = state_file.copy(backup, new)
    try:
        with Tables(path, connection, wall).transaction(is_change=True) as now:
            connection.execute(
                "UPDATE invitations SET withdrawn = ? WHERE withdrawn IS NULL AND redeemed IS NULL", [now]
            )
    except BaseException:
        connection.close()
        raise
    return connection


def _roster(path: Path, connection: sqlite3.Connection, wall: Callable[[], float]) -> Roster:
    tables = Tables(path, connection, wall)
    with tables.transaction(is_change=False) as now:
        return tables.snapshot(now).roster
