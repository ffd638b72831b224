"""`edge-fi broker`: files that follow the roster, a certificate anew, and a check that finds every hole."""

import re
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
from certified import Authority
from live import eventually
from parties import DIGITS, HOST, Done, Parties, here, main_here
from raw_mqtt import RawMqtt, RefusedError
from stated import invite, join

from broker import production
from broker.embedded import BROKERS
from edge_fi import config
from edge_fi.cli import brokercheck, brokerfiles
from edge_fi.crypto.seal import join_password
from edge_fi.errors import ConfigError, TransportError

FAILED = 10
SETTLE_S = 0.2  # loopback needs less than the second that a check leaves to any network


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Parties]]:
    """Brokers that all of these tests share, with members of each role, a former one, and an invite."""
    with ExitStack() as stack:

        @cache
        def run(kind: str) -> Parties:
            made = stack.enter_context(Parties(tmp_path_factory.mktemp(kind), kind))
            with made.state() as state:
                for name, role in (("pi-01", "device"), ("pi-02", "device"), ("pi-03", "device"),
                                   ("laptop", "client"), ("bank", "helper")):  # fmt: skip
                    join(state, name, role)
                invite(state, "pi-09")
                state.revoke("pi-03")
            return made

        yield run


@pytest.fixture(params=BROKERS)
def parties(
    running: Callable[[str], Parties], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Parties:
    """Such a broker, on the files that it should have."""
    monkeypatch.setattr(brokercheck, "SETTLE_S", SETTLE_S)
    made = running(request.param)
    made.configure_broker()
    eventually(lambda: takes(made, "pi-02"))
    return made


def takes(parties: Parties, name: str, password: str | None = None) -> bool:
    """Whether the broker lets it in, by default with the password that follows from the roster."""
    try:
        if password is None:
            parties.connect(name).close()
        else:
            RawMqtt(parties.port, parties.broker_folder / "ca.pem", name, password).close()
    except (RefusedError, OSError):
        return False
    return True


def check(parties: Parties, *options: str) -> Done:
    return main_here("broker", "check", "--config", parties.config, *options)


# What a check finds


def test_of_a_broker_on_its_files_nothing_is_wrong(parties: Parties) -> None:
    ended = check(parties, "--json")
    report = ended.fields
    assert (ended.code, report["good"], report["skipped"]) == (0, True, [])
    assert report["forbidden"]["refused"] == report["forbidden"]["tried"] > 200
    assert report["allowed"]["possible"] == report["allowed"]["tried"] > 40
    tried = {its["party"] for its in report["tried"]}
    assert tried >= {
        "gateway", "device pi-01", "device pi-02", "client laptop", "helper bank", "holder of an invite",
        "anonymous stranger", "stranger with a name", "stranger as gateway", "former member pi-03",
    }  # fmt: skip


RIGHTS_TOO_MANY = {
    ("pi-01", "read", "fi1/acme/d/pi-02"): "device pi-01",
    ("pi-02", "write", "fi1/acme/a/pi-01"): "device pi-02",
    ("laptop", "read", "fi1/acme/a/+"): "client laptop",
    ("bank", "write", "fi1/acme/q/1"): "helper bank",
    ("join_1", "read", "#"): "holder of an invite",
}


def bore(parties: Parties, user: str, action: str, topic: str) -> None:
    """One line too many, for one user."""
    if parties.kind == "mosquitto":
        path, line = parties.broker_folder / "acl", f"user {user}\n"
        more = f"{line}topic {action} {topic}\n"
    else:
        path = parties.broker_folder / "nats.conf"
        verb = {"read": "subscribe", "write": "publish"}[action]
        found = re.search(rf'user: "{user}".*?{verb}: {{ allow: \[', path.read_text(), re.DOTALL)
        assert found is not None
        line, subject = found[0], topic.replace("/", ".").replace("#", ">").replace("+", "*")
        more = f'{line}"{subject}", '
    text = path.read_text()
    assert text.count(line) == 1
    path.write_text(text.replace(line, more))


def restart_broker(parties: Parties) -> None:
    parties.stop_broker()
    parties.start_broker()


def test_each_right_that_is_too_many_or_lacks_is_found_and_named(parties: Parties) -> None:
    for right in RIGHTS_TOO_MANY:
        bore(parties, *right)
    path = parties.broker_folder / ("acl" if parties.kind == "mosquitto" else "nats.conf")
    lacks = {"mosquitto": "topic read fi1/acme/cd/laptop\n", "nats": '"fi1.acme.cd.laptop", '}
    path.write_text(path.read_text().replace(lacks[parties.kind], ""))
    restart_broker(parties)
    ended = check(parties)
    assert ended.code == FAILED and "NOT as it should be" in ended.out
    for (_, action, topic), party in RIGHTS_TOO_MANY.items():
        assert f"  WRONG: {party} could {action} {topic}\n" in ended.out
    assert "  WRONG: client laptop could not read fi1/acme/cd/laptop\n" in ended.out
    assert "write its configuration again with 'edge-fi broker config'" in ended.out


def test_a_broker_that_takes_anybody_is_found(parties: Parties) -> None:
    if parties.kind == "mosquitto":
        file = parties.broker_folder / "mosquitto.conf"
        before = file.read_text()
        after = before.replace("allow_anonymous false", "allow_anonymous true")
    else:
        file = parties.broker_folder / "nats.conf"
        before = file.read_text()
        after = before[: before.index("authorization {")]
    assert after != before
    file.write_text(after)
    restart_broker(parties)
    ended = check(parties, "--json")
    assert ended.code == FAILED and not ended.fields["good"]
    wrong = [its for its in ended.fields["tried"] if its["allowed"] != its["could"]]
    assert {"party": "anonymous stranger", "action": "connect", "target": "", "allowed": False,
            "could": True} in wrong  # fmt: skip


def test_a_former_member_that_is_still_let_in_is_found(parties: Parties) -> None:
    """The broker runs on files of before."""
    with parties.state() as state:
        join(state, "pi-gone")
    parties.configure_broker()
    names = {"mosquitto": ("acl", "passwords"), "nats": ("nats.conf",)}[parties.kind]
    before = {name: (parties.broker_folder / name).read_bytes() for name in names}
    parties.ask_for("roster", "revoke", "pi-gone", "--yes")
    for name, content in before.items():
        (parties.broker_folder / name).write_bytes(content)
    restart_broker(parties)
    ended = check(parties)
    assert ended.code == FAILED and "WRONG: former member pi-gone could connect\n" in ended.out


def test_a_broker_that_is_not_there_is_named(parties: Parties) -> None:
    parties.stop_broker()
    try:
        ended = check(parties)
        assert ended.code == TransportError.exit_code
        words = f"broker {HOST}:{parties.port} does not let the gateway in: Connection refused; is it running"
        assert words in ended.err and ended.err.count("\n") == 1
    finally:
        parties.start_broker()


# What follows the roster


def test_accounts_come_and_go_with_invites_and_members(parties: Parties) -> None:
    name = f"pi-new-{parties.kind}"
    made = parties.ask_for("gateway", "invite", name)
    number = made["invites"][0]["number"]
    with parties.state() as state:
        token = next(its.invitation.token for its in state.invitations() if its.invitation.number == number)
    eventually(lambda: takes(parties, f"join_{number}", join_password(token)))
    parties.ask_for("roster", "withdraw", name)
    eventually(lambda: not takes(parties, f"join_{number}", join_password(token)))
    with parties.state() as state:
        join(state, name)
    parties.configure_broker()
    eventually(lambda: takes(parties, name))
    with parties.state() as state:
        password = parties.identity.member_password(state.find(name).member)
    parties.ask_for("roster", "revoke", name, "--yes")
    eventually(lambda: not takes(parties, name, password))


def test_what_was_written_and_not_read_is_read_the_next_time(parties: Parties) -> None:
    """A gateway that is killed between the two, or may not signal the broker."""
    settings = config.load(parties.config, config.GatewayConfig)

    def follow() -> bool:
        with parties.state() as state:
            return brokerfiles.follow(parties.config, settings, parties.identity, state.roster)

    assert follow()
    name = f"pi-unread-{parties.kind}"
    with parties.state() as state:
        join(state, name)

    def refuses(folder: Path, kind: str) -> bool:
        raise TransportError("the broker belongs to another account")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(production, "reload", refuses)
        with pytest.raises(TransportError):
            follow()
    assert not takes(parties, name)
    assert follow(), "nothing has changed since, and it is told all the same"
    eventually(lambda: takes(parties, name))
    reloads = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(production, "reload", lambda *its: reloads.append(its))
        assert follow()
    assert reloads == []


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"kind": 1}', "{"])
def test_a_note_that_is_not_ours_is_named(tmp_path: Path, note: str) -> None:
    (tmp_path / "edge-fi.json").write_text(note)
    with pytest.raises(ConfigError, match="make it again with 'edge-fi broker config'"):
        brokerfiles.read_note(tmp_path)


