"""A device of the protocol `fi1`, and how it joins, written from docs/protocol.md alone.

    python standalone_device.py --invite FILE --state FILE --label 3 [--task N] [--once]
    python standalone_device.py --state FILE --label 3 [--once]

PyNaCl and the standard library are all it needs. `--invite -` reads the invite from stdin. It writes a JSON
object a line: `joined`, `refused`, `welcome`, `rekey`, `answered` and others. The names in quotes in each
docstring are sections of docs/protocol.md. To be read from top to bottom: primitives, Noise, invite, task,
votes, joiner, device, MQTT, main.
"""

import argparse
import base64
import binascii
import contextlib
import copy
import hashlib
import hmac
import json
import math
import os
import re
import signal
import socket
import ssl
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nacl.bindings import crypto_aead_chacha20poly1305_ietf_decrypt as aead_open
from nacl.bindings import crypto_aead_chacha20poly1305_ietf_encrypt as aead_seal
from nacl.bindings import crypto_scalarmult, crypto_scalarmult_base
from nacl.exceptions import BadSignatureError, CryptoError
from nacl.signing import VerifyKey

ROLES = {1: "device", 2: "client", 3: "helper"}
REASONS = {1: "used", 2: "expired", 3: "withdrawn", 4: "name_taken", 5: "full", 6: "busy"}
QUERY, ANSWER, SETTLED, HELLO, WELCOME, READY, REKEY = 1, 2, 3, 0x10, 0x11, 0x12, 0x13
JOIN, ACCEPT, REFUSED = 0x30, 0x31, 0x32
MB, DAY_MS = 1_000_000, 86_400_000
SIZES = {QUERY: (91, MB), ANSWER: (24, 4121), SETTLED: (26, 26), HELLO: (60, 256), WELCOME: (52, 256)}
SIZES |= {READY: (24, 1024), REKEY: (24, 1024), 0x20: (25, MB), 0x21: (25, MB), JOIN: (110, 110)}
SIZES |= {ACCEPT: (54, 200_000), REFUSED: (15, 15), 0x40: (38, MB), 0x41: (26, 26), 0x42: (26, 26)}
ELEMENT_BYTES = {0: 4, 1: 2, 2: 1, 3: 1}
WINDOW, FIRST_RETRY, LAST_RETRY, LAST_JOIN_RETRY, SESSION_SECONDS = 1024, 0.5, 30.0, 8.0, 86_400.0
OWN_FORMS = 0xFE  # the owner of this device allows every form
Random = Callable[[int], bytes]


class Dropped(Exception):  # noqa: N818 - it is a fate, not a fault
    """What is not acceptable is dropped; the argument is the reason ("Order of checks")."""


def check(ok: object, reason: str) -> None:
    """One check in one of the lists of "Order of checks"."""
    if not ok:
        raise Dropped(reason)


# "Notation": the primitives.


def digest(key: bytes, person: str, context: bytes, size: int) -> bytes:
    """D(key, person, context, size)."""
    return hashlib.blake2b(context, key=key, person=person.encode(), digest_size=size).digest()


def len8(x: bytes) -> bytes:
    """The length of x, then x."""
    return bytes([len(x)]) + x


def dh(private: bytes, public: bytes) -> bytes:
    """X25519; libsodium refuses a result of zeros."""
    try:
        return crypto_scalarmult(private, public)
    except (CryptoError, RuntimeError):
        raise Dropped("key") from None


def seal(key: bytes, n: int, header: bytes, text: bytes) -> bytes:
    """SEAL(key, n, header, text)."""
    return aead_seal(text, header, struct.pack("<IQ", 0, n), key)


def open_sealed(key: bytes, n: int, header: bytes, sealed: bytes) -> bytes:
    """The text of what SEAL made."""
    try:
        return aead_open(sealed, header, struct.pack("<IQ", 0, n), key)
    except CryptoError:
        raise Dropped("seal") from None


def check_head(frame: bytes, types: set[int]) -> None:
    """ "Frames": `length`, `type`, `length`, `direction`, before any key is used."""
    check(frame, "length")
    check(frame[0] in SIZES, "type")
    check(SIZES[frame[0]][0] <= len(frame) <= SIZES[frame[0]][1], "length")
    check(frame[0] in types, "direction")


