"""Joining by real processes that are interrupted, that race, or that come again with new keys."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import PATIENCE_S, eventually
from parties import Parties, counted, model_options, verb
from raw_mqtt import RawMqtt, RefusedError

from broker.embedded import BROKERS
from edge_fi.adapters import keyfile
from edge_fi.errors import ConfigError
from edge_fi.wire.frames import Type


@pytest.fixture(params=BROKERS)
def parties(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Parties]:
    with Parties(tmp_path, request.param) as made:
        yield made


def roster(parties: Parties) -> dict[str, bytes]:
    """Members' public keys."""
    with parties.state() as state:
        return {member.id: member.public for member in state.roster().members}


def test_who_is_interrupted_at_either_side_joins_by_giving_the_same_command_again(parties: Parties) -> None:
    folder = parties.invite("pi-01", "pi-02")
    command = {
        name: ("device", "join", "--file", folder / f"{name}.invite", "--out", parties.folder / name)
        for name in ("pi-01", "pi-02")
    }

    def key(name: str) -> bytes:
        path = parties.folder / name / f"{name}.key"
        return keyfile.read_member(path, "device", is_joining=True).static.public

    # The device is killed between its JOIN and the gateway's ACCEPT, and the gateway admits it meanwhile.
    gateway = parties.start_gateway()
    gateway.process.send_signal(signal.SIGSTOP)
    observer = parties.connect("gateway")
    observer.subscribe("fi1/acme/join")
    joining = parties.start(*command["pi-01"])
    eventually(lambda: hears(observer, Type.JOIN))
    joining.end(signal.SIGKILL)
    before = key("pi-01")
    gateway.process.send_signal(signal.SIGCONT)
    eventually(lambda: gateway.saw("admitted", peer="pi-01"))
    assert (
        verb("device", "run", "--config", parties.folder / "pi-01" / "device.toml").code
        == ConfigError.exit_code
    )
    assert verb(*command["pi-01"]).code == 0
    assert roster(parties)["pi-01"] == key("pi-01") == before

    # The gateway is killed between writing the member down and its ACCEPT.
    gateway.end(signal.SIGKILL)
    dies = "import os, edge_fi.gateway as g; g.Gateway.admitted = lambda *_, **__: os._exit(9)"
    program = [sys.executable, "-c", f"{dies}; from edge_fi.cli.main import main; main()"]
    gateway = parties.start("gateway", "run", "--config", parties.config, program=program)
    joining = parties.start(*command["pi-02"])
    assert gateway.process.wait(PATIENCE_S) == 9
    before = key("pi-02")
    assert roster(parties)["pi-02"] == before, "which it was not told"
    if parties.kind == "nats":  # once by itself, once given anew
        joining.end(signal.SIGKILL)
        joining = parties.start(*command["pi-02"])
    parties.start_gateway()
    assert joining.process.wait(PATIENCE_S) == 0
    assert roster(parties)["pi-02"] == key("pi-02") == before
    assert len(roster(parties)) == 2


def hears(observer: RawMqtt, kind: Type) -> bool:
    """Whether such a frame has come."""
    observer.ping()
    return any(message.payload[:1] == bytes([kind]) for message in observer.messages)


def test_of_a_folder_of_invites_each_process_gets_another_one(parties: Parties) -> None:
    parties.start_gateway()
    folder = parties.folder / "invites"
    made = parties.ask_for("gateway", "invite", "pi", "--count", "4", "--file", folder)
    assert [one["id"] for one in made["invites"]] == ["pi-01", "pi-02", "pi-03", "pi-04"]
    parties.invite("laptop", role="client")  # in the same folder, and not for them
    machines = [parties.folder / f"machine-{number}" for number in range(4)]
    joining = [parties.start("device", "join", "--file", folder, "--out", machine) for machine in machines]
    assert [process.process.wait(PATIENCE_S) for process in joining] == [0] * 4
    names = sorted(path.stem for machine in machines for path in machine.glob("*.key"))
    assert names == ["pi-01", "pi-02", "pi-03", "pi-04"] == sorted(roster(parties))
    assert sorted(path.name for path in folder.iterdir()) == [
        "laptop.invite", "pi-01.claimed", "pi-02.claimed", "pi-03.claimed", "pi-04.claimed"
    ]  # fmt: skip

    # Who comes too late is told so; and a machine that has joined does not take another one's.
    late = verb("device", "join", "--file", folder, "--out", parties.folder / "late")
    assert late.code == ConfigError.exit_code
    assert f"no invite for a device is left in {folder}: have more made" in late.err
    again = verb("device", "join", "--file", folder, "--out", machines[0])
    assert "has joined already" in again.err


def test_a_device_with_a_new_memory_card_takes_the_place_of_its_old_key(parties: Parties) -> None:
    gateway = parties.start_gateway()
    paths = parties.join_here("pi-01", "pi-02")
    (laptop,) = parties.join_here("laptop", role="client")
    parties.thread(paths[0])
    lost = parties.thread(paths[1])
    asker = parties.asker(laptop)
    eventually(lambda: counted(asker.outcomes[-1:]) == [{"pi-01", "pi-02"}])

    folder = parties.invite("pi-02", options=("--replace",))
    card = parties.folder / "new-card"
    where = ("--file", folder / "pi-02.invite", "--out", card)
    assert verb("device", "join", *where, *model_options("pi-02")).code == 0
    eventually(lambda: not lost.link.is_up)
    authority, password = parties.broker_folder / "ca.pem", lost.identity.mqtt_password
    with pytest.raises(RefusedError):
        RawMqtt(parties.port, authority, "pi-02", password)
    assert counted(asker.go_on()[-10:]) == [{"pi-01"}]
    new = parties.thread(card / "device.toml")
    eventually(lambda: counted(asker.outcomes[-1:]) == [{"pi-01", "pi-02"}])
    assert new.identity.index > lost.identity.index and new.identity.static != lost.identity.static
    assert gateway.saw("admitted", peer="pi-02", role="device")
    shown = parties.ask_for("roster", "show", "pi-02")
    assert shown["member"]["index"] == new.identity.index
    assert [former["index"] for former in shown["former"]] == [lost.identity.index]
