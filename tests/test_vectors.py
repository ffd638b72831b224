"""The golden vectors, through every path: functions, the machines, and a device that shares no code with us.

A vector of a session, or of a joining, holds every key and every drawn byte, so that the machines make the
very frames. The published vectors of the handshakes themselves are run by tests/crypto/test_noise.py.
"""

import hashlib
import importlib
import json
import math
import re
import runpy
import ssl
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from second_device import DropError, SecondDevice, encode, familiarity, place

from edge_fi.adapters import tls
from edge_fi.applicant import Applicant
from edge_fi.client import Client
from edge_fi.crypto import keys, seal
from edge_fi.crypto.aead import open_sealed
from edge_fi.crypto.aead import seal as aead_seal
from edge_fi.crypto.keys import KeyPair, SigningKey
from edge_fi.crypto.noise import HandshakeIKpsk1, HandshakeKK
from edge_fi.device import Device, Labelling, OwnGate, spread
from edge_fi.effects import Admit, Adopt, Deliver, Effect, Halt, Infer, Joined, Publish, Rejected
from edge_fi.errors import ProtocolError
from edge_fi.gateway import AGAIN_US, CLAIM_US, Gateway
from edge_fi.messages import VOTE_FORMS, Fate, Form, Member, Outcome, Status, Task, Tensor, Trust
from edge_fi.roster import Invitation, Roster
from edge_fi.round import RoundPolicy
from edge_fi.session import GatewayIdentity, Identity, Session, mqtt_client_id
from edge_fi.voting.features import FeatureMap
from edge_fi.voting.gate import Gate, gate_digest
from edge_fi.wire import frames, invites, payloads, votes
from edge_fi.wire.frames import Type
from edge_fi.wire.payloads import Refusal
from firmware_sim.stream import Stream

FOLDER = Path(__file__).parent / "vectors"
DOCUMENT = Path(__file__).parent.parent / "docs" / "protocol.md"
SOURCE = Path(__file__).parent.parent / "edge_fi"
NOT_OURS = {"noise_kk", "noise_ikpsk1"}
"""Published vectors, in a form of their own."""
SESSION_PACKET_BYTES = 330  # what a session may cost in MQTT packets
Vector = dict[str, Any]
raw = bytes.fromhex


@cache
def load() -> dict[str, Vector]:
    files = sorted(FOLDER.glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in files if path.stem not in NOT_OURS}


def of(*kinds: str, expect: str = "") -> pytest.MarkDecorator:
    """Parametrize a test by the vectors of these kinds; expect: `ok`, or `bad` for all the others."""
    chosen = [
        pytest.param(vector, id=name)
        for name, vector in load().items()
        if vector["kind"] in kinds and (not expect or (vector["expect"] == "ok") is (expect == "ok"))
    ]
    return pytest.mark.parametrize("vector", chosen)


def session_of(vector: Vector) -> Vector:
    return load()[vector["session"]]


def joining_of(vector: Vector) -> Vector:
    return load()[vector["joining"]]


def task_of(fields: Vector) -> Task:
    return Task(
        name=fields["name"],
        number=fields["number"],
        labels=tuple(fields["labels"]),
        shape=tuple(fields["shape"]),
        dtype=fields["dtype"],
        log_weight=tuple(fields["log_weight"]),
        features=raw(fields["features"]),
    )


def drawn(*parts: bytes) -> Callable[[int], bytes]:
    """Entropy that gives these first, each asked for with its own size; then anything."""
    waiting, rest = list(parts), Stream("rest")

    def draw(size: int) -> bytes:
        if waiting and len(waiting[0]) == size:
            return waiting.pop(0)
        return rest(size)

    return draw


def forms_of(query: bytes, s: Vector) -> frozenset[Form]:
    return payloads.decode_forms(int.from_bytes(opened(query, s)[1:3], "big"))


def epoch_of(s: Vector) -> seal.Epoch:
    """The epoch of a session's WELCOME, or of a REKEY."""
    return seal.Epoch.from_key(s["epoch"], raw(s["epoch_key"]))


def epochs_of(vector: Vector) -> dict[int, tuple[seal.Epoch, bytes]]:
    """Each epoch that a device was given before this, with its signing key, by number: the latest last."""
    s = session_of(vector)
    held = {s["epoch"]: (epoch_of(s), raw(s["verify"]))}
    for before in vector.get("before", []):
        frame = frames.parse_session_frame(raw(before))
        if raw(before)[0] == Type.REKEY:
            plain = open_sealed(frame.sealed, key=keys_of(s).down, nonce=frame.number, header=frame.header)
            rekey = payloads.decode_rekey(plain)
            held[rekey.epoch] = seal.Epoch.from_key(rekey.epoch, rekey.epoch_key), rekey.verify
    return held


def opened(query: bytes, s: Vector) -> bytes:
    frame = frames.parse_query(query)
    return epoch_of(s).open_query(frame.sealed, seq=frame.seq, header=frame.header)


def keys_of(s: Vector) -> seal.SessionKeys:
    return seal.SessionKeys.from_transport(raw(s["to_gateway"]), raw(s["to_member"]))


def identity(s: Vector) -> Identity:
    return Identity(
        federation=s["federation"],
        role=s["role"],
        id=s["id"],
        index=s["index"],
        static=KeyPair.from_private(raw(s["member_private"])),
        gateway_static=raw(s["gateway_public"]),
    )


def gateway_identity(fields: Vector) -> GatewayIdentity:
    return GatewayIdentity(
        federation=fields["federation"],
        static=KeyPair.from_private(raw(fields["gateway_private"])),
        signing=SigningKey.from_seed(raw(fields.get("gateway_signing_seed", "00" * 32))),
    )


def topic(s: Vector, level: str) -> str:
    if level.startswith(("join", "gateway")):
        return f"fi1/{s['federation']}/{level}"
    return f"fi1/{s['federation']}/{level}/{s['task']['number'] if level == 'q' else s['id']}"


def frames_in(effects: list[Effect], at: str) -> list[bytes]:
    return [effect.payload for effect in effects if isinstance(effect, Publish) and effect.topic == at]


def reasons(effects: list[Effect]) -> list[str]:
    return [effect.reason for effect in effects if isinstance(effect, Rejected)]


def own_gate(s: Vector) -> OwnGate | None:
    """The gate that a device of this session registers."""
    if "gate" not in s:
        return None
    features = FeatureMap.decode(raw(s["features"]))
    assert features.encoded == raw(s["features"])
    own = OwnGate(gate=Gate.decode(raw(s["gate"]), features), features=features, is_registered=True)
    assert own.content == raw(s["gate"])
    return own


def device_of(s: Vector, known: list[int] | None = None) -> tuple[Device, list[Effect]]:
    """A device that has said this session's HELLO."""
    task = task_of(s["task"])
    classes = tuple(range(task.classes)) if known is None else tuple(known)
    labelling = Labelling(task=task, model=raw(s["model"]), classes=classes)
    device = Device(identity(s), labelling, drawn(raw(s["member_ephemeral_private"])), gate=own_gate(s))
    return device, device.connected(now=0)


def joined_device(s: Vector, known: list[int] | None = None) -> Device:
    device, _ = device_of(s, known)
    assert not reasons(device.receive(topic(s, "d"), raw(s["welcome"]), now=1))
    return device


def second_of(s: Vector, known: list[int] | None = None) -> SecondDevice:
    """The same device, of other code, that has taken its WELCOME."""
    second = SecondDevice(s)
    second.known = second.known if known is None else known
    second.hello(raw(s["member_ephemeral_private"]))
    second.receive("d", raw(s["welcome"]))
    return second


def member_of(s: Vector, *, task: int = 0) -> Member:
    public = KeyPair.from_private(raw(s["member_private"])).public
    return Member(id=s["id"], index=s["index"], role=s["role"], public=public, task=task)


def gateway_of(
    s: Vector,
    task: Task | None,
    policy: RoundPolicy | None = None,
    *,
    later: tuple[bytes, ...] = (),
    only_task: int = 0,
    is_claiming: bool = False,
) -> Gateway:
    """A gateway that draws what this session's did, and this later."""
    epoch = [s["epoch"].to_bytes(4, "big"), raw(s["epoch_key"])] if s["role"] == "device" else []
    if task is not None and not epoch:
        epoch = [bytes(4), bytes(32)]
    secret = raw(s.get("settle_secret", "00" * 32))
    start = [s["boot"].to_bytes(4, "big"), secret, *epoch, raw(s["gateway_ephemeral_private"])]
    other = KeyPair.from_private(b"\x01" * 32)
    another = Member(id="pi-other", index=1000, role="device", public=other.public)
    return Gateway(
        gateway_identity(s),
        Roster(members=(member_of(s, task=only_task), another)),
        [task] if task else [],
        drawn(*start, *later),
        policy=policy,
        features={task.number: FeatureMap.decode(raw(s["features"]))} if task and "gate" in s else None,
        is_claiming=is_claiming,
    )