class Noise:
    """ "Joining" and "Handshake": h, ck, k and n of one handshake, on the initiator's side."""

    def __init__(self, name: bytes, *begin: bytes) -> None:
        self.h = name.ljust(64, b"\0") if len(name) <= 64 else hashlib.blake2b(name).digest()
        self.ck, self.k, self.n = self.h, b"", 0
        for x in begin:
            self.mix_hash(x)

    def mix_hash(self, x: bytes) -> None:
        """h = H(h | x)."""
        self.h = hashlib.blake2b(self.h + x).digest()

    def hkdf(self, x: bytes) -> tuple[bytes, bytes, bytes]:
        """HKDF3(ck, x), of which HKDF is the first two."""
        t = hmac.digest(self.ck, x, hashlib.blake2b)
        o1 = hmac.digest(t, b"\1", hashlib.blake2b)
        o2 = hmac.digest(t, o1 + b"\2", hashlib.blake2b)
        return o1, o2, hmac.digest(t, o2 + b"\3", hashlib.blake2b)

    def mix_key(self, x: bytes) -> None:
        """ck, k = HKDF(ck, x); n = 0."""
        self.ck, self.k, self.n = *self.hkdf(x)[:2], 0

    def mix_psk(self, psk: bytes) -> None:
        """ck, t, k = HKDF3(ck, psk); h = H(h | t); n = 0."""
        self.ck, t, self.k = self.hkdf(psk)
        self.mix_hash(t)
        self.n = 0

    def emit(self, x: bytes) -> bytes:
        """EMIT(x)."""
        sealed = seal(self.k[:32], self.n, self.h, x)
        self.mix_hash(sealed)
        self.n += 1
        return sealed

    def accept(self, sealed: bytes) -> bytes:
        """What EMIT made, opened."""
        text = open_sealed(self.k[:32], self.n, self.h, sealed)
        self.mix_hash(sealed)
        self.n += 1
        return text

    def read_message_2(
        self, message: bytes, em: bytes, sm: bytes, psk1: bool = False
    ) -> tuple["Noise", bytes]:
        """Message 2 of either handshake, on a copy: one that does not open leaves the handshake as it was."""
        after, eg = copy.copy(self), message[:32]
        after.mix_hash(eg)
        if psk1:
            after.mix_key(eg)
        after.mix_key(dh(em, eg))
        after.mix_key(dh(sm, eg))
        return after, after.accept(message[32:])


class Cursor:
    """Reads fields one after another; too few bytes are `reason`."""

    def __init__(self, data: bytes, reason: str) -> None:
        self.data, self.reason = data, reason

    def take(self, size: int) -> bytes:
        """The next bytes."""
        check(len(self.data) >= size, self.reason)
        taken, self.data = self.data[:size], self.data[size:]
        return taken

    def number(self, size: int) -> int:
        """The next number."""
        return int.from_bytes(self.take(size), "big")

    def text(self, pattern: str) -> str:
        """The next len8 of ASCII, which must match."""
        found = self.take(self.number(1)).decode("latin-1")
        check(re.fullmatch(pattern, found, re.ASCII), self.reason)
        return found


def parse_invite(text: str) -> dict[str, Any]:
    """ "Invite": its one line; Dropped if it is none, was damaged, is of a later version, or not allowed."""
    text = "".join(text.split()).upper()
    check(text.startswith("FI1:"), "no_invite")
    try:
        data = base64.b32decode(text[4:] + "=" * (-len(text[4:]) % 8))
    except binascii.Error:
        raise Dropped("damaged") from None
    check(base64.b32encode(data).decode().rstrip("=") == text[4:], "damaged")  # loose bits, padding
    check(len(data) >= 59 + 4, "damaged")
    check(hashlib.blake2b(data[:-4], digest_size=4, person=b"fi1 invite").digest() == data[-4:], "damaged")
    check(data[0] == 1, "later")
    c, flags = Cursor(data[2:-4], "not_allowed"), data[1]
    check(flags in (0, 1, 3) and data[2] in ROLES, "not_allowed")
    found: dict[str, Any] = {"tls": bool(flags), "role": ROLES[c.number(1)], "invite": c.number(4)}
    found |= {"expires": c.number(4), "token": c.take(16).hex(), "gateway_public": c.take(32).hex()}
    found |= {"pin": c.take(8 * (flags & 2)).hex(), "port": c.number(2)}
    found |= {"host": c.text(r"[0-9A-Za-z._:-]+"), "federation": c.text(r"[a-z0-9-]{1,16}")}
    found["id"] = c.text(r"[a-z0-9][a-z0-9-]{0,23}")
    check(found["id"] not in ("gateway", "helper", "client", "join"), "not_allowed")
    check(found["invite"] and found["port"] and not c.data, "not_allowed")
    return found


@dataclass(frozen=True)
class Task:
    """ "Task digest": what a federation agrees on."""

    name: str
    number: int
    dtype: int
    shape: tuple[int, ...]
    low: int
    high: int
    labels: tuple[str, ...]
    features: str = ""
    """The digest of its feature map, in hex."""

    @classmethod
    def read(cls, c: Cursor) -> "Task":
        """One task of the plaintext of ACCEPT ("Joining")."""
        name, number, dtype = c.text(r"[a-z0-9-]{1,32}"), c.number(1), c.number(1)
        shape = tuple(c.number(4) for _ in range(c.number(1)))
        low, high = struct.unpack(">hh", c.take(4))
        try:
            labels = tuple(c.take(c.number(1)).decode() for _ in range(c.number(2)))
        except UnicodeDecodeError:
            raise Dropped("payload") from None
        features = c.take(c.number(1))
        check(len(features) in (0, 8), "payload")
        check(len(c.take(c.number(4))) == 0 or features, "payload")  # the map, which is not used here
        check(number and dtype in ELEMENT_BYTES and low < high, "payload")
        check(1 <= len(shape) <= 8 and all(shape), "payload")
        check(math.prod(shape) * ELEMENT_BYTES[dtype] <= 900_000, "payload")
        check(2 <= len(labels) <= 4096 and all(labels) and len(set(labels)) == len(labels), "payload")
        return cls(name, number, dtype, shape, low, high, labels, features.hex())

    def digest(self) -> bytes:
        """What HELLO names."""
        head = struct.pack(f">BBB{len(self.shape)}I", self.number, self.dtype, len(self.shape), *self.shape)
        head += struct.pack(">hhH", self.low, self.high, len(self.labels))
        labels = b"".join(len8(label.encode()) for label in self.labels)
        return digest(b"", "fi1 task", head + labels + len8(bytes.fromhex(self.features)), 8)


