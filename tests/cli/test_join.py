"""`edge-fi device join` and its kin: what it makes, what it refuses and how, and that it can be repeated."""

import fcntl
import json
import os
import pty
import sqlite3
import stat
import subprocess
import termios
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from certified import Authority, Mosquitto
from live import EDGE_FI, PATIENCE_S, free_port
from parties import HOST, OPEN, Done, Parties, main_here, model_options

from broker.embedded import BROKERS
from edge_fi.adapters import keyfile
from edge_fi.errors import ConfigError, JoinError, KeyFileError, ModelError, TransportError
from edge_fi.wire import invites

USAGE = 2


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Parties]]:
    """Brokers and gateways that all of these tests share: each test has members of its own."""
    with ExitStack() as stack:

        @cache
        def run(kind: str) -> Parties:
            made = stack.enter_context(Parties(tmp_path_factory.mktemp(kind), kind))
            made.start_gateway()
            return made

        yield run


@pytest.fixture
def alone(running: Callable[[str], Parties]) -> Parties:
    """For what a broker has no part in."""
    return running(OPEN)


@pytest.fixture(params=BROKERS)
def behind_accounts(running: Callable[[str], Parties], request: pytest.FixtureRequest) -> Parties:
    """A broker with an account for each invite and each member."""
    return running(request.param)


@pytest.fixture(params=[OPEN, *BROKERS])
def parties(running: Callable[[str], Parties], request: pytest.FixtureRequest) -> Parties:
    """Both."""
    return running(request.param)


def read(parties: Parties, name: str, role: str = "device", *options: str) -> str:
    """A new invite, as its holder has it."""
    return (parties.invite(name, role=role, options=options) / f"{name}.invite").read_text()


def join(text: str, out: Path, *options: str | Path, role: str = "device", timeout_s: float = 20) -> Done:
    """Join with the invite on stdin."""
    return main_here(role, "join", "--out", out, "--timeout", str(timeout_s), *options, stdin=text)


def refused(ended: Done, code: int, *words: str) -> bool:
    """Whether it ended with this code and one sentence that says this."""
    assert ended.code == code and all(word in ended.err for word in words), ended
    return ended.err.startswith("edge-fi: ") and ended.err.count("\n") == 1 and not ended.out


def members(parties: Parties) -> dict[str, int]:
    """Their indices."""
    with parties.state() as state:
        return {member.id: member.index for member in state.roster().members}


# What it makes


