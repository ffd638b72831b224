"""Vectors of joining: invites, whole joinings, and what each side of one drops or refuses."""

import base64
import hashlib
import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from book import Book, Fields, flip, seeded
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from sittings import BIRDS, BOOT, DIGITS, FEDERATION, GATEWAY, LOW_ORDER, MANY, PAIR, task_fields

from edge_fi.crypto import seal
from edge_fi.crypto.keys import KeyPair, derive
from edge_fi.crypto.noise import HandshakeIKpsk1
from edge_fi.messages import Task
from edge_fi.session import Identity
from edge_fi.wire import frames, invites, payloads
from edge_fi.wire.frames import Type
from edge_fi.wire.invites import Invite
from edge_fi.wire.payloads import Accept, Refusal

NOON = 1_795_521_600  # 2026-11-24, 12:00 UTC: when the usual invites expire
LONGEST = frames.MAX_ACCEPT_BYTES  # no task of these vectors is left out


@dataclass(slots=True, kw_only=True)
class Joining:
    """One joining, with everything that either side knows of it."""

    invite: Invite
    static: KeyPair
    ephemeral: KeyPair
    gateway_ephemeral: KeyPair
    keys: seal.JoinKeys
    accept: Accept
    payload: bytes
    join: bytes
    frame: bytes
    """The ACCEPT."""
    handshake_hash: bytes

    @property
    def prologue(self) -> bytes:
        return prologue(self.invite)


def certificate() -> bytes:
    """An authority's, in DER: of Ed25519, whose signatures are the same each time."""
    key = Ed25519PrivateKey.from_private_bytes(seeded("authority"))
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "acme's authority")])
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2046, 1, 1, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    )
    return builder.sign(key, None).public_bytes(Encoding.DER)


def prologue(invite: Invite) -> bytes:
    """What both sides agree on."""
    return seal.join_prologue(invite.federation, invite.role, invite.id, invite.number)


def invited(role: str, id_: str, number: int, **changes: Any) -> Invite:
    """An invite of the vectors' gateway."""
    fields: Fields = {
        "federation": FEDERATION,
        "role": role,
        "id": id_,
        "number": number,
        "expires": NOON,
        "token": seeded(f"token {number}", 16),
        "gateway": GATEWAY.public,
        "host": "broker.example",
        "port": 8883,
        "tls": True,
    }
    return Invite(**fields | changes)


def _initiator(invite: Invite, static: KeyPair, ephemeral: KeyPair, psk: bytes) -> HandshakeIKpsk1:
    return HandshakeIKpsk1(
        initiator=True,
        prologue=prologue(invite),
        static=static,
        ephemeral=ephemeral,
        peer_static=invite.gateway,
        psk=psk,
    )


def _responder(invite: Invite, ephemeral: KeyPair, psk: bytes) -> HandshakeIKpsk1:
    return HandshakeIKpsk1(
        initiator=False,
        prologue=prologue(invite),
        static=GATEWAY,
        ephemeral=ephemeral,
        peer_static=None,
        psk=psk,
    )


def join_frame(keys: seal.JoinKeys, number: int, message: bytes, *, flags: int = 0) -> bytes:
    """A JOIN with a good mac."""
    maced = struct.pack(">BBI", Type.JOIN, flags, number) + message
    return maced + seal.join_mac(keys.mac, maced)


def refused_frame(keys: seal.JoinKeys, number: int, join: bytes, reason: int, *, flags: int = 0) -> bytes:
    """A REFUSED of this JOIN."""
    maced = struct.pack(">BBIB", Type.REFUSED, flags, number, reason)
    return maced + seal.refused_mac(keys.mac, maced, join[-8:])