@dataclass(frozen=True)
class Tensor:
    """ "QUERY": the input that is asked about."""

    dtype: int
    shape: tuple[int, ...]
    elements: bytes

    @classmethod
    def read(cls, data: bytes) -> "Tensor":
        """Python's numbers do not wrap."""
        c = Cursor(data, "payload")
        dtype, rank = c.number(1), c.number(1)
        check(dtype in ELEMENT_BYTES and 1 <= rank <= 8, "payload")
        shape = tuple(c.number(4) for _ in range(rank))
        size = math.prod(shape) * ELEMENT_BYTES[dtype]
        check(1 <= size <= 900_000 and len(c.data) == size, "payload")
        return cls(dtype, shape, c.data)


Model = Callable[[Tensor], Sequence[float] | None]


# "Votes": from scores to the plaintext of an ANSWER.


def distribution(scores: Sequence[float], known: Sequence[int], classes: int) -> list[float]:
    """Softmax over the classes that the model knows, 0 for the others."""
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    p = [0.0] * classes
    for label, power in zip(known, powers, strict=True):
        p[label] = power / sum(powers)
    return p


def code_bytes(form: int, classes: int) -> int:
    """How long a code of this form is."""
    if form == 1:
        return 2 if classes <= 256 else 3
    return 1 + (classes if form == 7 else math.ceil(classes * {2: 2, 3: 3, 4: 4, 5: 6, 6: 8}[form] / 8))


def choose_form(allowed: int, classes: int) -> int:
    """The one with the most bytes, of equals the greater number; 0 if there is none."""
    forms = [form for form in range(1, 8) if allowed >> form & 1]
    return max(forms, key=lambda form: (code_bytes(form, classes), form), default=0)


def encode_vote(form: int, p: Sequence[float], log_weight: float, low: float, high: float) -> bytes:
    """The column "encode"."""
    w, top, count = (min(max(log_weight, low), high) - low) / (high - low), max(p), len(p)
    if form == 1:
        share = min(max(math.floor(8 * (top - 1 / count) / (1 - 1 / count)), 0), 7)
        packed = p.index(top) << 8 | share << 5 | math.floor(31 * w + 0.5)
        return packed.to_bytes(code_bytes(1, count), "big")
    weight = bytes([math.floor(255 * w + 0.5)])
    if form == 7:
        logs = [16 * (math.log(top) - math.log(x)) if x > 0 else None for x in p]
        return weight + bytes(255 if x is None else min(254, math.floor(x + 0.5)) for x in logs)
    bits = {2: 2, 3: 3, 4: 4, 5: 6, 6: 8}[form]
    size, packed = code_bytes(form, count) - 1, 0
    for x in p:
        packed = packed << bits | math.floor((2**bits - 1) * x / top + 0.5)
    return weight + (packed << (8 * size - bits * count)).to_bytes(size, "big")


class Party:
    """What `run` needs of a joiner and of a device alike: names, topics, what to send."""

    names, topics, will = ("", "", ""), [""], ""  # client id, user name, password; the Will's topic, if any
    online, done, patience = False, False, math.inf  # patience: so many CONNACKs with a code in a row

    def __init__(self) -> None:
        self.out: list[tuple[str, bytes, int, bool]] = []
        self.events: list[tuple[str, dict[str, object]]] = []
        self.drops: Counter[str] = Counter()

    def send(self, topic: str, payload: bytes, qos: int = 0, retain: bool = False) -> None:
        """Nothing waits for a connection: loss is repaired end to end."""
        if self.online:
            self.out.append((topic, payload, qos, retain))

    def connected(self, now: float) -> None:
        """Connected, and every SUBACK has come."""

    def disconnected(self) -> None:
        """What was to be sent is lost; everything else is kept."""
        self.online = False
        self.out.clear()

    def tick(self, now: float) -> None:
        """Send what is due."""

    def receive(self, topic: str, payload: bytes, now: float) -> None:
        """One message; raise Dropped and change nothing if a check fails."""

    def take(self, topic: str, payload: bytes, now: float) -> str:
        """Any message; the reason for which it was dropped and counted, or nothing."""
        try:
            self.receive(topic, payload, now)
        except Dropped as drop:
            self.drops[str(drop)] += 1
            return str(drop)
        return ""


