"""Plaintexts of the sealed frames. Integers are big-endian; tensor elements little-endian.

Decoding accepts exactly what encoding makes: anything short, long or out of range raises
DecodeError("payload"). A size is computed in Python integers before any byte is taken, so that huge
dimensions cost nothing.
"""

import math
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache

from edge_fi.errors import DecodeError
from edge_fi.messages import (
    DTYPES,
    MAX_CLASSES,
    MAX_DEADLINE_MS,
    MAX_RANK,
    MAX_TENSOR_BYTES,
    VOTE_FORMS,
    Fate,
    Form,
    Outcome,
    Query,
    Status,
    Task,
    Tensor,
    Trust,
)

NO_LABEL = 0xFFFF
GATE_NAME_BYTES = 4
_WANTS_GATE = 0x80  # in the byte of WELCOME that has the session's number
_DTYPE_NAMES = tuple(DTYPES)

_QUERY = struct.Struct(">BHI8s")
_HELLO = struct.Struct(">8sB8sB4s")
_WELCOME = struct.Struct(">BIHII32s32s")
_CLIENT_WELCOME = struct.Struct(">BIH")
_READY = struct.Struct(">HI")
_REKEY = struct.Struct(">II32s32s")
_ACCEPT = struct.Struct(">HIBB")
_TASK = struct.Struct(">BBB")
_SCALE = struct.Struct(">hhH")
_BYTE = struct.Struct(">B")
_ASK = struct.Struct(">BI")
_FEEDBACK = struct.Struct(">BIIH")
_LENGTH = struct.Struct(">I")
_OUTCOME = struct.Struct(">IBHHIIIHH")
_PROBABILITY_STEPS = 0xFFFF


@dataclass(frozen=True, slots=True)
class Hello:
    """A device's HELLO. A client's is empty."""

    model: bytes
    """8 bytes: BLAKE2b of the model file."""
    task: int
    task_digest: bytes
    trust: Trust = Trust.NOBODY
    gate: bytes = bytes(GATE_NAME_BYTES)
    """The first 4 bytes of the digest of the gate that it registers; zeros without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """A device's WELCOME; a client's has no epoch."""

    session: int
    """0 to 15; names the session in every header."""
    boot: int
    """Names this run of the gateway; its retained state carries the same number."""
    rejoin_window_ms: int
    """When the gateway is back, wait a random part of this before HELLO."""
    epoch: int = 0
    floor: int = 0
    """Lowest seq still open."""
    epoch_key: bytes = field(default=b"", repr=False)
    verify: bytes = b""
    """32 bytes: the gateway's Ed25519 key of this time, under which queries are signed."""
    wants_gate: bool = False
    """Whether the gateway lacks the gate that HELLO named: the device sends it, behind its READY."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rekey:
    """A new epoch, carried under a session."""

    epoch: int
    grace_ms: int
    """Queries of the epoch before stay open for this long at the most."""
    epoch_key: bytes = field(repr=False)
    verify: bytes
    """As in WELCOME."""


@dataclass(frozen=True, slots=True)
class Ready:
    """What a device says of itself under a session."""

    forms: frozenset[Form]
    """Forms that its owner allows."""
    epoch: int
    """The number of the epoch that it holds."""


class Refusal(IntEnum):
    """Why a JOIN is refused. The values are those of REFUSED frames."""

    USED = 1
    EXPIRED = 2
    WITHDRAWN = 3
    NAME_TAKEN = 4
    FULL = 5
    BUSY = 6
    """The gateway cannot write its state now: the invite is as good as before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept:
    """What a new member is told."""

    index: int
    version: int
    """Of the roster."""
    task: int
    """The one task that a device may join; 0 for any."""
    tasks: tuple[Task, ...]
    """What the federation agrees on."""
    features: tuple[bytes, ...]
    """Of each task its feature map; empty where it has none, or one that did not fit."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A client's query."""

    task: int
    deadline_ms: int
    tensor: Tensor


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a query showed, as its client learnt later. It travels as an ASK of task 0."""

    epoch: int
    seq: int
    label: int


def encode_forms(forms: frozenset[Form]) -> int:
    """Bit n stands for form n. ABSTAIN is always allowed and has no bit."""
    return sum(1 << form for form in forms if form is not Form.ABSTAIN)


@lru_cache(maxsize=256)  # every mask that this version can make
def decode_forms(mask: int) -> frozenset[Form]:
    """The forms known here; a bit of a later version is not an error."""
    return frozenset(form for form in VOTE_FORMS if mask >> form & 1)


def encode_query(query: Query) -> bytes:
    """Plaintext of QUERY."""
    mask = encode_forms(query.forms)
    fixed = _QUERY.pack(query.task, mask, query.deadline_ms, query.settle)
    return fixed + _encode_tensor(query.tensor)


def decode_query(payload: bytes) -> Query:
    """Inverse of encode_query."""
    if len(payload) < _QUERY.size:
        raise DecodeError("payload")
    task, mask, deadline_ms, settle = _QUERY.unpack_from(payload)
    if not 1 <= deadline_ms <= MAX_DEADLINE_MS:
        raise DecodeError("payload")
    return Query(
        task=task,
        forms=decode_forms(mask),
        deadline_ms=deadline_ms,
        settle=settle,
        tensor=_decode_tensor(payload, _QUERY.size),
    )


def encode_hello(hello: Hello) -> bytes:
    """Plaintext in a device's HELLO."""
    return _HELLO.pack(hello.model, hello.task, hello.task_digest, hello.trust, hello.gate)


