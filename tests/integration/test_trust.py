"""Trust, with real processes and real brokers: keys through the years, and who learns what."""

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import tomllib
from base64 import b64decode
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from live import descendants, eventually
from parties import DeviceHere, Done, Parties, counted, done, heldout_tensor, here, model_options, verb
from raw_mqtt import RawMqtt, RefusedError
from secrecy import found_in, secrets_of
from stated import rows

from broker.embedded import BROKERS
from edge_fi.crypto.aead import open_sealed
from edge_fi.crypto.seal import JoinKeys, join_password, join_prologue
from edge_fi.effects import Infer
from edge_fi.errors import AlreadyRunningError, ConfigError, EdgeFiError, JoinError, SealError, StateError
from edge_fi.messages import Form, Outcome, Status
from edge_fi.pump import monotonic_us
from edge_fi.wire import frames, payloads
from edge_fi.wire.frames import Type

ALL = {"pi-01", "pi-02", "pi-03"}


@pytest.fixture(params=BROKERS)
def parties(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Parties]:
    with Parties(tmp_path, request.param) as made:
        yield made


def test_keys_and_certificates_change_and_a_member_is_revoked_while_rounds_run(parties: Parties) -> None:
    """One story rather than four, since each start of a process costs a second."""
    gateway = parties.start_gateway()
    paths = parties.join(*sorted(ALL))
    (laptop,) = parties.join("laptop", role="client")
    parties.start_devices(*paths[:2])
    former = parties.thread(paths[2])
    asker = parties.asker(laptop)
    eventually(lambda: counted(asker.outcomes[-1:]) == [ALL])
    began = len(asker.outcomes)

    # New epochs, and then a new signing key: every round is answered by all, before, meanwhile and after.
    for options in ([], ["--signing-key"]):
        assert parties.ask_for("gateway", "rotate", *options)["gateway"] == "applied"
        asker.go_on()

    # A new certificate: who connects from now on sees it, and nobody is cut.
    before = parties.certificate()
    assert parties.ask_for("broker", "renew")["reloaded"]
    eventually(lambda: parties.certificate() != before)
    asker.go_on()
    assert counted(asker.outcomes[began:]) == [ALL]
    assert gateway.count("connected") == 1 and not gateway.saw("disconnected")

    # A member is revoked: its connection is cut, it does not come back, and the next rounds count the others.
    observer = parties.connect("pi-01")
    for topic in ("q/1", "d/pi-01"):
        observer.subscribe(f"fi1/acme/{topic}")
    revoked = parties.ask_for("roster", "revoke", "pi-03", "--yes")
    assert (revoked["gateway"], revoked["broker_files"]) == ("applied", True)
    eventually(lambda: not former.link.is_up, within_s=5)
    assert counted(asker.go_on()[-15:]) == [ALL - {"pi-03"}]
    eventually(lambda: any("refuses" in getattr(notice, "reason", "") for notice in former.notices))
    former.stop()
    assert former.link.is_up is False
    assert gateway.saw("revoked", members=["pi-03"])
    check_former_member_learns_nothing(former, observer)

    # And the broker lets nobody do what it must not, while rounds go on.
    began = len(asker.outcomes)
    report = parties.ask_for("broker", "check")
    assert report["good"] and report["forbidden"]["refused"] == report["forbidden"]["tried"] > 100
    assert [its["could"] for its in report["tried"] if its["party"] == "former member pi-03"] == [False]
    assert counted(asker.stop()[began:]) == [ALL - {"pi-03"}]
    assert {outcome.status for outcome in asker.outcomes} == {Status.ANSWERED}