class Joiner(Party):
    """ "Joining": JOIN until an ACCEPT, or a REFUSED that is not `busy`."""

    patience = 6

    def __init__(self, invite: dict[str, Any], private: bytes, random: Random) -> None:
        super().__init__()
        token, gateway = bytes.fromhex(invite["token"]), bytes.fromhex(invite["gateway_public"])
        self.number = struct.pack(">I", invite["invite"])
        names = (invite[key].encode() for key in ("federation", "role", "id"))
        prologue = b"fi1 join" + b"".join(map(len8, names)) + self.number
        user, password = f"join_{invite['invite']}", digest(token, "fi1 join user", b"", 16).hex()
        self.names = "fi-join-" + random(8).hex(), user, password
        base = f"fi1/{invite['federation']}"
        self.up, self.topics = f"{base}/join", [f"{base}/j/{invite['invite']}"]
        self.mac_key = digest(token, "fi1 join key", prologue, 32)
        self.private, self.ephemeral = private, random(32)
        em = crypto_scalarmult_base(self.ephemeral)
        self.noise = Noise(b"Noise_IKpsk1_25519_ChaChaPoly_BLAKE2b", prologue, gateway, em)
        self.noise.mix_key(em)
        self.noise.mix_key(dh(self.ephemeral, gateway))
        static = self.noise.emit(crypto_scalarmult_base(private))
        self.noise.mix_key(dh(private, gateway))
        self.noise.mix_psk(digest(token, "fi1 join psk", prologue, 32))
        join = bytes([JOIN, 0]) + self.number + em + static + self.noise.emit(b"")
        self.frame = join + digest(self.mac_key, "fi1 join mac", join, 8)
        self.due, self.wait = 0.0, FIRST_RETRY
        self.reason, self.index, self.only_task, self.tasks = "", 0, 0, list[Task]()

    def connected(self, now: float) -> None:
        """JOIN on each connect; the waits begin again."""
        self.online, self.due, self.wait = True, now, FIRST_RETRY

    def tick(self, now: float) -> None:
        """The same JOIN, when its time has come."""
        if self.online and not self.done and now >= self.due:
            self.send(self.up, self.frame)
            self.due, self.wait = now + self.wait, min(2 * self.wait, LAST_JOIN_RETRY)

    def receive(self, topic: str, payload: bytes, now: float) -> None:
        """ACCEPT or REFUSED, in the order of checks; after the one that ends it, nothing."""
        check(not self.done, "unexpected")
        check_head(payload, {ACCEPT, REFUSED})
        check(payload[1] == 0, "flags")
        check(payload[2:6] == self.number, "invite")
        if payload[0] == REFUSED:
            mac = digest(self.mac_key, "fi1 refused", payload[:7] + self.frame[-8:], 8)
            check(hmac.compare_digest(mac, payload[7:]), "mac")
            check(payload[6] in REASONS, "payload")
            self.reason, self.done = REASONS[payload[6]], REASONS[payload[6]] != "busy"
            return
        c = Cursor(self.noise.read_message_2(payload[6:], self.ephemeral, self.private, True)[1], "payload")
        index, _version, only_task, count = c.number(2), c.number(4), c.number(1), c.number(1)
        tasks = [Task.read(c) for _ in range(count)]
        check(index and not c.data, "payload")
        self.index, self.only_task, self.tasks, self.done = index, only_task, tasks, True


@dataclass
class Epoch:
    """The key under which a task's queries travel, and who signs them ("Keys")."""

    number: int
    key: bytes
    verify: bytes
    until: float = math.inf

    def __post_init__(self) -> None:
        self.seal_key = digest(self.key, "fi1 query seal", b"", 32)
        self.hash_key = digest(self.key, "fi1 query hash", b"", 32)


@dataclass
class Query:
    """ "Queries": pending, sealed (it has an answer) or declined; one that is not here is new."""

    epoch: int
    hash: bytes
    seq: int
    forms: int
    settle: bytes
    tensor: Tensor
    late: float
    state: str = "pending"
    answer: bytes = b""


@dataclass
class Session:
    """ "Session": one handshake's keys. Window, answers and pending inferences die with it."""

    number: int
    boot: int
    window: float
    floor: int
    epoch: Epoch
    welcome: bytes
    began: float
    to_gateway: bytes
    to_member: bytes
    former: Epoch | None = None
    rekey: bytes = b""
    counter: int = 0
    rekey_counter: int = -1
    newest: int = 0
    queries: dict[int, Query] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.k_answer = digest(self.to_gateway, "fi1 answer", b"", 32)
        self.k_up = digest(self.to_gateway, "fi1 frame", b"", 32)
        self.k_down = digest(self.to_member, "fi1 frame", b"", 32)

    def held(self, number: int, now: float) -> Epoch | None:
        """The latest epoch, or the one before within its grace."""
        if number == self.epoch.number:
            return self.epoch
        former = self.former
        return former if former and former.number == number and now <= former.until else None


