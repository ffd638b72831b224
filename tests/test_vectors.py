"""The golden vectors, through every path: functions, the machines, and a device that shares no code with us.

A session's vector holds every key and every drawn byte, so that the machines make the very frames.
noise_kk.json, the published vectors of the handshake itself, is run by tests/crypto/test_noise.py.
"""

import importlib
import json
import re
import runpy
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from second_device import DropError, SecondDevice, encode

from edge_fi.client import Client
from edge_fi.crypto import keys, seal
from edge_fi.crypto.aead import open_sealed
from edge_fi.crypto.aead import seal as aead_seal
from edge_fi.crypto.keys import KeyPair, SigningKey
from edge_fi.crypto.noise import HandshakeKK
from edge_fi.device import Device, Labelling, spread
from edge_fi.effects import Deliver, Effect, Infer, Publish, Rejected
from edge_fi.errors import ProtocolError
from edge_fi.gateway import Gateway
from edge_fi.messages import Form, Outcome, Status, Task, Tensor
from edge_fi.round import RoundPolicy
from edge_fi.session import GatewayIdentity, Identity, Member, Session, mqtt_client_id
from edge_fi.wire import frames, payloads, votes
from edge_fi.wire.frames import Type
from firmware_sim.stream import Stream

FOLDER = Path(__file__).parent / "vectors"
DOCUMENT = Path(__file__).parent.parent / "docs" / "protocol.md"
SOURCE = Path(__file__).parent.parent / "edge_fi"
Vector = dict[str, Any]
raw = bytes.fromhex


@cache
def load() -> dict[str, Vector]:
    files = sorted(FOLDER.glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in files if path.stem != "noise_kk"}


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


def task_of(fields: Vector) -> Task:
    return Task(
        name="task",
        number=fields["number"],
        labels=tuple(fields["labels"]),
        shape=tuple(fields["shape"]),
        dtype=fields["dtype"],
        log_weight=tuple(fields["log_weight"]),
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
    return seal.Epoch.from_key(s["epoch"], raw(s["epoch_key"]))


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
        gateway_verify=raw(s["gateway_verify"]),
    )


def topic(s: Vector, level: str) -> str:
    return f"fi1/{s['federation']}/{level}/{s['task']['number'] if level == 'q' else s['id']}"


def frames_in(effects: list[Effect], at: str) -> list[bytes]:
    return [effect.payload for effect in effects if isinstance(effect, Publish) and effect.topic == at]


def reasons(effects: list[Effect]) -> list[str]:
    return [effect.reason for effect in effects if isinstance(effect, Rejected)]


def device_of(s: Vector, known: list[int] | None = None) -> tuple[Device, list[Effect]]:
    """A device that has said this session's HELLO."""
    task = task_of(s["task"])
    classes = tuple(range(task.classes)) if known is None else tuple(known)
    labelling = Labelling(task=task, model=raw(s["model"]), classes=classes)
    device = Device(identity(s), labelling, drawn(raw(s["member_ephemeral_private"])))
    return device, device.connected(now=0)


def joined_device(s: Vector, known: list[int] | None = None) -> Device:
    device, _ = device_of(s, known)
    assert not reasons(device.receive(topic(s, "d"), raw(s["welcome"]), now=1))
    return device


def gateway_of(s: Vector, task: Task | None, policy: RoundPolicy | None = None) -> Gateway:
    """A gateway that draws what this session's did."""
    epoch = [raw(s["epoch_key"]), s["epoch"].to_bytes(4, "big")] if s["role"] == "device" else []
    if task is not None and not epoch:
        epoch = [bytes(32), bytes(4)]
    secret = raw(s.get("settle_secret", "00" * 32))
    start = [s["boot"].to_bytes(4, "big"), secret, *epoch, raw(s["gateway_ephemeral_private"])]
    public = KeyPair.from_private(raw(s["member_private"])).public
    roster = [Member(id=s["id"], index=s["index"], role=s["role"], public=public)]
    other = KeyPair.from_private(b"\x01" * 32)
    roster.append(Member(id="pi-other", index=1000, role="device", public=other.public))
    own = GatewayIdentity(
        federation=s["federation"],
        static=KeyPair.from_private(raw(s["gateway_private"])),
        signing=SigningKey.from_seed(raw(s["gateway_signing_seed"])),
    )
    return Gateway(own, roster, [task] if task else [], drawn(*start), policy=policy)


