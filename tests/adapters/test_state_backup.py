"""Backup and restore: whole, private, with open invites void, and never a step back for a roster."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from stated import DAY, FEDERATION, GATEWAY, HOUR, NOW, Made, admit_of, invite, join, key, rows

from edge_fi.adapters.state import State, Tally
from edge_fi.adapters.state_backup import restore
from edge_fi.adapters.state_hold import Hold
from edge_fi.effects import Adopt
from edge_fi.errors import AlreadyRunningError, KeyFileError, StateError
from edge_fi.roster import NotAdmittedError
from edge_fi.wire.payloads import Refusal


@pytest.fixture
def made(tmp_path: Path) -> Made:
    made = Made(tmp_path / "state.db")
    with made.create() as state:
        join(state, "pi-01")
        join(state, "pi-02")
        state.revoke("pi-02")
        state.label("pi-01", "attic")
        state.count({1: Tally(asked=3, counted=3)})
        invite(state, "pi-03", lifetime_s=300 * DAY)
    return made


@pytest.fixture
def backup(made: Made, tmp_path: Path) -> Path:
    with made.open() as state:
        state.backup(tmp_path / "backup.db")
    return tmp_path / "backup.db"


def put_back(made: Made, backup: Path) -> None:
    restore(backup, made.path, FEDERATION, GATEWAY, wall=made.wall)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_backup_is_one_private_file_with_everything(made: Made, tmp_path: Path) -> None:
    before = os.umask(0)
    with made.open() as state:
        state.backup(tmp_path / "backup.db")
        assert rows(tmp_path / "backup.db") == rows(made.path)
    os.umask(before)
    assert stat.S_IMODE((tmp_path / "backup.db").stat().st_mode) == 0o600
    assert files(tmp_path) == {"state.db", "backup.db"}


def test_a_backup_has_what_the_running_gateway_has_just_written(made: Made, tmp_path: Path) -> None:
    with made.open() as running, made.open() as other:
        join(running, "pi-09")
        other.backup(tmp_path / "backup.db")
        assert rows(tmp_path / "backup.db") == rows(made.path)


def test_a_backup_overwrites_nothing(made: Made, backup: Path) -> None:
    before = backup.read_bytes()
    with made.open() as state, pytest.raises(StateError, match=r"backup\.db exists and is not overwritten"):
        state.backup(backup)
    assert backup.read_bytes() == before


def test_a_backup_that_cannot_be_written_leaves_nothing(made: Made, tmp_path: Path) -> None:
    with made.open() as state, pytest.raises(StateError, match=r"cannot write .*: No such file"):
        state.backup(tmp_path / "gone" / "backup.db")
    assert files(tmp_path) == {"state.db"}


def test_what_is_restored_has_the_members_of_the_backup_and_no_open_invite(made: Made, backup: Path) -> None:
    with made.open() as state:
        before = state.roster()
    made.path.unlink()
    made.wall.at += HOUR
    put_back(made, backup)
    with made.open() as state:
        roster = state.roster()
        assert (roster.members, roster.version, roster.revoked) == (
            before.members,
            before.version,
            before.revoked,
        )
        assert roster.highest == 2 and state.standing() == {1: Tally(asked=3, counted=3)}
        assert [its.is_withdrawn for its in roster.invitations] == [False, False, True]
        with pytest.raises(NotAdmittedError) as caught:
            state.admit(admit_of(roster, 3, key("pi-03")))
        assert caught.value.refusal is Refusal.WITHDRAWN
        assert state.admit(admit_of(roster, 1, key("pi-01"))) == roster  # burnt: good for the same key alone
        assert invite(state, "pi-04") == 4
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert files(made.path.parent) == {"state.db", "state.db.lock", "backup.db"}


def test_the_backup_itself_is_not_changed_by_restoring_it(made: Made, backup: Path) -> None:
    before = backup.read_bytes()
    made.path.unlink()
    put_back(made, backup)
    assert backup.read_bytes() == before


@pytest.mark.parametrize(
    "since",
    [
        lambda state: None,
        lambda state: join(state, "pi-09"),
        lambda state: state.revoke("pi-01"),
        lambda state: state.adopt(Adopt(version=0, highest=9, revoked=frozenset())),
    ],
    ids=["nothing", "a member", "a revocation", "an index"],
)
def test_a_roster_is_never_rolled_back(made: Made, backup: Path, since: Callable[[State], object]) -> None:
    with made.open() as state:
        since(state)
    before = rows(made.path)
    with pytest.raises(StateError, match=r"knows more .*, and a roster is never rolled back: leave it"):
        put_back(made, backup)
    assert rows(made.path) == before


def test_a_state_that_lags_behind_its_backup_is_brought_forward(
    made: Made, backup: Path, tmp_path: Path
) -> None:
    """As where a disk image was put back, and the backup is younger than that."""
    older = Made(tmp_path / "older.db")
    with older.create() as state:
        join(state, "pi-01")
    with older.open() as reading:
        before = reading.roster()
        put_back(older, backup)
        assert reading.has_changed(before)
        assert [member.id for member in reading.roster().members] == ["pi-01"]
        assert reading.roster().revoked == {2}
    with older.open() as state:
        assert join(state, "pi-05").highest == 3
    assert files(tmp_path) == {"state.db", "older.db", "older.db.lock", "backup.db"}


@pytest.mark.parametrize(
    "more",
    [
        lambda state: state.revoke("pi-01"),
        lambda state: state.adopt(Adopt(version=0, highest=9, revoked=frozenset())),
    ],
    ids=["a revocation", "an index"],
)
def test_a_state_of_a_lower_version_that_still_knows_more_is_kept(
    made: Made, backup: Path, tmp_path: Path, more: Callable[[State], object]
) -> None:
    other = Made(tmp_path / "other.db")
    with other.create() as state:
        join(state, "pi-01")
        more(state)
    with made.open() as state:
        assert state.roster().version > 2
    with pytest.raises(StateError, match="never rolled back"):
        put_back(other, backup)


def test_nothing_is_restored_under_a_running_gateway(made: Made, backup: Path) -> None:
    with Hold.take(made.path), pytest.raises(AlreadyRunningError, match="stop it first"):
        put_back(made, backup)


def test_a_backup_of_another_gateway_or_readable_by_others_is_refused(made: Made, backup: Path) -> None:
    made.path.unlink()
    with pytest.raises(StateError, match="belongs to another key of gateway acme"):
        restore(backup, made.path, FEDERATION, bytes(32))
    backup.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        put_back(made, backup)
    with pytest.raises(StateError, match="no gateway state"):
        put_back(made, backup.with_name("gone.db"))
    assert not made.path.exists()


def test_a_state_that_was_restored_is_as_durable_as_before(made: Made, backup: Path, tmp_path: Path) -> None:
    older = Made(tmp_path / "older.db")
    older.create().close()
    put_back(older, backup)
    made.path.unlink()
    put_back(made, backup)
    for restored in (older, made):
        with restored.open() as state:
            connection = state._tables.connection
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_restored_state_knows_the_time_of_its_backup(made: Made, backup: Path) -> None:
    made.path.unlink()
    made.wall.at = 10 * DAY
    put_back(made, backup)
    with made.open() as state:
        assert "1970-01-1" in (state.clock_problem() or "")
        made.wall.at = NOW
        assert state.clock_problem() is None


def test_a_backup_is_opened_as_a_state_too(made: Made, backup: Path) -> None:
    with State.open(backup, FEDERATION, GATEWAY) as state:
        assert len(state.roster().members) == 1