class Device(Party):
    """ "Device": sessions, queries and presence. What it is to infer waits in `jobs`."""

    def __init__(self, member: dict[str, Any], task: Task, model: bytes, random: Random) -> None:
        super().__init__()
        self.private, self.gateway = (
            bytes.fromhex(member[key]) for key in ("member_private", "gateway_public")
        )
        self.index, self.fed = member["index"], len8(member["federation"].encode())
        self.prologue = b"fi1" + self.fed + len8(b"device") + struct.pack(">H", self.index)
        self.shared = dh(self.private, self.gateway)
        client_id = "fi" + digest(self.private, "fi1 client id", b"", 10).hex()
        self.names = client_id, member["id"], digest(self.shared, "fi1 broker", self.prologue, 16).hex()
        self.task, self.model, self.random = task, model, random
        self.known: Sequence[int] = range(len(task.labels))  # the classes of the model
        base, own_id = f"fi1/{member['federation']}", member["id"]
        self.down, self.up, self.will = f"{base}/d/{own_id}", f"{base}/a/{own_id}", f"{base}/s/{own_id}"
        self.common, self.state = f"{base}/q/{task.number}", f"{base}/gateway/state"
        self.topics = [self.common, self.down, self.state, self.will]
        self.jobs: list[tuple[Session, Query]] = []
        self.session: Session | None = None
        # HELLO waits while one is out or due; `hello` is empty until it was sent.
        self.waiting, self.hello, self.ephemeral, self.spoilt = True, b"", b"", False
        self.noise: Noise | None = None
        self.due, self.wait, self.said = 0.0, FIRST_RETRY, -math.inf
        self.doubt, self.doubt_until = 0.0, -math.inf
        self.state_boot: int | None = None  # of the latest `gateway/state` while HELLO waited
        self.checked = self.shown = -math.inf
        self.show_due = math.inf

    # Presence and the rhythm of HELLO ("Presence", "Session").

    def presence(self) -> bytes:
        """`init` without a session, `ready` with one."""
        return b"ready" if self.session else b"init"

    def show(self, now: float) -> None:
        """Publish presence."""
        self.shown, self.show_due = now, math.inf
        self.send(self.will, self.presence(), 1, True)

    def connected(self, now: float) -> None:
        """Connected, and every SUBACK has come."""
        self.online = True
        self.show(now)
        if self.session:
            self.ready()
        elif self.waiting:
            self.due = max(now, self.said + FIRST_RETRY)
        self.tick(now)

    def expect(self, due: float) -> None:
        """A HELLO is due, under a new ephemeral key."""
        self.waiting, self.hello, self.due, self.wait = True, b"", due, FIRST_RETRY
        self.state_boot = None

    def hint(self, now: float) -> None:
        """HELLO after a random part of the rejoin window, no sooner than distance and doubt allow."""
        window = min(self.session.window, 60.0) if self.session else 1.0
        at = now + window * int.from_bytes(self.random(2), "big") / 65536
        at = max(at, self.said + FIRST_RETRY, self.doubt_until)
        if self.waiting:
            self.due, self.wait = min(self.due, at), FIRST_RETRY
        else:
            self.expect(at)

    def tick(self, now: float) -> None:
        """Send what is due."""
        if not self.online:
            return
        if self.session and not self.waiting and now >= self.session.began + SESSION_SECONDS:
            self.expect(now)
        if now >= self.show_due:
            self.show(now)
        if self.waiting and now >= self.due:
            if not self.hello or self.spoilt:
                self.make_hello()
            self.send(self.up, self.hello)
            self.said, self.due = now, now + self.wait * (1 + self.random(1)[0] / 1024)
            self.wait = min(2 * self.wait, LAST_RETRY)

    def make_hello(self) -> None:
        """Message 1 of "Handshake", under a new ephemeral key."""
        private = self.random(32)
        sm, em = crypto_scalarmult_base(self.private), crypto_scalarmult_base(private)
        noise = Noise(b"Noise_KK_25519_ChaChaPoly_BLAKE2b", self.prologue, sm, self.gateway, em)
        noise.mix_key(dh(private, self.gateway))
        noise.mix_key(self.shared)
        sealed = noise.emit(self.model + bytes([self.task.number]) + self.task.digest() + bytes(5))
        hello = struct.pack(">BBH", HELLO, 0, self.index) + em + sealed
        mac_key = digest(self.shared, "fi1 hello key", self.prologue, 32)
        self.hello = hello + digest(mac_key, "fi1 hello mac", hello, 8)
        self.noise, self.ephemeral, self.spoilt = noise, private, False

    def ready(self) -> None:
        """READY, always made anew, under the next counter."""
        s = self.session
        assert s
        head = struct.pack(">BBHI", READY, s.number << 4, self.index, s.counter)
        text = struct.pack(">HI", OWN_FORMS, s.epoch.number)
        self.send(self.up, head + seal(s.k_up, s.counter, head, text))
        s.counter += 1

    # What comes ("Order of checks").

    def receive(self, topic: str, payload: bytes, now: float) -> None:
        """By its topic and type."""
        if topic == self.will:
            if payload != self.presence():
                self.show_due = max(now, self.shown + 1.0)
        elif topic == self.state:
            self.take_state(payload, now)
        elif topic == self.common:
            check_head(payload, {QUERY, SETTLED})
            (self.take_query if payload[0] == QUERY else self.take_settled)(payload, now)
        elif topic == self.down:
            check_head(payload, {QUERY, WELCOME, REKEY})
            takes = {QUERY: self.take_query, WELCOME: self.take_welcome, REKEY: self.take_rekey}
            takes[payload[0]](payload, now)
        else:
            raise Dropped("topic")

    def take_state(self, text: bytes, now: float) -> None:
        """A `gateway/state` with another boot, or any while HELLO waits, is a hint."""
        if not re.fullmatch(rb"ready [0-9a-f]{8}", text):
            return
        boot = int(text[6:], 16)
        if self.waiting or (self.session and boot != self.session.boot):
            self.hint(now)
            self.state_boot = boot

    def take_welcome(self, frame: bytes, now: float) -> None:
        """A session begins, or the one that it began is confirmed again."""
        old = self.session
        if old and frame == old.welcome:
            self.ready()
            return
        check(frame[1] == 0, "flags")
        check(int.from_bytes(frame[2:4], "big") == self.index, "index")
        if not self.waiting:
            self.hint(now)
            raise Dropped("unexpected")
        check(self.hello and self.noise, "unexpected")
        assert self.noise
        noise, text = self.noise.read_message_2(frame[4:], self.ephemeral, self.private)
        if len(text) != 79 or text[0] & 0x7F > 15:
            self.spoilt = True
            raise Dropped("payload")
        number, boot, window, epoch, floor = struct.unpack(">BIHII", text[:15])
        number &= 0x7F  # the highest bit asks for a gate, and this device has none
        to_gateway, to_member, _ = noise.hkdf(b"")
        first = Epoch(epoch, text[15:47], text[47:79])
        keys = to_gateway[:32], to_member[:32]
        self.session = Session(number, boot, window / 1000, floor, first, frame, now, *keys)
        self.waiting, self.hello, self.noise, self.ephemeral, self.spoilt = False, b"", None, b"", False
        self.doubt = min(2 * self.doubt or 1.0, 30.0) if old and old.boot == boot else 0.0
        self.doubt_until = now + self.doubt
        self.ready()
        self.show(now)
        self.events.append(("welcome", {"session": number, "boot": boot, "epoch": epoch}))
        if self.state_boot not in (None, boot):
            self.hint(now)

    def take_rekey(self, frame: bytes, now: float) -> None:
        """A new epoch; the one before is kept for the grace."""
        s, counter = self.session, int.from_bytes(frame[4:8], "big")
        check(frame[1] & 15 == 0, "form")
        check(s and frame[1] >> 4 == s.number, "session")
        check(int.from_bytes(frame[2:4], "big") == self.index, "session")
        assert s
        if frame == s.rekey:
            self.ready()
            return
        check(counter >= s.rekey_counter, "stale")
        check(counter > s.rekey_counter, "replay")
        text = open_sealed(s.k_down, counter, frame[:8], frame[8:])
        check(len(text) == 72, "payload")
        number, grace = struct.unpack(">II", text[:8])
        check(grace <= DAY_MS, "payload")
        s.epoch.until, s.former, s.epoch = now + grace / 1000, s.epoch, Epoch(number, text[8:40], text[40:72])
        s.rekey, s.rekey_counter = frame, counter
        self.events.append(("rekey", {"epoch": number, "grace_ms": grace}))
        self.ready()

    def verify(self, epoch: Epoch, frame: bytes) -> None:
        """The signature of a QUERY, as libsodium verifies it."""
        signed = b"fi1 query" + self.fed + frame[:-64]
        try:
            VerifyKey(epoch.verify).verify(signed, frame[-64:])
        except BadSignatureError:
            raise Dropped("signature") from None

    def take_query(self, frame: bytes, now: float) -> None:
        """ "Queries". Copies on `q` and on `d` are one."""
        check(frame[1] == 0, "flags")
        number, seq = struct.unpack(">II", frame[2:10])
        s = self.session
        epoch = s.held(number, now) if s else None
        if not s or not epoch:
            check(s and now - self.checked >= 1.0, "epoch")
            assert s
            self.checked = now
            self.verify(s.epoch, frame)
            self.hint(now)
            raise Dropped("epoch")
        check(seq >= s.floor and s.newest - seq < WINDOW, "stale")
        query_hash, known = digest(epoch.hash_key, "fi1 query hash", frame, 32), s.queries.get(seq)
        if known and known.hash == query_hash:
            if known.state == "sealed":
                self.send(self.up, known.answer)
            return
        text = open_sealed(epoch.seal_key, seq, frame[:10], frame[10:-64])
        self.verify(epoch, frame)
        check(not known, "conflict")
        c = Cursor(text, "payload")
        task, forms, deadline, settle = c.number(1), c.number(2), c.number(4), c.take(8)
        check(1 <= deadline <= DAY_MS, "payload")
        tensor = Tensor.read(c.data)
        own = self.task
        check((task, tensor.dtype, tensor.shape) == (own.number, own.dtype, own.shape), "task")
        query = Query(number, query_hash, seq, forms, settle, tensor, now + deadline / 1000)
        s.newest = max(s.newest, seq)
        s.queries[seq] = query
        for old in [old for old in s.queries if s.newest - old >= WINDOW]:
            del s.queries[old]
        self.jobs.append((s, query))

    def take_settled(self, frame: bytes, now: float) -> None:
        """The round needs no more votes."""
        check(frame[1] == 0, "flags")
        number, seq = struct.unpack(">II", frame[2:10])
        query = self.session.queries.get(seq) if self.session else None
        check(query and query.epoch == number, "unknown_query")
        assert query
        context = frame[2:10] + self.fed
        check(hmac.compare_digest(digest(frame[10:], "fi1 settled", context, 8), query.settle), "settled")
        if query.state == "pending":
            query.state = "declined"

    def inferred(self, s: Session, query: Query, scores: Sequence[float] | None, now: float) -> str:
        """The model is done, or failed: the ANSWER; or else the reason why it was dropped."""
        fate = "" if s is self.session and s.queries.get(query.seq) is query else "ticket"
        fate = fate if query.state == "pending" else "ticket"
        if not fate and now > query.late:
            fate, query.state = "expired", "declined"
        if fate:
            self.drops[fate] += 1
            return fate
        classes, code = len(self.task.labels), b""
        form = choose_form(query.forms & OWN_FORMS, classes)
        if scores is None or len(scores) != len(self.known) or not all(map(math.isfinite, scores)):
            form = 0
        elif form:
            p = distribution(scores, self.known, classes)
            code = encode_vote(form, p, 0.0, self.task.low, self.task.high)
        head = struct.pack(">BBHI", ANSWER, s.number << 4 | form, self.index, query.seq)
        context = head + struct.pack(">I", query.epoch) + query.hash + self.model
        query.answer = head + seal(digest(s.k_answer, "fi1 answer key", context, 32), 0, head, code)
        query.state = "sealed"
        self.send(self.up, query.answer)
        return ""


