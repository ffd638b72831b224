"""`edge-fi gateway rotate`, `backup` and `restore`: what they write, and what they refuse."""

import io
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from parties import DIGITS, HOST, here, main_here
from stated import invite, join, rows

from edge_fi.adapters import keyfile
from edge_fi.adapters.state import State
from edge_fi.adapters.state_hold import Hold
from edge_fi.errors import AlreadyRunningError, ConfigError, StateError

KEPT = [
    "broker/ca.key",
    "broker/ca.pem",
    "gateway.key",
    "gateway.toml",
    "state.db",
    "tasks/digits.features",
    "tasks/digits.toml",
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A gateway's folder with a broker's files, two members and an open invite."""
    folder = tmp_path / "acme"
    here("gateway", "new", "--federation", "acme", "--task", DIGITS, "--host", HOST, "--out", folder)
    here("broker", "config", "mosquitto", "--config", folder / "gateway.toml")
    with opened(folder) as state:
        join(state, "pi-01")
        join(state, "laptop", "client")
        invite(state, "pi-09")
    return folder


def opened(home: Path) -> State:
    identity = keyfile.read_gateway(home / "gateway.key")
    return State.open(home / "state.db", identity.federation, identity.static.public)


def contents(folder: Path) -> dict[str, bytes]:
    """Of every file, but for what SQLite and the lock keep beside the state."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("state.db")
    }


def back_up(home: Path) -> Path:
    target = home.parent / "acme.tar"
    here("gateway", "backup", target, "--config", home / "gateway.toml")
    return target


# Rotate


def test_a_rotation_is_written_down_where_no_gateway_runs(home: Path) -> None:
    before = keyfile.read_gateway(home / "gateway.key")
    ended = main_here("gateway", "rotate", "--config", home / "gateway.toml")
    assert ended.out == "written down; no gateway runs, and each start is a new epoch\n"
    assert keyfile.read_gateway(home / "gateway.key") == before
    ended = main_here("gateway", "rotate", "--signing-key", "--config", home / "gateway.toml", "--json")
    assert ended.fields == {"rotations": 2, "signing_key": True, "gateway": "absent"}
    after = keyfile.read_gateway(home / "gateway.key")
    assert after.static == before.static and after.signing != before.signing
    assert stat.S_IMODE((home / "gateway.key").stat().st_mode) == 0o600


# Backup


def test_a_backup_holds_what_a_gateway_is_and_is_for_its_owner_alone(home: Path) -> None:
    target = home.parent / "acme.tar"
    ended = main_here("gateway", "backup", target, "--config", home / "gateway.toml", "--json")
    assert sorted(ended.fields.pop("holds")) == KEPT
    assert ended.fields["members"] == 2 and ended.fields["version"] == 2
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with tarfile.open(target) as archive:
        assert sorted(archive.getnames()) == KEPT
    assert [path.name for path in home.parent.iterdir() if path.name.startswith(".")] == []
    again = main_here("gateway", "backup", target, "--config", home / "gateway.toml")
    assert again.code == ConfigError.exit_code and "exists and is not overwritten" in again.err


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            'key = "gateway.key"',
            'key = "../gateway.key"',
            "key is ../gateway.key, and a backup takes",
        ),
        ('"tasks/digits.toml"', '"../digits.toml"', "a task is ../digits.toml, and a backup takes tasks/"),
        (
            '# broker_files = "broker"',
            'broker_files = "../mine"',
            "broker_files is ../mine, and a",
        ),
    ],
)
def test_what_a_backup_would_miss_is_named(home: Path, old: str, new: str, words: str) -> None:
    (home.parent / "gateway.key").write_bytes((home / "gateway.key").read_bytes())
    (home.parent / "gateway.key").chmod(0o600)
    (home.parent / "mine").mkdir()
    text = (home / "gateway.toml").read_text()
    assert old in text
    (home / "gateway.toml").write_text(text.replace(old, new))
    ended = main_here("gateway", "backup", home.parent / "acme.tar", "--config", home / "gateway.toml")
    assert ended.code == ConfigError.exit_code and words in ended.err
    assert not (home.parent / "acme.tar").exists()


def test_a_backup_that_cannot_be_written_is_named(home: Path) -> None:
    ended = main_here("gateway", "backup", home / "gone" / "x.tar", "--config", home / "gateway.toml")
    assert ended.code == ConfigError.exit_code
    assert f"cannot write {home / 'gone' / 'x.tar'}: No such file or directory" in ended.err


