"""Frames of `fi1`: one byte of type, a fixed header, then sealed bytes.

The header is always the associated data of the seal. All integers are big-endian. The version is in
the topic root, so no frame carries one. Parsing checks length, type and flags and nothing that needs
a key; it raises DecodeError("length" | "type" | "flags" | "form").

| type | frame | from -> to | header after the type | then |
|---|---|---|---|---|
| 01 | QUERY | gateway -> devices | flags u8, epoch u32, seq u32 | sealed query, tag 16, signature 64 |
| 02 | ANSWER | device -> gateway | session:4 form:4, index u16, seq u32 | sealed vote, tag 16 |
| 03 | SETTLED | gateway -> devices | flags u8, epoch u32, seq u32 | preimage 16 |
| 10 | HELLO | member -> gateway | flags u8, index u16 | Noise message 1, mac 8 |
| 11 | WELCOME | gateway -> member | flags u8, index u16 | Noise message 2 |
| 12 | READY | member -> gateway | session:4 0:4, index u16, counter u32 | sealed payload, tag 16 |
| 13 | REKEY | gateway -> device | as READY | as READY |
| 14 | GATE | device -> gateway | as READY | as READY |
| 20 | ASK | client -> gateway | as READY | as READY |
| 21 | OUTCOME | gateway -> client | as READY | as READY |
| 30 | JOIN | joiner -> gateway | flags u8, invite u32 | Noise message 1, mac 8 |
| 31 | ACCEPT | gateway -> joiner | flags u8, invite u32 | Noise message 2 |
| 32 | REFUSED | gateway -> joiner | flags u8, invite u32 | reason u8, mac 8 |
| 40 | ROSTER | gateway -> gateway | flags u8, version u32, salt 16 | sealed word, tag 16 |
| 41 | CLAIM | gateway -> gateway | flags u8 | nonce 16, mac 8 |
| 42 | HELD | gateway -> gateway | flags u8 | nonce 16, mac 8 |
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

from edge_fi.errors import DecodeError
from edge_fi.messages import Form

MAX_FRAME_BYTES = 1_000_000
TAG_BYTES = 16
SIGNATURE_BYTES = 64
MAC_BYTES = 8
KEY_BYTES = 32
PREIMAGE_BYTES = 16

_QUERY = struct.Struct(">BBII")
_ANSWER = struct.Struct(">BBHI")
_HANDSHAKE = struct.Struct(">BBH")
_JOINING = struct.Struct(">BBI")
_ROSTER = struct.Struct(">BBI16s")

QUERY_HEADER_BYTES = _QUERY.size
ANSWER_HEADER_BYTES = _ANSWER.size
HANDSHAKE_HEADER_BYTES = _HANDSHAKE.size
JOINING_HEADER_BYTES = _JOINING.size
ROSTER_HEADER_BYTES = _ROSTER.size
CLAIM_NONCE_BYTES = 16
SALT_BYTES = 16
JOIN_BYTES = JOINING_HEADER_BYTES + 2 * KEY_BYTES + 2 * TAG_BYTES + MAC_BYTES
CLAIM_BYTES = 2 + CLAIM_NONCE_BYTES + MAC_BYTES
MAX_ACCEPT_BYTES = 200_000  # a feature map of 1,500 public queries, and the task it belongs to
MAX_GATE_BYTES = 16_384  # of 4,096 classes; 7,000 in practice


class Type(IntEnum):
    """The first byte of a frame."""

    QUERY = 0x01
    ANSWER = 0x02
    SETTLED = 0x03
    HELLO = 0x10
    WELCOME = 0x11
    READY = 0x12
    REKEY = 0x13
    GATE = 0x14
    ASK = 0x20
    OUTCOME = 0x21
    JOIN = 0x30
    ACCEPT = 0x31
    REFUSED = 0x32
    ROSTER = 0x40
    CLAIM = 0x41
    HELD = 0x42


_SIZES = {
    Type.QUERY: (QUERY_HEADER_BYTES + TAG_BYTES + SIGNATURE_BYTES + 1, MAX_FRAME_BYTES),
    # The largest vote is logits-8 of 4,096 classes: 4,097 bytes.
    Type.ANSWER: (ANSWER_HEADER_BYTES + TAG_BYTES, ANSWER_HEADER_BYTES + 4097 + TAG_BYTES),
    Type.SETTLED: (QUERY_HEADER_BYTES + PREIMAGE_BYTES, QUERY_HEADER_BYTES + PREIMAGE_BYTES),
    Type.HELLO: (HANDSHAKE_HEADER_BYTES + KEY_BYTES + TAG_BYTES + MAC_BYTES, 256),
    Type.WELCOME: (HANDSHAKE_HEADER_BYTES + KEY_BYTES + TAG_BYTES, 256),
    Type.READY: (ANSWER_HEADER_BYTES + TAG_BYTES, 1024),
    Type.REKEY: (ANSWER_HEADER_BYTES + TAG_BYTES, 1024),
    Type.GATE: (ANSWER_HEADER_BYTES + TAG_BYTES + 1, ANSWER_HEADER_BYTES + TAG_BYTES + MAX_GATE_BYTES),
    Type.ASK: (ANSWER_HEADER_BYTES + TAG_BYTES + 1, MAX_FRAME_BYTES),
    Type.OUTCOME: (ANSWER_HEADER_BYTES + TAG_BYTES + 1, MAX_FRAME_BYTES),
    # An ephemeral key, a sealed static key, and an empty payload.
    Type.JOIN: (JOIN_BYTES, JOIN_BYTES),
    Type.ACCEPT: (JOINING_HEADER_BYTES + KEY_BYTES + TAG_BYTES, MAX_ACCEPT_BYTES),
    Type.REFUSED: (JOINING_HEADER_BYTES + 1 + MAC_BYTES, JOINING_HEADER_BYTES + 1 + MAC_BYTES),
    Type.ROSTER: (ROSTER_HEADER_BYTES + TAG_BYTES, MAX_FRAME_BYTES),
    Type.CLAIM: (CLAIM_BYTES, CLAIM_BYTES),
    Type.HELD: (CLAIM_BYTES, CLAIM_BYTES),
}
"""Least and greatest size of each type, in bytes."""


def parse_type(frame: bytes) -> Type:
    """The type of a frame, its size checked against that type."""
    if not frame:
        raise DecodeError("length")
    try:
        kind = Type(frame[0])
    except ValueError:
        raise DecodeError("type") from None
    least, greatest = _SIZES[kind]
    if not least <= len(frame) <= greatest:
        raise DecodeError("length")
    return kind


# A gateway takes apart thousands of frames a second; frozen, each would cost four times as much.


@dataclass(slots=True)
class QueryFrame:
    """QUERY, taken apart. `signed` is all but the signature."""

    epoch: int
    seq: int
    header: bytes
    sealed: bytes
    signed: bytes
    signature: bytes


def build_query_header(epoch: int, seq: int) -> bytes:
    """Header of a QUERY."""
    return _QUERY.pack(Type.QUERY, 0, epoch, seq)


def parse_query(frame: bytes) -> QueryFrame:
    """Take apart a frame whose type is QUERY."""
    _, flags, epoch, seq = _QUERY.unpack_from(frame)
    if flags:
        raise DecodeError("flags")
    signed = frame[:-SIGNATURE_BYTES]
    return QueryFrame(
        epoch,
        seq,
        frame[:QUERY_HEADER_BYTES],
        signed[QUERY_HEADER_BYTES:],
        signed,
        frame[-SIGNATURE_BYTES:],
    )


def build_settled(epoch: int, seq: int, preimage: bytes) -> bytes:
    """A whole SETTLED frame. preimage: 16 bytes."""
    return _QUERY.pack(Type.SETTLED, 0, epoch, seq) + preimage


def parse_settled(frame: bytes) -> tuple[int, int, bytes]:
    """Epoch, seq and preimage of a frame whose type is SETTLED."""
    _, flags, epoch, seq = _QUERY.unpack_from(frame)
    if flags:
        raise DecodeError("flags")
    return epoch, seq, frame[QUERY_HEADER_BYTES:]


@dataclass(slots=True)
class SessionFrame:
    """ANSWER, READY, REKEY, ASK or OUTCOME, taken apart."""

    session: int
    form: int
    """An answer's form; 0 for the others."""
    index: int
    number: int
    """An answer's seq; the session's counter for the others."""
    header: bytes
    sealed: bytes