# "MQTT": a client of 3.1.1, and the certificate that the invite's pin names.


class NotLetInError(OSError):
    """CONNACK with a code. Of an invite: expired, withdrawn, or not known to the broker yet."""


class Mqtt:
    """One connection. Raises OSError when it is lost, or when the broker refuses."""

    KEEP_ALIVE = 20

    def __init__(self, place: dict[str, Any]) -> None:
        context = tls_context(place) if place["tls"] else None
        raw = socket.create_connection((place["host"], place["port"]), timeout=10)
        self.socket = context.wrap_socket(raw, server_hostname=place["host"]) if context else raw
        self.buffer, self.packet_id, self.early = b"", 0, list[tuple[str, bytes]]()
        self.heard = self.pinged = time.monotonic()

    def connect(self, names: tuple[str, str, str], will: str) -> None:
        """CONNECT and CONNACK."""
        fields = [names[0], will, "lost", *names[1:]] if will else names
        flags = 0xEE if will else 0xC2  # user name, password, clean session; a retained Will of QoS 1
        self.write(
            0x10, string("MQTT") + bytes([4, flags, 0, self.KEEP_ALIVE]) + b"".join(map(string, fields))
        )
        code = self.wait_for(0x20)[1]
        if code:
            raise NotLetInError(f"CONNACK {code}")

    def write(self, kind: int, body: bytes) -> None:
        """One packet."""
        size, length = divmod(len(body), 128)
        head = [kind, length | (128 if size else 0)]
        while size:
            size, length = divmod(size, 128)
            head.append(length | (128 if size else 0))
        self.socket.settimeout(10)
        self.socket.sendall(bytes(head) + body)

    def packets(self, seconds: float) -> Iterator[tuple[int, bytes]]:
        """Whole packets, of what comes within so long."""
        self.socket.settimeout(seconds)
        with contextlib.suppress(TimeoutError):
            data = self.socket.recv(1 << 16)
            if not data:
                raise OSError("the broker closed the connection")
            self.buffer, self.heard = self.buffer + data, time.monotonic()
        while len(self.buffer) > 1:
            size, end = self.buffer[1] & 127, 2
            while self.buffer[end - 1] & 128:
                if end == len(self.buffer):
                    return
                if end == 5:
                    raise OSError("a remaining length of more than 4 bytes")
                size |= (self.buffer[end] & 127) << 7 * (end - 1)
                end += 1
            if len(self.buffer) < end + size:
                return
            kind, body = self.buffer[0], self.buffer[end : end + size]
            self.buffer = self.buffer[end + size :]
            yield kind, body

    def messages(self, seconds: float) -> list[tuple[str, bytes]]:
        """Topic and payload of each PUBLISH that came."""
        found, self.early = self.early, []
        found += [self.published(kind, body) for kind, body in self.packets(seconds) if kind >> 4 == 3]
        now = time.monotonic()
        if now - self.heard > 1.5 * self.KEEP_ALIVE:
            raise OSError("the broker is silent")
        if now - self.pinged > self.KEEP_ALIVE / 2:
            self.pinged = now
            self.write(0xC0, b"")
        return found

    def published(self, kind: int, body: bytes) -> tuple[str, bytes]:
        """One PUBLISH, acknowledged if it is of QoS 1."""
        end = 2 + int.from_bytes(body[:2], "big")
        if kind & 6:
            self.write(0x40, body[end : end + 2])
        return body[2:end].decode(errors="replace"), body[end + 2 if kind & 6 else end :]

    def wait_for(self, kind: int) -> bytes:
        """An answer of the broker; messages that come before it are kept."""
        until, answer = time.monotonic() + 10, b""
        while not answer:
            for got, body in self.packets(0.2):
                if got >> 4 == 3:
                    self.early.append(self.published(got, body))
                elif got == kind:
                    answer = body
            if time.monotonic() > until:
                raise OSError("the broker does not answer")
        return answer

    def subscribe(self, topics: Sequence[str]) -> None:
        """QoS 0 each; one SUBACK tells of all."""
        self.packet_id += 1
        self.write(0x82, struct.pack(">H", self.packet_id) + b"".join(string(x) + b"\0" for x in topics))
        if 0x80 in self.wait_for(0x90)[2:]:
            raise OSError("a subscription was refused")

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        """No PUBACK is waited for: each connect publishes presence again."""
        self.packet_id = self.packet_id % 65535 + 1
        number = struct.pack(">H", self.packet_id) if qos else b""
        self.write(0x30 | qos << 1 | retain, string(topic) + number + payload)