def joined_gateway(s: Vector, policy: RoundPolicy | None = None) -> Gateway:
    gateway = gateway_of(s, task_of(s["task"]), policy)
    gateway.receive(topic(s, "a"), raw(s["hello"]), now=0)
    assert not reasons(gateway.receive(topic(s, "a"), raw(s["ready"]), now=1))
    return gateway


def asked_gateway(s: Vector, query: bytes, *, stop_after: int = 0) -> Gateway:
    """A gateway that has asked this query, byte for byte, as its first."""
    plain = payloads.decode_query(opened(query, s))
    policy = RoundPolicy(timeout_s=plain.deadline_ms / 1000, forms=plain.forms, stop_after=stop_after)
    gateway = joined_gateway(s, policy)
    if stop_after:
        _join_another(gateway, s)
    effects = gateway.ask(plain.task, plain.tensor, reference="ours", now=10)
    assert frames_in(effects, topic(s, "q")) == [query]
    return gateway


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


def test_the_script_makes_the_same_files_again() -> None:
    made = runpy.run_path(str(FOLDER / "make.py"))["build"]()
    kept = {path.stem: path.read_text() for path in FOLDER.glob("*.json") if path.stem != "noise_kk"}
    assert kept == made


def test_every_vector_is_of_a_kind_that_is_run_here() -> None:
    source = Path(__file__).read_text()
    run = set(re.findall(r'"(\w+)"', " ".join(re.findall(r"@of\((.*?)\)", source))))
    assert {vector["kind"] for vector in load().values()} <= run


# Derivations


@of("derivations")
def test_keys_are_derived(vector: Vector) -> None:
    s = session_of(vector)
    for step in vector["steps"]:
        derived = keys.derive(raw(step["key"]), step["person"].encode(), raw(step["context"]), step["size"])
        assert derived.hex() == step["out"]
    out = {step["use"]: step["out"] for step in vector["steps"]}
    session, epoch = keys_of(s), epoch_of(s)
    place = {"epoch": s["epoch"], "seq": 1}
    query = raw(next(step["context"] for step in vector["steps"] if step["use"] == "query_hash"))
    header = frames.build_session_header(Type.ANSWER, s["session"], s["index"], 1, Form.LABEL)
    query_hash, model = epoch.query_hash(query), raw(s["model"])
    preimage = seal.settle_preimage(raw(s["settle_secret"]), **place)
    assert {use: raw(value) for use, value in out.items()} == {
        "client_id": raw(s["client_id"][2:]),
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
    }


# Sessions


@of("session")
def test_a_session_is_made_by_functions(vector: Vector) -> None:
    s, us = vector, identity(vector)
    assert seal.prologue(s["federation"], s["role"], s["index"]).hex() == s["prologue"]
    assert mqtt_client_id(us.static) == s["client_id"]
    assert us.static.public.hex() == s["member_public"]
    assert SigningKey.from_seed(raw(s["gateway_signing_seed"])).public.hex() == s["gateway_verify"]
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
        assert payloads.decode_hello(raw(s["hello_payload"])) == told
    read = payloads.decode_welcome(raw(s["welcome_payload"]), is_device=s["role"] == "device")
    assert payloads.encode_welcome(read).hex() == s["welcome_payload"]
    for field in {"session", "boot", "rejoin_window_ms", "epoch", "floor"} & set(s):
        assert getattr(read, field) == s[field]


@of("session")
def test_a_session_is_made_by_the_members_machine(vector: Vector) -> None:
    s = vector
    if s["role"] == "device":
        device, effects = device_of(s)
        assert frames_in(effects, topic(s, "a")) == [raw(s["hello"])]
        effects = device.receive(topic(s, "d"), raw(s["welcome"]), now=1)
        assert frames_in(effects, topic(s, "a")) == [raw(s["ready"])]
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

    of_state = {"hello_bad_replay", "hello_bad_stranger"}
    assert reason_of(path) == ("ok" if vector["name"] in of_state else vector["expect"])


