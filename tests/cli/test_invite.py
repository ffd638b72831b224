"""`edge-fi gateway invite`: one line that holds all that a member needs, or files of such."""

import json
import stat
import time
from pathlib import Path

import pytest
from parties import DIGITS, HOST, here, main_here
from stated import join

from edge_fi.adapters import keyfile
from edge_fi.adapters.state import State
from edge_fi.adapters.tls import pin_of
from edge_fi.errors import ConfigError, StateError
from edge_fi.roster import Invitation
from edge_fi.wire import invites

USAGE = 2


@pytest.fixture
def gateway(tmp_path: Path) -> Path:
    """The configuration file of a new one."""
    here("gateway", "new", "--federation", "acme", "--task", DIGITS, "--out", tmp_path / "acme")
    return tmp_path / "acme" / "gateway.toml"


def invitations(gateway: Path) -> list[Invitation]:
    identity = keyfile.read_gateway(gateway.parent / "gateway.key")
    with State.open(gateway.parent / "state.db", "acme", identity.static.public) as state:
        return [issued.invitation for issued in state.invitations()]


def test_what_is_printed_can_be_piped_and_what_is_said_about_it_can_be_read(gateway: Path) -> None:
    ended = main_here("gateway", "invite", "pi-07", "--lifetime", "30m", "--config", gateway)
    assert ended.out.count("\n") == 1 and ended.out.startswith("FI1:")
    assert ended.err.startswith("device pi-07, good once until ") and "edge-fi device join" in ended.err
    invite = invites.decode(ended.out)
    (kept,) = invitations(gateway)
    assert (invite.id, invite.role, invite.federation) == ("pi-07", "device", "acme")
    assert (invite.number, invite.token) == (kept.number, kept.token)
    assert (invite.host, invite.port, invite.tls, invite.pin) == ("127.0.0.1", 1883, False, b"")
    assert invite.gateway == keyfile.read_gateway(gateway.parent / "gateway.key").static.public
    assert abs(invite.expires - time.time() - 1800) < 60


def test_over_tls_it_pins_the_brokers_authority(tmp_path: Path) -> None:
    options = ("--federation", "acme", "--task", DIGITS, "--host", HOST, "--out", tmp_path / "acme")
    here("gateway", "new", *options)
    gateway = tmp_path / "acme" / "gateway.toml"
    ended = main_here("gateway", "invite", "pi-07", "--config", gateway)
    assert ended.code == ConfigError.exit_code and "'edge-fi broker config'" in ended.err
    assert invitations(gateway) == [], "an invite without a pin is none"
    here("broker", "config", "nats", "--config", gateway)
    invite = invites.decode(main_here("gateway", "invite", "pi-07", "--config", gateway).out)
    assert invite.tls and invite.pin == pin_of(tmp_path / "acme" / "broker" / "ca.pem")


def test_files_are_for_their_owner_alone_and_named_after_whom_they_are_for(gateway: Path) -> None:
    folder = gateway.parent / "invites"
    ended = main_here("gateway", "invite", "pi-01", "pi-02", "--config", gateway, "--file", folder)
    assert sorted(path.name for path in folder.iterdir()) == ["pi-01.invite", "pi-02.invite"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert invites.decode((folder / "pi-02.invite").read_text()).id == "pi-02"
    assert "FI1:" not in ended.out + ended.err
    here("gateway", "invite", "laptop", "--role", "client", "--config", gateway, "--file", folder / "a.txt")
    assert invites.decode((folder / "a.txt").read_text()).role == "client"


def test_a_batch_is_numbered(gateway: Path) -> None:
    folder = gateway.parent / "invites"
    ended = main_here(
        "gateway", "invite", "pi", "--count", "3", "--config", gateway, "--file", folder, "--json"
    )
    assert [one["id"] for one in ended.fields["invites"]] == ["pi-01", "pi-02", "pi-03"]
    assert not any("invite" in one for one in ended.fields["invites"]), "it is in the files"
    assert len({its.token for its in invitations(gateway)}) == 3
    here("gateway", "invite", "dev", "--count", "100", "--config", gateway, "--file", folder)
    assert (folder / "dev-001.invite").exists() and (folder / "dev-100.invite").exists()


def test_for_programs_it_is_an_object(gateway: Path) -> None:
    ended = main_here("gateway", "invite", "laptop", "--role", "client", "--config", gateway, "--json")
    (one,) = json.loads(ended.out)["invites"]
    assert (one["id"], one["role"], one["number"]) == ("laptop", "client", 1)
    assert invites.decode(one["invite"]).id == "laptop" and one["expires"].endswith("Z")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["pi-01", "pi-01"], USAGE, "an ID is given twice"),
        (["pi-01", "pi-02", "--count", "3", "--file", "x"], USAGE, "--count numbers one ID"),
        (["pi", "--count", "3"], USAGE, "needs the folder --file"),
        (["pi-01", "--lifetime", "1s"], USAGE, "is no time from 1m to 365d, as 30m, 24h or 7d"),
        (["pi-01", "--lifetime", "366d"], USAGE, "is no time from 1m to 365d"),
        (["pi-01", "--lifetime", "0m"], USAGE, "is no time from 1m to 365d"),
        (["pi-01", "--role", "boss"], USAGE, "'boss' is not one of 'device', 'client', 'helper'"),
        (["pi-01", "--task", "letters"], ConfigError.exit_code, "no task 'letters' in gateway.toml: digits"),
        (["Pi"], StateError.exit_code, "id 'Pi' must be 1 to 24 of the characters"),
        (["gateway"], StateError.exit_code, "be none of client, gateway, helper, join"),
        (
            ["pi-01", "--file", "gateway.key/x"],
            ConfigError.exit_code,
            "cannot write an invite to gateway.key/x",
        ),
    ],
)
def test_what_cannot_be_is_named(
    gateway: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(gateway.parent)
    ended = main_here("gateway", "invite", *options)
    assert ended.code == code and words in ended.err and "Traceback" not in ended.err
    assert "FI1:" not in ended.out


def test_of_several_that_cannot_all_be_none_is_made(gateway: Path) -> None:
    ended = main_here("gateway", "invite", "pi-01", "Not OK", "--config", gateway)
    assert ended.code == StateError.exit_code and invitations(gateway) == []


def test_a_broker_that_no_invite_can_name_is_said(gateway: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_FI_BROKER__HOST", "fe80::1%eth0")
    ended = main_here("gateway", "invite", "pi-01", "--config", gateway)
    assert ended.code == ConfigError.exit_code
    assert "the invite would not hold what is in [broker]: host must be a DNS name or an IP" in ended.err
    assert invitations(gateway) == []


def test_a_member_can_be_replaced_when_that_is_said(gateway: Path) -> None:
    identity = keyfile.read_gateway(gateway.parent / "gateway.key")
    with State.open(gateway.parent / "state.db", "acme", identity.static.public) as state:
        join(state, "pi-01")
    ended = main_here("gateway", "invite", "pi-01", "--config", gateway)
    assert ended.code == StateError.exit_code and "pi-01 is a member: choose another id, or" in ended.err
    assert main_here("gateway", "invite", "pi-01", "--replace", "--config", gateway).code == 0
    assert [its.replaces for its in invitations(gateway)] == [False, True]
