"""The gateway's state as a file: one SQLite database of a known schema, readable by its owner alone.

Here is what makes, opens and refuses such a file, what its tables promise by themselves, and what
SQLite's errors mean to a person. What the rows mean is in `state`.
"""

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

from edge_fi.errors import KeyFileError, StateError

APPLICATION = 0x66693173  # "fi1s": tells the file from any other of SQLite
SCHEMA = 2  # of 1, what is of panels, their members' worth and canaries was missing
LOCKED_S = 2.0  # longest wait for another process's transaction; each takes milliseconds
LEAST_SQLITE = (3, 37)  # STRICT tables

_PRIVATE = 0o600
_BESIDE = ("", "-wal", "-shm")
"""What SQLite keeps a database in: the last two take the mode of the first."""

_TABLES = """
CREATE TABLE federation (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    name TEXT NOT NULL,
    gateway BLOB NOT NULL CHECK (length(gateway) = 32),
    version INTEGER NOT NULL DEFAULT 0,
    given INTEGER NOT NULL DEFAULT 0 CHECK (given BETWEEN 0 AND 65535),
    invited INTEGER NOT NULL DEFAULT 0 CHECK (invited BETWEEN 0 AND 4294967295),
    rotations INTEGER NOT NULL DEFAULT 0,
    latest INTEGER NOT NULL
) STRICT;

CREATE TABLE members (
    member_index INTEGER PRIMARY KEY CHECK (member_index BETWEEN 1 AND 65535),
    id TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('device', 'client', 'helper')),
    public BLOB NOT NULL CHECK (length(public) = 32),
    task INTEGER NOT NULL CHECK (task BETWEEN 0 AND 255),
    label TEXT NOT NULL DEFAULT '',
    joined INTEGER NOT NULL,
    revoked INTEGER
) STRICT;

CREATE UNIQUE INDEX member_ids ON members (id) WHERE revoked IS NULL;

-- Revoked, and nothing more is known of them: of a run whose state was lost.
CREATE TABLE unknown_members (
    member_index INTEGER PRIMARY KEY CHECK (member_index BETWEEN 1 AND 65535),
    revoked INTEGER NOT NULL
) STRICT;

CREATE TABLE invitations (
    number INTEGER PRIMARY KEY CHECK (number BETWEEN 1 AND 4294967295),
    id TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('device', 'client', 'helper')),
    task INTEGER NOT NULL CHECK (task BETWEEN 0 AND 255),
    token BLOB NOT NULL CHECK (length(token) = 16),
    replaces INTEGER NOT NULL CHECK (replaces IN (0, 1)),
    made INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    withdrawn INTEGER,
    redeemed INTEGER UNIQUE REFERENCES members (member_index)
) STRICT;

CREATE INDEX invitation_ids ON invitations (id);

CREATE TABLE reputation (
    member_index INTEGER PRIMARY KEY REFERENCES members (member_index),
    asked INTEGER NOT NULL,
    counted INTEGER NOT NULL,
    declined INTEGER NOT NULL,
    missing INTEGER NOT NULL,
    late INTEGER NOT NULL,
    last_heard INTEGER NOT NULL
) STRICT;

CREATE TRIGGER members_stay BEFORE DELETE ON members
BEGIN SELECT RAISE(ABORT, 'a member is never deleted'); END;

CREATE TRIGGER keys_stay BEFORE UPDATE OF member_index, id, role, public ON members
BEGIN SELECT RAISE(ABORT, 'a member never changes'); END;

CREATE TRIGGER revocations_stay BEFORE UPDATE OF revoked ON members WHEN OLD.revoked IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'a revocation is for ever'); END;

CREATE TRIGGER burnt_invitations_stay BEFORE UPDATE OF redeemed ON invitations
WHEN OLD.redeemed IS NOT NULL OR OLD.withdrawn IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'an invitation is redeemed once'); END;

CREATE TRIGGER counters_grow BEFORE UPDATE ON federation
WHEN NEW.version < OLD.version OR NEW.given < OLD.given OR NEW.invited < OLD.invited
    OR NEW.rotations < OLD.rotations OR NEW.name <> OLD.name OR NEW.gateway <> OLD.gateway
BEGIN SELECT RAISE(ABORT, 'a counter never goes back'); END;
"""

_TABLES_OF_PANELS = """
-- What is learnt of a task's members as voters. expelled: their indices, a JSON list.
CREATE TABLE IF NOT EXISTS panels (
    task INTEGER PRIMARY KEY CHECK (task BETWEEN 1 AND 255),
    snapshot BLOB NOT NULL,
    expelled TEXT NOT NULL,
    changed INTEGER NOT NULL
) STRICT;

CREATE TABLE IF NOT EXISTS contributions (
    task INTEGER NOT NULL CHECK (task BETWEEN 1 AND 255),
    member_index INTEGER NOT NULL REFERENCES members (member_index),
    value REAL NOT NULL,
    error REAL NOT NULL,
    agreement REAL NOT NULL,
    share REAL NOT NULL,
    rounds INTEGER NOT NULL,
    computed INTEGER NOT NULL,
    PRIMARY KEY (task, member_index)
) STRICT;

-- Inputs, by digest, that were asked as canaries: none is asked twice.
CREATE TABLE IF NOT EXISTS canaries (
    task INTEGER NOT NULL CHECK (task BETWEEN 1 AND 255),
    input BLOB NOT NULL,
    asked INTEGER NOT NULL,
    PRIMARY KEY (task, input)
) STRICT;
"""