def check_former_member_learns_nothing(former: DeviceHere, observer: RawMqtt) -> None:
    """With all that it held, and a broker that shows it everything."""
    observer.ping()
    heard = [message for message in observer.messages if message.payload]
    begin = next(at for at, message in enumerate(heard) if message.payload[0] == Type.REKEY)
    epochs = [its.keys for its in (former.machine._epoch, former.machine._former) if its is not None]
    session = former.machine._session
    assert len(epochs) == 2 and session is not None

    def opens(payload: bytes) -> bool:
        """Whether any of its keys opens it, whatever a frame says of itself."""
        kind = frames.parse_type(payload)
        if kind is Type.QUERY:
            query = frames.parse_query(payload)
            sealed, header, number = query.sealed, query.header, query.seq
        else:
            frame = frames.parse_session_frame(payload)
            sealed, header, number = frame.sealed, frame.header, frame.number
        keys = [key for epoch in epochs for key in (epoch.seal_key, epoch.digest_key)]
        keys += [session.keys.answer, session.keys.up, session.keys.ask, session.keys.down]
        for key in keys:
            with suppress(SealError):
                open_sealed(sealed, key=key, nonce=number, header=header)
                return True
        return False

    sealed = (Type.QUERY, Type.REKEY)
    before = [message.payload for message in heard[:begin] if message.payload[0] in sealed]
    after = [message.payload for message in heard[begin:] if message.payload[0] in sealed]
    assert all(opens(payload) for payload in before), "it had the keys of its time"
    assert len(after) > 10 and not any(opens(payload) for payload in after)
    for message in heard[begin:]:
        topic = message.topic.replace("d/pi-01", "d/pi-03")
        effects = former.machine.receive(topic, message.payload, now=monotonic_us())
        assert not [effect for effect in effects if isinstance(effect, Infer)]


def test_a_backup_brings_back_no_former_member_and_no_open_invite(parties: Parties) -> None:
    gateway = parties.start_gateway()
    paths = parties.join_here(*sorted(ALL))
    (laptop,) = parties.join_here("laptop", role="client")
    devices = {path.parent.name: parties.thread(path) for path in paths}
    asker = parties.asker(laptop)
    parties.invite("pi-09")
    backup, again = parties.folder / "acme.tar", parties.folder / "again"
    assert parties.ask_for("gateway", "backup", backup)["members"] == 4
    assert backup.stat().st_mode & 0o777 == 0o600

    # Since then, one was revoked, and one has joined.
    parties.ask_for("roster", "revoke", "pi-02", "--yes")
    devices["pi-04"] = parties.thread(parties.join_here("pi-04")[0])
    eventually(lambda: counted(asker.outcomes[-1:]) == [{"pi-01", "pi-03", "pi-04"}])
    gateway.end(signal.SIGKILL)

    # Where a later state is, nothing is restored.
    before = rows(parties.home / "state.db")
    refused = verb("gateway", "restore", backup, "--out", parties.home)
    assert refused.code == StateError.exit_code
    assert "knows more (roster version 6) than the backup (version 4)" in refused.err
    assert rows(parties.home / "state.db") == before

    # A new folder, and the broker of before: it has kept the gateway's word for itself.
    done("gateway", "restore", backup, "--out", again)
    assert {path.stat().st_mode & 0o077 for path in again.rglob("*") if path.is_file()} == {0}
    parties.home, parties.config = again, again / "gateway.toml"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("EDGE_FI_BROKER_FILES", str(parties.broker_folder))
        gateway = parties.start_gateway()
        eventually(lambda: gateway.saw("roster_recovered"))
        eventually(lambda: counted(asker.outcomes[-1:]) == [{"pi-01", "pi-03"}])
        shown = parties.ask_for("roster", "show", "pi-02")
        assert shown["member"] is None and len(shown["former"]) == 1
        eventually(lambda: not devices["pi-02"].link.is_up and not devices["pi-04"].link.is_up)
        with pytest.raises(RefusedError):
            login(parties, devices["pi-02"])

        # What was open is void; who joined since needs a new invite, and gets an index that nobody had.
        with pytest.raises(JoinError, match="does not know this invite: it was withdrawn, as all open ones"):
            here("device", "join", "--file", parties.folder / "invites" / "pi-09.invite",
                 "--out", parties.folder / "pi-09")  # fmt: skip
        devices["pi-04"].stop()
        shutil.move(parties.folder / "pi-04", parties.folder / "pi-04-before")
        (path,) = parties.join_here("pi-04")
        rejoined = parties.thread(path)
        assert rejoined.identity.index == devices["pi-04"].identity.index + 1
        eventually(lambda: counted(asker.outcomes[-1:]) == [{"pi-01", "pi-03", "pi-04"}])


def login(parties: Parties, device: DeviceHere) -> None:
    """Raises RefusedError."""
    authority, identity = parties.broker_folder / "ca.pem", device.identity
    RawMqtt(parties.broker_port, authority, identity.id, identity.mqtt_password).close()