def joined_gateway(s: Vector, policy: RoundPolicy | None = None, *later: bytes) -> Gateway:
    gateway = gateway_of(s, task_of(s["task"]), policy, later=later)
    gateway.receive(topic(s, "a"), raw(s["hello"]), now=0)
    assert not reasons(gateway.receive(topic(s, "a"), raw(s["ready"]), now=1))
    return gateway


def asked_gateway(s: Vector, query: bytes, *later: bytes, stop_after: int = 0) -> Gateway:
    """A gateway that has asked this query, byte for byte, as its first."""
    plain = payloads.decode_query(opened(query, s))
    policy = RoundPolicy(timeout_s=plain.deadline_ms / 1000, forms=plain.forms, stop_after=stop_after)
    gateway = joined_gateway(s, policy, *later)
    if stop_after:
        _join_another(gateway, s)
    effects = gateway.ask(plain.task, plain.tensor, reference="ours", now=10)
    assert frames_in(effects, topic(s, "q")) == [query]
    return gateway


def rotate(gateway: Gateway, *, now: int, signing: SigningKey | None = None) -> list[Effect]:
    """A new epoch is asked for."""
    identity = None if signing is None else replace(gateway.identity, signing=signing)
    roster = gateway._roster
    return gateway.update(replace(roster, rotations=roster.rotations + 1), now=now, identity=identity)


def _join_another(gateway: Gateway, s: Vector) -> None:
    other = s | {"id": "pi-other", "index": 1000, "member_private": "01" * 32}
    device, effects = device_of(other)
    (welcome,) = frames_in(
        gateway.receive(topic(other, "a"), frames_in(effects, topic(other, "a"))[0], now=2), topic(other, "d")
    )
    (ready,) = frames_in(device.receive(topic(other, "d"), welcome, now=3), topic(other, "a"))
    gateway.receive(topic(other, "a"), ready, now=4)
    assert len(gateway.online(s["task"]["number"])) == 2


def delivered(effects: list[Effect]) -> Outcome:
    (outcome,) = [effect.outcome for effect in effects if isinstance(effect, Deliver)]
    return outcome


def reason_of(path: Callable[[], object]) -> str:
    try:
        path()
    except ProtocolError as error:
        return error.reason
    except DropError as error:
        return str(error)
    return "ok"


def near(values: Any) -> Any:
    return pytest.approx(values, rel=1e-9, abs=1e-12)


# The files


def test_the_script_makes_the_same_files_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    made = runpy.run_path(str(FOLDER / "make.py"))["build"]()
    kept = {path.stem: path.read_text() for path in FOLDER.glob("*.json") if path.stem not in NOT_OURS}
    assert kept == made


def test_every_vector_is_of_a_kind_that_is_run_here() -> None:
    source = Path(__file__).read_text()
    run = set(re.findall(r'"(\w+)"', " ".join(re.findall(r"@of\((.*?)\)", source))))
    assert {vector["kind"] for vector in load().values()} <= run


# Derivations


@of("derivations")
def test_keys_are_derived(vector: Vector, tmp_path: Path) -> None:
    s, j = session_of(vector), joining_of(vector)
    for step in vector["steps"]:
        derived = keys.derive(raw(step["key"]), step["person"].encode(), raw(step["context"]), step["size"])
        assert derived.hex() == step["out"]
    context = {step["use"]: raw(step["context"]) for step in vector["steps"]}
    session, epoch, own = keys_of(s), epoch_of(s), gateway_identity(s)
    place = {"epoch": s["epoch"], "seq": 1}
    header = frames.build_session_header(Type.ANSWER, s["session"], s["index"], 1, Form.LABEL)
    query_hash, model = epoch.query_hash(context["query_hash"]), raw(s["model"])
    preimage = seal.settle_preimage(raw(s["settle_secret"]), **place)
    join = seal.JoinKeys.from_token(raw(j["token"]), raw(j["prologue"]))
    authority = tmp_path / "ca.pem"
    authority.write_text(ssl.DER_cert_to_PEM_cert(context["ca_pin"]))
    claimed = partial(seal.claim_mac, own.static.private)
    refused = context["refused_mac"][: -frames.MAC_BYTES]
    made = {
        "client_id": raw(identity(s).mqtt_client_id[2:]),
        "client_id_gateway": raw(own.mqtt_client_id(s["boot"])[2:]),
        "password_member": raw(identity(s).mqtt_password),
        "password_gateway": raw(own.mqtt_password),
        "password_joiner": raw(seal.join_password(raw(j["token"]))),
        "join_psk": join.psk,
        "join_key": join.mac,
        "join_mac": raw(j["join"])[-8:],
        "refused_mac": seal.refused_mac(join.mac, refused, raw(j["join"])[-8:]),
        "ca_pin": tls.pin_of(authority),
        "mac_key": raw(s["mac_key"]),
        "mac": raw(s["hello"])[-8:],
        "key_answer": session.answer,
        "key_up": session.up,
        "key_ask": session.ask,
        "key_down": session.down,
        "query_seal_key": epoch.seal_key,
        "query_hash_key": epoch.digest_key,
        "query_hash": query_hash,
        "answer": seal.answer_key(
            session.answer, header, epoch=s["epoch"], query_hash=query_hash, model=model
        ),
        "preimage": preimage,
        "digest": seal.settle_digest(preimage, **place, federation=s["federation"]),
        "task_digest": task_of(s["task"]).digest(),
        "claim_mac": claimed(b"fi1 claim", context["claim_mac"]),
        "held_mac": claimed(b"fi1 held", context["held_mac"]),
        "roster_seal_key": seal.roster_key(own.static.private, context["roster_seal_key"]),
    }
    out = {step["use"]: raw(step["out"]) for step in vector["steps"]}
    assert made == {use: out[use] for use in made}
    pin = hashlib.blake2b(context["ca_pin"], digest_size=16, person=b"fi1 ca pin").digest()
    assert pin == out["ca_pin"] == raw(j["pin"])
    # The others are keys of those, or of a file that no vector holds.
    files = {"model_digest", "map_digest", "gate_digest"}
    assert out.keys() - made.keys() == {"claim_key", "roster_key", *files}
    by_use = {step["use"]: step for step in vector["steps"]}
    assert by_use["claim_mac"]["key"] == by_use["held_mac"]["key"] == out["claim_key"].hex()
    assert by_use["roster_seal_key"]["key"] == out["roster_key"].hex()


@of("derivations")
def test_every_row_of_the_documents_keys_has_its_derivation(vector: Vector) -> None:
    sized = [(size, person) for _, size, person, *_ in rows("Keys") if person.startswith("`")]
    made = [(str(step["size"]), f"`{step['person']}`") for step in vector["steps"]]
    assert Counter(made) == Counter(sized)


# Sessions


@of("session")
def test_a_session_is_made_by_functions(vector: Vector) -> None:
    s, us = vector, identity(vector)
    assert seal.prologue(s["federation"], s["role"], s["index"]).hex() == s["prologue"]
    assert us.mqtt_client_id == s["mqtt_client_id"] == mqtt_client_id(us.static)
    assert us.mqtt_password == s["mqtt_password"]
    assert gateway_identity(s).member_password(member_of(s)) == s["mqtt_password"]
    assert us.static.public.hex() == s["member_public"]
    member, gateway = (
        HandshakeKK(
            initiator=is_member,
            prologue=raw(s["prologue"]),
            static=us.static if is_member else KeyPair.from_private(raw(s["gateway_private"])),
            ephemeral=KeyPair.from_private(raw(s[f"{side}_ephemeral_private"])),
            peer_static=us.gateway_static if is_member else us.static.public,
        )
        for side, is_member in (("member", True), ("gateway", False))
    )
    hello, welcome = raw(s["hello"]), raw(s["welcome"])
    seal.check_hello_mac(raw(s["mac_key"]), hello[:-8], hello[-8:])
    assert hello[4:-8] == member.write_message_1(raw(s["hello_payload"]))
    assert gateway.read_message_1(hello[4:-8]).hex() == s["hello_payload"]
    assert welcome[4:] == gateway.write_message_2(raw(s["welcome_payload"]))
    assert member.read_message_2(welcome[4:]).hex() == s["welcome_payload"]
    assert member.split() == gateway.split() == (raw(s["to_gateway"]), raw(s["to_member"]))
    assert member.handshake_hash.hex() == s["handshake_hash"]
    if s["role"] == "device":
        task = task_of(s["task"])
        assert task.digest().hex() == s["task"]["digest"]
        told = payloads.Hello(raw(s["model"]), task.number, task.digest())
        if "gate" in s:
            told = replace(told, trust=Trust.GATE, gate=gate_digest(raw(s["gate"]))[:4])
        assert payloads.decode_hello(raw(s["hello_payload"])) == told
        ready = payloads.decode_ready(raw(s["ready_payload"]))
        assert payloads.encode_ready(ready).hex() == s["ready_payload"] and ready.epoch == s["epoch"]
        assert SigningKey.from_seed(raw(s["gateway_signing_seed"])).public.hex() == s["verify"]
    read = payloads.decode_welcome(raw(s["welcome_payload"]), is_device=s["role"] == "device")
    assert payloads.encode_welcome(read).hex() == s["welcome_payload"]
    for field in {"session", "boot", "rejoin_window_ms", "epoch", "floor"} & set(s):
        assert getattr(read, field) == s[field]
    assert (read.epoch_key.hex(), read.verify.hex()) == (s.get("epoch_key", ""), s.get("verify", ""))


