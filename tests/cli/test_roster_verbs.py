"""`edge-fi roster`: members as they are, changes that are told truly, and no invite's token anywhere."""

import base64
import csv
import functools
import io
import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from stated import HOUR, invite, join, key

from edge_fi.adapters import keyfile
from edge_fi.adapters.state import State, Tally
from edge_fi.adapters.state_hold import Hold, wait_applied
from edge_fi.cli import roster as roster_verbs
from edge_fi.cli.main import main

Run = Callable[..., tuple[int, str, str]]

DIGITS = Path(__file__).parents[2] / "configs" / "tasks" / "digits.toml"
ZONE = "CET-1"  # one hour before UTC, so that local times are told from others
JOINED = int(time.time()) // 60 * 60 - 2 * HOUR
YEAR = 365 * 86_400


def local(at: int) -> str:
    """As a person in that zone reads it."""
    return datetime.fromtimestamp(at, timezone(timedelta(hours=1))).strftime("%Y-%m-%d %H:%M")


def utc(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", ZONE)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: exit code, stdout, stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["edge-fi", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def opened(folder: Path, wall: Callable[[], float] = lambda: JOINED) -> State:
    """The gateway's state, as another process has it."""
    identity = keyfile.read_gateway(folder / "gateway.key")
    return State.open(folder / "state.db", identity.federation, identity.static.public, wall=wall)


@pytest.fixture
def folder(run: Run, tmp_path: Path) -> Path:
    """A gateway with two devices, one of them twice, a client, a former member, and an open invite."""
    folder = tmp_path / "acme"
    assert run("gateway", "new", "--federation", "acme", "--task", DIGITS, "--out", folder)[0] == 0
    with opened(folder, lambda: JOINED) as state:
        state.trust_clock()  # the state was made later than what is to be written into it
    with opened(folder) as state:
        join(state, "pi-07", public=key("lost card"))
        join(state, "pi-07", replaces=True)
        join(state, "pi-08")
        join(state, "laptop", "client")
        join(state, "gone")
        state.revoke("gone")
        state.label("pi-07", "attic")
        state.count({2: Tally(asked=12, counted=8, declined=1, missing=1, last_heard=JOINED + HOUR)})
        invite(state, "pi-09", task=1, lifetime_s=YEAR)
    return folder


@pytest.fixture
def verb(run: Run, folder: Path) -> Run:
    """A verb of `edge-fi roster` on that gateway."""

    def verb(name: str, *arguments: str | Path) -> tuple[int, str, str]:
        return run("roster", name, "--config", folder / "gateway.toml", *arguments)

    return verb


def test_the_members_are_listed_in_columns(verb: Run) -> None:
    code, out, _ = verb("list")
    assert code == 0
    assert out.splitlines() == [
        "id      role    index  task  label  joined            last heard        answered",
        f"pi-07   device  2      any   attic  {local(JOINED)}  {local(JOINED + HOUR)}  90% of 10",
        f"pi-08   device  3      any   -      {local(JOINED)}  never             -",
        f"laptop  client  4      -     -      {local(JOINED)}  never             -",
    ]


def test_former_members_and_open_invites_are_listed_when_asked_for(verb: Run) -> None:
    code, out, _ = verb("list", "--revoked", "--invites")
    assert code == 0
    _, former, invites = out.split("\n\n")
    assert former.splitlines() == [
        "former  role    index  label  joined            revoked",
        f"pi-07   device  1      -      {local(JOINED)}  {local(JOINED)}",
        f"gone    device  5      -      {local(JOINED)}  {local(JOINED)}",
    ]
    assert invites.splitlines() == [
        "invite  for    role    task    made              expires",
        f"6       pi-09  device  digits  {local(JOINED)}  {local(JOINED + YEAR)}",
    ]


def test_a_program_is_given_utc_and_names(verb: Run) -> None:
    code, out, _ = verb("list", "--revoked", "--invites", "--json")
    listed = json.loads(out)
    assert code == 0 and (listed["federation"], listed["version"]) == ("acme", 6)
    assert [its["id"] for its in listed["members"]] == ["pi-07", "pi-08", "laptop"]
    assert listed["members"][0] == {
        "id": "pi-07", "role": "device", "index": 2, "task": None, "label": "attic",
        "public": base64.b64encode(key("pi-07")).decode(),
        "joined": utc(JOINED), "revoked": None, "last_heard": utc(JOINED + HOUR),
        "asked": 12, "counted": 8, "declined": 1, "missing": 1, "late": 0, "expelled": "",
    }  # fmt: skip
    assert [(its["id"], its["revoked"]) for its in listed["former"]] == [
        ("pi-07", utc(JOINED)),
        ("gone", utc(JOINED)),
    ]
    assert listed["invites"] == [
        {
            "number": 6, "id": "pi-09", "role": "device", "task": "digits", "replaces": False,
            "made": utc(JOINED), "expires": utc(JOINED + YEAR),
        }
    ]  # fmt: skip


def test_an_empty_roster_says_how_to_fill_it(run: Run, tmp_path: Path) -> None:
    run("gateway", "new", "--federation", "home", "--task", DIGITS, "--out", tmp_path / "home")
    _, out, _ = run(
        "roster", "list", "--revoked", "--invites", "--config", tmp_path / "home" / "gateway.toml"
    )
    assert out == "no members: 'edge-fi gateway invite' makes some\n\nno former members\n\nno open invites\n"


def test_one_id_is_shown_with_who_had_it_before(verb: Run) -> None:
    code, out, _ = verb("show", "pi-07")
    now, before = out.split("\n\n")
    assert code == 0
    assert now.splitlines() == [
        "device pi-07, index 2: attic",
        "  task        any",
        f"  joined      {local(JOINED)}",
        f"  last heard  {local(JOINED + HOUR)}",
        "  answered    90% of 10",
        "  asked       12: 8 counted, 1 declined, 1 missing, 0 late",
        f"  public key  {base64.b64encode(key('pi-07')).decode()}",
    ]
    assert "device pi-07, index 1" in before and f"  revoked     {local(JOINED)}" in before
    shown = json.loads(verb("show", "pi-07", "--json")[1])
    assert (shown["member"]["index"], [its["index"] for its in shown["former"]], shown["invites"]) == (
        2,
        [1],
        [],
    )


def test_who_is_only_invited_is_shown_too(verb: Run) -> None:
    assert "6       pi-09  device  digits" in verb("show", "pi-09")[1]
    shown = json.loads(verb("show", "pi-09", "--json")[1])
    assert shown["member"] is None and [its["number"] for its in shown["invites"]] == [6]


@pytest.mark.parametrize("name", ["show", "revoke", "label"])
def test_an_unknown_id_is_answered_with_one_that_is_alike(verb: Run, name: str) -> None:
    code, out, err = verb(name, "pi-7", *(["x"] if name == "label" else []))
    assert (code, out, err) == (11, "", "edge-fi: no member 'pi-7': did you mean pi-07?\n")


def test_a_member_is_revoked_for_ever(verb: Run, folder: Path) -> None:
    code, out, _ = verb("revoke", "pi-07", "--yes")
    assert code == 0
    assert out.splitlines() == [
        "device pi-07 (index 2) is revoked: roster version 7",
        "no gateway runs: it takes effect when it starts",
    ]
    with opened(folder) as state:
        assert state.roster().revoked == {1, 2, 5}
    code, _, err = verb("revoke", "pi-07", "--yes")
    assert code == 11 and "pi-07 is no member any more: it was revoked at" in err


def test_a_program_is_told_what_became_of_a_revocation(verb: Run) -> None:
    code, out, _ = verb("revoke", "laptop", "--json")
    assert code == 0 and json.loads(out) == {
        "id": "laptop", "role": "client", "index": 4, "version": 7, "gateway": "absent", "broker_files": False
    }  # fmt: skip


@pytest.mark.parametrize(
    ("member", "words"),
    [("pi-07", "has dropped it, and gave the others new query keys"), ("laptop", "has dropped it")],
)
def test_a_revocation_waits_for_the_running_gateway(verb: Run, folder: Path, member: str, words: str) -> None:
    with Hold.take(folder / "state.db") as hold:

        def gateway() -> None:
            with opened(folder) as state:
                before = state.roster()
                hold.applied(before.version, before.rotations)
                while not state.has_changed(before):
                    time.sleep(0.005)
                hold.applied(state.roster().version, 0)

        running = threading.Thread(target=gateway)
        running.start()
        code, out, _ = verb("revoke", member, "--yes")
        running.join()
    assert code == 0 and out.splitlines()[1] == f"the running gateway {words}"


def test_a_gateway_that_does_not_take_up_a_revocation_is_an_error(
    verb: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster_verbs, "wait_applied", functools.partial(wait_applied, timeout_s=0.05))
    with Hold.take(folder / "state.db"):
        code, _, err = verb("revoke", "pi-07", "--yes")
    assert code == 11
    assert (
        "device pi-07 (index 2) is revoked, but the running gateway has not taken that up within 5 s" in err
    )


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 130), ("", 130)])
def test_on_a_terminal_a_revocation_is_asked_about(folder: Path, answer: str, code: int) -> None:
    configuration = str(folder / "gateway.toml")
    command = [sys.executable, "-m", "edge_fi", "roster", "revoke", "pi-07", "--config", configuration]
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        os.write(ours, f"{answer}\n".encode())
        out, err = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == code
    assert f"device pi-07 (index 2), attic, a member since {local(JOINED)}, is to be revoked." in err
    with opened(folder) as state:
        assert (2 in state.roster().revoked) == (code == 0)
    assert ("is revoked" in out) == (code == 0)


