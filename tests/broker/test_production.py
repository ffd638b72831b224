"""A broker's files on disk: whole at every moment, private, and changed only where users changed."""

import os
import re
import resource
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from broker import access, certificates, kinds, production
from broker.embedded import BROKERS
from edge_fi.errors import ConfigError, TransportError

PASSWORD = "correct-horse-battery-staple"
USERS = [
    access.gateway("acme", PASSWORD),
    access.device("acme", "pi-01", PASSWORD, [1]),
    access.device("acme", "pi-02", PASSWORD, [2]),
    access.joiner("acme", 7, PASSWORD),
]
FILES = {"mosquitto": ["passwords", "acl", "mosquitto.conf"], "nats": ["nats.conf"]}
PID_FILES = {"mosquitto": "mosquitto.pid", "nats": "nats.pid"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    certificates.make(tmp_path / "broker", "acme", ["127.0.0.1"])
    return tmp_path / "broker"


def texts(folder: Path, kind: str) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in FILES[kind]}


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


# What is written


@pytest.mark.parametrize("kind", BROKERS)
def test_files_are_for_their_owner_alone(folder: Path, kind: str) -> None:
    assert names(production.write(folder, kind, USERS)) == FILES[kind]
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", BROKERS)
def test_no_password_is_in_a_file(folder: Path, kind: str) -> None:
    production.write(folder, kind, USERS)
    assert not any(PASSWORD in text for text in texts(folder, kind).values())


@pytest.mark.parametrize("kind", BROKERS)
def test_the_same_users_change_nothing(folder: Path, kind: str) -> None:
    production.write(folder, kind, USERS)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert production.write(folder, kind, USERS) == []
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("kind", BROKERS)
def test_one_user_more_or_less_changes_no_line_of_another(folder: Path, kind: str) -> None:
    production.write(folder, kind, USERS)
    before = texts(folder, kind)
    one_more = [*USERS, access.client("acme", "laptop", PASSWORD)]
    assert names(production.write(folder, kind, one_more)) == [
        n for n in FILES[kind] if n != "mosquitto.conf"
    ]
    added = [
        line
        for name, text in texts(folder, kind).items()
        for line in text.splitlines()
        if line not in before[name].splitlines()
    ]
    assert added and all("laptop" in line or "password" in line for line in added)
    production.write(folder, kind, USERS)
    assert texts(folder, kind) == before


@pytest.mark.parametrize("kind", BROKERS)
def test_another_password_changes_the_files(folder: Path, kind: str) -> None:
    production.write(folder, kind, USERS)
    changed = production.write(folder, kind, [*USERS[:-1], access.joiner("acme", 7, PASSWORD + "!")])
    assert names(changed) == [FILES[kind][0]]


def test_a_line_of_the_password_file_is_that_of_mosquitto_passwd(folder: Path) -> None:
    production.write(folder, "mosquitto", USERS)
    line = r"[a-z0-9_-]+:\$7\$\d+\$[A-Za-z0-9+/]{16}\$[A-Za-z0-9+/]{86}=="
    assert all(re.fullmatch(line, found) for found in texts(folder, "mosquitto")["passwords"].splitlines())


def test_the_acl_of_mosquitto_reads_like_this(folder: Path) -> None:
    production.write(folder, "mosquitto", USERS[1:2])
    assert texts(folder, "mosquitto")["acl"] == (
        "user pi-01\n"
        "topic write fi1/acme/a/pi-01\n"
        "topic write fi1/acme/s/pi-01\n"
        "topic read fi1/acme/s/pi-01\n"
        "topic read fi1/acme/d/pi-01\n"
        "topic read fi1/acme/q/1\n"
        "topic read fi1/acme/gateway/state\n"
    )


def test_a_user_of_nats_may_connect_by_mqtt_alone(folder: Path) -> None:
    production.write(folder, "nats", USERS)
    configuration = texts(folder, "nats")["nats.conf"]
    assert configuration.count('allowed_connection_types: ["MQTT"]') == len(USERS)
    assert 'publish: { allow: ["fi1.acme.a.pi-01", "fi1.acme.s.pi-01"] }' in configuration
    assert 'subscribe: { allow: ["fi1.acme.j.7"] }' in configuration