def test_a_device_that_joined_has_key_configuration_and_task(parties: Parties, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    ended = join(read(parties, "pi-first"), out, *model_options("pi-02"), "--json")
    assert ended.code == 0, ended.err
    index = members(parties)["pi-first"]
    path = out / "device.toml"
    its = {"federation": "acme", "role": "device", "id": "pi-first", "index": index}
    assert json.loads(ended.out) == its | {"tasks": ["digits"], "config": str(path)}
    private = {"pi-first.key"}
    open_ = {"device.toml", "tasks"} | ({"ca.pem"} if parties.kind != OPEN else set())
    assert {file.name for file in out.iterdir()} == private | open_
    assert stat.S_IMODE((out / "pi-first.key").stat().st_mode) == 0o600
    assert tomllib.loads(path.read_text())["broker"]["port"] == parties.port
    counted_by_itself = parties.thread(path)
    assert counted_by_itself.identity.index == index


def test_a_client_and_a_helper_join_in_the_same_way(parties: Parties, tmp_path: Path) -> None:
    for role, name in (("client", "desk"), ("helper", "bank")):
        assert join(read(parties, name, role), tmp_path / name, role=role).code == 0
        assert keyfile.read_member(tmp_path / name / f"{name}.key", role).index == members(parties)[name]
    listed = parties.ask_for("roster", "list")["members"]
    assert {"desk": "client", "bank": "helper"}.items() <= {its["id"]: its["role"] for its in listed}.items()
    image = tmp_path / "image.json"
    image.write_text(json.dumps([[0] * 8] * 8))
    asked = main_here("ask", "--config", tmp_path / "desk" / "client.toml", "--input", image, "--json")
    assert json.loads(asked.out)["status"] in ("answered", "no_members")


def test_an_invite_is_read_from_a_terminal_and_not_shown_there(alone: Parties, tmp_path: Path) -> None:
    text = read(alone, "pi-tty").strip()
    master, slave = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    command = [*EDGE_FI, "device", "join", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=take_terminal
    )
    os.close(slave)
    seen = b""
    try:
        while b"Invite" not in seen:
            seen += os.read(master, 1000)
        os.write(master, text.encode() + b"\n")
        while piece := os.read(master, 1000):
            seen += piece
    except OSError:  # the terminal's end, on Linux
        pass
    os.close(master)
    assert process.wait(PATIENCE_S) == 0
    assert b"pi-tty is a device of federation acme" in seen and text.encode() not in seen


def test_an_invite_may_be_pasted_in_pieces_and_in_lower_case(alone: Parties, tmp_path: Path) -> None:
    text = read(alone, "pi-pasted").strip().lower()
    assert join(f"  {text[:40]}\n{text[40:90]} \r\n\n {text[90:]}", tmp_path).code == 0


# What it refuses without asking anybody


def test_an_invite_in_the_arguments_is_refused_and_not_repeated(alone: Parties, tmp_path: Path) -> None:
    text = read(alone, "pi-argued").strip()
    for arguments in ([text], ["--file", str(tmp_path / "x"), text], [text[:50], text[50:]]):
        ended = main_here("device", "join", "--out", tmp_path, *arguments)
        assert ended.code == USAGE
        assert "an invite is not given as an argument" in ended.err
        assert text[:50] not in ended.err + ended.out and text[50:] not in ended.err + ended.out
    assert list(tmp_path.iterdir()) == []
    assert join(text, tmp_path).code == 0, "it is as good as before"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "", "this is no invite: an invite is one line that begins with FI1:"),
        (lambda text: "hello", "this is no invite"),
        (lambda text: text[:-9], "this invite is cut short or mistyped: copy the whole line once more"),
        (lambda text: text[:30] + ("A" if text[30] != "A" else "B") + text[31:], "cut short or mistyped"),
        (lambda text: text + text, "cut short or mistyped"),
    ],
)
def test_a_mistyped_invite_is_named_without_its_text(
    alone: Parties, tmp_path: Path, change: Callable[[str], str], words: str
) -> None:
    text = read(alone, "pi-typed").strip()
    ended = join(change(text), tmp_path)
    assert refused(ended, ConfigError.exit_code, words)
    assert text[4:20] not in ended.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_invite_is_named(tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(b"\x89PNG\xff")
    for name, words in (("picture", "picture is no invite"), ("gone", "No such file or directory")):
        ended = main_here("device", "join", "--file", tmp_path / name, "--out", tmp_path / "out")
        assert refused(ended, ConfigError.exit_code, words)


def test_an_invite_for_another_role_names_the_command_for_it(alone: Parties, tmp_path: Path) -> None:
    ended = join(read(alone, "pi-role"), tmp_path, role="client")
    words = "this invite is for a device, not a client: run 'edge-fi device join' with it"
    assert refused(ended, ConfigError.exit_code, words)


def test_a_folder_of_another_gateways_member_is_left_alone(alone: Parties, tmp_path: Path) -> None:
    keyfile.make_member(
        tmp_path / "pi-other.key", "globex", "device", "pi-other", gateway=bytes(32), entropy=os.urandom
    )
    before = (tmp_path / "pi-other.key").read_bytes()
    ended = join(read(alone, "pi-other"), tmp_path)
    words = ("is a key of pi-other in federation globex, and this invite is for pi-other in acme", "--out")
    assert refused(ended, KeyFileError.exit_code, *words)
    assert (tmp_path / "pi-other.key").read_bytes() == before


def test_a_folder_of_another_member_is_left_alone(alone: Parties, tmp_path: Path) -> None:
    assert join(read(alone, "pi-one"), tmp_path).code == 0
    ended = join(read(alone, "pi-two"), tmp_path)
    assert refused(ended, ConfigError.exit_code, "device.toml is of another member, with the key pi-one.key")
    assert not (tmp_path / "pi-two.key").exists() and "pi-two" not in members(alone)


def test_the_authority_of_another_broker_is_left_alone(behind_accounts: Parties, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(Authority(tmp_path, "another").path.read_bytes())
    ended = join(read(behind_accounts, "pi-ca"), tmp_path)
    assert refused(ended, ConfigError.exit_code, "ca.pem is of another broker: choose another folder")


def test_a_folder_that_cannot_be_written_is_named(alone: Parties, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = join(read(alone, "pi-nowhere"), tmp_path / "file" / "sub")
    assert refused(ended, KeyFileError.exit_code, "cannot write", "pi-nowhere.key: ")


# What gateway and broker refuse


def test_an_invite_works_once(parties: Parties, tmp_path: Path) -> None:
    text = read(parties, "pi-once")
    assert join(text, tmp_path / "first").code == 0
    ended = join(text, tmp_path / "second")
    assert refused(ended, JoinError.exit_code, "this invite was used already: ask the gateway's owner")
    assert (
        keyfile.read_member(tmp_path / "first" / "pi-once.key", "device").index == members(parties)["pi-once"]
    )


def expire(parties: Parties, text: str) -> str:
    """The invite, whose time is over as its gateway sees it; and as it says itself."""
    invite, then = invites.decode(text), int(time.time()) - 60
    with sqlite3.connect(parties.home / "state.db") as connection:
        connection.execute("UPDATE invitations SET expires = ? WHERE number = ?", [then, invite.number])
    connection.close()
    return invites.encode(replace(invite, expires=then))


def test_an_invite_that_has_expired_is_refused(parties: Parties, tmp_path: Path) -> None:
    ended = join(expire(parties, read(parties, "pi-late")), tmp_path)
    assert refused(
        ended, JoinError.exit_code, "this invite has expired: ask the gateway's owner for a new one"
    )
    assert "pi-late" not in members(parties)


def test_an_invite_that_was_withdrawn_is_refused(parties: Parties, tmp_path: Path) -> None:
    text = read(parties, "pi-drawn")
    parties.ask_for("roster", "withdraw", "pi-drawn")
    ended = join(text, tmp_path)
    words = (
        "this invite was withdrawn: "
        if parties.kind == OPEN
        else "does not know this invite: it was withdrawn"
    )
    assert refused(ended, JoinError.exit_code, words, "ask the gateway's owner")


def test_a_name_belongs_to_who_came_first(parties: Parties, tmp_path: Path) -> None:
    texts = [read(parties, "pi-name"), read(parties, "pi-name", "client")]
    assert join(texts[0], tmp_path / "first").code == 0
    ended = join(texts[1], tmp_path / "second", role="client")
    assert refused(ended, JoinError.exit_code, "there is a member of this name", "made with --replace")


def test_a_gateway_that_does_not_answer_is_named(alone: Parties, tmp_path: Path) -> None:
    stranger = replace(invites.decode(read(alone, "pi-mute")), federation="globex")
    ended = join(invites.encode(stranger), tmp_path, timeout_s=1)
    words = f"no gateway of federation globex answered this invite at {HOST}:{alone.port}: is it running"
    assert refused(ended, JoinError.exit_code, words)


def test_a_broker_that_is_not_there_is_named(parties: Parties, tmp_path: Path) -> None:
    moved = replace(invites.decode(read(parties, "pi-moved")), port=free_port())
    ended = join(invites.encode(moved), tmp_path, timeout_s=1)
    words = f"broker {HOST}:{moved.port} cannot be reached: Connection refused"
    assert refused(ended, TransportError.exit_code, words)


def test_a_broker_of_another_authority_is_told_nothing(behind_accounts: Parties, tmp_path: Path) -> None:
    invite = invites.decode(read(behind_accounts, "pi-fooled"))
    authority = Authority(tmp_path)
    with Mosquitto(tmp_path, authority.issue(HOST)) as impostor:
        ended = join(invites.encode(replace(invite, port=impostor.port)), tmp_path / "out")
        words = f"the broker at {HOST}:{impostor.port} is not the one this invite was made for"
        assert refused(ended, TransportError.exit_code, words)
    assert join(invites.encode(invite), tmp_path / "out").code == 0, "it is as good as before"


# What is found when it has joined


def test_a_model_that_does_not_fit_is_named_and_the_device_has_joined(alone: Parties, tmp_path: Path) -> None:
    ended = join(read(alone, "pi-odd"), tmp_path, *model_options("pi-01")[:2])
    assert ended.code == ModelError.exit_code and "pi-odd is a device of federation acme" in ended.out
    path = tmp_path / "device.toml"
    assert "gives 7 scores a query, but stands for 10 labels" in ended.err
    assert f"the device has joined: correct [model] in {path}, and run 'edge-fi device run" in ended.err
    assert "pi-odd" in members(alone)


def test_a_task_that_is_none_is_named_and_the_invite_stays_good(alone: Parties, tmp_path: Path) -> None:
    text = read(alone, "pi-task")
    ended = join(text, tmp_path, "--task", "letters")
    words = (
        "federation acme has no task 'letters' for pi-task, but digits: give the command with one of these"
    )
    assert refused(ended, ConfigError.exit_code, words)
    assert join(text, tmp_path, "--task", "digits").code == 0


def test_who_has_joined_is_told_to_go_on(alone: Parties, tmp_path: Path) -> None:
    text = read(alone, "pi-again")
    assert join(text, tmp_path).code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ended = join(text, tmp_path)
    words = (f"pi-again has joined already, and {tmp_path / 'device.toml'} is ready", "move that key away")
    assert refused(ended, KeyFileError.exit_code, *words)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_disk_that_is_full_after_joining_is_named_and_the_same_command_goes_on(
    alone: Parties, tmp_path: Path
) -> None:
    text = read(alone, "pi-full")
    (tmp_path / "tasks").write_text("in the way, as a full disk would be")
    assert refused(join(text, tmp_path), ConfigError.exit_code, "cannot write", "tasks")
    index = members(alone)["pi-full"]
    (tmp_path / "tasks").unlink()
    assert join(text, tmp_path).code == 0
    assert keyfile.read_member(tmp_path / "pi-full.key", "device").index == index == members(alone)["pi-full"]