def test_of_two_gateways_with_one_identity_the_first_goes_on(parties: Parties) -> None:
    first = parties.start_gateway()
    paths = parties.join_here("pi-01", "pi-02")
    (laptop,) = parties.join_here("laptop", role="client")
    for path in paths:
        parties.thread(path)
    asker = parties.asker(laptop)
    eventually(lambda: counted(asker.outcomes[-1:]) == [{"pi-01", "pi-02"}])
    began, elsewhere = len(asker.outcomes), parties.folder / "elsewhere"

    # On this machine it finds the lock; on another one, the first answers its claim.
    second = verb("gateway", "run", "--config", parties.config)
    assert second.code == AlreadyRunningError.exit_code
    assert f"process {first.process.pid} runs as the gateway of {parties.home / 'state.db'}" in second.err
    shutil.copytree(parties.home, elsewhere)
    third = verb("gateway", "run", "--config", elsewhere / "gateway.toml")
    assert third.code == AlreadyRunningError.exit_code
    assert "another process runs as this gateway, perhaps on another machine: stop it first" in third.err
    assert "Traceback" not in second.err + third.err
    asker.go_on()
    assert counted(asker.outcomes[began:]) == [{"pi-01", "pi-02"}]
    observer = parties.connect("pi-01")
    observer.subscribe("fi1/acme/gateway/state")
    observer.ping()
    assert [message.payload[:6] for message in observer.messages] == [b"ready "]

    # Killed, it holds nothing; and of two that start at one time, one serves.
    first.end(signal.SIGKILL)
    both = [
        parties.start("gateway", "run", "--config", home / "gateway.toml")
        for home in (parties.home, elsewhere)
    ]
    eventually(lambda: any(one.process.poll() is not None for one in both))
    (loser,) = [one for one in both if one.process.poll() is not None]
    assert loser.end() == AlreadyRunningError.exit_code
    eventually(lambda: counted(asker.outcomes[-1:]) == [{"pi-01", "pi-02"}])
    assert [one.process.poll() for one in both if one is not loser] == [None]


def test_a_gateway_that_is_killed_at_any_moment_forgets_nobody_whom_it_told(parties: Parties) -> None:
    dice = random.Random(7)
    names = [f"pi-{number:02}" for number in range(1, 13)]
    invites = parties.invite(*names)
    told: list[str] = []

    def join_each(its: list[str]) -> None:
        """One after the other, and again and again with the same invite, as somebody would."""
        for name in its:
            for _ in range(30):
                with suppress(EdgeFiError):
                    here("device", "join", "--file", invites / f"{name}.invite", "--timeout", "2",
                         "--out", parties.folder / name, *model_options(name))  # fmt: skip
                    told.append(name)
                    break

    gateway = parties.start_gateway()
    (laptop,) = parties.join_here("laptop", role="client")
    asker = parties.asker(laptop)
    joining = [threading.Thread(target=join_each, args=[names[at::4]]) for at in range(4)]
    for thread in joining:
        thread.start()
    kills = 0
    while any(thread.is_alive() for thread in joining) and kills < 5:
        running = gateway
        eventually(lambda: running.saw("admitted") or not any(thread.is_alive() for thread in joining))  # noqa: B023 - called here
        time.sleep(dice.uniform(0.0, 0.05))
        gateway.end(signal.SIGKILL)
        kills += 1
        gateway = parties.start("gateway", "run", "--config", parties.config)
    for thread in joining:
        thread.join(60)
    assert sorted(told) == names and kills > 2
    paths = [parties.folder / name / "device.toml" for name in names]
    devices = [parties.thread(path) for path in paths]
    with parties.state() as state:
        roster = {member.id: (member.index, member.public) for member in state.roster().members}
    assert {its.identity.id: (its.identity.index, its.identity.static.public) for its in devices}.items() <= (
        roster.items()
    )
    assert len(roster) == len(names) + 1
    eventually(lambda: counted(asker.outcomes[-1:]) == [set(names)])