@of("session")
def test_a_session_is_made_by_the_members_machine(vector: Vector) -> None:
    s = vector
    if s["role"] == "device":
        device, effects = device_of(s)
        assert frames_in(effects, topic(s, "a")) == [raw(s["hello"])]
        effects = device.receive(topic(s, "d"), raw(s["welcome"]), now=1)
        registered = [raw(s["gate_frame"])] if "gate" in s else []
        assert frames_in(effects, topic(s, "a")) == [raw(s["ready"]), *registered]
    else:
        client = Client(identity(s), drawn(raw(s["member_ephemeral_private"])))
        assert frames_in(client.connected(now=0), topic(s, "ca")) == [raw(s["hello"])]
        assert not reasons(client.receive(topic(s, "cd"), raw(s["welcome"]), now=1))


@of("session")
def test_a_session_is_made_by_the_gateway(vector: Vector) -> None:
    s = vector
    if not s["by_gateway"]:
        return
    up, down = ("a", "d") if s["role"] == "device" else ("ca", "cd")
    gateway = gateway_of(s, task_of(s["task"]) if "task" in s else None)
    for _ in range(2):  # identical HELLO bytes get the identical WELCOME
        effects = gateway.receive(topic(s, up), raw(s["hello"]), now=0)
        assert frames_in(effects, topic(s, down)) == [raw(s["welcome"])]
    if s["role"] == "device":
        gateway.receive(topic(s, up), raw(s["ready"]), now=1)
        assert gateway.online(s["task"]["number"]) == (s["id"],)


@of("session")
def test_a_session_is_made_by_the_second_device(vector: Vector) -> None:
    s = vector
    if s["role"] == "device":
        second = SecondDevice(s)
        assert second.task_digest().hex() == s["task"]["digest"]
        assert second.hello(raw(s["member_ephemeral_private"])).hex() == s["hello"]
        assert second.receive("d", raw(s["welcome"])).hex() == s["ready"]
        assert second.registration().hex() == s.get("gate_frame", "")
        # The same WELCOME again: READY under the next counter, which the gateway takes.
        again = second.receive("d", raw(s["welcome"]))
        session = Session(s["session"], s["index"], keys_of(s))
        assert session.open(Type.READY, frames.parse_session_frame(again)).hex() == s["ready_payload"]


# Handshakes that must fail


@of("hello")
def test_a_bad_hello_is_refused_by_functions(vector: Vector) -> None:
    s, frame = session_of(vector), raw(vector["frame"])

    def path() -> None:
        assert frames.parse_type(frame) is Type.HELLO
        parsed = frames.parse_handshake(frame)
        if parsed.index != s["index"]:
            raise ProtocolError("index")
        seal.check_hello_mac(raw(s["mac_key"]), parsed.maced, parsed.mac)
        handshake = HandshakeKK(
            initiator=False,
            prologue=raw(s["prologue"]),
            static=KeyPair.from_private(raw(s["gateway_private"])),
            ephemeral=KeyPair.from_private(raw(s["gateway_ephemeral_private"])),
            peer_static=identity(s).static.public,
        )
        hello = payloads.decode_hello(handshake.read_message_1(parsed.message))
        if hello.task_digest != task_of(s["task"]).digest():
            raise ProtocolError("task_mismatch")

    of_state = {"hello_bad_replay", "hello_bad_stranger", "hello_bad_only_task", "hello_bad_closed"}
    assert reason_of(path) == ("ok" if vector["name"] in of_state else vector["expect"])


@of("hello")
def test_a_bad_hello_is_refused_by_the_gateway(vector: Vector) -> None:
    s = session_of(vector)
    settings = {name: vector[name] for name in ("only_task", "is_claiming") if name in vector}
    gateway = gateway_of(s, task_of(s["task"]), **settings)
    for frame in vector.get("before", []):
        assert not reasons(gateway.receive(topic(s, "a"), raw(frame), now=0))
    at = topic(s | {"id": vector.get("id", s["id"])}, "a")
    effects = gateway.receive(at, raw(vector["frame"]), now=1)
    assert reasons(effects) == [vector["expect"]] and len(effects) == 1


@of("welcome")
def test_a_bad_welcome_is_refused_by_the_devices(vector: Vector) -> None:
    s, frame = session_of(vector), raw(vector["frame"])
    device, _ = device_of(s)
    second = SecondDevice(s)
    second.hello(raw(s["member_ephemeral_private"]))
    for before in vector.get("before", []):
        assert not reasons(device.receive(topic(s, "d"), raw(before), now=0))
        second.receive("d", raw(before))
    effects = device.receive(topic(s, "d"), frame, now=1)
    assert reasons(effects) == [vector["expect"]] and len(effects) == 1
    assert reason_of(lambda: second.receive("d", frame)) == vector["expect"]
    if not vector.get("before"):  # a bad WELCOME does not spoil the good one
        # Except one by the gateway's own key: it used the handshake up, and the device began another.
        if vector["expect"] != "payload":
            assert frames_in(device.receive(topic(s, "d"), raw(s["welcome"]), now=2), topic(s, "a"))
        assert second.receive("d", raw(s["welcome"])).hex() == s["ready"]


@of("ready")
def test_a_bad_ready_is_refused(vector: Vector) -> None:
    s, frame = session_of(vector), raw(vector["frame"])
    gateway = gateway_of(s, task_of(s["task"]))
    gateway.receive(topic(s, "a"), raw(s["hello"]), now=0)
    session = Session(s["session"], s["index"], keys_of(s))
    for before in vector.get("before", []):
        gateway.receive(topic(s, "a"), raw(before), now=0)
        session.open(Type.READY, frames.parse_session_frame(raw(before)))
    effects = gateway.receive(topic(s, "a"), frame, now=1)
    assert reasons(effects) == [vector["expect"]] and len(effects) == 1

    def path() -> None:
        frames.parse_type(frame)
        parsed = frames.parse_session_frame(frame)
        if (parsed.session, parsed.index) != (session.number, session.index):
            raise ProtocolError("index" if parsed.index != session.index else "session")
        payloads.decode_ready(session.open(Type.READY, parsed))

    assert reason_of(path) == vector["expect"]


@of("gate")
def test_a_gate_is_registered_or_refused(vector: Vector) -> None:
    s, frame = session_of(vector), raw(vector["frame"])
    task = task_of(s["task"])
    gateway = gateway_of(s, task)
    for before in (raw(s["hello"]), raw(s["ready"]), *map(raw, vector.get("before", []))):
        assert not reasons(gateway.receive(topic(s, "a"), before, now=0))
    had = gateway.panels[task.number].coverage(s["index"])
    effects = gateway.receive(topic(s, "a"), frame, now=1)
    has = gateway.panels[task.number].coverage(s["index"])
    if vector["expect"] == "ok":
        assert effects == [] and had is None and has is not None
        return
    assert reasons(effects) == [vector["expect"]] and len(effects) == 1
    assert (had is None) == (has is None)


@of("weight")
def test_a_query_is_as_familiar_as_this(vector: Vector) -> None:
    features = FeatureMap.decode(raw(vector["features"]))
    assert features.digest.hex() == vector["features_digest"]
    row = features.row(Tensor("int8", features.shape, raw(vector["content"])))
    assert near(row.tolist()) == vector["row"]
    weight = Gate.decode(raw(vector["gate"]), features).weigh(row, features)
    assert near(weight) == vector["weight"] if math.isfinite(weight) else vector["weight"] is None


@of("weight")
def test_a_query_is_as_familiar_to_the_second_device(vector: Vector) -> None:
    elements = [float(its) for its in struct.unpack("3b", raw(vector["content"]))]
    row, *_ = place(raw(vector["features"]), elements)
    assert near(row) == vector["row"]
    weight = familiarity(raw(vector["features"]), raw(vector["gate"]), elements)
    assert weight is None if vector["weight"] is None else near(weight) == vector["weight"]