def decode_hello(payload: bytes) -> Hello:
    """Inverse of encode_hello."""
    model, task, task_digest, trust, gate = _unpack(_HELLO, payload)
    if trust not in list(Trust) or (trust != Trust.GATE and any(gate)):
        raise DecodeError("payload")
    return Hello(model, task, task_digest, Trust(trust), gate)


def encode_welcome(welcome: Welcome) -> bytes:
    """Plaintext in WELCOME: the long form where it carries an epoch key."""
    if not welcome.epoch_key:
        return _CLIENT_WELCOME.pack(welcome.session, welcome.boot, welcome.rejoin_window_ms)
    return _WELCOME.pack(
        welcome.session | _WANTS_GATE * welcome.wants_gate,
        welcome.boot,
        welcome.rejoin_window_ms,
        welcome.epoch,
        welcome.floor,
        welcome.epoch_key,
        welcome.verify,
    )


def decode_welcome(payload: bytes, *, is_device: bool) -> Welcome:
    """Inverse of encode_welcome, in the form of the receiver's role."""
    if is_device:
        session, boot, window_ms, epoch, floor, key, verify = _unpack(_WELCOME, payload)
    else:
        session, boot, window_ms = _unpack(_CLIENT_WELCOME, payload)
        epoch, floor, key, verify = 0, 0, b"", b""
    wants_gate = is_device and bool(session & _WANTS_GATE)
    session -= _WANTS_GATE * wants_gate
    if session > 15:
        raise DecodeError("payload")
    return Welcome(
        session=session,
        wants_gate=wants_gate,
        boot=boot,
        rejoin_window_ms=window_ms,
        epoch=epoch,
        floor=floor,
        epoch_key=key,
        verify=verify,
    )


def encode_ready(ready: Ready) -> bytes:
    """Plaintext of READY."""
    return _READY.pack(encode_forms(ready.forms), ready.epoch)


def decode_ready(payload: bytes) -> Ready:
    """Inverse of encode_ready."""
    mask, epoch = _unpack(_READY, payload)
    return Ready(decode_forms(mask), epoch)


def encode_rekey(rekey: Rekey) -> bytes:
    """Plaintext of REKEY."""
    return _REKEY.pack(rekey.epoch, rekey.grace_ms, rekey.epoch_key, rekey.verify)


def decode_rekey(payload: bytes) -> Rekey:
    """Inverse of encode_rekey."""
    epoch, grace_ms, key, verify = _unpack(_REKEY, payload)
    if grace_ms > MAX_DEADLINE_MS:
        raise DecodeError("payload")
    return Rekey(epoch=epoch, grace_ms=grace_ms, epoch_key=key, verify=verify)


def encode_accept(accept: Accept, *, longest: int) -> bytes:
    """Plaintext in ACCEPT. longest: its greatest size; a task, or its map, that does not fit is left out."""
    encoded: list[bytes] = []
    left = longest - _ACCEPT.size
    for task, features in zip(accept.tasks, accept.features, strict=True):
        definition = _encode_name(task.name) + task.definition()
        if len(definition) + _LENGTH.size > left:
            continue
        fitting = features if len(definition) + _LENGTH.size + len(features) <= left else b""
        encoded.append(definition + _LENGTH.pack(len(fitting)) + fitting)
        left -= len(encoded[-1])
    return _ACCEPT.pack(accept.index, accept.version, accept.task, len(encoded)) + b"".join(encoded)