def joined(
    invite: Invite,
    *,
    seed: str = "",
    index: int,
    version: int,
    task: int = 0,
    tasks: tuple[Task, ...] = (),
    payload: bytes | None = None,
) -> Joining:
    """A joining from its invite to its ACCEPT. payload: of ACCEPT, instead of what it should be."""
    static = KeyPair.from_private(seeded(f"{invite.id} static"))
    ephemeral = KeyPair.from_private(seeded(f"{invite.id} joining ephemeral{seed}"))
    gateway_ephemeral = KeyPair.from_private(seeded(f"{invite.id} joining gateway ephemeral{seed}"))
    keys = seal.JoinKeys.from_token(invite.token, prologue(invite))
    accept = Accept(index=index, version=version, task=task, tasks=tasks, features=(b"",) * len(tasks))
    if payload is None:
        payload = payloads.encode_accept(accept, longest=LONGEST)
    joiner = _initiator(invite, static, ephemeral, keys.psk)
    gateway = _responder(invite, gateway_ephemeral, keys.psk)
    join = join_frame(keys, invite.number, joiner.write_message_1(b""))
    gateway.read_message_1(frames.parse_joining(join).message)
    frame = frames.build_joining_header(Type.ACCEPT, invite.number) + gateway.write_message_2(payload)
    return Joining(
        invite=invite,
        static=static,
        ephemeral=ephemeral,
        gateway_ephemeral=gateway_ephemeral,
        keys=keys,
        accept=accept,
        payload=payload,
        join=join,
        frame=frame,
        handshake_hash=gateway.handshake_hash,
    )


def invite_fields(invite: Invite) -> Fields:
    return {
        "federation": invite.federation,
        "role": invite.role,
        "id": invite.id,
        "invite": invite.number,
        "expires": invite.expires,
        "token": invite.token,
        "gateway_public": invite.gateway,
        "host": invite.host,
        "port": invite.port,
        "tls": invite.tls,
        "pin": invite.pin,
    }


def joining_fields(j: Joining) -> Fields:
    invite, accept = j.invite, j.accept
    member = Identity(
        federation=invite.federation,
        role=invite.role,
        id=invite.id,
        index=accept.index,
        static=j.static,
        gateway_static=GATEWAY.public,
    )
    return {
        "text": invites.encode(invite),
        **invite_fields(invite),
        "gateway_private": GATEWAY.private,
        "gateway_ephemeral_private": j.gateway_ephemeral.private,
        "member_private": j.static.private,
        "member_public": j.static.public,
        "member_ephemeral_private": j.ephemeral.private,
        "boot": BOOT,
        "join_mqtt_user": f"join_{invite.number}",
        "join_mqtt_password": seal.join_password(invite.token),
        "prologue": j.prologue,
        "psk": j.keys.psk,
        "mac_key": j.keys.mac,
        "join": j.join,
        "index": accept.index,
        "version": accept.version,
        "only_task": accept.task,
        "tasks": [task_fields(task) for task in accept.tasks],
        "accept_payload": j.payload,
        "accept": j.frame,
        "handshake_hash": j.handshake_hash,
        "mqtt_client_id": member.mqtt_client_id,
        "mqtt_user": member.id,
        "mqtt_password": member.mqtt_password,
    }


def joinings(book: Book) -> dict[str, bytes]:
    """Add them all. Returns what other vectors take from the first joining."""
    authority = certificate()
    pinned = invited("device", "pi-07", 12, pin=derive(b"", b"fi1 ca pin", authority, 16))
    device = joined(pinned, index=7, version=12, task=1, tasks=(DIGITS,))
    laptop = invited("client", "laptop-1", 1)
    client = joined(laptop, index=101, version=1, tasks=(DIGITS, PAIR, BIRDS, MANY))
    plain = invited("helper", "helper-1", 2**32 - 1, host="2001:db8::1", port=1883, tls=False)
    helper = joined(plain, index=0xFFFF, version=2**32 - 1)
    again = joined(pinned, seed=" of another try", index=7, version=12, task=1, tasks=(DIGITS,))
    for name, about, j, more in (
        (
            "device",
            "A device that may join one task; its broker's authority is pinned.",
            device,
            {"session": "session_ok_digits"},
        ),
        ("client", "A client, told of every task.", client, {"session": "session_ok_client"}),
        ("helper", "The greatest invite, index and version; no TLS; no task.", helper, {}),
        ("again", "The key that burnt the invite of `join_ok_device`, once more.", again, {}),
    ):
        book.add(f"join_ok_{name}", "joining", about, **joining_fields(j), is_burnt=j is again, **more)
    _invites(book, pinned, laptop, plain)
    _joins(book, device)
    _accepts(book, device)
    refused = _refusals(book, device)
    return {
        "certificate": authority,
        "token": pinned.token,
        "join_prologue": device.prologue,
        "join": device.join,
        "accept": device.frame,
        "refused": refused,
    }