@of("hello")
def test_a_bad_hello_is_refused_by_the_gateway(vector: Vector) -> None:
    s = session_of(vector)
    gateway = gateway_of(s, task_of(s["task"]))
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
    known = KeyPair.from_private(raw(s["member_private"]))
    own = GatewayIdentity(
        federation="acme",
        static=KeyPair.from_private(raw(s["gateway_private"])),
        signing=SigningKey.from_seed(raw(s["gateway_signing_seed"])),
    )
    roster = [Member(id="pi-07", index=7, role="device", public=known.public)]
    policy = RoundPolicy(forms=frozenset({form}))
    epoch_key = bytes(32)
    start = (bytes(4), bytes(32), epoch_key, bytes(4))
    gateway = Gateway(own, roster, [task], drawn(*start), policy=policy)
    labelling = Labelling(task=task, model=b"model-01", classes=tuple(range(classes)))
    device = Device(identity(s), labelling, Stream("device"))
    (hello,) = frames_in(device.connected(now=0), "fi1/acme/a/pi-07")
    (welcome,) = frames_in(gateway.receive("fi1/acme/a/pi-07", hello, now=0), "fi1/acme/d/pi-07")
    (ready,) = frames_in(device.receive("fi1/acme/d/pi-07", welcome, now=0), "fi1/acme/a/pi-07")
    gateway.receive("fi1/acme/a/pi-07", ready, now=0)
    (query,) = frames_in(gateway.ask(1, Tensor("uint8", (1,), b"\1"), reference=1, now=0), "fi1/acme/q/1")
    session = gateway._peers[7].current
    assert session is not None
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
    assert vote.log_weight == near(vector["log_weight"])


# Queries

OF_STATE = {"stale", "conflict"}
"""Reasons of a machine's memory, which no function gives."""


@of("query")
def test_a_query_is_opened_by_functions(vector: Vector) -> None:
    s, frame = session_of(vector), raw(vector["frame"])
    task, epoch = task_of(s["task"]), epoch_of(s)

    def path() -> None:
        assert frames.parse_type(frame) is Type.QUERY
        parsed = frames.parse_query(frame)
        plain = b""
        if parsed.epoch == epoch.number:
            plain = epoch.open_query(parsed.sealed, seq=parsed.seq, header=parsed.header)
        seal.verify_query(raw(s["gateway_verify"]), s["federation"], parsed.signed, parsed.signature)
        if parsed.epoch != epoch.number:
            raise ProtocolError("epoch")
        query = payloads.decode_query(plain)
        if query.task != task.number or not query.tensor.fits(task):
            raise ProtocolError("task")
        if vector["expect"] in OF_STATE:
            return
        assert plain.hex() == vector["plaintext"]
        assert epoch.query_hash(frame).hex() == vector["query_hash"]
        assert payloads.encode_forms(query.forms) == vector["forms"] & 0xFE
        assert (query.deadline_ms, query.settle.hex()) == (vector["deadline_ms"], vector["settle"])
        tensor = Tensor(vector["dtype"], tuple(vector["shape"]), raw(vector["content"]))
        assert (parsed.seq, query.task, query.tensor) == (vector["seq"], vector["task"], tensor)

    assert reason_of(path) == ("ok" if vector["expect"] in OF_STATE else vector["expect"])


@of("query")
@pytest.mark.parametrize("level", ["q", "d"])
def test_a_query_is_taken_by_the_devices(vector: Vector, level: str) -> None:
    s, frame = session_of(vector), raw(vector["frame"])
    device, second = joined_device(s), SecondDevice(s)
    second.hello(raw(s["member_ephemeral_private"]))
    second.receive("d", raw(s["welcome"]))
    for before in vector.get("before", []):
        assert not reasons(device.receive(topic(s, level), raw(before), now=2))
        second.receive(level, raw(before))
    effects = device.receive(topic(s, level), frame, now=3)
    assert reason_of(lambda: second.receive(level, frame)) == vector["expect"]
    if vector["expect"] != "ok":
        assert reasons(effects) == [vector["expect"]] and len(effects) == 1
        return
    (infer,) = effects
    assert isinstance(infer, Infer)
    assert infer.tensor.content == second.tensor == raw(vector["content"])
    assert not device.receive(topic(s, level), frame, now=4) and not second.receive(level, frame)


