"""A second device, made of nothing but what docs/protocol.md says: no code of edge_fi, no numpy.

It exists to show that the document is complete. It keeps what the vectors ask about: the handshake, epochs,
queries, answers, SETTLED. No clock and no retries: those belong to whoever drives it.
"""

import hmac
import math
import struct
from hashlib import blake2b, shake_256
from typing import Any

from nacl import bindings
from nacl.exceptions import CryptoError

DTYPES = (4, 2, 1, 1)  # float32, float16, uint8, int8
BITS = {2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
SIZES = {0x01: (91, 1_000_000), 0x02: (24, 4121), 0x03: (26, 26), 0x10: (60, 256), 0x11: (52, 256)}
SIZES |= {
    0x12: (24, 1024),
    0x13: (24, 1024),
    0x14: (25, 16_408),
    0x20: (25, 1_000_000),
    0x21: (25, 1_000_000),
}
SIZES |= {0x30: (110, 110), 0x31: (54, 200_000), 0x32: (15, 15)}
SIZES |= {0x40: (38, 1_000_000), 0x41: (26, 26), 0x42: (26, 26)}


class DropError(Exception):
    """A frame is dropped; the argument is the reason."""


def check(good: object, reason: str) -> None:
    if not good:
        raise DropError(reason)


def derive(key: bytes, person: str, context: bytes = b"", size: int = 32) -> bytes:
    return blake2b(context, digest_size=size, key=key, person=person.encode()).digest()


def crypt(sealed: bytes, key: bytes, number: int, header: bytes, *, opening: bool) -> bytes:
    nonce = struct.pack("<IQ", 0, number)
    if not opening:
        return bindings.crypto_aead_chacha20poly1305_ietf_encrypt(sealed, header, nonce, key)
    try:
        return bindings.crypto_aead_chacha20poly1305_ietf_decrypt(sealed, header, nonce, key)
    except CryptoError:
        raise DropError("seal") from None


def dh(private: bytes, public: bytes) -> bytes:
    try:
        return bindings.crypto_scalarmult(private, public)
    except CryptoError:
        raise DropError("key") from None


def hkdf(chain: bytes, material: bytes) -> tuple[bytes, bytes]:
    secret = hmac.digest(chain, material, "blake2b")
    first = hmac.digest(secret, b"\x01", "blake2b")
    return first, hmac.digest(secret, first + b"\x02", "blake2b")


class Held:
    """An epoch that can be read: its keys, and the gateway's signing key of that time."""

    def __init__(self, number: int, key: bytes, verify: bytes) -> None:
        self.number, self.verify = number, verify
        self.seal_key, self.hash_key = derive(key, "fi1 query seal"), derive(key, "fi1 query hash")


class SecondDevice:
    """One device. `config`: the fields of a session vector that a device has from the start."""

    def __init__(self, config: dict[str, Any]) -> None:
        take = {name: bytes.fromhex(config[name]) for name in ("member_private", "gateway_public")}
        self.static, self.gateway = take["member_private"], take["gateway_public"]
        self.model = bytes.fromhex(config["model"])
        self.index, self.task = config["index"], config["task"]
        name = config["federation"].encode()
        self.name = bytes([len(name)]) + name
        self.prologue = b"fi1" + self.name + b"\x06device" + struct.pack(">H", self.index)
        self.known = list(range(len(self.task["labels"])))
        self.waiting = False
        self.epoch: Held | None = None
        self.former: Held | None = None
        self.welcomed = self.rekeyed = b""
        self.gate = bytes.fromhex(config.get("gate", ""))
        self.wants_gate = False
        self.asked: dict[int, dict[str, Any]] = {}

    def task_digest(self) -> bytes:
        task, labels = self.task, [label.encode() for label in self.task["labels"]]
        kind = ("float32", "float16", "uint8", "int8").index(task["dtype"])
        parts = struct.pack(
            f">BBB{len(task['shape'])}I", task["number"], kind, len(task["shape"]), *task["shape"]
        )
        parts += struct.pack(">hhH", *task["log_weight"], len(labels))
        parts += b"".join(bytes([len(label)]) + label for label in labels)
        features = bytes.fromhex(self.task["features"])
        parts += bytes([len(features)]) + features
        return blake2b(parts, digest_size=8, person=b"fi1 task").digest()

    def hello(self, ephemeral: bytes) -> bytes:
        self.ephemeral, self.waiting = ephemeral, True
        mine = bindings.crypto_scalarmult_base(self.static)
        self.hash = self.chain = b"Noise_KK_25519_ChaChaPoly_BLAKE2b".ljust(64, b"\0")
        public = bindings.crypto_scalarmult_base(ephemeral)
        for part in (self.prologue, mine, self.gateway, public):
            self.hash = blake2b(self.hash + part).digest()
        static_shared = dh(self.static, self.gateway)
        self.chain, _ = hkdf(self.chain, dh(ephemeral, self.gateway))
        self.chain, key = hkdf(self.chain, static_shared)
        payload = self.model + bytes([self.task["number"]]) + self.task_digest()
        named = blake2b(self.gate, digest_size=8, person=b"fi1 gate").digest()[:4]
        payload += b"\x02" + named if self.gate else bytes(5)
        sealed = crypt(payload, key[:32], 0, self.hash, opening=False)
        self.hash = blake2b(self.hash + sealed).digest()
        maced = struct.pack(">BBH", 0x10, 0, self.index) + public + sealed
        mac_key = derive(static_shared, "fi1 hello key", self.prologue)
        return maced + derive(mac_key, "fi1 hello mac", maced, 8)

    def receive(self, level: str, frame: bytes, *, at_ms: int = 0) -> bytes:
        """The frame to answer with, or nothing; raises DropError. level: `q` or `d`, of the topic."""
        check(frame, "length")
        check(frame[0] in SIZES, "type")
        least, greatest = SIZES[frame[0]]
        check(least <= len(frame) <= greatest, "length")
        taker = {
            (1, "q"): self.query,
            (1, "d"): self.query,
            (3, "q"): self.settled,
            (0x11, "d"): self.welcome,
            (0x13, "d"): self.rekey,
        }
        check((frame[0], level) in taker, "direction")
        if frame[0] == 0x11 and frame == self.welcomed:
            return self.ready()
        check(frame[1] & (15 if frame[0] == 0x13 else 255) == 0, "form" if frame[0] == 0x13 else "flags")
        return taker[frame[0], level](frame, at_ms)

    def welcome(self, frame: bytes, at_ms: int) -> bytes:
        check(struct.unpack_from(">H", frame, 2)[0] == self.index, "index")
        check(self.waiting, "unexpected")
        public, sealed = frame[4:36], frame[36:]
        mixed = blake2b(self.hash + public).digest()
        chain, _ = hkdf(self.chain, dh(self.ephemeral, public))
        chain, key = hkdf(chain, dh(self.static, public))
        payload = crypt(sealed, key[:32], 0, mixed, opening=True)
        check(len(payload) == 79 and payload[0] & 0x7F < 16, "payload")
        up, down = (part[:32] for part in hkdf(chain, b""))
        self.session, _, _, epoch, self.floor, key, verify = struct.unpack(">BIHII32s32s", payload)
        self.wants_gate, self.session = self.session > 127, self.session & 0x7F
        self.epoch, self.former = Held(epoch, key, verify), None
        self.answer_key, self.up_key = derive(up, "fi1 answer"), derive(up, "fi1 frame")
        self.down_key = derive(down, "fi1 frame")
        self.counter, self.highest, self.asked = 0, self.floor, {}
        self.waiting, self.welcomed, self.rekeyed = False, frame, b""
        return self.ready()

    def rekey(self, frame: bytes, at_ms: int) -> bytes:
        nibbles, index, counter = struct.unpack_from(">xBHI", frame)
        check(self.epoch and (nibbles >> 4, index) == (self.session, self.index), "session")
        if frame == self.rekeyed:
            return self.ready()
        latest = struct.unpack_from(">I", self.rekeyed, 4)[0] if self.rekeyed else -1
        check(counter >= latest, "stale")
        check(counter != latest, "replay")
        payload = crypt(frame[8:], self.down_key, counter, frame[:8], opening=True)
        check(len(payload) == 72, "payload")
        number, grace_ms, key, verify = struct.unpack(">II32s32s", payload)
        check(grace_ms <= 86_400_000, "payload")
        self.former, self.former_until_ms = self.epoch, at_ms + grace_ms
        self.epoch, self.rekeyed = Held(number, key, verify), frame
        return self.ready()

    def ready(self) -> bytes:
        assert self.epoch is not None
        header = struct.pack(">BBHI", 0x12, self.session << 4, self.index, self.counter)
        self.counter += 1
        said = b"\0\xfe" + struct.pack(">I", self.epoch.number)
        return header + crypt(said, self.up_key, self.counter - 1, header, opening=False)

    def registration(self) -> bytes:
        """The GATE that follows READY where the WELCOME wants it, also its copy."""
        if not (self.gate and self.wants_gate):
            return b""
        header = struct.pack(">BBHI", 0x14, self.session << 4, self.index, self.counter)
        self.counter += 1
        return header + crypt(self.gate, self.up_key, self.counter - 1, header, opening=False)

    def held(self, number: int, at_ms: int) -> Held | None:
        if self.epoch and self.epoch.number == number:
            return self.epoch
        in_grace = self.former and self.former.number == number and at_ms <= self.former_until_ms
        return self.former if in_grace else None

    def query(self, frame: bytes, at_ms: int) -> bytes:
        number, seq = struct.unpack_from(">II", frame, 2)
        check(self.epoch, "epoch")
        held = self.held(number, at_ms)
        asked, query_hash, plain = None, b"", b""
        if held:
            check(seq >= self.floor and seq > self.highest - 1024, "stale")
            query_hash, asked = derive(held.hash_key, "fi1 query hash", frame), self.asked.get(seq)
            if asked is not None and asked["hash"] == query_hash:
                return bytes(asked["answer"])
            plain = crypt(frame[10:-64], held.seal_key, seq, frame[:10], opening=True)
        verify = (held or self.epoch).verify  # type: ignore[union-attr]
        try:
            bindings.crypto_sign_open(frame[-64:] + b"fi1 query" + self.name + frame[:-64], verify)
        except CryptoError:
            raise DropError("signature") from None
        check(held, "epoch")
        check(asked is None, "conflict")
        check(len(plain) >= 17, "payload")
        task, forms, deadline, settle, kind, rank = struct.unpack_from(">BHI8sBB", plain)
        check(
            deadline <= 86_400_000 and kind < 4 and 1 <= rank <= 8 and len(plain) >= 17 + 4 * rank, "payload"
        )
        shape = list(struct.unpack_from(f">{rank}I", plain, 17))
        size, content = math.prod(shape) * DTYPES[kind], plain[17 + 4 * rank :]
        check(0 < size <= 900_000 and len(content) == size, "payload")
        name = ("float32", "float16", "uint8", "int8")[kind]
        check([task, name, shape] == [self.task[key] for key in ("number", "dtype", "shape")], "task")
        self.asked[seq] = {"hash": query_hash, "epoch": number, "settle": settle, "forms": forms}
        self.asked[seq] |= {"answer": b"", "open": True}
        self.highest, self.tensor = max(self.highest, seq), content
        return b""

    def settled(self, frame: bytes, at_ms: int) -> bytes:
        epoch, seq = struct.unpack_from(">II", frame, 2)
        check(seq in self.asked and epoch == self.asked[seq]["epoch"], "unknown_query")
        digest = derive(frame[10:], "fi1 settled", frame[2:10] + self.name, 8)
        check(hmac.compare_digest(digest, self.asked[seq]["settle"]), "settled")
        self.asked[seq]["open"] = False
        return b""

    def answer(self, seq: int, scores: list[float] | None) -> bytes:
        """The model's scores, one for each class in `known`, made an ANSWER."""
        asked = self.asked[seq]
        check(asked["open"] and not asked["answer"], "ticket")
        form, code = self.vote(asked["forms"], scores)
        header = struct.pack(">BBHI", 0x02, self.session << 4 | form, self.index, seq)
        context = header + struct.pack(">I", asked["epoch"]) + asked["hash"] + self.model
        key = derive(self.answer_key, "fi1 answer key", context)
        asked["answer"] = header + crypt(code, key, 0, header, opening=False)
        return bytes(asked["answer"])

    def vote(self, forms: int, scores: list[float] | None) -> tuple[int, bytes]:
        allowed, classes = [form for form in range(1, 8) if forms >> form & 1], len(self.task["labels"])
        if (
            scores is None
            or len(scores) != len(self.known)
            or not all(map(math.isfinite, scores))
            or not allowed
        ):
            return 0, b""
        odds = [math.exp(score - max(scores)) for score in scores]
        probabilities = [0.0] * classes
        for label, odd in zip(self.known, odds, strict=True):
            probabilities[label] = odd / sum(odds)
        form = max(allowed, key=lambda form: (size(form, classes), form))
        return form, encode(form, probabilities, 0.0, self.task["log_weight"])


def size(form: int, classes: int) -> int:
    if form == 1:
        return 2 if classes <= 256 else 3
    return 1 + classes if form == 7 else 1 + (classes * BITS[form] + 7) // 8


def encode(form: int, probabilities: list[float], log_weight: float, scale: list[int]) -> bytes:
    (low, high), classes, top = scale, len(probabilities), max(probabilities)
    weight = (min(max(log_weight, low), high) - low) / (high - low)
    if form == 1:
        share = min(max(math.floor((top - 1 / classes) / (1 - 1 / classes) * 8), 0), 7)
        value = probabilities.index(top) << 8 | share << 5 | math.floor(weight * 31 + 0.5)
        return value.to_bytes(size(form, classes), "big")
    leading = bytes([math.floor(weight * 255 + 0.5)])
    if form == 7:
        below = [(math.log(top) - math.log(p)) * 16 if p else None for p in probabilities]
        return leading + bytes(255 if b is None else min(math.floor(b + 0.5), 254) for b in below)
    bits, value = BITS[form], 0
    for p in probabilities:
        value = value << bits | math.floor(p / top * (2**bits - 1) + 0.5)
    length = size(form, classes) - 1
    return leading + (value << length * 8 - bits * classes).to_bytes(length, "big")


def place(features: bytes, elements: list[float]) -> tuple[list[float], list[float], float, float]:
    """Of a map of kind columns: the query's row, the steps, the dimension and the origin."""
    check(features[:4] == b"FM1\0", "features")
    rank = features[5]
    at = 6 + 4 * rank
    d, m, _, dimension, origin = struct.unpack_from(">IHIff", features, at)
    values = struct.unpack_from(f"<{2 * d}f{m * d}e{m}f", features, at + 18)
    mean, scale, axes, steps = values[:d], values[d : 2 * d], values[2 * d : -m], values[-m:]
    scaled = [(x - its) / by for x, its, by in zip(elements, mean, scale, strict=True)]
    row = [sum(a * x for a, x in zip(axes[j * d : (j + 1) * d], scaled, strict=True)) for j in range(m)]
    return row, list(steps), dimension, origin


def familiarity(features: bytes, gate: bytes, elements: list[float]) -> float | None:
    """Log weight of a query; None where it is unfamiliar."""
    row, steps, dimension, origin = place(features, elements)
    _, k, m, classes, floor, bias, step = struct.unpack_from(">8sBBHfff", gate, 3)
    at, terms = 27 + 2 * classes, []
    for _ in range(k):
        count, spread, *codes = struct.unpack_from(f">Hf{m}b", gate, at)
        at += 6 + m
        square = sum((z - code * by) ** 2 for z, code, by in zip(row, codes, steps, strict=True))
        terms.append(math.log(count) - dimension / 2 * (math.log(spread) + square / spread))
    highest = max(terms)
    density = highest + math.log(sum(math.exp(term - highest) for term in terms))
    if density < floor:
        return None
    if not step:
        return float(0.7 * density - origin)
    stream = shake_256(b"fi1 random features").digest((m + 1) * 1024)
    ratio = bias
    for j, code in enumerate(struct.unpack_from(">1024b", gate, at)):
        turn = [(stream[i * 1024 + j] / 127.5 - 1) for i in range(m + 1)]
        feature = math.sqrt(3 / m) * sum(w * z for w, z in zip(turn[:m], row, strict=True)) + turn[m]
        ratio += max(0.0, feature) * code * step
    return float((density + ratio) / 2 - origin)