def _invites(book: Book, pinned: Invite, system: Invite, plain: Invite) -> None:
    def ok(name: str, about: str, invite: Invite, text: str = "") -> None:
        text = text or invites.encode(invite)
        book.add(f"invite_ok_{name}", "invite", about, text=text, **invite_fields(invite))

    ok("pinned", "TLS; the certificate is named.", pinned)
    ok("system", "TLS; the system's own list vouches.", system)
    ok("plain", "No TLS; an IP address.", plain)
    text = invites.encode(pinned).lower()
    spelled = "\t" + "\r\n ".join(text[at : at + 40] for at in range(0, len(text), 40)) + " \n"
    ok("spelled", "In lower case, with white space between.", pinned, spelled)
    longest = invited(
        "device",
        "-".join(["a" * 11, "b" * 12]),
        2**32 - 1,
        expires=2**32 - 1,
        federation="a" * 16,
        host="h" * 255,
        port=65535,
        pin=bytes(16),
    )
    ok("longest", "Every text at its longest, every number at its greatest.", longest)

    def bad(name: str, about: str, expect: str, text: str) -> None:
        book.add(f"invite_bad_{name}", "invite", about, expect, text=text)

    good = invites.encode(pinned)
    content = base64.b32decode(good[4:] + "=" * (-len(good[4:]) % 8))[:-4]
    bad("empty", "Nothing.", "no_invite", "")
    bad("prefix", "Of another protocol.", "no_invite", "FI2" + good[3:])
    bad("cut", "The last 8 letters are missing.", "damaged", good[:-8])
    other = "B" if good[20] == "A" else "A"
    bad("letter", "One letter is another.", "damaged", good[:20] + other + good[21:])
    bad("alphabet", "A 1, which base32 lacks.", "damaged", good[:20] + "1" + good[21:])
    bad("padding", "Padding.", "damaged", good + "=" * (-len(good[4:]) % 8))
    loose = _loose_bits(good)
    bad("loose_bits", "Bits of the last letter that no byte takes are not 0.", "damaged", loose)
    bad("head", "58 bytes and a good checksum.", "damaged", _text(content[:58]))
    for name, about, changed in (
        ("flags", "An unknown bit of the flags.", _with(content, 1, b"\x07")),
        ("pin_without_tls", "A pin, but no TLS.", _with(content, 1, b"\x02")),
        ("role_0", "Role 0.", _with(content, 2, b"\0")),
        ("role_4", "Role 4.", _with(content, 2, b"\x04")),
        ("number", "Number 0.", _with(content, 3, bytes(4))),
        ("port", "Port 0.", _with(content, 75, bytes(2))),
        ("host_empty", "No host.", content[:77] + b"\0" + content[92:]),
        ("host", "A host with a slash in it.", _with(content, 80, b"/")),
        ("federation", "A federation in upper case.", _with(content, 93, b"A")),
        ("id", "A reserved id.", content[:97] + b"\x07gateway"),
        ("text_cut", "An id of 6 letters, of which 5 are there.", _with(content, 97, b"\x06")),
        ("trailing", "A byte too many.", content + b"\0"),
    ):
        bad(name, about, "not_allowed", _text(changed))
    bad("version", "Version 2.", "later", _text(_with(content, 0, b"\x02")))


def _with(content: bytes, at: int, part: bytes) -> bytes:
    return content[:at] + part + content[at + len(part) :]


def _text(content: bytes) -> str:
    """The text of this content, with its checksum; nothing is checked."""
    checksum = hashlib.blake2b(content, digest_size=4, person=b"fi1 invite").digest()
    return "FI1:" + base64.b32encode(content + checksum).decode().rstrip("=")