def test_a_session_costs_three_frames_and_what_the_document_says() -> None:
    s = load()["session_ok_digits"]
    gateway = gateway_of(s, task_of(s["task"]))
    device, said = device_of(s)
    passed: list[Publish] = []
    while said:
        published = [effect for effect in said if isinstance(effect, Publish) and not effect.retain]
        passed += published
        said = []
        for message in published:
            machine = gateway if message.topic == topic(s, "a") else device
            said += machine.receive(message.topic, message.payload, now=0)
    assert [Type(message.payload[0]) for message in passed] == [Type.HELLO, Type.WELCOME, Type.READY]
    names = len(s["federation"] + s["id"])
    words = r"three rows: (\d+) bytes; (\d+) where federation and id have (\d+) characters together, (\d+) "
    stated = re.search(words, " ".join(section(COSTS).split()))
    assert stated is not None
    usual, most, together, longest = map(int, stated.groups())
    for letters, packets in ((names, usual), (together, most), (16 + 24, longest)):
        more = "x" * (letters - names)
        assert packets == sum(packet_bytes(sent.topic + more, sent.payload) for sent in passed)
    assert usual <= most <= SESSION_PACKET_BYTES


# Epochs


@of("rekey")
def test_a_rekey_is_opened_by_functions(vector: Vector) -> None:
    s, frame = session_of(vector), raw(vector["frame"])
    session = Session(s["session"], s["index"], keys_of(s))
    for before in vector.get("before", []):
        session.open(Type.REKEY, frames.parse_session_frame(raw(before)))

    def path() -> None:
        assert frames.parse_type(frame) is Type.REKEY
        parsed = frames.parse_session_frame(frame)
        if (parsed.session, parsed.index) != (session.number, session.index):
            raise ProtocolError("session")
        payload = session.open(Type.REKEY, parsed)
        rekey = payloads.decode_rekey(payload)
        if vector["expect"] != "ok":
            return
        assert payloads.encode_rekey(rekey) == payload == raw(vector["payload"])
        assert (rekey.epoch, rekey.grace_ms) == (vector["epoch"], vector["grace_ms"])
        assert (rekey.epoch_key.hex(), rekey.verify.hex()) == (vector["epoch_key"], vector["verify"])
        assert SigningKey.from_seed(raw(vector["signing_seed"])).public == rekey.verify
        epoch = epoch_of(vector)
        assert epoch.seal_key.hex() == vector["query_seal_key"]
        assert epoch.digest_key.hex() == vector["query_hash_key"]

    of_state = {"rekey_bad_stale"}
    assert reason_of(path) == ("ok" if vector["name"] in of_state else vector["expect"])


@of("rekey")
def test_a_rekey_is_taken_by_the_devices(vector: Vector) -> None:
    s, frame = session_of(vector), raw(vector["frame"])
    device, second = joined_device(s), second_of(s)
    for before in vector.get("before", []):
        assert not reasons(device.receive(topic(s, "d"), raw(before), now=2))
        second.receive("d", raw(before))
    if vector["expect"] != "ok":
        effects = device.receive(topic(s, "d"), frame, now=3)
        assert reasons(effects) == [vector["expect"]] and len(effects) == 1
        assert reason_of(lambda: second.receive("d", frame)) == vector["expect"]
        return
    for answer in ("ready", "ready_again"):  # the same bytes again get a READY under the next counter
        effects = device.receive(topic(s, "d"), frame, now=3)
        assert frames_in(effects, topic(s, "a")) == [raw(vector[answer])] and len(effects) == 1
        assert second.receive("d", frame).hex() == vector[answer]


@of("rekey", expect="ok")
def test_a_rekey_is_made_by_the_gateway(vector: Vector) -> None:
    s = session_of(vector)
    if not vector["by_gateway"]:
        return
    query, signing = raw(load()["query_ok_uint8"]["frame"]), SigningKey.from_seed(raw(vector["signing_seed"]))
    is_signing_new = vector["signing_seed"] != s["gateway_signing_seed"]

    def rekeyed() -> Gateway:
        gateway = asked_gateway(s, query, raw(vector["epoch_key"]))
        effects = rotate(gateway, now=10, signing=signing if is_signing_new else None)
        assert frames_in(effects, topic(s, "d")) == [raw(vector["frame"])]
        return gateway

    former = rekeyed().receive(topic(s, "a"), raw(vector["ready_former"]), now=20)
    assert frames_in(former, topic(s, "d"))[0] == raw(vector["frame"])
    for ready, is_resent in (("ready_former", True), ("ready", False)):
        gateway = rekeyed()
        gateway.receive(topic(s, "a"), raw(vector[ready]), now=20)
        resent = frames_in(gateway.tick(now=10 + AGAIN_US[0]), topic(s, "d"))
        assert (raw(vector["frame"]) in resent) is is_resent


# Votes


@of("vote", expect="ok")
def test_a_vote_is_quantized_and_dequantized(vector: Vector) -> None:
    form, code, scale = Form(vector["form"]), raw(vector["code"]), tuple(vector["scale"])
    given, weight = vector["given_probabilities"], vector["given_log_weight"]
    assert votes.quantize(form, np.array(given), weight, scale=scale) == code
    assert encode(form, given, weight, list(scale)) == code
    probabilities, log_weight = votes.dequantize(form, code, vector["classes"], scale=scale)
    assert probabilities.tolist() == near(vector["probabilities"])
    assert log_weight == near(vector["log_weight"])


@of("vote", expect="bad")
def test_a_bad_vote_is_refused(vector: Vector) -> None:
    form, code, scale = Form(vector["form"]), raw(vector["code"]), tuple(vector["scale"])
    path = lambda: votes.dequantize(form, code, vector["classes"], scale=scale)  # noqa: E731
    assert reason_of(path) == vector["expect"]


@of("vote")
def test_a_vote_is_read_by_the_gateway(vector: Vector) -> None:
    form, code, classes = Form(vector["form"]), raw(vector["code"]), vector["classes"]
    labels = tuple(f"c{label}" for label in range(classes))
    task = Task(
        name="t", number=1, labels=labels, shape=(1,), dtype="uint8", log_weight=tuple(vector["scale"])
    )
    s = load()["session_ok_digits"]
    policy = RoundPolicy(forms=frozenset({form}))
    epoch_key = bytes(32)
    start = (bytes(4), bytes(32), bytes(4), epoch_key)
    gateway = Gateway(
        gateway_identity(s), Roster(members=(member_of(s),)), [task], drawn(*start), policy=policy
    )
    labelling = Labelling(task=task, model=b"model-01", classes=tuple(range(classes)))
    device = Device(identity(s), labelling, Stream("device"))
    (hello,) = frames_in(device.connected(now=0), "fi1/acme/a/pi-07")
    (welcome,) = frames_in(gateway.receive("fi1/acme/a/pi-07", hello, now=0), "fi1/acme/d/pi-07")
    (ready,) = frames_in(device.receive("fi1/acme/d/pi-07", welcome, now=0), "fi1/acme/a/pi-07")
    gateway.receive("fi1/acme/a/pi-07", ready, now=0)
    (query,) = frames_in(gateway.ask(1, Tensor("uint8", (1,), b"\1"), reference=1, now=0), "fi1/acme/q/1")
    session = gateway._peers[7].current
    assert session is not None
    session.trust = Trust.DEVICE  # else a claim counts for nothing
    header = frames.build_session_header(Type.ANSWER, session.number, 7, 1, form)
    query_hash = seal.Epoch.from_key(0, epoch_key).query_hash(query)
    key = seal.answer_key(session.keys.answer, header, epoch=0, query_hash=query_hash, model=b"model-01")
    answer = header + aead_seal(code, key=key, nonce=0, header=header)
    effects = gateway.receive("fi1/acme/a/pi-07", answer, now=1)
    if vector["expect"] != "ok":
        assert reasons(effects) == [vector["expect"]]
        return
    (vote,) = delivered(effects).votes
    assert vote.probabilities.tolist() == near(vector["probabilities"])
    is_unfamiliar = vector["log_weight"] == vector["scale"][0]
    assert vote.log_weight == (-math.inf if is_unfamiliar else near(vector["log_weight"]))


# Queries

OF_STATE = {"stale", "conflict"}
"""Reasons of a machine's memory, which no function gives."""
AFTER_GRACE = {"query_bad_former_late", "query_bad_former_graceless", "query_bad_former_twice"}
"""Queries of an epoch that a machine knows to be over."""


@of("query")
def test_a_query_is_opened_by_functions(vector: Vector) -> None:
    s, frame = session_of(vector), raw(vector["frame"])
    task, epochs = task_of(s["task"]), epochs_of(vector)

    def path() -> None:
        assert frames.parse_type(frame) is Type.QUERY
        parsed = frames.parse_query(frame)
        held = epochs.get(parsed.epoch)
        plain = b""
        if held is not None:
            plain = held[0].open_query(parsed.sealed, seq=parsed.seq, header=parsed.header)
        verify = held[1] if held is not None else list(epochs.values())[-1][1]
        seal.verify_query(verify, s["federation"], parsed.signed, parsed.signature)
        if held is None:
            raise ProtocolError("epoch")
        query = payloads.decode_query(plain)
        if query.task != task.number or not query.tensor.fits(task):
            raise ProtocolError("task")
        if vector["expect"] != "ok":
            return
        assert plain.hex() == vector["plaintext"]
        assert held[0].query_hash(frame).hex() == vector["query_hash"]
        assert payloads.encode_forms(query.forms) == vector["forms"] & 0xFE
        assert (query.deadline_ms, query.settle.hex()) == (vector["deadline_ms"], vector["settle"])
        tensor = Tensor(vector["dtype"], tuple(vector["shape"]), raw(vector["content"]))
        assert (parsed.seq, query.task, query.tensor) == (vector["seq"], vector["task"], tensor)

    is_of_state = vector["expect"] in OF_STATE or vector["name"] in AFTER_GRACE | {
        "query_bad_former_late_signing"
    }
    assert reason_of(path) == ("ok" if is_of_state else vector["expect"])


