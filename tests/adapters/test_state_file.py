"""The state as a file: private, whole or not there, and refused by name where it is not what it should be."""

import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from stated import FEDERATION, GATEWAY, Made, admit_of, invite, join, key, rows

from edge_fi.adapters import state_file
from edge_fi.adapters.state import State
from edge_fi.errors import KeyFileError, StateError
from edge_fi.roster import NotAdmittedError
from edge_fi.wire.payloads import Refusal


@pytest.fixture
def made(tmp_path: Path) -> Made:
    made = Made(tmp_path / "state.db")
    made.create().close()
    return made


@pytest.fixture
def loose_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def execute(path: Path, statement: str) -> None:
    """As an administrator would, with a tool of their own."""
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_every_file_of_a_state_is_its_owners_alone(tmp_path: Path, loose_umask: None) -> None:
    made = Made(tmp_path / "state.db")
    with made.create() as state:
        join(state, "pi-07")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"state.db": 0o600, "state.db-wal": 0o600, "state.db-shm": 0o600}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
@pytest.mark.parametrize("name", ["state.db", "state.db-wal"])
def test_a_state_that_others_may_read_is_refused(made: Made, name: str, mode: int) -> None:
    with made.open():  # so that there is a -wal
        path = made.path.with_name(name)
        path.chmod(mode)
        with pytest.raises(KeyFileError, match=rf"{name} has mode {mode:04o}, .*: run chmod 600 .*{name}$"):
            made.open()


def test_a_state_of_another_federation_or_gateway_is_refused(made: Made) -> None:
    with pytest.raises(StateError, match="is of federation acme, but the gateway's key of other"):
        State.open(made.path, "other", GATEWAY)
    with pytest.raises(StateError, match="belongs to another key of gateway acme"):
        State.open(made.path, FEDERATION, bytes(32))


def test_a_state_of_a_later_version_is_refused_and_not_touched(made: Made) -> None:
    execute(made.path, f"PRAGMA user_version = {state_file.SCHEMA + 1}")
    before = made.path.read_bytes()
    with pytest.raises(StateError, match=r"a later edge_fi \(its schema is 3, this one knows 2\): upgrade"):
        made.open()
    assert made.path.read_bytes() == before


def test_a_database_that_is_no_state_is_refused(tmp_path: Path) -> None:
    made = Made(tmp_path / "other.db")
    execute(made.path, "CREATE TABLE members (id)")
    made.path.chmod(0o600)
    with pytest.raises(StateError, match=r"other\.db is no gateway state"):
        made.open()


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" + bytes(4080)])
def test_a_damaged_state_says_what_to_do(made: Made, content: bytes) -> None:
    made.path.write_bytes(content)
    with pytest.raises(StateError, match="it is damaged: move it away, and restore a backup"):
        made.open()


def test_an_empty_file_is_no_state(made: Made) -> None:
    made.path.write_bytes(b"")
    with pytest.raises(StateError, match="is no gateway state"):
        made.open()


def test_a_state_that_is_missing_is_not_made_by_opening_it(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"no gateway state .*gone\.db: make a gateway first"):
        Made(tmp_path / "gone.db").open()
    with pytest.raises(StateError, match="is no file"):
        Made(tmp_path).open()
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match=r"cannot open .*: Not a directory"):
        Made(tmp_path / "file" / "state.db").open()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_state_is_not_made_over_another(made: Made) -> None:
    before = rows(made.path)
    with pytest.raises(StateError, match=r"state\.db exists and is not overwritten: move it away first"):
        made.create()
    assert rows(made.path) == before
    assert [path.name for path in made.path.parent.iterdir()] == ["state.db"]


def test_a_state_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"cannot write .*: No such file or directory"):
        Made(tmp_path / "gone" / "state.db").create()
    (tmp_path / "state.db").symlink_to("nowhere")
    with pytest.raises(StateError, match="exists and is not overwritten"):
        Made(tmp_path / "state.db").create()
    assert [path.name for path in tmp_path.iterdir()] == ["state.db"]


@pytest.mark.parametrize("name", ["a?mode=memory.db", "a#b.db", "a%41.db", "a b.db", "ä.db"])
def test_a_path_is_taken_literally(tmp_path: Path, name: str) -> None:
    made = Made(tmp_path / name)
    with made.create() as state:
        join(state, "pi-07")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with made.open() as state:
        assert state.roster().members


def test_a_change_waits_for_another_process_but_not_for_ever(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_file, "LOCKED_S", 0.05)
    with made.open() as state, made.open() as other:
        number = invite(state, "pi-07")
        roster = state.roster()
        admit = admit_of(roster, number, key("pi-07"))
        with other.together():
            invite(other, "pi-08")
            with pytest.raises(NotAdmittedError) as caught:
                state.admit(admit)
            assert caught.value.refusal is Refusal.BUSY
            assert "another process has been writing to it" in str(caught.value.__cause__)
            with pytest.raises(StateError, match=r"cannot write .*: another process has been writing"):
                state.rotate()
            assert not state.count({})
            assert state.roster() == roster  # reading waits for nobody
        assert state.admit(admit).members == (admit.member,)


def test_a_library_without_strict_tables_is_named(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 36, 0))
    for attempt in (made.open, made.create):
        with pytest.raises(StateError, match=r"but 3\.37 is needed: use a later Python"):
            attempt()


def test_what_is_written_is_on_the_disk_before_it_is_told(made: Made) -> None:
    with made.open() as state:
        connection = state._tables.connection
        state.count({})
        full, on, wal = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("synchronous", "foreign_keys", "journal_mode")
        )
    assert (full, on, wal) == (2, 1, "wal")