def string(x: str) -> bytes:
    """MQTT's: a length of 2 bytes, then it."""
    return struct.pack(">H", len(x.encode())) + x.encode()


def tls_context(place: dict[str, Any]) -> ssl.SSLContext:
    """ "Invite": with a pin, the certificate that it names must have issued the broker's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # demands a certificate, of this host
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not place["pin"]:
        context.load_default_certs()
        return context
    if not place.get("ca"):
        place["ca"] = fetch_ca(place["host"], place["port"], bytes.fromhex(place["pin"])).hex()
    context.load_verify_locations(cadata=bytes.fromhex(place["ca"]))
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN  # it need not be a root
    return context


def fetch_ca(host: str, port: int, pin: bytes) -> bytes:
    """The certificate of the pin, in DER, out of the chain that the broker presents."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((host, port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname=host) as tls,
    ):
        inner: Any = tls if hasattr(tls, "get_unverified_chain") else tls._sslobj  # type: ignore[attr-defined]
        chain = inner.get_unverified_chain() or []  # public since Python 3.13
    for one in chain:
        der = one if isinstance(one, bytes) else ssl.PEM_cert_to_DER_cert(one.public_bytes())
        if digest(b"", "fi1 ca pin", der, 16) == pin:
            return der
    raise OSError("no certificate of the broker's chain is the one that the invite names")