@of("query")
@pytest.mark.parametrize("level", ["q", "d"])
def test_a_query_is_taken_by_the_devices(vector: Vector, level: str) -> None:
    s, frame = session_of(vector), raw(vector["frame"])
    device, second = joined_device(s), second_of(s)
    for before in map(raw, vector.get("before", [])):
        at = "d" if before[0] == Type.REKEY else level
        assert not reasons(device.receive(topic(s, at), before, now=0))
        second.receive(at, before)
    wait_ms = vector.get("wait_ms", 0)
    take = partial(second.receive, level, frame, at_ms=wait_ms)
    effects = device.receive(topic(s, level), frame, now=wait_ms * 1000)
    assert reason_of(take) == vector["expect"]
    if vector["expect"] != "ok":
        assert reasons(effects) == [vector["expect"]] and len(effects) == 1
        return
    (infer,) = effects
    assert isinstance(infer, Infer)
    assert infer.tensor.content == second.tensor == raw(vector["content"])
    assert not device.receive(topic(s, level), frame, now=wait_ms * 1000) and not take()


@of("query", expect="ok")
def test_a_query_is_made_by_the_gateway(vector: Vector) -> None:
    s = session_of(vector)
    rekeys = vector.get("before", [])
    if not s["by_gateway"] or vector["forms"] != 0xFE:
        return
    if not rekeys or s["epoch"] == frames.parse_query(raw(vector["frame"])).epoch:
        asked_gateway(s, raw(vector["frame"]))
        return
    made = [load()[name] for name in ("rekey_ok", "rekey_ok_signing")]
    (rekey,) = [rekey for rekey in made if rekey["frame"] == rekeys[0]]
    policy = RoundPolicy(timeout_s=2.0, forms=frozenset(VOTE_FORMS))
    gateway = joined_gateway(s, policy, raw(rekey["epoch_key"]))
    rotate(gateway, now=2, signing=SigningKey.from_seed(raw(rekey["signing_seed"])))
    tensor = Tensor(vector["dtype"], tuple(vector["shape"]), raw(vector["content"]))
    effects = gateway.ask(vector["task"], tensor, reference="ours", now=3)
    assert frames_in(effects, topic(s, "q")) == [raw(vector["frame"])]


# Answers


@of("answer", expect="ok")
def test_an_answer_is_made_by_the_devices(vector: Vector) -> None:
    s, query = session_of(vector), raw(vector["query"])
    scores, known = vector["scores"], vector["model_classes"]
    device, second = joined_device(s, known), second_of(s, known)
    second.receive("q", query)
    (infer,) = device.receive(topic(s, "q"), query, now=2)
    assert isinstance(infer, Infer)
    if "rekey" in vector:
        device.receive(topic(s, "d"), raw(vector["rekey"]), now=2)
        second.receive("d", raw(vector["rekey"]))
    logits = None if scores is None else np.array(scores)
    made = device.inferred(infer.ticket, logits, now=3)
    assert frames_in(made, topic(s, "a")) == [raw(vector["frame"])]
    assert second.answer(1, scores).hex() == vector["frame"]
    # A re-ask of what is sealed: the cached bytes.
    assert frames_in(device.receive(topic(s, "d"), query, now=4), topic(s, "a")) == [raw(vector["frame"])]
    assert second.receive("d", query).hex() == vector["frame"]


@of("answer")
def test_an_answer_is_opened_by_functions(vector: Vector) -> None:
    s, query, frame = session_of(vector), raw(vector["query"]), raw(vector["frame"])
    task = task_of(s["task"])

    def path() -> None:
        assert frames.parse_type(frame) is Type.ANSWER
        parsed = frames.parse_session_frame(frame)
        for found, held, reason in (
            (parsed.index, s["index"], "index"),
            (parsed.session, s["session"], "session"),
            (parsed.number, 1, "unknown_query"),
        ):
            if found != held:
                raise ProtocolError(reason)
        form = Form(parsed.form)
        if form not in forms_of(query, s) | {Form.ABSTAIN}:
            raise ProtocolError("form")
        key = seal.answer_key(
            keys_of(s).answer,
            parsed.header,
            epoch=s["epoch"],
            query_hash=epoch_of(s).query_hash(query),
            model=raw(s["model"]),
        )
        code = open_sealed(parsed.sealed, key=key, nonce=0, header=parsed.header)
        if form is Form.ABSTAIN:
            if code:
                raise ProtocolError("vote")
            return
        probabilities, log_weight = votes.dequantize(form, code, task.classes, scale=task.log_weight)
        if vector["expect"] == "ok":
            assert key.hex() == vector["key"] and code.hex() == vector["code"]
            assert probabilities.tolist() == near(vector["probabilities"])
            assert log_weight == near(vector["log_weight"])
            given = spread(np.array(vector["scores"]), vector["model_classes"], task.classes)
            assert given.tolist() == near(vector["given_probabilities"])

    of_state = {"late", "duplicate"}
    assert reason_of(path) == ("ok" if vector["expect"] in of_state else vector["expect"])


@of("answer")
def test_an_answer_is_taken_by_the_gateway(vector: Vector) -> None:
    s = session_of(vector)
    later = [raw(vector["rekey_epoch_key"])] if "rekey" in vector else []
    stop_after = 2 if "before" in vector else 0
    gateway = asked_gateway(s, raw(vector["query"]), *later, stop_after=stop_after)
    if "rekey" in vector:
        assert frames_in(rotate(gateway, now=10), topic(s, "d")) == [raw(vector["rekey"])]
    for before in vector.get("before", []):
        assert not reasons(gateway.receive(topic(s, "a"), raw(before), now=11))
    if vector.get("closed"):
        gateway.tick(now=10_000_000)
    effects = gateway.receive(topic(s, "a"), raw(vector["frame"]), now=12)
    if vector["expect"] != "ok":
        assert reasons(effects) == [vector["expect"]] and len(effects) == 1
        return
    outcome = delivered(effects)
    if vector["form"] == Form.ABSTAIN:
        assert outcome.status is Status.ABSTAINED
        return
    (vote,) = outcome.votes
    assert vote.form == vector["form"]
    assert vote.probabilities.tolist() == near(vector["probabilities"])
    assert math.isnan(vote.log_weight)  # HELLO has named nobody who could tell


# Settled


@of("settled")
def test_settled_is_taken_by_the_devices(vector: Vector) -> None:
    s, query, frame = session_of(vector), raw(vector["query"]), raw(vector["frame"])
    device, second = joined_device(s), second_of(s)
    second.receive("q", query)
    (infer,) = device.receive(topic(s, "q"), query, now=2)
    for before in vector.get("before", []):
        assert not reasons(device.receive(topic(s, "d"), raw(before), now=2))
        second.receive("d", raw(before))
    effects = device.receive(topic(s, "q"), frame, now=3)
    assert reasons(effects) == ([] if vector["expect"] == "ok" else [vector["expect"]])
    assert reason_of(lambda: second.receive("q", frame)) == vector["expect"]
    assert isinstance(infer, Infer)
    silenced = reasons(device.inferred(infer.ticket, np.zeros(10), now=4)) == ["ticket"]
    assert silenced is (vector["expect"] == "ok")
    assert reason_of(lambda: second.answer(1, [0.0] * 10)) == ("ticket" if silenced else "ok")


@of("settled", expect="ok")
def test_settled_is_said_by_the_gateway(vector: Vector) -> None:
    s, query = session_of(vector), raw(vector["query"])
    gateway = asked_gateway(s, query, stop_after=1)
    device = joined_device(s)
    if "before" in vector:
        rotate(gateway, now=11)  # under whatever key: SETTLED is of the query's epoch
    (infer,) = device.receive(topic(s, "q"), query, now=11)
    assert isinstance(infer, Infer)
    (answer,) = frames_in(device.inferred(infer.ticket, np.zeros(10), now=11), topic(s, "a"))
    effects = gateway.receive(topic(s, "a"), answer, now=12)
    assert frames_in(effects, topic(s, "q")) == [raw(vector["frame"])]
    epoch, seq, preimage = frames.parse_settled(raw(vector["frame"]))
    assert (epoch, seq, preimage.hex()) == (s["epoch"], vector["seq"], vector["preimage"])
    seal.check_settled(raw(vector["digest"]), preimage, epoch, seq, s["federation"])