def build_session_header(kind: Type, session: int, index: int, number: int, form: int = 0) -> bytes:
    """Header of an ANSWER, READY, REKEY, ASK or OUTCOME."""
    return _ANSWER.pack(kind, session << 4 | form, index, number)


def parse_session_frame(frame: bytes) -> SessionFrame:
    """Take apart a frame whose type is ANSWER, READY, REKEY, ASK or OUTCOME."""
    kind, nibbles, index, number = _ANSWER.unpack_from(frame)
    form = nibbles & 0x0F
    if form > (Form.LOGITS_8 if kind == Type.ANSWER else 0):
        raise DecodeError("form")
    header, sealed = frame[:ANSWER_HEADER_BYTES], frame[ANSWER_HEADER_BYTES:]
    return SessionFrame(nibbles >> 4, form, index, number, header, sealed)


def build_handshake_header(kind: Type, index: int) -> bytes:
    """Header of a HELLO or WELCOME."""
    return _HANDSHAKE.pack(kind, 0, index)


@dataclass(slots=True)
class HandshakeFrame:
    """HELLO or WELCOME, taken apart. A WELCOME has an empty mac."""

    index: int
    message: bytes
    """The Noise message."""
    maced: bytes
    """The bytes that the mac is over: all before it."""
    mac: bytes