def test_a_copied_device_is_named_and_costs_only_the_rounds_in_which_it_flaps(parties: Parties) -> None:
    gateway = parties.start_gateway()
    paths = parties.join_here("pi-01", "pi-02")
    (laptop,) = parties.join_here("laptop", role="client")
    parties.thread(paths[0])
    (original,) = parties.start_devices(paths[1])
    asker = parties.asker(laptop)
    eventually(lambda: counted(asker.outcomes[-1:]) == [{"pi-01", "pi-02"}])
    began = len(asker.outcomes)
    shutil.copytree(paths[1].parent, parties.folder / "copy")
    copy = parties.start("device", "run", "--config", parties.folder / "copy" / "device.toml")

    # Each says so where it runs, and the gateway says which member it is.
    hint = "; does another process use this key?"
    for device in (original, copy):
        reasons = lambda device=device: [its.get("reason", "") for its in device.events()]  # noqa: E731
        eventually(lambda: any(hint in reason for reason in reasons()))  # noqa: B023 - called here
    eventually(lambda: gateway.saw("restless", peer="pi-02"), within_s=60)

    # Every round has its outcome, with the vote of the other one, and none has two of these.
    assert {outcome.status for outcome in asker.outcomes[began:]} == {Status.ANSWERED}
    assert all("pi-01" in its for its in counted(asker.outcomes[began:]))

    # Without the copy, it is as it was.
    copy.end()
    eventually(lambda: counted(asker.outcomes[-20:]) == [{"pi-01", "pi-02"}])


# Who learns what


@pytest.fixture(params=BROKERS)
def tapped(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Parties]:
    """Parties whose broker keeps everything, of processes that say more of themselves than they must."""
    monkeypatch.setenv("PYTHONDEVMODE", "1")
    monkeypatch.setenv("EDGE_FI_ROUND__ANSWER_FORMS", '["logits-8"]')  # long enough to be searched for
    with Parties(tmp_path, request.param, is_tapped=True) as made:
        yield made


def test_no_secret_is_told_to_the_operator_of_a_broker_or_to_any_log(tapped: Parties) -> None:
    """A whole life, with all that passes the broker, that is printed, and that others see of processes."""
    assert tapped.tap is not None
    said: list[str] = []

    def run(*arguments: str | Path, **how: Any) -> Done:
        ended = verb(*arguments, **how)
        said.extend([ended.out, ended.err])
        return ended

    owner = ("--config", tapped.config)
    with Onlooker() as onlooker:
        gateway = tapped.start_gateway()
        printed = verb("gateway", "invite", "pi-01", *owner)
        its = ("--out", tapped.folder / "pi-01", *model_options("pi-01"))
        assert run("device", "join", *its, "--json", stdin=printed.out).code == 0
        tapped.join_here("pi-02", "pi-03")
        laptop, tablet = tapped.join_here("laptop", "tablet", role="client")
        tapped.invite("pi-09")  # stays open
        device = tapped.thread(tapped.folder / "pi-01" / "device.toml")
        tapped.start_devices(tapped.folder / "pi-02" / "device.toml")
        asker = tapped.asker(laptop)
        eventually(lambda: counted(asker.outcomes[-1:]) == [{"pi-01", "pi-02"}])
        image = tapped.folder / "image.json"
        image.write_text(json.dumps([[7] * 8] * 8))
        for more in ([], ["--json"]):
            assert run("ask", "--config", tablet, "--input", image, *more).code == 0
            assert run("roster", "list", "--revoked", "--invites", *owner, *more).code == 0
        assert run("gateway", "rotate", "--signing-key", *owner).code == 0
        assert run("gateway", "backup", tapped.folder / "acme.tar", *owner).code == 0
        told = asker.go_on()

        # What goes wrong is told without what it went wrong with.
        used = run("device", "join", "--out", tapped.folder / "thief", stdin=printed.out)
        mistyped = run(
            "device", "join", "--out", tapped.folder / "thief", stdin=printed.out.replace("A", "B", 1)
        )
        assert (used.code, mistyped.code) == (JoinError.exit_code, ConfigError.exit_code)
        faulty = tapped.start(
            *("device", "run", "--config", tapped.folder / "pi-03" / "device.toml"),
            program=with_fault("edge_fi.device", "aead_seal"),
        )
        assert faulty.process.wait(20) == 1
        gateway.end(signal.SIGKILL)
        faulty = tapped.start("gateway", "run", *owner, program=with_fault("edge_fi.gateway", "open_sealed"))
        assert faulty.process.wait(20) == 1
        device.stop()
        asker.stop()

    held = secrets_of(device.machine, asker.client)
    assert {name.split()[0] for name in held} >= {"KeyPair.private", "SessionKeys.down", "Epoch.seal_key"}
    stored, passwords = secrets_on_disk(tapped), passwords_of(tapped)
    recorded = tapped.tap.recorded
    assert b"fi1/acme/q/1" in recorded and passwords["password of laptop"] in recorded, "it sees MQTT itself"
    assert found_in(recorded, held | stored) == []
    for number, outcome in enumerate(asker.outcomes):
        if outcome in told:
            assert found_in(recorded, plaintexts(device, number, outcome)) == []

    for process in tapped.processes:
        process.end(signal.SIGKILL)
    logs = "".join(said).encode() + b"".join(process.said for process in tapped.processes)
    everything = held | stored | passwords
    assert found_in(printed.out.encode(), everything) == ["token of invite 1"], "it would be found"
    assert found_in(logs, everything) == []
    assert logs.count(b"Traceback") == 2 and b"ZeroDivisionError" in logs
    assert b"ResourceWarning" not in logs
    assert found_in(onlooker.seen, everything) == []
    assert b"gateway.toml" in onlooker.seen and b"PYTHONDEVMODE=1" in onlooker.seen
    private = [path for path in tapped.folder.rglob("*") if path.suffix in (".key", ".db", ".invite", ".tar")]
    assert len(private) > 10 and {path.stat().st_mode & 0o777 for path in private} == {0o600}