# Clients


def client_of(s: Vector) -> Client:
    client = Client(identity(s), drawn(raw(s["member_ephemeral_private"])))
    client.connected(now=0)
    client.receive(topic(s, "cd"), raw(s["welcome"]), now=1)
    return client


@of("ask", expect="ok")
def test_an_ask_is_made_by_the_client(vector: Vector) -> None:
    s, task = session_of(vector), task_of(vector["task"])
    tensor = Tensor(task.dtype, task.shape, raw(vector["content"]))
    client = client_of(s)
    effects = client.ask(task, tensor, deadline_ms=vector["deadline_ms"], reference=1, now=2)
    assert frames_in(effects, topic(s, "ca")) == [raw(vector["frame"])]
    effects = client.receive(topic(s, "cd"), raw(vector["outcome"]), now=3)
    assert delivered(effects).status == vector["status"]


@of("ask")
def test_an_ask_is_taken_by_functions(vector: Vector) -> None:
    s, frame = session_of(vector), raw(vector["frame"])
    session = Session(s["session"], s["index"], keys_of(s))

    def path() -> None:
        assert frames.parse_type(frame) is Type.ASK
        parsed = frames.parse_session_frame(frame)
        if (parsed.session, parsed.index) != (session.number, session.index):
            raise ProtocolError("index" if parsed.index != session.index else "session")
        payload = session.open(Type.ASK, parsed)
        assert payload.hex() == vector["payload"]
        ask = reason_of(lambda: payloads.decode_ask(payload))
        if ask != "ok":
            raise ProtocolError("refused")
        said = payloads.decode_ask(payload)
        if isinstance(said, payloads.Feedback):
            assert payloads.encode_feedback(said) == payload
            raise ProtocolError("refused")  # no query is known
        if said.task != vector["task"]["number"]:
            raise ProtocolError("refused")
        assert payloads.encode_ask(said) == payload

    assert reason_of(path) == vector["expect"]


@of("ask")
def test_an_ask_is_taken_by_the_gateway(vector: Vector) -> None:
    s = session_of(vector)
    gateway = gateway_of(s, task_of(vector["task"]))
    # It drew its own epoch first; the ephemeral key must still be this session's.
    (welcome,) = frames_in(gateway.receive(topic(s, "ca"), raw(s["hello"]), now=0), topic(s, "cd"))
    assert welcome.hex() == s["welcome"]
    effects = gateway.receive(topic(s, "ca"), raw(vector["frame"]), now=1)
    if vector["expect"] not in ("ok", "refused"):
        assert reasons(effects) == [vector["expect"]] and len(effects) == 1
        return
    assert frames_in(effects, topic(s, "cd")) == [raw(vector["outcome"])]
    assert delivered(effects).status == vector["status"]
    effects = gateway.receive(topic(s, "ca"), raw(vector["frame"]), now=2)
    assert frames_in(effects, topic(s, "cd")) == [raw(vector["outcome"])]


def outcome_fields(outcome: Outcome) -> Vector:
    return {
        "status": outcome.status,
        "label": outcome.label,
        "probabilities": near(list(outcome.probabilities)),
        "agreement": near(outcome.agreement),
        "strategy": outcome.strategy,
        "reason": outcome.reason,
        "label_set": list(outcome.label_set),
        "fates": [[device, fate] for device, fate in outcome.fates],
        "epoch": outcome.epoch,
        "seq": outcome.seq,
        "elapsed_us": outcome.elapsed_us,
    }


@of("outcome")
def test_an_outcome_is_taken_by_functions(vector: Vector) -> None:
    s, frame = session_of(vector), raw(vector["frame"])
    session = Session(s["session"], s["index"], keys_of(s))
    for before in vector.get("before", []):
        session.open(Type.OUTCOME, frames.parse_session_frame(raw(before)))

    def path() -> None:
        assert frames.parse_type(frame) is Type.OUTCOME
        parsed = frames.parse_session_frame(frame)
        if (parsed.session, parsed.index) != (session.number, session.index):
            raise ProtocolError("session")
        counter, outcome = payloads.decode_outcome(session.open(Type.OUTCOME, parsed))
        if counter != 0:
            raise ProtocolError("unknown_query")
        fields = outcome_fields(outcome)
        assert fields == {field: vector[field] for field in fields}
        assert payloads.encode_outcome(counter, outcome).hex() == vector["payload"]

    assert reason_of(path) == vector["expect"]


@of("outcome")
def test_an_outcome_is_taken_by_the_client(vector: Vector) -> None:
    s = session_of(vector)
    client, task = client_of(s), task_of(load()["ask_ok"]["task"])
    tensor = Tensor(task.dtype, task.shape, raw(load()["ask_ok"]["content"]))
    effects = client.ask(task, tensor, deadline_ms=1500, reference=1, now=2)
    assert frames_in(effects, topic(s, "ca")) == [raw(vector["ask"])]
    for before in vector.get("before", []):
        assert not reasons(client.receive(topic(s, "cd"), raw(before), now=3))
    effects = client.receive(topic(s, "cd"), raw(vector["frame"]), now=4)
    if vector["expect"] != "ok":
        assert reasons(effects) == [vector["expect"]] and len(effects) == 1
        return
    fields = outcome_fields(delivered(effects))
    assert fields == {field: vector[field] for field in fields}


# Frames at the wrong place


@of("misplaced")
def test_a_misplaced_frame_is_refused(vector: Vector) -> None:
    s, frame, level = session_of(vector), raw(vector["frame"]), vector["level"]
    if vector["receiver"] == "gateway":
        effects = joined_gateway(s).receive(topic(s, level), frame, now=5)
    else:
        second = second_of(s)
        assert reason_of(lambda: second.receive(level, frame)) == vector["expect"]
        effects = joined_device(s).receive(topic(s, level), frame, now=5)
    assert reasons(effects) == [vector["expect"]] and len(effects) == 1


# Invites

OF_INVITES = {
    "no_invite": "this is no invite",
    "damaged": "cut short or mistyped",
    "later": "a later version",
    "not_allowed": "values that are not allowed",
}
"""What the user is told, by the reason of a vector."""


def invite_of(fields: Vector) -> invites.Invite:
    return invites.Invite(
        federation=fields["federation"],
        role=fields["role"],
        id=fields["id"],
        number=fields["invite"],
        expires=fields["expires"],
        token=raw(fields["token"]),
        gateway=raw(fields["gateway_public"]),
        host=fields["host"],
        port=fields["port"],
        tls=fields["tls"],
        pin=raw(fields["pin"]),
    )


@of("invite", expect="ok")
def test_an_invite_is_read_and_written(vector: Vector) -> None:
    invite = invites.decode(vector["text"])
    assert invite == invite_of(vector)
    assert invites.encode(invite) == "".join(vector["text"].split()).upper()


@of("invite", expect="bad")
def test_a_bad_invite_is_refused(vector: Vector) -> None:
    with pytest.raises(ValueError) as refused:
        invites.decode(vector["text"])
    assert OF_INVITES[vector["expect"]] in str(refused.value)


# Joining

JOINS = "fi1/acme/join"


def invitation_of(j: Vector) -> Invitation:
    return Invitation(
        number=j["invite"], role=j["role"], id=j["id"], token=raw(j["token"]), task=j["only_task"]
    )


def roster_before(j: Vector) -> Roster:
    """The gateway's roster when the JOIN comes."""
    if j["is_burnt"]:
        burnt = replace(invitation_of(j), redeemed_by=raw(j["member_public"]))
        member = member_of(j, task=j["only_task"])
        return Roster(members=(member,), version=j["version"], invitations=(burnt,))
    return Roster(version=j["version"] - 1, invitations=(invitation_of(j),), given=j["index"] - 1)


def admitting_gateway(j: Vector, roster: Roster | None = None) -> Gateway:
    """A gateway that draws for this joining what that one did."""
    tasks = [task_of(fields) for fields in j["tasks"]]
    start = [j["boot"].to_bytes(4, "big"), bytes(32), *[bytes(4), bytes(32)] * len(tasks)]
    entropy = drawn(*start, raw(j["gateway_ephemeral_private"]))
    return Gateway(gateway_identity(j), roster_before(j) if roster is None else roster, tasks, entropy)


def admitted(gateway: Gateway, admit: Admit, *, now: int) -> list[Effect]:
    """The member is written down, as a gateway's state does it, and told so."""
    before = gateway._roster
    if admit.member in before.members:
        return gateway.admitted(admit, before, now=now)
    burnt = [
        replace(its, redeemed_by=admit.member.public) if its.number == admit.invite else its
        for its in before.invitations
    ]
    roster = replace(
        before,
        members=(*before.members, admit.member),
        version=before.version + 1,
        invitations=tuple(burnt),
    )
    return gateway.admitted(admit, roster, now=now)