def parse_handshake(frame: bytes) -> HandshakeFrame:
    """Take apart a frame whose type is HELLO or WELCOME."""
    kind, flags, index = _HANDSHAKE.unpack_from(frame)
    if flags:
        raise DecodeError("flags")
    end = len(frame) - MAC_BYTES if kind == Type.HELLO else len(frame)
    return HandshakeFrame(index, frame[HANDSHAKE_HEADER_BYTES:end], frame[:end], frame[end:])


def build_joining_header(kind: Type, invite: int) -> bytes:
    """Header of a JOIN, ACCEPT or REFUSED."""
    return _JOINING.pack(kind, 0, invite)


@dataclass(slots=True)
class JoiningFrame:
    """JOIN, ACCEPT or REFUSED, taken apart. An ACCEPT has an empty mac."""

    invite: int
    message: bytes
    """The Noise message; a REFUSED's reason."""
    maced: bytes
    """The bytes that the mac is over: all before it."""
    mac: bytes


def parse_joining(frame: bytes) -> JoiningFrame:
    """Take apart a frame whose type is JOIN, ACCEPT or REFUSED."""
    kind, flags, invite = _JOINING.unpack_from(frame)
    if flags:
        raise DecodeError("flags")
    end = len(frame) if kind == Type.ACCEPT else len(frame) - MAC_BYTES
    return JoiningFrame(invite, frame[JOINING_HEADER_BYTES:end], frame[:end], frame[end:])


def build_roster_header(version: int, salt: bytes) -> bytes:
    """Header of a ROSTER. salt: 16 bytes."""
    return _ROSTER.pack(Type.ROSTER, 0, version, salt)


def parse_roster(frame: bytes) -> tuple[int, bytes, bytes]:
    """Version, header and sealed word of a frame whose type is ROSTER."""
    _, flags, version, _ = _ROSTER.unpack_from(frame)
    if flags:
        raise DecodeError("flags")
    return version, frame[:ROSTER_HEADER_BYTES], frame[ROSTER_HEADER_BYTES:]


def build_claim(kind: Type, nonce: bytes) -> bytes:
    """A CLAIM or HELD without its mac. nonce: 16 bytes."""
    return bytes([kind, 0]) + nonce


def parse_claim(frame: bytes) -> tuple[bytes, bytes, bytes]:
    """Nonce, bytes under the mac, and mac of a frame whose type is CLAIM or HELD."""
    if frame[1]:
        raise DecodeError("flags")
    return frame[2:-MAC_BYTES], frame[:-MAC_BYTES], frame[-MAC_BYTES:]
