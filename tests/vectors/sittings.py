"""Who and what the vectors are about: keys, tasks, sessions, and the frames that travel under them."""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from book import Fields, seeded

from edge_fi.crypto import seal
from edge_fi.crypto.aead import seal as aead_seal
from edge_fi.crypto.keys import KeyPair, SigningKey
from edge_fi.crypto.noise import HandshakeKK
from edge_fi.messages import VOTE_FORMS, Query, Task, Tensor, Trust
from edge_fi.session import Identity, Session, hello_key
from edge_fi.voting.gate import gate_digest
from edge_fi.wire import frames, payloads
from edge_fi.wire.frames import Type
from edge_fi.wire.payloads import Hello, Ready, Rekey, Welcome

FEDERATION = "acme"
LOW_ORDER = bytes(32)  # X25519 with this gives zeros, whatever the private key
GATEWAY = KeyPair.from_private(seeded("gateway static"))
SIGNING = SigningKey.from_seed(seeded("gateway signing"))
NEXT_SIGNING = SigningKey.from_seed(seeded("gateway signing, after a rotation"))
FELLOW = SigningKey.from_seed(seeded("a fellow member's signing key"))
BOOT = 0xB0070001
SETTLE_SECRET = seeded("settle secret")

DIGITS = Task(
    name="digits", number=1, labels=tuple("0123456789"), shape=(8, 8), dtype="uint8", log_weight=(-8, 0)
)
PAIR = Task(name="pair", number=2, labels=("no", "yes"), shape=(3,), dtype="int8", log_weight=(-3, -1))
BIRDS = Task(
    name="birds",
    number=17,
    labels=tuple(f"Vögel {n}" for n in range(17)),
    shape=(2, 1, 2),
    dtype="float16",
    log_weight=(-20, 5),
)
MANY = Task(
    name="many",
    number=255,
    labels=tuple(f"c{n}" for n in range(257)),
    shape=(1, 1, 1, 1, 1, 1, 2, 1),
    dtype="float32",
    log_weight=(-8, 0),
)
TENSORS = {
    1: Tensor("uint8", (8, 8), bytes(range(64))),
    2: Tensor("int8", (3,), np.array([-128, 0, 127], "<i1").tobytes()),
    17: Tensor("float16", (2, 1, 2), np.array([0.5, -2.0, 65504.0, 0.0], "<f2").tobytes()),
    255: Tensor("float32", (1, 1, 1, 1, 1, 1, 2, 1), np.array([1.5, -0.25], "<f4").tobytes()),
}


ALL_FORMS = frozenset(VOTE_FORMS)


@dataclass(slots=True, kw_only=True)
class Sitting:
    """One session, with everything that either side knows of it."""

    name: str
    role: str
    id: str
    index: int
    static: KeyPair
    ephemeral: KeyPair
    gateway_ephemeral: KeyPair
    task: Task | None
    model: bytes
    welcome: Welcome
    hello_payload: bytes
    hello: bytes
    welcome_frame: bytes
    mac_key: bytes
    to_gateway: bytes
    to_member: bytes
    handshake_hash: bytes
    keys: seal.SessionKeys
    epoch: seal.Epoch

    @property
    def identity(self) -> Identity:
        """The member's."""
        return Identity(
            federation=FEDERATION,
            role=self.role,
            id=self.id,
            index=self.index,
            static=self.static,
            gateway_static=GATEWAY.public,
        )


@dataclass(slots=True, kw_only=True)
class NextEpoch:
    """What a REKEY brings."""

    frame: bytes
    payload: bytes
    key: bytes
    epoch: seal.Epoch
    grace_ms: int
    signing: SigningKey


def handshake(side: str, static: KeyPair, ephemeral: KeyPair, peer: bytes, prologue: bytes) -> HandshakeKK:
    return HandshakeKK(
        initiator=side == "member",
        prologue=prologue,
        static=static,
        ephemeral=ephemeral,
        peer_static=peer,
    )