@of("query", expect="ok")
def test_a_query_is_made_by_the_gateway(vector: Vector) -> None:
    s = session_of(vector)
    if s["by_gateway"] and vector["forms"] == 0xFE:
        asked_gateway(s, raw(vector["frame"]))


# Answers


@of("answer", expect="ok")
def test_an_answer_is_made_by_the_devices(vector: Vector) -> None:
    s, query = session_of(vector), raw(vector["query"])
    scores, known = vector["scores"], vector["model_classes"]
    device, second = joined_device(s, known), SecondDevice(s)
    second.known = known
    second.hello(raw(s["member_ephemeral_private"]))
    second.receive("d", raw(s["welcome"]))
    second.receive("q", query)
    (infer,) = device.receive(topic(s, "q"), query, now=2)
    assert isinstance(infer, Infer)
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
    gateway = asked_gateway(s, raw(vector["query"]), stop_after=2 if "before" in vector else 0)
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
    assert vote.log_weight == near(vector["log_weight"])


# Settled


@of("settled")
def test_settled_is_taken_by_the_devices(vector: Vector) -> None:
    s, query, frame = session_of(vector), raw(vector["query"]), raw(vector["frame"])
    device, second = joined_device(s), SecondDevice(s)
    second.hello(raw(s["member_ephemeral_private"]))
    second.receive("d", raw(s["welcome"]))
    second.receive("q", query)
    (infer,) = device.receive(topic(s, "q"), query, now=2)
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
        if ask != "ok" or payloads.decode_ask(payload).task != vector["task"]["number"]:
            raise ProtocolError("refused")
        assert payloads.encode_ask(payloads.decode_ask(payload)) == payload

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
        "fates": [[device, fate] for device, fate in outcome.fates],
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
        second = SecondDevice(s)
        second.hello(raw(s["member_ephemeral_private"]))
        second.receive("d", raw(s["welcome"]))
        assert reason_of(lambda: second.receive(level, frame)) == vector["expect"]
        effects = joined_device(s).receive(topic(s, level), frame, now=5)
    assert reasons(effects) == [vector["expect"]] and len(effects) == 1


# Every bit


def spoiled(frame: bytes) -> list[bytes]:
    """The frame with each of its bits flipped, and cut at each place."""
    value, size = int.from_bytes(frame, "big"), len(frame)
    flipped = [(value ^ 1 << bit).to_bytes(size, "big") for bit in range(8 * size)]
    return flipped + [frame[:end] for end in range(size)]


@pytest.mark.parametrize(
    ("level", "name", "field"), [("q", "query_ok_int8", "frame"), ("d", "session_ok_pair", "welcome")]
)
def test_the_devices_refuse_every_spoiled_frame_for_the_same_reason(
    level: str, name: str, field: str
) -> None:
    s = load()["session_ok_pair"]
    device, _ = device_of(s)
    second = SecondDevice(s)
    second.hello(raw(s["member_ephemeral_private"]))
    if level == "q":
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


# The document


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading of docs/protocol.md."""
    text = DOCUMENT.read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def packet_bytes(at: str, payload: bytes) -> int:
    """An MQTT 3.1.1 PUBLISH at QoS 0 (section 3.3)."""
    rest = 2 + len(at) + len(payload)
    return 1 + (1 if rest < 128 else 2 if rest < 16_384 else 3) + rest


def test_the_documents_costs_are_those_of_the_vectors() -> None:
    vectors, checked = load(), 0
    for _, name, at, payload, packet in rows("Cost on the wire"):
        file, _, field = name.strip("`").partition(".")
        frame = raw(vectors[file][field or "frame"])
        assert (len(frame), packet_bytes(at.strip("`"), frame)) == (int(payload), int(packet)), name
        checked += 1
    assert checked >= 10


def test_the_documents_constants_are_those_of_the_code() -> None:
    checked = 0
    for name, value, *_ in rows("Limits"):
        module, _, constant = name.strip("`").rpartition(".")
        expected = getattr(importlib.import_module(f"edge_fi.{module}"), constant)
        numbers = tuple(int(number) for number in value.replace(",", "").split(" and "))
        assert expected in (numbers[0], numbers), name
        checked += 1
    assert checked >= 20


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