def applicant_of(j: Vector) -> Applicant:
    """A joiner that has said this JOIN."""
    static = KeyPair.from_private(raw(j["member_private"]))
    applicant = Applicant(invites.decode(j["text"]), static, drawn(raw(j["member_ephemeral_private"])))
    assert applicant.connected(now=0) == [Publish(JOINS, raw(j["join"]))]
    return applicant


def joined_topic(j: Vector) -> str:
    return f"fi1/acme/j/{j['invite']}"


def gateway_joining(j: Vector) -> HandshakeIKpsk1:
    return HandshakeIKpsk1(
        initiator=False,
        prologue=raw(j["prologue"]),
        static=KeyPair.from_private(raw(j["gateway_private"])),
        ephemeral=KeyPair.from_private(raw(j["gateway_ephemeral_private"])),
        peer_static=None,
        psk=raw(j["psk"]),
    )


@of("joining")
def test_a_joining_is_made_by_functions(vector: Vector) -> None:
    j, invite = vector, invites.decode(vector["text"])
    assert invite == invite_of(j) and invites.encode(invite) == j["text"]
    prologue = seal.join_prologue(j["federation"], j["role"], j["id"], j["invite"])
    join_keys = seal.JoinKeys.from_token(raw(j["token"]), prologue)
    assert (prologue.hex(), join_keys.psk.hex(), join_keys.mac.hex()) == (
        j["prologue"],
        j["psk"],
        j["mac_key"],
    )
    assert seal.join_password(raw(j["token"])) == j["join_mqtt_password"]
    assert identity(j).mqtt_client_id == j["mqtt_client_id"]
    assert identity(j).mqtt_password == j["mqtt_password"]
    assert gateway_identity(j).member_password(member_of(j)) == j["mqtt_password"]
    member = HandshakeIKpsk1(
        initiator=True,
        prologue=prologue,
        static=identity(j).static,
        ephemeral=KeyPair.from_private(raw(j["member_ephemeral_private"])),
        peer_static=raw(j["gateway_public"]),
        psk=join_keys.psk,
    )
    gateway, join, accept = gateway_joining(j), raw(j["join"]), raw(j["accept"])
    parsed = frames.parse_joining(join)
    assert parsed.invite == j["invite"]
    seal.check_join_mac(join_keys.mac, parsed.maced, parsed.mac)
    assert member.write_message_1(b"") == parsed.message == join[6:-8]
    assert gateway.read_message_1(parsed.message) == b""
    assert gateway.peer_static.hex() == j["member_public"]
    assert gateway.write_message_2(raw(j["accept_payload"])) == accept[6:]
    assert member.read_message_2(accept[6:]).hex() == j["accept_payload"]
    assert member.handshake_hash.hex() == gateway.handshake_hash.hex() == j["handshake_hash"]
    said = payloads.decode_accept(raw(j["accept_payload"]))
    assert (said.index, said.version, said.task) == (j["index"], j["version"], j["only_task"])
    assert said.tasks == tuple(map(task_of, j["tasks"]))
    assert [task.digest().hex() for task in said.tasks] == [fields["digest"] for fields in j["tasks"]]
    assert payloads.encode_accept(said, longest=len(accept)).hex() == j["accept_payload"]


@of("joining")
def test_a_joining_is_made_by_the_joiner(vector: Vector) -> None:
    j, applicant = vector, applicant_of(vector)
    assert applicant.subscriptions == [joined_topic(j)]
    assert applicant.receive(joined_topic(j), raw(j["accept"]), now=1) == [Joined("gateway")]
    assert applicant.accepted == payloads.decode_accept(raw(j["accept_payload"]))


@of("joining")
def test_a_joining_is_made_by_the_gateway(vector: Vector) -> None:
    j, gateway = vector, admitting_gateway(vector)
    (admit,) = gateway.receive(JOINS, raw(j["join"]), now=0)
    assert admit == Admit(j["invite"], member_of(j, task=j["only_task"]))
    assert frames_in(admitted(gateway, admit, now=1), joined_topic(j)) == [raw(j["accept"])]
    # Identical JOIN bytes get the identical ACCEPT.
    assert gateway.receive(JOINS, raw(j["join"]), now=2) == [Publish(joined_topic(j), raw(j["accept"]))]
    if "session" in j:
        s = session_of(j)
        up, down = ("a", "d") if j["role"] == "device" else ("ca", "cd")
        effects = gateway.receive(topic(s, up), raw(s["hello"]), now=3)
        assert len(frames_in(effects, topic(s, down))) == 1


@of("join")
def test_a_bad_join_is_refused_by_functions(vector: Vector) -> None:
    j, frame = joining_of(vector), raw(vector["frame"])

    def path() -> None:
        assert frames.parse_type(frame) is Type.JOIN
        parsed = frames.parse_joining(frame)
        if parsed.invite != j["invite"]:
            raise ProtocolError("stranger")
        seal.check_join_mac(raw(j["mac_key"]), parsed.maced, parsed.mac)
        gateway_joining(j).read_message_1(parsed.message)

    of_state = {"join_bad_busy"}
    assert reason_of(path) == ("ok" if vector["name"] in of_state else vector["expect"])


@of("join")
def test_a_bad_join_is_refused_by_the_gateway(vector: Vector) -> None:
    j = joining_of(vector)
    gateway = admitting_gateway(j)
    for frame in vector.get("before", []):
        (admit,) = gateway.receive(JOINS, raw(frame), now=0)
        assert isinstance(admit, Admit)
        admitted(gateway, admit, now=0)
    effects = gateway.receive(JOINS, raw(vector["frame"]), now=1)
    assert reasons(effects) == [vector["expect"]] and len(effects) == 1


@of("accept")
def test_a_bad_accept_is_refused_by_the_joiner(vector: Vector) -> None:
    j = joining_of(vector)
    applicant = applicant_of(j)
    effects = applicant.receive(joined_topic(j), raw(vector["frame"]), now=1)
    assert reasons(effects) == [vector["expect"]] and len(effects) == 1
    assert not applicant.is_over
    if vector["expect"] != "payload":  # which only the gateway itself can have sealed
        assert applicant.receive(joined_topic(j), raw(j["accept"]), now=2) == [Joined("gateway")]


@of("refused")
def test_a_refusal_is_taken_by_the_joiner(vector: Vector) -> None:
    j = joining_of(vector)
    applicant = applicant_of(j)
    effects = applicant.receive(joined_topic(j), raw(vector["frame"]), now=1)
    if vector["expect"] != "ok":
        assert reasons(effects) == [vector["expect"]] and len(effects) == 1
        assert applicant.refused is None
        return
    assert not effects
    assert applicant.refused == vector["reason"] and applicant.is_over is vector["is_final"]


@of("refused", expect="ok")
def test_a_refusal_is_said_by_the_gateway(vector: Vector) -> None:
    j, reason = joining_of(vector), Refusal(vector["reason"])
    its, roster = invitation_of(j), roster_before(j)
    namesake = replace(member_of(j), public=bytes(32), index=1)
    at_hand = {
        Refusal.USED: replace(roster, invitations=(replace(its, redeemed_by=b"\1" * 32),)),
        Refusal.EXPIRED: replace(roster, invitations=(replace(its, is_expired=True),)),
        Refusal.WITHDRAWN: replace(roster, invitations=(replace(its, is_withdrawn=True),)),
        Refusal.NAME_TAKEN: replace(roster, members=(namesake,)),
        Refusal.FULL: replace(roster, given=0xFFFF),
        Refusal.BUSY: roster,
    }[reason]
    gateway = admitting_gateway(j, at_hand)
    effects = gateway.receive(JOINS, raw(j["join"]), now=0)
    if reason is Refusal.BUSY:
        (admit,) = effects
        assert isinstance(admit, Admit)
        effects = gateway.not_admitted(admit, reason, now=1)
        assert reasons(effects) == ["busy"]
    assert frames_in(effects, joined_topic(j)) == [raw(vector["frame"])]


# Runs of one gateway


def run_of(fields: Vector, roster: Roster, *later: bytes, is_claiming: bool = False) -> Gateway:
    start = (fields["boot"].to_bytes(4, "big"), bytes(32))
    return Gateway(gateway_identity(fields), roster, [], drawn(*start, *later), is_claiming=is_claiming)


def claiming_run(vector: Vector) -> Gateway:
    """A run that has said its CLAIM, and serves where the vector says so."""
    run = run_of(vector, Roster(), raw(vector["nonce"]), is_claiming=True)
    claims = frames_in(run.connected(now=0), topic(vector, "gateway/claim"))
    assert claims == [raw(vector["claim"])]
    if vector["serves"]:
        run.tick(now=CLAIM_US)
    assert run.is_open is vector["serves"]
    return run


@of("claim", "held")
def test_a_claim_is_heard_by_another_run(vector: Vector) -> None:
    run, at = claiming_run(vector), topic(vector, "gateway/claim")
    effects = run.receive(at, raw(vector["frame"]), now=1)
    if vector["expect"] != "ok":
        assert reasons(effects) == [vector["expect"]] and len(effects) == 1
        assert run.is_open is vector["serves"]
    elif vector["kind"] == "claim":
        assert effects == ([Publish(at, raw(vector["answer"]))] if vector["answer"] else [])
    else:
        assert [isinstance(effect, Halt) for effect in effects] == [True] * vector["halts"]
        assert run.is_open is (vector["serves"] and not vector["halts"])