def hello_frame(static: KeyPair, index: int, message: bytes, prologue: bytes, *, flags: int = 0) -> bytes:
    maced = struct.pack(">BBH", Type.HELLO, flags, index) + message
    return maced + seal.hello_mac(hello_key(static, GATEWAY.public, prologue), maced)


def sit(
    name: str, role: str, id_: str, index: int, task: Task | None, *, gate: bytes = b"", **welcome: Any
) -> Sitting:
    static = KeyPair.from_private(seeded(f"{id_} static"))
    ephemeral = KeyPair.from_private(seeded(f"{name} ephemeral"))
    gateway_ephemeral = KeyPair.from_private(seeded(f"{name} gateway ephemeral"))
    model = seeded(f"{name} model", 8) if task else b""
    settings: Fields = {"session": 0, "boot": BOOT, "rejoin_window_ms": 100}
    if task:
        key, number = seeded(f"{name} epoch"), int.from_bytes(seeded(f"{name} epoch number", 4), "big")
        settings |= {"epoch": number, "floor": 1, "epoch_key": key, "verify": SIGNING.public}
        settings |= {"wants_gate": bool(gate)}
    stated = Welcome(**settings | welcome)
    prologue = seal.prologue(FEDERATION, role, index)
    member = handshake("member", static, ephemeral, GATEWAY.public, prologue)
    gateway = handshake("gateway", GATEWAY, gateway_ephemeral, static.public, prologue)
    trust, name_ = (Trust.GATE, gate_digest(gate)[:4]) if gate else (Trust.NOBODY, bytes(4))
    said = Hello(model, task.number, task.digest(), trust, name_) if task else None
    payload = payloads.encode_hello(said) if said else b""
    hello = hello_frame(static, index, member.write_message_1(payload), prologue)
    gateway.read_message_1(frames.parse_handshake(hello).message)
    message = gateway.write_message_2(payloads.encode_welcome(stated))
    member.read_message_2(message)
    to_gateway, to_member = member.split()
    return Sitting(
        name=name,
        role=role,
        id=id_,
        index=index,
        static=static,
        ephemeral=ephemeral,
        gateway_ephemeral=gateway_ephemeral,
        task=task,
        model=model,
        welcome=stated,
        hello_payload=payload,
        hello=hello,
        welcome_frame=frames.build_handshake_header(Type.WELCOME, index) + message,
        mac_key=hello_key(static, GATEWAY.public, prologue),
        to_gateway=to_gateway,
        to_member=to_member,
        handshake_hash=member.handshake_hash,
        keys=seal.SessionKeys.from_transport(to_gateway, to_member),
        epoch=seal.Epoch.from_key(stated.epoch, stated.epoch_key),
    )


def counted(s: Sitting, kind: Type, payload: bytes, counter: int = 0) -> bytes:
    """A READY, REKEY, ASK or OUTCOME frame."""
    session = Session(s.welcome.session, s.index, s.keys, _sent=counter)
    return session.seal(kind, payload)


def ready_frame(s: Sitting, counter: int = 0, *, epoch: int | None = None) -> bytes:
    """READY of a device that holds this epoch: WELCOME's, unless told otherwise."""
    held = s.welcome.epoch if epoch is None else epoch
    return counted(s, Type.READY, payloads.encode_ready(Ready(ALL_FORMS, held)), counter)


def next_epoch(
    s: Sitting,
    counter: int = 0,
    *,
    grace_ms: int = 2000,
    signing: SigningKey = SIGNING,
    after: seal.Epoch | None = None,
) -> NextEpoch:
    """The epoch after this one, WELCOME's unless told otherwise."""
    number = ((after or s.epoch).number + 1) % 2**32
    key = seeded(f"{s.name} epoch {number}")
    rekey = Rekey(epoch=number, grace_ms=grace_ms, epoch_key=key, verify=signing.public)
    payload = payloads.encode_rekey(rekey)
    return NextEpoch(
        frame=counted(s, Type.REKEY, payload, counter),
        payload=payload,
        key=key,
        epoch=seal.Epoch.from_key(number, key),
        grace_ms=grace_ms,
        signing=signing,
    )


