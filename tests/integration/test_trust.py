"""Trust, with real processes and real brokers: keys through the years, and who learns what."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from live import eventually
from parties import OPEN, DeviceHere, Parties, counted, done, here, main_here, model_options, verb
from raw_mqtt import RawMqtt, RefusedError
from stated import rows

from broker.embedded import BROKERS
from edge_fi.crypto.aead import open_sealed
from edge_fi.effects import Infer
from edge_fi.errors import AlreadyRunningError, EdgeFiError, JoinError, KeyFileError, SealError, StateError
from edge_fi.messages import Status
from edge_fi.pump import monotonic_us
from edge_fi.wire import frames
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
        eventually(
            lambda device=device: any(hint in str(its.get("reason")) for its in device.events())  # type: ignore[misc]
        )
    eventually(lambda: gateway.saw("restless", peer="pi-02"), within_s=15)

    # Every round has its outcome, with the vote of the other one, and none has two of these.
    assert {outcome.status for outcome in asker.outcomes[began:]} == {Status.ANSWERED}
    assert all("pi-01" in its for its in counted(asker.outcomes[began:]))

    # Without the copy, it is as it was.
    copy.end()
    eventually(lambda: counted(asker.outcomes[-20:]) == [{"pi-01", "pi-02"}])


# What goes wrong by itself. The broker has no part in it, and needs no accounts


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a disk here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_is_named_and_loses_nobody(small_disk: Path, tmp_path: Path) -> None:
    with Parties(small_disk, OPEN) as parties:
        gateway = parties.start_gateway()
        (path,) = parties.join_here("pi-01")
        (laptop,) = parties.join_here("laptop", role="client")
        parties.thread(path)
        asker = parties.asker(laptop)
        invite = parties.invite("pi-02") / "pi-02.invite"
        with (small_disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while filler.write(bytes(1024)):
                pass
        join = ("device", "join", "--file", invite, "--out", tmp_path / "pi-02", "--timeout")
        refused = main_here(*join, "2")
        assert refused.code == JoinError.exit_code
        assert "the gateway cannot write its state, is its disk full? The invite is still good" in refused.err
        full = f"cannot write {parties.home / 'state.db'}: the disk is full; nothing was changed: make room"
        assert gateway.saw("state_unwritable", reason=full)
        assert counted(asker.go_on()[-15:]) == [{"pi-01"}], "rounds go on"

        (small_disk / "filler").unlink()
        assert main_here(*join, "20").code == 0
        with parties.state() as state:
            assert [its.id for its in state.roster().members] == ["pi-01", "laptop", "pi-02"]
        assert {outcome.status for outcome in asker.stop()} <= {Status.ANSWERED, Status.NO_MEMBERS}
        assert gateway.process.poll() is None and gateway.count("state_unwritable") == 1


def test_a_clock_at_1970_is_named_and_admits_nobody(tmp_path: Path) -> None:
    """A board without a battery, before it has heard of the time."""
    patched = f"import time; now = time.time; time.time = lambda: now() - {time.time()!r}"
    in_1970 = [sys.executable, "-c", f"{patched}; from edge_fi.cli.main import main; main()"]
    with Parties(tmp_path, OPEN) as parties:
        gateway = parties.start_gateway()
        (path,) = parties.join_here("pi-01")
        (laptop,) = parties.join_here("laptop", role="client")
        invite = parties.invite("pi-02") / "pi-02.invite"
        join = ("device", "join", "--file", invite, "--out", tmp_path / "pi-02", "--timeout", "20")
        gateway.end()

        gateway = parties.start("gateway", "run", "--config", parties.config, program=in_1970)
        eventually(lambda: gateway.saw("serving"))
        (told,) = [str(event["reason"]) for event in gateway.events() if event["event"] == "clock"]
        assert (
            told.startswith("the clock says 1970-01-01 ") and "set the clock, or, if it is right now" in told
        )
        refused = main_here(*join)
        assert refused.code == JoinError.exit_code and "this invite has expired" in refused.err
        made = parties.start("gateway", "invite", "pi-03", "--config", parties.config, program=in_1970)
        assert made.process.wait(20) == StateError.exit_code
        made.events()
        assert b"an invite made now would count as expired: the clock says 1970-01-01" in made.said
        parties.thread(path)
        asker = parties.asker(laptop)
        eventually(lambda: counted(asker.outcomes[-1:]) == [{"pi-01"}])
        gateway.end()

        # The clock is right: what was good is good. That a device's own is not does not matter without TLS.
        parties.start_gateway()
        joining = parties.start(*join, program=in_1970)
        assert joining.process.wait(20) == 0
        with parties.state() as state:
            assert [its.id for its in state.roster().members] == ["pi-01", "laptop", "pi-02"]


def test_what_others_may_read_is_named_and_not_used(tmp_path: Path) -> None:
    with Parties(tmp_path, OPEN) as parties:
        gateway = parties.start_gateway()
        (path,) = parties.join_here("pi-01")
        gateway.end()
        for file, arguments in (
            (parties.home / "gateway.key", ("gateway", "run", "--config", parties.config)),
            (parties.home / "state.db", ("gateway", "run", "--config", parties.config)),
            (path.parent / "pi-01.key", ("device", "run", "--config", path)),
        ):
            file.chmod(0o640)
            ended = main_here(*arguments)
            assert ended.code == KeyFileError.exit_code
            assert f"{file} has mode 0640, others may read it" in ended.err
            assert f"run chmod 600 {file}" in ended.err
            file.chmod(0o600)