def decode_accept(payload: bytes) -> Accept:
    """Inverse of encode_accept."""
    if len(payload) < _ACCEPT.size:
        raise DecodeError("payload")
    index, version, task, count = _ACCEPT.unpack_from(payload)
    tasks, maps, at = [], [], _ACCEPT.size
    for _ in range(count):
        its_task, at = _decode_task(payload, at)
        (length,) = _unpack_from(_LENGTH, payload, at)
        at += _LENGTH.size
        tasks.append(its_task)
        maps.append(payload[at : at + length])
        at += length
        if length and not its_task.features:
            raise DecodeError("payload")
    if index == 0 or at != len(payload):
        raise DecodeError("payload")
    return Accept(index=index, version=version, task=task, tasks=tuple(tasks), features=tuple(maps))


def encode_roster(highest: int, revoked: frozenset[int]) -> bytes:
    """Plaintext of ROSTER: the highest index ever given, and those of former members."""
    return struct.pack(f">{1 + len(revoked)}H", highest, *sorted(revoked))


def decode_roster(payload: bytes) -> tuple[int, frozenset[int]]:
    """Inverse of encode_roster."""
    if len(payload) < 2 or len(payload) % 2:
        raise DecodeError("payload")
    highest, *revoked = struct.unpack(f">{len(payload) // 2}H", payload)
    if sorted(set(revoked)) != revoked or not all(0 < index <= highest for index in revoked):
        raise DecodeError("payload")
    return highest, frozenset(revoked)


def encode_ask(ask: Ask) -> bytes:
    """Plaintext of ASK."""
    return _ASK.pack(ask.task, ask.deadline_ms) + _encode_tensor(ask.tensor)


def encode_feedback(feedback: Feedback) -> bytes:
    """Plaintext of the ASK that carries it."""
    return _FEEDBACK.pack(0, feedback.epoch, feedback.seq, feedback.label)


def decode_ask(payload: bytes) -> Ask | Feedback:
    """Inverse of encode_ask and encode_feedback."""
    if payload[:1] == b"\0":
        return Feedback(*_unpack(_FEEDBACK, payload)[1:])
    if len(payload) < _ASK.size:
        raise DecodeError("payload")
    task, deadline_ms = _ASK.unpack_from(payload)
    if not 1 <= deadline_ms <= MAX_DEADLINE_MS:
        raise DecodeError("payload")
    return Ask(task, deadline_ms, _decode_tensor(payload, _ASK.size))


def encode_outcome(counter: int, outcome: Outcome) -> bytes:
    """Plaintext of OUTCOME: what became of the ASK with this counter."""
    steps = [math.floor(p * _PROBABILITY_STEPS + 0.5) for p in outcome.probabilities]
    fixed = _OUTCOME.pack(
        counter,
        outcome.status,
        NO_LABEL if outcome.label is None else outcome.label,
        math.floor(outcome.agreement * _PROBABILITY_STEPS + 0.5),
        outcome.epoch,
        outcome.seq,
        min(outcome.elapsed_us, 0xFFFFFFFF),
        len(steps),
        len(outcome.label_set),
    )
    return b"".join(
        [
            fixed,
            struct.pack(f">{len(steps)}H", *steps),
            struct.pack(f">{len(outcome.label_set)}H", *outcome.label_set),
            _encode_name(outcome.strategy),
            _encode_name(outcome.reason),
            *(bytes([fate]) + _encode_name(device) for device, fate in outcome.fates),
        ]
    )