# The process.


def say(event: str, **fields: object) -> None:
    """One JSON object, one line."""
    print(json.dumps({"event": event, **fields}), flush=True)


def load(path: Path) -> dict[str, Any]:
    """The state file, or nothing."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def save(path: Path, state: dict[str, Any]) -> None:
    """Of mode 0600, whole or not at all. Never a session: "The rules in one place", 2."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def run(place: dict[str, Any], party: Party, work: Callable[[], None]) -> None:
    """Connect, subscribe, serve; connect again when the connection is lost, until the party is done."""
    pause, refusals = 0.25, 0
    while not party.done:
        link = None
        try:
            link = Mqtt(place)
            link.connect(party.names, party.will)
            link.subscribe(party.topics)
            party.connected(time.monotonic())
            pause = 0.25
            while True:
                for topic, payload in link.messages(0.05):
                    party.take(topic, payload, time.monotonic())
                work()
                party.tick(time.monotonic())
                if party.done and party.will:
                    party.send(party.will, b"disconnected", 1, True)
                while party.out:
                    link.publish(*party.out.pop(0))
                if party.done:
                    link.write(0xE0, b"")  # DISCONNECT: the Will is not said
                    break
        except OSError as error:
            say("lost", why=str(error))
            refusals = refusals + 1 if isinstance(error, NotLetInError) else 0
            if refusals >= party.patience:
                raise
            time.sleep(pause * (1 + os.urandom(1)[0] / 256))
            pause = min(2 * pause, 8.0)
        finally:
            party.disconnected()
            if link:
                link.socket.close()


def join(path: Path, invite: dict[str, Any], wanted: int) -> dict[str, Any]:
    """ "Joining"; the static key is on the disk before the first JOIN, the index when ACCEPT came."""
    state = load(path)
    same = all(state.get(key) == invite[key] for key in ("gateway_public", "federation", "invite"))
    if state.get("index"):
        if same:
            return state
        sys.exit(f"{path} is of another membership")
    if not same:
        state = invite | {"member_private": os.urandom(32).hex()}
        save(path, state)
    joiner = Joiner(state, bytes.fromhex(state["member_private"]), os.urandom)
    try:
        run(state, joiner, lambda: None)
    except NotLetInError:
        joiner.reason = "not_let_in"
    if joiner.reason and not joiner.index:
        say("refused", reason=joiner.reason)
        sys.exit(3)
    number = wanted or joiner.only_task or (joiner.tasks[0].number if len(joiner.tasks) == 1 else 0)
    if joiner.only_task not in (0, number) or number not in [task.number for task in joiner.tasks]:
        sys.exit("--task must be one of " + ", ".join(str(task.number) for task in joiner.tasks))
    task = next(task for task in joiner.tasks if task.number == number)
    state |= {"index": joiner.index, "task": asdict(task)}
    del state["token"]
    save(path, state)
    say("joined", id=state["id"], index=state["index"], task=task.name)
    return state


def main() -> None:
    """Join if there is an invite, then serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--invite", help="a file with the invite, - for stdin; not needed again")
    parser.add_argument("--state", type=Path, required=True, help="where key and index are kept")
    parser.add_argument("--label", type=int, required=True, help="the label that the toy model favours")
    parser.add_argument("--task", type=int, default=0, help="the task, where there are several")
    parser.add_argument("--once", action="store_true", help="leave after one answer")
    args = parser.parse_args()
    state = load(args.state)
    if args.invite:
        try:
            invite = parse_invite(sys.stdin.read() if args.invite == "-" else Path(args.invite).read_text())
            check(invite["role"] == "device", "role")
        except (Dropped, UnicodeDecodeError) as error:
            sys.exit(f"the invite: {error}")
        state = join(args.state, invite, args.task)
    if not state.get("index"):
        sys.exit("no membership yet: give --invite")
    task = Task(**state["task"] | {key: tuple(state["task"][key]) for key in ("shape", "labels")})
    model_digest = digest(b"", "fi1 model", f"label {args.label}".encode(), 8)
    device = Device(state, task, model_digest, os.urandom)

    def model(tensor: Tensor) -> list[float]:
        return [4.0 * (label == args.label) for label in range(len(task.labels))]

    def work() -> None:
        while device.jobs:
            session, query = device.jobs.pop(0)
            fate = device.inferred(session, query, model(query.tensor), time.monotonic())
            device.events.append(("answered", {"seq": query.seq, "epoch": query.epoch, "fate": fate}))
            device.done = device.done or (args.once and not fate)
        while device.events:
            event, fields = device.events.pop(0)
            say(event, **fields)

    def leave(*_: object) -> None:
        device.done = True

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    run(state, device, work)
    say("left", drops=device.drops)


if __name__ == "__main__":
    main()