def _loose_bits(text: str) -> str:
    """The text with the lowest bit of its last letter set, which no byte takes."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    value = letters.index(text[-1])
    assert len(text[4:]) % 8 and value % 2 == 0
    return text[:-1] + letters[value + 1]


def _joins(book: Book, j: Joining) -> None:
    def bad(name: str, about: str, expect: str, frame: bytes, **more: Any) -> None:
        fields: Fields = {"joining": "join_ok_device", "frame": frame}
        book.add(f"join_bad_{name}", "join", about, expect, **fields | more)

    invite, keys, number, message = j.invite, j.keys, j.invite.number, j.join[6:-8]
    bad("short", "109 bytes.", "length", j.join[:-1])
    bad("long", "111 bytes.", "length", j.join + b"\0")
    said = _initiator(invite, j.static, j.ephemeral, keys.psk).write_message_1(b"\0")
    bad("payload", "A payload of a byte, with a good mac.", "length", join_frame(keys, number, said))
    bad("flags", "Flags 1, with a good mac.", "flags", join_frame(keys, number, message, flags=1))
    bad("stranger", "An invite that was not made.", "stranger", join_frame(keys, 13, message))
    bad("mac", "A bit of the mac.", "mac", flip(j.join, -1))
    bad("flipped", "A bit of the message.", "mac", flip(j.join, 50))
    other = seal.JoinKeys.from_token(seeded("another token", 16), j.prologue)
    bad("token", "By another token.", "mac", join_frame(other, number, message))
    elsewhere = invited("device", "pi-08", number)
    renamed = seal.JoinKeys.from_token(invite.token, prologue(elsewhere))
    bad("id", "In another name.", "mac", join_frame(renamed, number, message))
    for name, about, expect, changed in (
        ("ephemeral", "A bit of the ephemeral key, with a good mac.", "seal", flip(message, 0)),
        ("static", "A bit of the sealed static key, with a good mac.", "seal", flip(message, 40)),
        ("tag", "A bit of the last tag, with a good mac.", "seal", flip(message, -1)),
        ("low_order", "An ephemeral key of low order.", "key", LOW_ORDER + message[32:]),
    ):
        bad(name, about, expect, join_frame(keys, number, changed))
    low = _initiator(invite, KeyPair(j.static.private, LOW_ORDER), j.ephemeral, keys.psk).write_message_1(b"")
    bad("static_low_order", "A static key of low order.", "key", join_frame(keys, number, low))
    said = _initiator(invite, j.static, j.ephemeral, other.psk).write_message_1(b"")
    bad("psk", "Under another psk.", "seal", join_frame(keys, number, said))
    ephemeral = KeyPair.from_private(seeded("a second joining ephemeral"))
    said = _initiator(invite, j.static, ephemeral, keys.psk).write_message_1(b"")
    about = "A second new JOIN within 200 ms."
    bad("busy", about, "busy", join_frame(keys, number, said), before=[j.join])


def _accepts(book: Book, j: Joining) -> None:
    def bad(name: str, about: str, expect: str, frame: bytes) -> None:
        book.add(f"accept_bad_{name}", "accept", about, expect, joining="join_ok_device", frame=frame)

    good = j.frame
    bad("short", "53 bytes.", "length", good[:53])
    bad("flags", "Flags 1.", "flags", flip(good, 1))
    bad("invite", "Another invite's number.", "invite", flip(good, 5))
    bad("ephemeral", "A bit of the ephemeral key.", "seal", flip(good, 6))
    bad("low_order", "An ephemeral key of low order.", "key", good[:6] + LOW_ORDER + good[38:])
    bad("tag", "A bit of the tag.", "seal", flip(good, -1))
    bad("reflected", "The joiner's own JOIN, sent back to it.", "direction", j.join)
    other = joined(j.invite, seed=" crossed", index=7, version=12)
    bad("crossed", "Answers another JOIN.", "seal", other.frame)

    def sealed(name: str, about: str, payload: bytes) -> None:
        frame = joined(j.invite, index=7, version=12, payload=payload).frame
        bad(name, about, "payload", frame)

    plain = j.payload  # 8 bytes; 06 "digits"; number, element type, rank 2, 8, 8; scale; 10 labels of 1 byte
    sealed("head", "7 bytes.", plain[:7])
    sealed("index", "Index 0.", bytes(2) + plain[2:])
    sealed("count_above", "More tasks than there are.", flip(plain, 7, 1))
    sealed("count_below", "Bytes after the last task.", plain[:7] + b"\0" + plain[8:])
    sealed("trailing", "A byte after the last label.", plain + b"\0")
    sealed("cut", "The last label is cut.", plain[:-1])
    sealed("name", "A task's name in upper case.", _with(plain, 9, b"D"))
    sealed("name_ascii", "A task's name that is not ASCII.", _with(plain, 9, b"\xe4"))
    sealed("task", "Task 0.", _with(plain, 15, b"\0"))
    sealed("dtype", "Element type 4.", _with(plain, 16, b"\x04"))
    sealed("rank", "Rank 0.", plain[:17] + b"\0" + plain[26:])
    sealed("dimension", "A dimension of 0.", _with(plain, 18, bytes(4)))
    sealed("scale", "A scale whose lower end is its upper.", _with(plain, 26, bytes(4)))
    sealed("labels", "One label.", plain[:30] + b"\0\x01" + plain[32:34])
    sealed("label_twice", "Two equal labels.", _with(plain, 33, plain[35:36]))
    sealed("label_utf8", "A label that is not UTF-8.", _with(plain, 33, b"\xff"))
    sealed("label_empty", "A label of no byte.", plain[:32] + b"\0" + plain[34:])


def _refusals(book: Book, j: Joining) -> bytes:
    """Returns that of `used`."""
    number, keys = j.invite.number, j.keys

    def add(name: str, about: str, expect: str, frame: bytes, **more: Any) -> None:
        fields: Fields = {"joining": "join_ok_device", "frame": frame}
        book.add(f"refused_{name}", "refused", about, expect, **fields | more)

    for refusal, about in (
        (Refusal.USED, "Another key has burnt the invite."),
        (Refusal.EXPIRED, "Its time is over."),
        (Refusal.WITHDRAWN, "The gateway's owner took it back."),
        (Refusal.NAME_TAKEN, "There is a member of this id."),
        (Refusal.FULL, "Every index is given."),
        (Refusal.BUSY, "The gateway cannot write now: the joiner goes on asking."),
    ):
        frame = refused_frame(keys, number, j.join, refusal)
        more = {"reason": int(refusal), "is_final": refusal is not Refusal.BUSY}
        add(f"ok_{refusal.name.lower()}", about, "ok", frame, **more)
    good = refused_frame(keys, number, j.join, Refusal.USED)
    add("bad_short", "14 bytes.", "length", good[:-1])
    add("bad_long", "16 bytes.", "length", good + b"\0")
    add("bad_flags", "Flags 1, with a good mac.", "flags", refused_frame(keys, number, j.join, 1, flags=1))
    add("bad_invite", "Another invite's number.", "invite", refused_frame(keys, 13, j.join, 1))
    add("bad_mac", "A bit of the mac.", "mac", flip(good, -1))
    add("bad_flipped", "Another reason.", "mac", flip(good, 6))
    other = joined(j.invite, seed=" crossed", index=7, version=12)
    about = "Of another JOIN."
    add("bad_crossed", about, "mac", refused_frame(keys, number, other.join, Refusal.USED))
    stranger = seal.JoinKeys.from_token(seeded("another token", 16), j.prologue)
    about = "By who does not know the token."
    add("bad_token", about, "mac", refused_frame(stranger, number, j.join, Refusal.USED))
    for reason in (0, 7):
        frame = refused_frame(keys, number, j.join, reason)
        add(f"bad_reason_{reason}", f"Reason {reason}, with a good mac.", "payload", frame)
    return good