# Restore


def test_a_restored_gateway_is_the_one_of_before_but_for_open_invites(home: Path) -> None:
    target, again = back_up(home), home.parent / "again"
    ended = main_here("gateway", "restore", target, "--out", again)
    assert "open invites are void" in ended.out
    assert f"next: edge-fi broker config mosquitto --config {again / 'gateway.toml'}, or nats" in ended.out
    assert {name: content for name, content in contents(home).items() if name in KEPT} == contents(again)
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in again.rglob("*") if path.is_file()} == {0}
    with opened(home) as before, opened(again) as after:
        assert after.roster().members == before.roster().members
        assert [its.is_open for its in before.invitations()] == [False, False, True]
        assert [its.is_open for its in after.invitations()] == [False, False, False]
    main_here("broker", "config", "mosquitto", "--config", again / "gateway.toml")
    assert (again / "broker" / "ca.pem").read_bytes() == (home / "broker" / "ca.pem").read_bytes()


def test_a_later_state_is_never_replaced(home: Path) -> None:
    target = back_up(home)
    with opened(home) as state:
        state.revoke("pi-01")
    (home / "tasks" / "digits.toml").unlink()  # nor is anything else put back
    before, tables = contents(home), rows(home / "state.db")
    ended = main_here("gateway", "restore", target, "--out", home)
    assert ended.code == StateError.exit_code
    assert "knows more (roster version 3) than the backup (version 2), and a roster is never" in ended.err
    assert contents(home) == before and rows(home / "state.db") == tables


def test_nothing_is_restored_under_a_running_gateway(home: Path) -> None:
    target = back_up(home)
    with Hold.take(home / "state.db"):
        ended = main_here("gateway", "restore", target, "--out", home)
    assert ended.code == AlreadyRunningError.exit_code and "runs as the gateway of" in ended.err


def test_another_gateways_folder_is_left_alone(home: Path) -> None:
    target, other = back_up(home), home.parent / "other"
    here("gateway", "new", "--federation", "acme", "--task", DIGITS, "--out", other)
    before = contents(other)
    ended = main_here("gateway", "restore", target, "--out", other)
    assert ended.code == ConfigError.exit_code and "is the key of another gateway" in ended.err
    assert contents(other) == before


def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_left(home: Path) -> None:
    target, out = back_up(home), home.parent / "out"
    out.mkdir()
    (out / "tasks").write_text("in the way, as a full disk would be")
    ended = main_here("gateway", "restore", target, "--out", out)
    assert ended.code == ConfigError.exit_code and f"cannot write into {out}: " in ended.err
    assert set(contents(out)) == {"tasks"}


def archive(path: Path, *entries: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as made:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    "name",
    ["../gateway.key", "/tmp/fi-test/gateway.key", "x/gateway.key", "tasks/../../x.toml", "tasks/x/y.toml",
     "a/tasks/x.toml", "broker/server.key", "gateway.key/x", "tasks/", "tasks/x", "state.db-wal", ""],
)  # fmt: skip
def test_a_name_that_no_backup_has_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    """Whoever made the archive must not choose what is written where."""
    made = archive(tmp_path / "x.tar", (name, b"planted"))
    ended = main_here("gateway", "restore", made, "--out", tmp_path / "out")
    assert ended.code == ConfigError.exit_code and "is no backup of a gateway: it holds" in ended.err
    assert not (tmp_path / "out").exists() and not Path("/tmp/fi-test").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as made:
        entry = tarfile.TarInfo("gateway.key")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(entry)
    ended = main_here("gateway", "restore", tmp_path / "x.tar", "--out", tmp_path / "out")
    assert ended.code == ConfigError.exit_code and "it holds 'gateway.key'" in ended.err


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(b"no archive" * 100), "it is no backup of a gateway, or damaged"),
        (lambda path: archive(path), "is no backup of a gateway: it has no state.db or no gateway.key"),
        (lambda path: archive(path, ("gateway.toml", b"")), "it has no state.db or no gateway.key"),
        (lambda path: None, "No such file or directory"),
    ],
)
def test_what_is_no_backup_is_named(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    make(tmp_path / "x.tar")
    ended = main_here("gateway", "restore", tmp_path / "x.tar", "--out", tmp_path / "out")
    assert ended.code == ConfigError.exit_code and words in ended.err and ended.err.count("\n") == 1