def task_fields(task: Task) -> Fields:
    return {
        "name": task.name,
        "number": task.number,
        "dtype": task.dtype,
        "shape": task.shape,
        "log_weight": task.log_weight,
        "labels": task.labels,
        "features": task.features,
        "digest": task.digest(),
    }


def session_fields(s: Sitting, *, by_gateway: bool) -> Fields:
    w = s.welcome
    fields: Fields = {
        "federation": FEDERATION,
        "role": s.role,
        "id": s.id,
        "index": s.index,
        "member_private": s.static.private,
        "member_public": s.static.public,
        "member_ephemeral_private": s.ephemeral.private,
        "gateway_private": GATEWAY.private,
        "gateway_public": GATEWAY.public,
        "gateway_ephemeral_private": s.gateway_ephemeral.private,
        "gateway_signing_seed": SIGNING.seed,
        "mqtt_client_id": s.identity.mqtt_client_id,
        "mqtt_password": s.identity.mqtt_password,
        "prologue": seal.prologue(FEDERATION, s.role, s.index),
        "mac_key": s.mac_key,
        "hello_payload": s.hello_payload,
        "hello": s.hello,
        "by_gateway": by_gateway,
        "session": w.session,
        "boot": w.boot,
        "rejoin_window_ms": w.rejoin_window_ms,
        "welcome_payload": payloads.encode_welcome(w),
        "welcome": s.welcome_frame,
        "handshake_hash": s.handshake_hash,
        "to_gateway": s.to_gateway,
        "to_member": s.to_member,
        "key_answer": s.keys.answer,
        "key_up": s.keys.up,
        "key_ask": s.keys.ask,
        "key_down": s.keys.down,
    }
    if s.task is None:
        return fields
    return fields | {
        "task": task_fields(s.task),
        "model": s.model,
        "settle_secret": SETTLE_SECRET,
        "epoch": w.epoch,
        "floor": w.floor,
        "epoch_key": w.epoch_key,
        "verify": w.verify,
        "query_seal_key": s.epoch.seal_key,
        "query_hash_key": s.epoch.digest_key,
        "ready_payload": payloads.encode_ready(Ready(ALL_FORMS, w.epoch)),
        "ready": ready_frame(s),
    }


def query_plaintext(s: Sitting, *, seq: int = 1, epoch: seal.Epoch | None = None, **changes: Any) -> bytes:
    assert s.task is not None
    number = (epoch or s.epoch).number
    preimage = seal.settle_preimage(SETTLE_SECRET, number, seq)
    fields: Fields = {
        "task": s.task.number,
        "forms": ALL_FORMS,
        "deadline_ms": 2000,
        "settle": seal.settle_digest(preimage, number, seq, FEDERATION),
        "tensor": TENSORS[s.task.number],
    }
    return payloads.encode_query(Query(**fields | changes))


def query_frame(
    s: Sitting,
    plaintext: bytes,
    *,
    seq: int = 1,
    flags: int = 0,
    epoch: seal.Epoch | None = None,
    signing: SigningKey = SIGNING,
    federation: str = FEDERATION,
) -> bytes:
    epoch = epoch or s.epoch
    header = struct.pack(">BBII", Type.QUERY, flags, epoch.number, seq)
    signed = header + epoch.seal_query(plaintext, seq=seq, header=header)
    return signed + seal.sign_query(signing, federation, signed)


def answer_frame(
    s: Sitting,
    query: bytes,
    form: int,
    code: bytes,
    *,
    key: bytes | None = None,
    model: bytes | None = None,
    epoch: seal.Epoch | None = None,
    seq: int = 1,
    **header: int,
) -> bytes:
    """An ANSWER to that QUERY, of WELCOME's epoch unless told otherwise."""
    epoch = epoch or s.epoch
    place = {"session": s.welcome.session, "index": s.index} | header
    head = frames.build_session_header(Type.ANSWER, place["session"], place["index"], seq, form)
    own = seal.answer_key(
        key or s.keys.answer,
        head,
        epoch=epoch.number,
        query_hash=epoch.query_hash(query),
        model=s.model if model is None else model,
    )
    return head + aead_seal(code, key=own, nonce=0, header=head)