def decode_outcome(payload: bytes) -> tuple[int, Outcome]:
    """Inverse of encode_outcome, without votes."""
    if len(payload) < _OUTCOME.size:
        raise DecodeError("payload")
    counter, status, label, agreement, epoch, seq, elapsed_us, classes, chosen = _OUTCOME.unpack_from(payload)
    names_at = _OUTCOME.size + 2 * (classes + chosen)
    if (
        status not in list(Status)
        or max(classes, chosen) > MAX_CLASSES
        or len(payload) < names_at
        or (label != NO_LABEL and label >= classes)
    ):
        raise DecodeError("payload")
    steps = struct.unpack_from(f">{classes}H", payload, _OUTCOME.size)
    label_set = struct.unpack_from(f">{chosen}H", payload, _OUTCOME.size + 2 * classes)
    if any(its >= classes for its in label_set) or list(label_set) != sorted(set(label_set)):
        raise DecodeError("payload")
    strategy, at = _decode_name(payload, names_at)
    reason, at = _decode_name(payload, at)
    fates = []
    while at < len(payload):
        fate = payload[at]
        if fate not in list(Fate):
            raise DecodeError("payload")
        device, at = _decode_name(payload, at + 1)
        fates.append((device, Fate(fate)))
    return counter, Outcome(
        status=Status(status),
        label=None if label == NO_LABEL else label,
        probabilities=tuple(step / _PROBABILITY_STEPS for step in steps),
        agreement=agreement / _PROBABILITY_STEPS,
        strategy=strategy,
        reason=reason,
        label_set=label_set,
        fates=tuple(fates),
        epoch=epoch,
        seq=seq,
        elapsed_us=elapsed_us,
    )


def _encode_name(name: str) -> bytes:
    return bytes([len(name)]) + name.encode("ascii")


def _decode_name(payload: bytes, at: int) -> tuple[str, int]:
    """The name at this place and the place behind it."""
    end = at + 1 + (payload[at] if at < len(payload) else 0)
    name = payload[at + 1 : end]
    if end > len(payload) or not name.isascii():
        raise DecodeError("payload")
    return name.decode("ascii"), end


def _decode_task(payload: bytes, at: int) -> tuple[Task, int]:
    """The task whose name and definition are at this place, and the place behind them."""
    name, at = _decode_name(payload, at)
    number, code, rank = _unpack_from(_TASK, payload, at)
    at += _TASK.size
    shape = _unpack_from(struct.Struct(f">{rank}I"), payload, at)
    at += 4 * rank
    low, high, classes = _unpack_from(_SCALE, payload, at)
    at += _SCALE.size
    labels = []
    for _ in range(classes):
        end = at + 1 + _unpack_from(_BYTE, payload, at)[0]
        labels.append(payload[at + 1 : end])
        at = end
    end = at + 1 + _unpack_from(_BYTE, payload, at)[0]
    features, at = payload[at + 1 : end], end
    try:
        if code >= len(_DTYPE_NAMES) or at > len(payload):
            raise ValueError
        task = Task(
            name=name,
            number=number,
            labels=tuple(label.decode() for label in labels),
            shape=shape,
            dtype=_DTYPE_NAMES[code],
            log_weight=(low, high),
            features=features,
        )
    except ValueError:  # of UTF-8 too
        raise DecodeError("payload") from None
    return task, at


def _unpack_from(layout: struct.Struct, payload: bytes, at: int) -> tuple:  # type: ignore[type-arg]
    if len(payload) < at + layout.size:
        raise DecodeError("payload")
    return layout.unpack_from(payload, at)


def _encode_tensor(tensor: Tensor) -> bytes:
    """Dtype u8, rank u8, rank sizes u32, then the elements."""
    shape = struct.pack(f">{len(tensor.shape)}I", *tensor.shape)
    head = bytes([_DTYPE_NAMES.index(tensor.dtype), len(tensor.shape)])
    return head + shape + tensor.content


def _decode_tensor(payload: bytes, at: int) -> Tensor:
    if len(payload) < at + 2:
        raise DecodeError("payload")
    code, rank = payload[at], payload[at + 1]
    content_at = at + 2 + 4 * rank
    if code >= len(_DTYPE_NAMES) or not 1 <= rank <= MAX_RANK or len(payload) < content_at:
        raise DecodeError("payload")
    shape = struct.unpack_from(f">{rank}I", payload, at + 2)
    dtype = _DTYPE_NAMES[code]
    needed = math.prod(shape) * DTYPES[dtype]
    if not 0 < needed <= MAX_TENSOR_BYTES or len(payload) - content_at != needed:
        raise DecodeError("payload")
    return Tensor(dtype, shape, payload[content_at:])


def _unpack(layout: struct.Struct, payload: bytes) -> tuple:  # type: ignore[type-arg]
    if len(payload) != layout.size:
        raise DecodeError("payload")
    return layout.unpack(payload)