def with_fault(module: str, name: str) -> list[str]:
    """A program like `edge-fi` in which this function always fails."""
    fault = (
        f"import {module} as m; m.{name} = lambda *_, **__: 1 / 0; from edge_fi.cli.main import main; main()"
    )
    return [sys.executable, "-c", fault]


def secrets_on_disk(parties: Parties) -> dict[str, bytes]:
    """Of every key file, and of the gateway's state."""
    found = {}
    for path in parties.folder.rglob("*.key"):
        if path.parent == parties.broker_folder:
            key = serialization.load_pem_private_key(path.read_bytes(), None)
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            found[str(path)] = key.private_numbers().private_value.to_bytes(32, "big")
            continue
        fields = tomllib.loads(path.read_text())
        found |= {
            f"{name} of {path}": b64decode(fields[name]) for name in {"private", "signing_seed"} & {*fields}
        }
    with parties.state() as state:
        for its in (issued.invitation for issued in state.invitations()):
            prologue = join_prologue("acme", its.role, its.id, its.number)
            keys = JoinKeys.from_token(its.token, prologue)
            found[f"token of invite {its.number}"] = its.token
            found |= {f"psk of invite {its.number}": keys.psk, f"mac of invite {its.number}": keys.mac}
    assert len(found) > 15
    return found


def passwords_of(parties: Parties) -> dict[str, bytes]:
    """Of every account at the broker."""
    identity = parties.identity
    found = {"password of gateway": identity.mqtt_password}
    with parties.state() as state:
        for entry in state.entries():
            found[f"password of {entry.member.id}"] = identity.member_password(entry.member)
        for issued in state.invitations():
            its = issued.invitation
            found[f"password of invite {its.number}"] = join_password(its.token)
    return {name: password.encode() for name, password in found.items()}


def plaintexts(device: DeviceHere, number: int, outcome: Outcome) -> dict[str, bytes]:
    """What travelled sealed in this round: the question, what this device answered, and the outcome."""
    tensor = heldout_tensor(number)
    (scores,) = device.model.infer([tensor])
    _, vote = device.machine._vote(frozenset({Form.LOGITS_8}), scores)
    assert len(vote) > 8
    return {"query": tensor.content, "answer": vote, "outcome": payloads.encode_outcome(0, outcome)[4:]}


class Onlooker:
    """Another user of this machine, who looks at all processes again and again: `ps`, and a bit more."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    @property
    def seen(self) -> bytes:
        """Arguments, and the environment, of everything that ran."""
        return b"\n".join(self._seen)

    def _look(self) -> None:
        while not self._is_over.wait(0.02):
            for pid in descendants(os.getpid()):
                for what in ("cmdline", "environ"):
                    with suppress(OSError):
                        self._seen.add(Path(f"/proc/{pid}/{what}").read_bytes())