@pytest.fixture
def gateway(tmp_path: Path) -> Path:
    here(
        "gateway", "new", "--federation", "acme", "--task", DIGITS, "--host", HOST, "--out", tmp_path / "acme"
    )
    return tmp_path / "acme" / "gateway.toml"


def test_everything_that_it_writes_is_for_its_owner_alone(gateway: Path) -> None:
    here("broker", "config", "mosquitto", "--config", gateway)
    folder = gateway.parent / "broker"
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir() if path.is_file()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    again = main_here("broker", "config", "mosquitto", "--config", gateway)
    assert again.code == 0 and "start it: " in again.out, "it can be given again"


def test_a_broker_without_tls_is_not_configured(tmp_path: Path) -> None:
    here("gateway", "new", "--federation", "acme", "--task", DIGITS, "--out", tmp_path / "acme")
    ended = main_here("broker", "config", "nats", "--config", tmp_path / "acme" / "gateway.toml")
    assert ended.code == ConfigError.exit_code
    assert 'set tls = true in [broker], and ca = "broker/ca.pem"' in ended.err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--listen", "a b"], 3, "address 'a b' must be an IP address"),
        (["--host", "not/a/name"], 4, "'not/a/name' is no name of a broker"),
        (["--certificate", "gateway.toml"], 2, "--certificate and --key go together"),
        (
            ["--certificate", "gateway.toml", "--key", "gateway.key"],
            3,
            "are not a certificate and its private",
        ),
    ],
)
def test_a_wrong_option_is_named(
    gateway: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(gateway.parent)
    ended = main_here("broker", "config", "mosquitto", *options)
    assert ended.code == code and words in ended.err and "Traceback" not in ended.err


def test_without_files_of_ours_there_is_nothing_to_renew(gateway: Path) -> None:
    ended = main_here("broker", "renew", "--config", gateway)
    assert ended.code == ConfigError.exit_code and "there are no broker files of ours in" in ended.err


def test_a_certificate_of_ones_own_is_used_and_not_renewed(gateway: Path, tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue(HOST)
    own = ("--certificate", issued.certificate, "--key", issued.key)
    here("broker", "config", "mosquitto", "--config", gateway, *own)
    assert str(issued.certificate) in (gateway.parent / "broker" / "mosquitto.conf").read_text()
    assert not list((gateway.parent / "broker").glob("*.pem"))
    ended = main_here("broker", "renew", "--config", gateway)
    assert ended.code == ConfigError.exit_code and "is your own: renew it where it came from" in ended.err


def test_a_package_that_lacks_is_named(gateway: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here("broker", "config", "nats", "--config", gateway)
    find = brokerfiles.importlib.util.find_spec  # type: ignore[attr-defined]
    lacks = lambda name, *more: None if name == "bcrypt" else find(name, *more)  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", lacks)
    for command in (("broker", "config", "nats"), ("gateway", "invite", "pi-01")):
        ended = main_here(*command, "--config", gateway)
        assert ended.code == ConfigError.exit_code
        assert "need the package bcrypt: pip install 'edge-fi[gateway]'" in ended.err