@pytest.mark.parametrize("kind", BROKERS)
def test_a_folder_named_from_here_is_written_as_seen_from_everywhere(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    production.write(Path("broker"), kind, USERS)
    assert str(folder / "server.pem") in texts(folder, kind)[FILES[kind][-1]]


# Certificates of one's own


@pytest.mark.parametrize("kind", BROKERS)
def test_ones_own_certificate_is_used_where_it_is(tmp_path: Path, kind: str) -> None:
    certificates.make(tmp_path / "own", "whatever", ["broker.example.org"])
    certificate, key = tmp_path / "own" / "server.pem", tmp_path / "own" / "server.key"
    production.write(tmp_path / "broker", kind, USERS, certificate=certificate, key=key)
    configuration = texts(tmp_path / "broker", kind)[FILES[kind][-1]]
    assert str(certificate) in configuration and str(key) in configuration
    assert not list((tmp_path / "broker").glob("*.pem"))


@pytest.mark.parametrize("kind", BROKERS)
def test_without_a_certificate_nothing_is_written(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the certificate .*server\.pem.*; make them, or"):
        production.write(tmp_path / "broker", kind, USERS)
    assert not (tmp_path / "broker").exists()


def test_a_certificate_with_the_key_of_another_is_refused(folder: Path, tmp_path: Path) -> None:
    certificates.make(tmp_path / "other", "acme", ["127.0.0.1"])
    with pytest.raises(ConfigError, match="are not a certificate and its private key"):
        production.write(folder, "mosquitto", USERS, key=tmp_path / "other" / "server.key")


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(folder: Path) -> None:
    key = serialization.load_pem_private_key((folder / "server.key").read_bytes(), password=None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (folder / "server.key").write_bytes(encrypted)
    with pytest.raises(ConfigError, match="in PEM without a password"):
        production.write(folder, "mosquitto", USERS)


# What is refused


def test_an_unknown_broker_is_refused(folder: Path) -> None:
    with pytest.raises(TransportError, match="no broker is called 'rabbit'"):
        production.write(folder, "rabbit", USERS)
    with pytest.raises(TransportError, match="no broker is called 'rabbit'"):
        production.reload(folder, "rabbit")


def test_two_users_of_one_name_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="user pi-01 is given 2 times"):
        production.write(folder, "nats", [*USERS, access.client("acme", "pi-01", PASSWORD)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": 0}, "port must be 1 to 65535"),
        ({"port": 65_536}, "port must be 1 to 65535"),
        ({"address": "::1\nallow_anonymous true"}, "must be an IP address or a name of this machine"),
        ({"address": "a b"}, "must be an IP address or a name of this machine"),
        ({"max_connections": 0}, "max_connections must be 1 or more"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(folder: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        production.write(folder, "mosquitto", USERS, **settings)  # type: ignore[arg-type]
    assert not (folder / "mosquitto.conf").exists()


def test_a_path_that_would_be_two_lines_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a\nallow_anonymous true"
    certificates.make(folder, "acme", ["127.0.0.1"])
    with pytest.raises(ValueError, match="must be an absolute path of printable characters"):
        production.write(folder, "mosquitto", USERS)


def test_a_folder_that_cannot_be_made_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    certificate, key, inside = folder / "server.pem", folder / "server.key", tmp_path / "file" / "broker"
    with pytest.raises(ConfigError, match=r"cannot make the folder .*/file/broker: .*; correct that"):
        production.write(inside, "nats", USERS, certificate=certificate, key=key)


def test_a_folder_that_others_may_write_to_is_refused(folder: Path) -> None:
    folder.chmod(0o770)
    with pytest.raises(ConfigError, match="has mode 0770, others may write to it: run chmod 700"):
        production.write(folder, "mosquitto", USERS)


# Whole at every moment


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """As on a disk that is nearly full: what is longer cannot be written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", BROKERS)
def test_a_full_disk_leaves_the_files_as_they_were(folder: Path, kind: str) -> None:
    production.write(folder, kind, USERS)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    many = [access.joiner("acme", number, PASSWORD) for number in range(100)]
    with (
        files_of_at_most(5_000),
        pytest.raises(ConfigError, match=r"cannot write .*: File too large; nothing"),
    ):
        production.write(folder, kind, many)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_reader_never_finds_half_a_file(folder: Path) -> None:
    many = [access.joiner("acme", number, PASSWORD) for number in range(200)]
    production.write(folder, "mosquitto", USERS)
    few_lines = (folder / "passwords").read_text()
    production.write(folder, "mosquitto", many)
    many_lines = (folder / "passwords").read_text()
    found: set[str] = set()
    is_done = threading.Event()

    def read() -> None:
        while not is_done.is_set():
            found.add((folder / "passwords").read_text())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(20):
            production.write(folder, "mosquitto", USERS)
            production.write(folder, "mosquitto", many)
    finally:
        is_done.set()
        reader.join()
    assert found == {few_lines, many_lines}


def test_a_file_whose_mode_somebody_loosened_is_made_private_again(folder: Path) -> None:
    production.write(folder, "mosquitto", USERS)
    (folder / "passwords").chmod(0o644)
    assert names(production.write(folder, "mosquitto", USERS)) == ["passwords"]
    assert stat.S_IMODE((folder / "passwords").stat().st_mode) == 0o600


def test_a_link_is_replaced_and_what_it_points_to_is_not_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("untouched")
    (folder / "acl").symlink_to(tmp_path / "elsewhere")
    production.write(folder, "mosquitto", USERS)
    assert (tmp_path / "elsewhere").read_text() == "untouched"
    assert not (folder / "acl").is_symlink()


# Whom a reload reaches


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(command)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


@pytest.mark.parametrize("kind", BROKERS)
@pytest.mark.parametrize("content", [None, "", "x", "0", "-1", "4194305", str(2**80)])
def test_without_a_process_nothing_is_reloaded(folder: Path, kind: str, content: str | None) -> None:
    if content is not None:
        (folder / PID_FILES[kind]).write_text(content)
    assert not production.reload(folder, kind)


@pytest.mark.parametrize("kind", BROKERS)
def test_another_program_that_got_the_number_is_left_alone(folder: Path, kind: str) -> None:
    with process("sleep", "60") as stranger:
        (folder / PID_FILES[kind]).write_text(f"{stranger.pid}\n")
        assert not production.reload(folder, kind)
        assert stranger.poll() is None


def test_a_broker_that_has_ended_and_waits_for_its_parent_is_none(folder: Path) -> None:
    program = shutil.copy(shutil.which("true") or "", folder / "mosquitto")
    with process(str(program)) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        (folder / "mosquitto.pid").write_text(str(ended.pid))
        begin = time.monotonic()
        assert not production.reload(folder, "mosquitto")
        assert time.monotonic() - begin < production.START_S


@pytest.mark.parametrize("kind", BROKERS)
def test_a_broker_that_would_not_survive_the_signal_yet_does_not_get_it(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(production, "START_S", 0.05)
    program = shutil.copy(shutil.which("sleep") or "", folder / kinds.find(kind).program)
    with process(str(program), "60") as starting:
        # Of an earlier process with the same number, that was killed.
        (folder / f"nats-server_{starting.pid}.ports").touch()
        os.utime(folder / f"nats-server_{starting.pid}.ports", (1, 1))
        (folder / PID_FILES[kind]).write_text(str(starting.pid))
        assert not production.reload(folder, kind)
        assert starting.poll() is None


def test_a_broker_of_another_account_is_said_to_be_that(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may act as another account")
    with process("sleep", "60") as broker:
        (folder / "mosquitto.pid").write_text(str(broker.pid))
        folder.chmod(0o700)
        os.seteuid(65_534)
        try:
            with pytest.raises(TransportError, match="belongs to another account: reload it as that account"):
                production.reload(folder, "mosquitto")
        finally:
            os.seteuid(0)


def test_a_broker_that_is_not_installed_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(kinds, "MORE_DIRECTORIES", ())
    with pytest.raises(TransportError, match="the broker mosquitto was not found: install mosquitto"):
        production.command(folder, "mosquitto")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_root_gives_away_nothing_that_a_link_points_to(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir(mode=0o700)
    os.chown(folder, 54_321, 54_321)
    (folder / "store").symlink_to(tmp_path / "private")
    production.write(folder, "mosquitto", USERS)
    assert (tmp_path / "private").stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_files_belong_to_whom_their_folder_belongs_to_even_if_it_has_no_name(folder: Path) -> None:
    production.write(folder, "mosquitto", USERS)
    os.chown(folder, 54_321, 54_321)
    assert names(production.write(folder, "mosquitto", USERS)) == FILES["mosquitto"]
    assert {(folder / name).stat().st_uid for name in (*FILES["mosquitto"], "store")} == {54_321}
    assert "\nuser 54321\n" in texts(folder, "mosquitto")["mosquitto.conf"]


@pytest.mark.parametrize("kind", BROKERS)
def test_a_broker_is_started_by_this_command(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = folder.parent / "bin"
    programs.mkdir()
    program = programs / {"mosquitto": "mosquitto", "nats": "nats-server"}[kind]
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(programs))
    assert production.command(folder, kind) == [str(program), "-c", str(folder / FILES[kind][-1])]