def test_the_brokers_files_follow(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    folder = tmp_path / "acme"
    at = ("--config", folder / "gateway.toml")
    run("gateway", "new", "--federation", "acme", "--task", DIGITS, "--host", "127.0.0.1", "--out", folder)
    with opened(folder, time.time) as state:
        join(state, "pi-07")
        invite(state, "pi-08")
        assert [its.number for its in state.roster().invitations] == [1, 2]
    assert run("broker", "config", "mosquitto", *at)[0] == 0

    def users() -> str:
        return "".join(path.read_text() for path in (folder / "broker").iterdir() if path.is_file())

    assert "a/pi-07" in users() and "join_2" in users()
    code, out, _ = run("roster", "revoke", "pi-07", "--yes", *at)
    assert code == 0 and "its account is gone from the broker's files" in out
    assert "a/pi-07" not in users() and "join_2" in users()
    run("roster", "withdraw", "pi-08", *at)
    assert "join_2" not in users()


def test_a_label_is_set_and_taken_away(verb: Run, folder: Path) -> None:
    assert verb("label", "pi-08", "cellar")[1] == "pi-08 is called cellar\n"
    assert json.loads(verb("label", "pi-08", "", "--json")[1]) == {"id": "pi-08", "label": ""}
    with opened(folder) as state:
        assert state.find("pi-08").label == ""
    code, _, err = verb("label", "pi-08", "x" * 65)
    assert code == 11 and "a label must be 64 printable characters" in err


def test_invites_are_withdrawn_by_id_or_number(verb: Run, folder: Path) -> None:
    assert verb("withdraw", "pi-09")[1] == "invite 6 for device pi-09 is withdrawn\n"
    with opened(folder, time.time) as state:
        invite(state, "pi-10")
    assert json.loads(verb("withdraw", "--number", "7", "--json")[1]) == {
        "withdrawn": [{"number": 7, "id": "pi-10"}]
    }
    code, _, err = verb("withdraw", "--number", "7")
    assert code == 11 and "no invite number 7 is open: 'edge-fi roster list --invites'" in err
    assert verb("withdraw")[0] == verb("withdraw", "pi-09", "--number", "7")[0] == 2


def test_what_is_exported_is_all_that_is_public(verb: Run, tmp_path: Path) -> None:
    exported = json.loads(verb("export")[1])
    assert [its["index"] for its in exported["members"]] == [1, 2, 3, 4, 5] and exported["version"] == 6
    assert exported == json.loads(verb("export", "--json")[1])
    code, out, _ = verb("export", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and [row["id"] for row in rows] == ["pi-07", "pi-07", "pi-08", "laptop", "gone"]
    assert rows[1]["label"] == "attic" and rows[1]["public"] == base64.b64encode(key("pi-07")).decode()
    assert verb("export", "--format", "csv", "--json")[0] == 2


def test_an_export_goes_to_a_file_whole(verb: Run, tmp_path: Path) -> None:
    out = tmp_path / "members.csv"
    out.write_text("of yesterday")
    code, told, _ = verb("export", "--format", "csv", "--out", out)
    assert code == 0 and told == f"{out}  5 members, present and former\n"
    assert out.read_text().startswith("id,role,index,task,label,public,joined,revoked,last_heard,asked")
    code, _, err = verb("export", "--out", tmp_path / "gone" / "members.json")
    assert code == 1 and "members.json" in err and "No such file" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["acme", "members.csv"]


def test_no_token_is_ever_shown(verb: Run, folder: Path) -> None:
    secret = b"0123456789abcdef"
    with opened(folder) as state:
        state.invite("pi-20", "device", token=secret, lifetime_s=YEAR)
    shown = ""
    for arguments in (
        ("list", "--invites", "--revoked"),
        ("list", "--invites", "--json"),
        ("show", "pi-20"),
        ("show", "pi-20", "--json"),
        ("export",),
        ("export", "--format", "csv"),
        ("withdraw", "pi-20", "--json"),
    ):
        code, out, err = verb(*arguments)
        assert code == 0
        shown += out + err
    assert "pi-20" in shown
    for form in (secret.decode(), secret.hex(), base64.b64encode(secret).decode().rstrip("=")):
        assert form not in shown


def test_a_clock_that_was_in_the_future_is_told_of_and_trusted_again(verb: Run, folder: Path) -> None:
    with opened(folder, lambda: time.time() + 10 * YEAR) as state:
        invite(state, "pi-11")
    code, out, err = verb("list", "--invites")
    assert code == 0 and "no open invites" in out
    assert err.startswith("edge-fi: every invite counts as expired: the clock says")
    assert "run 'edge-fi roster trust-clock'" in err
    assert json.loads(verb("trust-clock", "--json")[1])["withdrawn"][-1] == {"number": 7, "id": "pi-11"}
    assert verb("list")[2] == ""


@pytest.mark.parametrize("name", ["list", "show", "revoke", "label", "withdraw", "export", "trust-clock"])
def test_every_verb_helps_with_an_example_and_takes_json(run: Run, name: str) -> None:
    code, out, _ = run("roster", name, "--help")
    assert code == 0 and f"\n    edge-fi roster {name} " in out
    assert "--json" in out and "[default: gateway.toml]" in " ".join(out.split())


def test_a_state_that_others_may_read_is_refused(verb: Run, folder: Path) -> None:
    (folder / "state.db").chmod(0o644)
    code, _, err = verb("list")
    assert code == 4 and "chmod 600" in err and err.count("\n") == 1


def test_a_gateway_that_is_not_there_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("roster", "list")
    assert code == 3 and "gateway.toml" in err