@of("roster")
def test_a_roster_is_read_by_a_later_run(vector: Vector) -> None:
    known = Roster(version=5, given=vector["known_highest"], revoked=frozenset(vector["known_revoked"]))
    effects = run_of(vector, known).receive(topic(vector, "gateway/roster"), raw(vector["frame"]), now=1)
    if vector["expect"] != "ok":
        assert reasons(effects) == [vector["expect"]] and len(effects) == 1
        return
    adopt = Adopt(vector["version"], vector["highest"], frozenset(vector["revoked"]))
    assert effects == ([adopt] if vector["adopts"] else [])


@of("roster", expect="ok")
def test_a_roster_is_said_by_the_gateway(vector: Vector) -> None:
    header = raw(vector["frame"])[: frames.ROSTER_HEADER_BYTES]
    assert seal.roster_key(raw(vector["gateway_private"]), header).hex() == vector["key"]
    assert payloads.encode_roster(vector["highest"], frozenset(vector["revoked"])).hex() == vector["payload"]
    roster = Roster(version=vector["version"], given=vector["highest"], revoked=frozenset(vector["revoked"]))
    effects = run_of(vector, roster, raw(vector["salt"])).connected(now=0)
    (said,) = [
        effect for effect in effects if isinstance(effect, Publish) and effect.payload == raw(vector["frame"])
    ]
    assert said.topic == topic(vector, "gateway/roster") and said.retain


# Every bit


def spoiled(frame: bytes) -> list[bytes]:
    """The frame with each of its bits flipped, and cut at each place."""
    value, size = int.from_bytes(frame, "big"), len(frame)
    flipped = [(value ^ 1 << bit).to_bytes(size, "big") for bit in range(8 * size)]
    return flipped + [frame[:end] for end in range(size)]


@pytest.mark.parametrize(
    ("level", "name", "field"),
    [
        ("q", "query_ok_int8", "frame"),
        ("d", "session_ok_digits", "welcome"),
        ("d", "rekey_ok", "frame"),
    ],
)
def test_the_devices_refuse_every_spoiled_frame_for_the_same_reason(
    level: str, name: str, field: str
) -> None:
    s = load()[load()[name].get("session", name) if field == "frame" else name]
    device, _ = device_of(s)
    second = SecondDevice(s)
    second.hello(raw(s["member_ephemeral_private"]))
    if field == "frame":
        device.receive(topic(s, "d"), raw(s["welcome"]), now=0)
        second.receive("d", raw(s["welcome"]))
    for number, frame in enumerate(spoiled(raw(load()[name][field])), 1):
        effects = device.receive(topic(s, level), frame, now=number * 2_000_000)
        assert reasons(effects) == [reason_of(partial(second.receive, level, frame))] and len(effects) == 1
    assert not reasons(device.receive(topic(s, level), raw(load()[name][field]), now=1))
    second.receive(level, raw(load()[name][field]))


@pytest.mark.parametrize(
    ("name", "field"),
    [("answer_ok_label_2", "frame"), ("session_ok_pair", "hello"), ("session_ok_pair", "ready")],
)
def test_the_gateway_refuses_every_spoiled_frame(name: str, field: str) -> None:
    s = load()["session_ok_pair"]
    gateway = asked_gateway(s, raw(load()["answer_ok_label_2"]["query"]))
    for frame in spoiled(raw(load()[name][field])):
        effects = gateway.receive(topic(s, "a"), frame, now=11)
        assert len(effects) == 1 and isinstance(effects[0], Rejected)


def test_the_gateway_refuses_every_spoiled_join() -> None:
    j = load()["join_ok_device"]
    gateway = admitting_gateway(j)
    for frame in spoiled(raw(j["join"])):
        effects = gateway.receive(JOINS, frame, now=0)
        assert len(effects) == 1 and isinstance(effects[0], Rejected)
    assert isinstance(gateway.receive(JOINS, raw(j["join"]), now=0)[0], Admit)


@pytest.mark.parametrize("name", ["join_ok_device", "refused_ok_expired"])
def test_the_joiner_refuses_every_spoiled_answer(name: str) -> None:
    j, vector = load()["join_ok_device"], load()[name]
    applicant = applicant_of(j)
    for frame in spoiled(raw(vector.get("accept") or vector["frame"])):
        effects = applicant.receive(joined_topic(j), frame, now=1)
        assert len(effects) == 1 and isinstance(effects[0], Rejected)
    assert not applicant.is_over
    applicant.receive(joined_topic(j), raw(vector.get("accept") or vector["frame"]), now=2)
    assert applicant.is_over


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("claim_ok_serves", "gateway/claim"),
        ("held_ok_waits", "gateway/claim"),
        ("roster_ok_revoked", "gateway/roster"),
    ],
)
def test_a_run_refuses_every_spoiled_word(name: str, at: str) -> None:
    vector = load()[name]
    run = run_of(vector, Roster()) if at == "gateway/roster" else claiming_run(vector)
    for frame in filter(None, spoiled(raw(vector["frame"]))):  # nothing at all is a removal
        effects = run.receive(topic(vector, at), frame, now=1)
        assert len(effects) == 1 and isinstance(effects[0], Rejected)


# The document

COSTS = "Cost on the wire"


def section(heading: str) -> str:
    """What stands under a heading of docs/protocol.md."""
    return DOCUMENT.read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def rows(heading: str) -> list[list[str]]:
    """The cells of the tables under a heading, without their heads. A bar within a cell is `\\|`."""
    lines = [line for line in section(heading).splitlines() if line.startswith("|")]
    body = [
        line
        for line, following in zip(lines, [*lines[1:], ""], strict=True)
        if not {line[:3], following[:3]} & {"|--"}
    ]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in body]


def packet_bytes(at: str, payload: bytes) -> int:
    """An MQTT 3.1.1 PUBLISH at QoS 0 (section 3.3)."""
    rest = 2 + len(at) + len(payload)
    return 1 + (1 if rest < 128 else 2 if rest < 16_384 else 3) + rest


def test_the_documents_costs_are_those_of_the_vectors() -> None:
    vectors, checked = load(), 0
    for _, name, at, payload, packet in rows(COSTS):
        file, _, field = name.strip("`").partition(".")
        frame = raw(vectors[file][field or "frame"])
        stated = tuple(int(number.replace(",", "")) for number in (payload, packet))
        assert (len(frame), packet_bytes(at.strip("`"), frame)) == stated, name
        checked += 1
    assert checked >= 20


def test_the_documents_constants_are_those_of_the_code() -> None:
    checked = 0
    for name, value, *_ in rows("Limits"):
        module, _, constant = name.strip("`").rpartition(".")
        expected = getattr(importlib.import_module(f"edge_fi.{module}"), constant)
        numbers = tuple(int(number) for number in value.replace(",", "").split(" and "))
        assert expected in (numbers[0], numbers), name
        checked += 1
    assert checked >= 50


@pytest.mark.parametrize(
    ("heading", "named"),
    [("Joining", Refusal), ("Plaintext of OUTCOME", Fate), ("Plaintext of OUTCOME", Status)],
)
def test_the_document_names_every_code(
    heading: str, named: type[Refusal] | type[Fate] | type[Status]
) -> None:
    text = DOCUMENT.read_text(encoding="utf-8").split(f"# {heading}\n", 1)[1].split("\n## ", 1)[0]
    for code in named:
        name = code.name.lower() if named is Refusal else code.name
        assert re.search(rf"\b{code.value}(,? \| |, |\s){name}\b", text), name


def test_the_document_names_every_size_of_a_frame() -> None:
    sized = [row for row in rows("Frames") if len(row) == 6]
    stated = {int(kind.strip("`"), 16): sizes for kind, _, *sizes, _, _ in sized}
    told = {int(kind): [f"{least:,}", f"{greatest:,}"] for kind, (least, greatest) in frames._SIZES.items()}
    assert stated == told


def test_the_document_names_every_purpose_and_every_reason() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    source = "".join(path.read_text() for path in sorted(SOURCE.rglob("*.py")) if "cli" not in path.parts)
    for purpose in set(re.findall(r'b"(fi1 [a-z ]+)"', source)):
        assert f"`{purpose}`" in text, purpose
    machines = [*SOURCE.glob("*.py"), *(SOURCE / "wire").glob("*.py"), *(SOURCE / "crypto").glob("*.py")]
    said = "".join(path.read_text() for path in machines)
    pattern = r'(?:DecodeError|SealError|ProtocolError)\("(\w+)"\)|reason="(\w+)"'
    for reason in {one or other for one, other in re.findall(pattern, said)}:
        assert f"`{reason}`" in text, reason