def make(path: Path, federation: str, gateway: bytes, *, now: int) -> None:
    """Write an empty state, whole or not at all. gateway: the gateway's public X25519 key, 32 bytes.

    Raises StateError where it cannot be written, or exists.
    """
    _check_library()
    with placed(path) as new, failures(path, "write"), contextlib.closing(_connected(new, "rw")) as state:
        state.execute("PRAGMA journal_mode=WAL")
        state.executescript(f"BEGIN; {_TABLES} {_TABLES_OF_PANELS} PRAGMA user_version={SCHEMA}; COMMIT")
        state.execute(f"PRAGMA application_id={APPLICATION}")
        row = (federation, gateway, now)
        state.execute("INSERT INTO federation (one, name, gateway, latest) VALUES (1, ?, ?, ?)", row)


def connect(path: Path, federation: str, gateway: bytes, *, is_backup: bool = False) -> sqlite3.Connection:
    """Open a state; is_backup: only to read. Raises KeyFileError where others may read it, and StateError
    where it is missing, damaged, of a later version, or another gateway's.
    """
    _check_library()
    for suffix in _BESIDE:
        _check_mode(Path(f"{path}{suffix}"), is_needed=not suffix)
    with failures(path, "open"):
        connection = _connected(path, "ro" if is_backup else "rw")
        try:
            _check(connection, show(path), federation, gateway)
            if not is_backup:
                connection.execute("PRAGMA journal_mode=WAL")
                _upgrade(connection)
        except BaseException:
            connection.close()
            raise
    return connection


def _check_mode(path: Path, *, is_needed: bool) -> None:
    shown = show(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if is_needed:
            raise StateError(
                f"no gateway state {shown}: make a gateway first, or correct where its state is"
            ) from None
        return
    except OSError as error:
        raise StateError(f"cannot open {shown}: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise StateError(f"{shown} is no file: correct where the gateway's state is")
    if mode & 0o077:
        raise KeyFileError(
            f"{shown} has mode {stat.S_IMODE(mode):04o}, others may read it, and invites are in it: "
            f"run chmod 600 {shown}"
        )


def _check(connection: sqlite3.Connection, shown: str, federation: str, gateway: bytes) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION:
        raise StateError(f"{shown} is no gateway state: correct where it is")
    if schema > SCHEMA:
        raise StateError(
            f"{shown} was written by a later edge_fi (its schema is {schema}, this one knows {SCHEMA}): "
            "upgrade edge_fi"
        )
    its_federation, its_gateway = connection.execute("SELECT name, gateway FROM federation").fetchone()
    if its_federation != federation:
        raise StateError(f"{shown} is of federation {its_federation}, but the gateway's key of {federation}")
    if its_gateway != gateway:
        raise StateError(f"{shown} belongs to another key of gateway {federation}: correct 'key' or 'state'")


def _upgrade(connection: sqlite3.Connection) -> None:
    """Bring the state of an earlier version up to this one, whole or not at all; backups stay as they are."""
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    if schema < SCHEMA:
        connection.executescript(f"BEGIN IMMEDIATE; {_TABLES_OF_PANELS} PRAGMA user_version={SCHEMA}; COMMIT")


def _connected(path: Path, mode: str) -> sqlite3.Connection:
    """A connection to a file that exists, in which each transaction is begun by hand."""
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=LOCKED_S, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA trusted_schema=OFF")
    except BaseException:
        connection.close()
        raise
    return connection


def copy(source: sqlite3.Connection, new: Path) -> sqlite3.Connection:
    """A consistent copy in a file that `placed` gave; in it there is no `-wal` beside the file."""
    connection = _connected(new, "rw")
    try:
        source.backup(connection)
        connection.execute("PRAGMA journal_mode=DELETE")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """An empty private file beside `path`, gone when the `with` ends. Raises StateError."""
    new = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE))
        yield new
    except OSError as error:
        raise StateError(f"cannot write {show(path)}: {error.strerror}") from None
    finally:
        for suffix in (*_BESIDE, "-journal"):
            with contextlib.suppress(OSError):
                os.unlink(f"{new}{suffix}")


@contextlib.contextmanager
def placed(path: Path) -> Iterator[Path]:
    """A private file to write, that appears at `path`, whole, when the `with` has ended well.

    Raises StateError where that cannot be, or where `path` exists.
    """
    with scratch(path) as new:
        yield new
        _sync(new)
        try:
            os.link(new, path)  # unlike a rename, it does not replace what is there
        except FileExistsError:
            raise StateError(f"{show(path)} exists and is not overwritten: move it away first") from None
        _sync(path.parent)


@contextlib.contextmanager
def failures(path: Path, verb: str) -> Iterator[None]:
    """What SQLite finds wrong within the `with`, as a StateError: 'cannot {verb} ...'."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # a bug of ours
    except sqlite3.Error as error:
        raise StateError(f"cannot {verb} {show(path)}: {_meaning(error)}") from None


def _meaning(error: sqlite3.Error) -> str:
    name = getattr(error, "sqlite_errorname", "")
    match name.split("_")[1] if name else "":
        case "FULL":
            return "the disk is full; nothing was changed: make room"
        case "BUSY" | "LOCKED":
            return f"another process has been writing to it for {LOCKED_S:.0f} s: try again"
        case "READONLY" | "CANTOPEN" | "PERM" | "AUTH":
            return "this user may not write to it, or to its folder"
        case "CORRUPT" | "NOTADB":
            return "it is damaged: move it away, and restore a backup"
        case "IOERR":
            return f"the disk failed ({name}); it may be full"
    return str(error)


def _check_library() -> None:
    if sqlite3.sqlite_version_info < LEAST_SQLITE:
        least = ".".join(map(str, LEAST_SQLITE))
        raise StateError(
            f"this Python has SQLite {sqlite3.sqlite_version}, but {least} is needed: use a later Python"
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def show(path: Path) -> str:
    """As a message shows it: `state.db` for `configs/../state.db`."""
    return os.path.normpath(path)
