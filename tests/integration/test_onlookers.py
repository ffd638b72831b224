"""Who learns what: neither the operator of a broker nor any log, argument or environment holds a secret."""

import json
import os
import signal
import sys
import threading
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
from parties import DeviceHere, Done, Parties, counted, heldout_tensor, model_options, verb
from secrecy import found_in, secrets_of

from broker.embedded import BROKERS
from edge_fi.crypto.seal import JoinKeys, join_password, join_prologue
from edge_fi.device import _Asked
from edge_fi.errors import ConfigError, JoinError
from edge_fi.messages import Form, Outcome
from edge_fi.wire import payloads


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
    _, vote = device.machine._vote(_Asked(b"", b"", frozenset({Form.LOGITS_8}), 0, 0.0, 0), scores)
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
