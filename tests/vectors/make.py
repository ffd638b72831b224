"""Make the golden vectors of `fi1`: `python tests/vectors/make.py` writes one JSON file per vector.

Deterministic: every key and every drawn byte is a hash of its name, and every number that depends on a
library's exp or log is rounded to 10 significant digits. Made with the functions of `wire` and `crypto`;
that the machines, and a device which shares no code with them, do the same is tests/test_vectors.py.

Here: sessions and what travels under them. Joining is in `joinings`, what a gateway's runs say to each
other in `runs`.
"""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from book import Book, Fields, flip, rounded, seeded
from familiar import MAP, PLACES, damaged, familiar_fields, familiarities, gate_bytes
from joinings import joinings
from runs import runs
from sittings import (
    ALL_FORMS,
    BIRDS,
    BOOT,
    DIGITS,
    FEDERATION,
    FELLOW,
    GATEWAY,
    LOW_ORDER,
    MANY,
    NEXT_SIGNING,
    PAIR,
    SETTLE_SECRET,
    TENSORS,
    NextEpoch,
    Sitting,
    answer_frame,
    counted,
    handshake,
    hello_frame,
    next_epoch,
    query_frame,
    query_plaintext,
    ready_frame,
    session_fields,
    sit,
    task_fields,
)

from edge_fi.crypto import seal
from edge_fi.crypto.aead import seal as aead_seal
from edge_fi.crypto.keys import KeyPair, derive, dh
from edge_fi.device import spread
from edge_fi.messages import VOTE_FORMS, Array, Fate, Form, Outcome, Status
from edge_fi.wire import frames, payloads, votes
from edge_fi.wire.frames import Type
from edge_fi.wire.payloads import Ask, Feedback, Hello, Ready

FOLDER = Path(__file__).parent
NOT_OURS = ("noise_kk", "noise_ikpsk1")


def build() -> dict[str, str]:
    """Every vector's text, by name."""
    book = Book()
    digits = sit("digits", "device", "pi-07", 7, DIGITS)
    pair = sit("pair", "device", "pi-02", 2, PAIR)
    birds = sit("birds", "device", "pi-17", 258, BIRDS)
    many = sit("many", "device", "pi-257", 0xFFFF, MANY)
    high = sit(
        "high",
        "device",
        "pi-07",
        7,
        DIGITS,
        session=15,
        boot=0xFFFFFFFF,
        rejoin_window_ms=0xFFFF,
        epoch=0xFFFFFFFF,
        floor=0xFFFFFFFE,
    )
    client = sit("client", "client", "laptop-1", 101, None)
    for s in (digits, pair, birds, many, client):
        about = f"HELLO, WELCOME{', READY' if s.task else ''} of a {s.role}, as the machines make them."
        book.add(f"session_ok_{s.name}", "session", about, **session_fields(s, by_gateway=True))
    about = "The greatest session number, boot, window, epoch and floor. Not what a new gateway says."
    book.add("session_ok_high", "session", about, **session_fields(high, by_gateway=False))
    gated = sit("gated", "device", "pi-03", 3, PLACES, gate=gate_bytes())
    _gates(book, gated, digits)
    familiarities(book)
    _votes(book)
    _handshakes(book, digits)
    _rekeys(book, digits, high)
    _queries(book, digits, pair, birds, many, high)
    _epochs(book, digits)
    _answers(book, digits, pair, birds, many)
    _settled(book, digits)
    _asks(book, client)
    _outcomes(book, client)
    others = joinings(book) | runs(book)
    _derivations(book, digits, others)
    _misplaced(book, digits, client, others)
    return book.files


def _derivations(book: Book, s: Sitting, others: dict[str, bytes]) -> None:
    """Each row of the tables of docs/protocol.md, in their order. others: frames of joining and of runs."""
    query = query_frame(s, query_plaintext(s))
    header = frames.build_session_header(Type.ANSWER, s.welcome.session, s.index, 1, Form.LABEL)
    place = struct.pack(">II", s.welcome.epoch, 1)
    bound = header + place[:4] + s.epoch.query_hash(query) + s.model
    shared = dh(s.static.private, GATEWAY.public)
    prologue = seal.prologue(FEDERATION, s.role, s.index)
    preimage = seal.settle_preimage(SETTLE_SECRET, s.welcome.epoch, 1)
    own, token, join_prologue = GATEWAY.private, others["token"], others["join_prologue"]
    join_key = derive(token, b"fi1 join key", join_prologue)
    claim_key, roster_key = derive(own, b"fi1 claim key"), derive(own, b"fi1 roster")
    model_file = seeded("a model file", 64)
    as_gateway = seal.prologue(FEDERATION, "gateway", 0)
    steps: list[tuple[str, str, bytes, bytes, int]] = [
        ("client_id", "fi1 client id", s.static.private, b"", 10),
        ("client_id_gateway", "fi1 client id", own, BOOT.to_bytes(4, "big"), 10),
        ("password_member", "fi1 broker", shared, prologue, 16),
        ("password_gateway", "fi1 broker", own, as_gateway, 16),
        ("password_joiner", "fi1 join user", token, b"", 16),
        ("join_psk", "fi1 join psk", token, join_prologue, 32),
        ("join_key", "fi1 join key", token, join_prologue, 32),
        ("join_mac", "fi1 join mac", join_key, others["join"][:-8], 8),
        ("refused_mac", "fi1 refused", join_key, others["refused"][:-8] + others["join"][-8:], 8),
        ("ca_pin", "fi1 ca pin", b"", others["certificate"], 16),
        ("mac_key", "fi1 hello key", shared, prologue, 32),
        ("mac", "fi1 hello mac", s.mac_key, s.hello[:-8], 8),
        ("key_answer", "fi1 answer", s.to_gateway, b"", 32),
        ("key_up", "fi1 frame", s.to_gateway, b"", 32),
        ("key_ask", "fi1 ask", s.to_gateway, b"", 32),
        ("key_down", "fi1 frame", s.to_member, b"", 32),
        ("query_seal_key", "fi1 query seal", s.welcome.epoch_key, b"", 32),
        ("query_hash_key", "fi1 query hash", s.welcome.epoch_key, b"", 32),
        ("query_hash", "fi1 query hash", s.epoch.digest_key, query, 32),
        ("answer", "fi1 answer key", s.keys.answer, bound, 32),
        ("preimage", "fi1 settle", SETTLE_SECRET, place, 16),
        ("digest", "fi1 settled", preimage, place + seal.name_in(FEDERATION), 8),
        ("task_digest", "fi1 task", b"", DIGITS.definition(), 8),
        ("model_digest", "fi1 model", b"", model_file, 8),
        ("map_digest", "fi1 features", b"", MAP.encoded, 8),
        ("gate_digest", "fi1 gate", b"", gate_bytes(), 8),
        ("claim_key", "fi1 claim key", own, b"", 32),
        ("claim_mac", "fi1 claim", claim_key, others["claim"][:-8], 8),
        ("held_mac", "fi1 held", claim_key, others["held"][:-8], 8),
        ("roster_key", "fi1 roster", own, b"", 32),
        ("roster_seal_key", "fi1 roster", roster_key, others["roster"][:22], 32),
    ]
    fields = [
        {
            "use": use,
            "person": person,
            "key": key,
            "context": context,
            "size": size,
            "out": derive(key, person.encode(), context, size),
        }
        for use, person, key, context, size in steps
    ]
    about = "Every row of the tables of keys once: BLAKE2b of the context, keyed where there is a key."
    more = {"session": f"session_ok_{s.name}", "joining": "join_ok_device"}
    book.add("derivations", "derivations", about, **more, steps=fields)


def _votes(book: Book) -> None:
    def ok(
        name: str, about: str, form: Form, given: list[float], weight: float, scale: tuple[int, int]
    ) -> None:
        values = np.array(given)
        code = votes.quantize(form, values, weight, scale=scale)
        probabilities, log_weight = votes.dequantize(form, code, len(given), scale=scale)
        book.add(
            f"vote_ok_{name}",
            "vote",
            about,
            form=form,
            classes=len(given),
            scale=scale,
            given_probabilities=given,
            given_log_weight=weight,
            code=code,
            probabilities=rounded(probabilities),
            log_weight=rounded(log_weight),
        )

    def bad(name: str, about: str, form: Form, classes: int, code: str) -> None:
        fields: Fields = {"form": form, "classes": classes, "scale": (-8, 0), "code": code}
        book.add(f"vote_bad_{name}", "vote", about, "vote", **fields)

    usual = (-8, 0)
    even = [0.25, 0.25, 0.25, 0.25]
    three = [0.7, 0.2, 0.1]
    ok("label_tie", "Of equal classes the lowest; share 0.", Form.LABEL, even, -1.4, usual)
    ok("label_certain", "Share and weight at their greatest.", Form.LABEL, [0.0, 0.0, 1.0], 0.0, usual)
    ok("label_256", "256 classes still take 2 bytes.", Form.LABEL, [0.0] * 255 + [1.0], -8.0, usual)
    ok("weight_below", "A weight below the scale is its lowest.", Form.PROBS_8, three, -9.0, usual)
    ok("weight_above", "A weight above the scale is its highest.", Form.PROBS_8, three, 6.0, (-20, 5))
    ok("probs_3_padded", "3 classes of 3 bits and 7 bits of 0.", Form.PROBS_3, three, -0.3, usual)
    tail = [0.9999990, 0.000000999, 1e-9, 0.0]
    ok(
        "logits_8_tail",
        "254 is that far below or more; 255 is probability 0.",
        Form.LOGITS_8,
        tail,
        -0.1,
        usual,
    )
    bad("label_out_of_range", "Label 10 of 10.", Form.LABEL, 10, "0a1f")
    bad("label_257_out_of_range", "Label 257 of 257.", Form.LABEL, 257, "010100")
    bad("label_long", "Three bytes where two do.", Form.LABEL, 256, "000300")
    bad("probs_4_short", "Four bytes for 8 classes and a weight.", Form.PROBS_4, 8, "80f00000")
    bad("probs_3_padding", "The last of 7 padding bits is 1.", Form.PROBS_3, 3, "80e001")
    bad("probs_4_no_maximum", "No class is at 15.", Form.PROBS_4, 2, "80e0")
    bad("logits_8_no_zero", "No class is at 0.", Form.LOGITS_8, 3, "80010203")


def _handshakes(book: Book, s: Sitting) -> None:
    prologue = seal.prologue(FEDERATION, "device", s.index)

    def spoken(payload: bytes, *, at: bytes = prologue) -> bytes:
        side = handshake("member", s.static, s.ephemeral, GATEWAY.public, at)
        return side.write_message_1(payload)

    def hello(name: str, about: str, expect: str, frame: bytes, **more: Any) -> None:
        book.add(
            f"hello_bad_{name}", "hello", about, expect, session=f"session_ok_{s.name}", frame=frame, **more
        )

    message = spoken(s.hello_payload)
    hello("short", "59 bytes.", "length", s.hello[:59])
    hello("flags", "Flags 1, with a good mac.", "flags", hello_frame(s.static, 7, message, prologue, flags=1))
    hello("mac", "A bit of the mac.", "mac", flip(s.hello, -1))
    hello("index", "A bit of the header's index.", "index", flip(s.hello, 3))
    other = seal.prologue("acne", "device", 7)
    hello(
        "federation", "For another federation.", "mac", hello_frame(s.static, 7, spoken(b"", at=other), other)
    )
    stranger = KeyPair.from_private(seeded("a stranger"))
    hello("key", "By another key.", "mac", hello_frame(stranger, 7, message, prologue))
    spoiled = flip(message, -1)
    hello("tag", "A bit of the tag, with a good mac.", "seal", hello_frame(s.static, 7, spoiled, prologue))
    low = LOW_ORDER + message[32:]
    hello("low_order", "An ephemeral key of low order.", "key", hello_frame(s.static, 7, low, prologue))
    short = spoken(s.hello_payload[:-1])
    hello("payload", "21 bytes of payload.", "payload", hello_frame(s.static, 7, short, prologue))
    alien = spoken(payloads.encode_hello(Hello(s.model, 1, bytes(8))))
    frame = hello_frame(s.static, 7, alien, prologue)
    untrue = spoken(s.hello_payload[:17] + b"\x03" + bytes(4))
    hello("trust", "Trust 3.", "payload", hello_frame(s.static, 7, untrue, prologue))
    untrue = spoken(s.hello_payload[:17] + b"\x01gate")
    about = "A gate is named, and none is registered."
    hello("gate", about, "payload", hello_frame(s.static, 7, untrue, prologue))
    hello("task", "Another task's digest.", "task_mismatch", frame)
    about = "The current session's HELLO again."
    hello("replay", about, "replay", s.hello, before=[s.hello, ready_frame(s)])
    about = "The device may join one task, and this is another."
    hello("only_task", about, "task_mismatch", s.hello, only_task=PAIR.number)
    hello("closed", "The gateway waits for its claim to be answered.", "closed", s.hello, is_claiming=True)
    hello("stranger", "On the topic of an id that the roster lacks.", "stranger", s.hello, id="pi-99")

    def welcomed(payload: bytes, *, seed: str = "", to: bytes = b"") -> bytes:
        ephemeral = KeyPair.from_private(seeded(seed)) if seed else s.gateway_ephemeral
        side = handshake("gateway", GATEWAY, ephemeral, s.static.public, prologue)
        side.read_message_1(to or message)
        return frames.build_handshake_header(Type.WELCOME, s.index) + side.write_message_2(payload)

    def welcome(name: str, about: str, expect: str, frame: bytes, **more: Any) -> None:
        book.add(
            f"welcome_bad_{name}",
            "welcome",
            about,
            expect,
            session=f"session_ok_{s.name}",
            frame=frame,
            **more,
        )

    good, payload = s.welcome_frame, payloads.encode_welcome(s.welcome)
    welcome("short", "51 bytes.", "length", good[:51])
    welcome("flags", "Flags 1.", "flags", flip(good, 1))
    welcome("index", "A bit of the header's index.", "index", flip(good, 3))
    welcome("ephemeral", "A bit of the ephemeral key.", "seal", flip(good, 4))
    welcome("low_order", "An ephemeral key of low order.", "key", good[:4] + LOW_ORDER + good[36:])
    welcome("tag", "A bit of the tag.", "seal", flip(good, -1))
    welcome("session_number", "Session 16.", "payload", welcomed(b"\x10" + payload[1:]))
    welcome("payload_short", "One byte less.", "payload", welcomed(payload[:-1]))
    welcome("payload_long", "One byte more.", "payload", welcomed(payload + b"\0"))
    welcome("payload_keyless", "47 bytes, without a signing key.", "payload", welcomed(payload[:47]))
    welcome("payload_of_client", "A client's 7 bytes.", "payload", welcomed(payload[:7]))
    early = KeyPair.from_private(seeded("an earlier ephemeral"))
    crossed = handshake("member", s.static, early, GATEWAY.public, prologue).write_message_1(s.hello_payload)
    welcome("crossed", "Answers an earlier HELLO.", "seal", welcomed(payload, to=crossed))
    again = welcomed(payload, seed="another gateway ephemeral")
    welcome("unexpected", "A second one, for the same HELLO.", "unexpected", again, before=[good])

    def ready_(name: str, about: str, expect: str, frame: bytes, **more: Any) -> None:
        book.add(
            f"ready_bad_{name}", "ready", about, expect, session=f"session_ok_{s.name}", frame=frame, **more
        )

    ready, body = ready_frame(s), payloads.encode_ready(Ready(ALL_FORMS, s.welcome.epoch))
    ready_("short", "23 bytes.", "length", ready[:23])
    ready_("long", "1,025 bytes.", "length", ready + bytes(1025 - len(ready)))
    ready_("form", "The form bits are not 0.", "form", flip(ready, 1))
    ready_("session", "A session that is not open.", "session", flip(ready, 1, 7))
    ready_("index", "A bit of the index.", "index", flip(ready, 3))
    ready_("counter", "A bit of the counter.", "seal", flip(ready, 7))
    ready_("tag", "A bit of the tag.", "seal", flip(ready, -1))
    for name, about, plain in (
        ("payload_forms", "2 bytes, the forms alone.", body[:2]),
        ("payload_short", "5 bytes.", body[:-1]),
        ("payload_long", "7 bytes.", body + b"\0"),
        ("payload_empty", "No byte.", b""),
    ):
        ready_(name, about, "payload", counted(s, Type.READY, plain))
    ready_("replay", "The same again.", "replay", ready, before=[ready])
    far = ready_frame(s, 1024)
    ready_("stale", "1,024 below the newest counter.", "stale", ready, before=[far])


def _gates(book: Book, s: Sitting, digits: Sitting) -> None:
    """GATE follows READY, under the next counter."""
    content = gate_bytes()
    good = counted(s, Type.GATE, content, 1)
    about = "HELLO, WELCOME, READY, GATE of a device that registers its gate."
    fields = session_fields(s, by_gateway=True) | familiar_fields() | {"gate_frame": good}
    book.add("session_ok_gated", "session", about, **fields)

    def add(name: str, about: str, expect: str, frame: bytes, its: Sitting = s, **more: Any) -> None:
        fields: Fields = {"session": f"session_ok_{its.name}", "frame": frame}
        book.add(f"gate_{name}", "gate", about, expect, **fields | more)

    add("ok", "A good one.", "ok", good)
    for name, (about, spoilt) in damaged().items():
        add(f"bad_{name}", about, "gate", counted(s, Type.GATE, spoilt, 1))
    frame = counted(digits, Type.GATE, content, 1)
    add("bad_trust", "Of a device whose HELLO registers none.", "gate", frame, digits)
    add("bad_short", "24 bytes.", "length", good[:24])
    add("bad_too_long", "16,409 bytes.", "length", good + bytes(16_409 - len(good)))
    add("bad_form", "The form bits are not 0.", "form", flip(good, 1))
    add("bad_session", "A session that is not open.", "session", flip(good, 1, 7))
    add("bad_index", "A bit of the index.", "index", flip(good, 3))
    add("bad_counter", "A bit of the counter.", "seal", flip(good, 7))
    add("bad_tag", "A bit of the tag.", "seal", flip(good, -1))
    ready = counted(s, Type.READY, content, 1)
    add("bad_replay", "The same again.", "replay", good, before=[good])
    assert ready[8:] == good[8:-16] + ready[-16:]  # one key: the header alone tells them apart
    add("bad_of_ready", "A READY of the same content, called GATE.", "seal", good[:8] + ready[8:])


def _rekeys(book: Book, s: Sitting, high: Sitting) -> None:
    def ok(name: str, about: str, s: Sitting, it: NextEpoch, counter: int, *, by_gateway: bool) -> None:
        book.add(
            f"rekey_{name}",
            "rekey",
            about,
            session=f"session_ok_{s.name}",
            by_gateway=by_gateway,
            counter=counter,
            epoch=it.epoch.number,
            grace_ms=it.grace_ms,
            epoch_key=it.key,
            signing_seed=it.signing.seed,
            verify=it.signing.public,
            query_seal_key=it.epoch.seal_key,
            query_hash_key=it.epoch.digest_key,
            payload=it.payload,
            frame=it.frame,
            ready=ready_frame(s, 1, epoch=it.epoch.number),
            ready_again=ready_frame(s, 2, epoch=it.epoch.number),
            ready_former=ready_frame(s, 1),
        )

    good = next_epoch(s)
    about = "A new epoch, while a query is open for 2 s. `ready` and `ready_again` answer it and its copy."
    ok("ok", about, s, good, 0, by_gateway=True)
    about = "With a new signing key."
    ok("ok_signing", about, s, next_epoch(s, signing=NEXT_SIGNING), 0, by_gateway=True)
    about = "The epoch after the greatest is 0; the longest grace. Not what a new gateway says."
    ok(
        "ok_high",
        about,
        high,
        next_epoch(high, 0xFFFFFFFF, grace_ms=86_400_000),
        0xFFFFFFFF,
        by_gateway=False,
    )

    def bad(name: str, about: str, expect: str, frame: bytes, **more: Any) -> None:
        fields: Fields = {"session": f"session_ok_{s.name}", "frame": frame}
        book.add(f"rekey_bad_{name}", "rekey", about, expect, **fields | more)

    frame = good.frame
    bad("short", "23 bytes.", "length", frame[:23])
    bad("long", "1,025 bytes.", "length", frame + bytes(1025 - len(frame)))
    bad("form", "The form bits are not 0.", "form", flip(frame, 1))
    bad("session", "Another session.", "session", flip(frame, 1, 7))
    bad("index", "A bit of the index.", "session", flip(frame, 3))
    bad("counter", "A bit of the counter.", "seal", flip(frame, 7))
    bad("tag", "A bit of the tag.", "seal", flip(frame, -1))
    from_ready = counted(s, Type.READY, good.payload)
    bad("reflected", "Under the key of READY.", "seal", frame[:8] + from_ready[8:])
    for name, about, plain in (
        ("payload_short", "71 bytes.", good.payload[:-1]),
        ("payload_long", "73 bytes.", good.payload + b"\0"),
        ("grace", "A grace above a day.", next_epoch(s, grace_ms=86_400_001).payload),
    ):
        bad(name, about, "payload", counted(s, Type.REKEY, plain))
    about = "Other bytes under a counter that was seen."
    bad("replay", about, "replay", flip(frame, -1), before=[frame])
    later = next_epoch(s, 1, after=good.epoch)
    about = "The one before the one that began the epoch, overtaken."
    bad("stale", about, "stale", frame, before=[later.frame])
    bad("window", "1,024 below the newest.", "stale", frame, before=[next_epoch(s, 1024).frame])


def query_fields(s: Sitting, plaintext: bytes, **how: Any) -> Fields:
    """A good query, and its parts."""
    query, frame = payloads.decode_query(plaintext), query_frame(s, plaintext, **how)
    return {
        "session": f"session_ok_{s.name}",
        "seq": frames.parse_query(frame).seq,
        "task": query.task,
        "forms": int.from_bytes(plaintext[1:3], "big"),
        "deadline_ms": query.deadline_ms,
        "settle": query.settle,
        "dtype": query.tensor.dtype,
        "shape": query.tensor.shape,
        "content": query.tensor.content,
        "plaintext": plaintext,
        "query_hash": how.get("epoch", s.epoch).query_hash(frame),
        "frame": frame,
    }


def _queries(book: Book, s: Sitting, pair: Sitting, birds: Sitting, many: Sitting, high: Sitting) -> None:
    def ok(name: str, about: str, s: Sitting, plaintext: bytes, **how: Any) -> None:
        book.add(f"query_ok_{name}", "query", about, **query_fields(s, plaintext, **how))

    plain = query_plaintext(s)
    for name, its in (("uint8", s), ("int8", pair), ("float16", birds), ("float32", many)):
        rank = len(TENSORS[its.task.number].shape) if its.task else 0
        ok(name, f"{name}, rank {rank}, every form allowed.", its, query_plaintext(its))
    ok("form_bits", "Bits of no known form, and bit 0, mean nothing.", s, b"\x01\xff\x03" + plain[3:])
    ok("no_forms", "Nothing but abstaining is allowed.", s, b"\x01\x00\x00" + plain[3:])
    longest = plain[:3] + (86_400_000).to_bytes(4, "big") + plain[7:]
    ok("deadline", "The longest deadline, a day.", s, longest)
    ok("high_seq", "The greatest epoch and seq.", high, query_plaintext(high, seq=0xFFFFFFFF), seq=0xFFFFFFFF)

    good = query_frame(s, plain)

    def bad(name: str, about: str, expect: str, frame: bytes, **more: Any) -> None:
        book.add(
            f"query_bad_{name}", "query", about, expect, session=f"session_ok_{s.name}", frame=frame, **more
        )

    def sealed(name: str, about: str, plaintext: bytes, expect: str = "payload") -> None:
        bad(name, about, expect, query_frame(s, plaintext))

    bad("empty", "No byte.", "length", b"")
    bad("short", "90 bytes.", "length", good[:90])
    bad("type", "A type that is not known.", "type", flip(good, 0, 7))
    bad("flags", "Flags 1, sealed and signed so.", "flags", query_frame(s, plain, flags=1))
    foreign = seal.Epoch.from_key(s.welcome.epoch ^ 1, seeded("another epoch"))
    about = "An epoch that is not held, by the gateway: a reason for a HELLO."
    bad("epoch", about, "epoch", query_frame(s, plain, epoch=foreign))
    bad("epoch_flipped", "A bit of the epoch.", "signature", flip(good, 5))
    wrong = seal.Epoch.from_key(s.welcome.epoch, seeded("another epoch"))
    bad("epoch_key", "Sealed with another key.", "seal", query_frame(s, plain, epoch=wrong))
    bad("seq_flipped", "A bit of the seq.", "seal", flip(good, 9, 3))
    bad("sealed_flipped", "A bit of the ciphertext.", "seal", flip(good, 12))
    bad("tag_flipped", "A bit of the tag.", "seal", flip(good, -65))
    bad("signature", "A bit of the signature.", "signature", flip(good, -1))
    bad("fellow", "Sealed and signed by a fellow member.", "signature", query_frame(s, plain, signing=FELLOW))
    frame = query_frame(s, plain, federation="acne")
    bad("federation", "Signed for another federation.", "signature", frame)
    bad("long", "A byte after the signature.", "seal", good + b"\0")
    bad("floor", "A seq below the floor.", "stale", query_frame(s, plain, seq=0))
    newest = query_frame(s, plain, seq=1025)
    bad("window", "1,024 below the newest.", "stale", good, before=[newest])
    other = query_frame(s, plain[:-1] + b"\xff")
    bad("conflict", "Other content under a seq that is known.", "conflict", other, before=[good])
    head = plain[:15]
    content = plain[25:]
    shape = struct.pack(">II", 8, 8)
    sealed("plaintext_short", "14 bytes.", plain[:14])
    sealed("rank_0", "A tensor of no dimension.", head + b"\x02\x00" + b"\x01")
    sealed("rank_9", "A tensor of 9.", head + b"\x02\x09" + struct.pack(">9I", *[1] * 8, 64) + content)
    sealed("dtype", "Element type 4.", head + b"\x04\x02" + shape + content)
    sealed("dims_zero", "A dimension of 0.", head + b"\x02\x02" + struct.pack(">II", 0, 8))
    huge = head + b"\x02\x08" + b"\xff" * 32 + content
    sealed("dims_huge", "2 to the power of 256 elements.", huge)
    wrap = head + b"\x02\x02" + struct.pack(">II", 0x80000000, 0x20000002) + content
    sealed("dims_wrap", "Dimensions whose product is small in 32 bits.", wrap)
    sealed("content_long", "A byte after the content.", plain + b"\0")
    late = plain[:3] + (86_400_001).to_bytes(4, "big") + plain[7:]
    sealed("deadline", "A deadline above a day.", late)
    sealed("task", "Another task's number.", b"\x02" + plain[1:], "task")
    sealed(
        "shape", "As many elements in another shape.", head + b"\x02\x01" + b"\0\0\0\x40" + content, "task"
    )


def _epochs(book: Book, s: Sitting) -> None:
    """Queries of a device that has also taken a REKEY, or two, and then waited."""
    plain = query_plaintext(s)
    former = query_frame(s, plain)
    rekey = next_epoch(s)
    later = next_epoch(s, 1, after=rekey.epoch)
    resigned = next_epoch(s, signing=NEXT_SIGNING)
    now = query_plaintext(s, epoch=rekey.epoch)

    def ok(name: str, about: str, plaintext: bytes, before: list[bytes], wait_ms: int, **how: Any) -> None:
        fields = query_fields(s, plaintext, **how)
        book.add(f"query_ok_{name}", "query", about, **fields, before=before, wait_ms=wait_ms)

    def bad(
        name: str, about: str, expect: str, frame: bytes, before: list[bytes], *, wait_ms: int = 0
    ) -> None:
        fields: Fields = {"session": f"session_ok_{s.name}", "frame": frame, "before": before}
        book.add(f"query_bad_{name}", "query", about, expect, **fields, wait_ms=wait_ms)

    ok("former", "Of the epoch before, within its grace of 2 s.", plain, [rekey.frame], 1500)
    ok("rekeyed", "Of the epoch that a REKEY began.", now, [rekey.frame], 0, epoch=rekey.epoch)
    about = "Of the epoch that a REKEY began, under its signing key."
    how: Fields = {"epoch": resigned.epoch, "signing": NEXT_SIGNING}
    ok("resigned", about, now, [resigned.frame], 0, **how)
    about = "Of the epoch before, under the signing key of that time."
    ok("former_signing", about, plain, [resigned.frame], 1500)
    about = "Of the epoch before, after its grace of 2 s: a reason for a HELLO."
    bad("former_late", about, "epoch", former, [rekey.frame], wait_ms=2500)
    about = "Of the epoch before, after a grace of 0."
    bad("former_graceless", about, "epoch", former, [next_epoch(s, grace_ms=0).frame], wait_ms=1)
    about = "Of the epoch before the epoch before."
    bad("former_twice", about, "epoch", former, [rekey.frame, later.frame], wait_ms=500)
    about = "After its grace, under a signing key that the gateway no longer has."
    bad("former_late_signing", about, "signature", former, [resigned.frame], wait_ms=2500)
    about = "Of the new epoch, under the signing key before."
    frame = query_frame(s, now, epoch=resigned.epoch)
    bad("signed_before", about, "signature", frame, [resigned.frame])
    about = "Of the epoch before, under the new signing key."
    bad("signed_after", about, "signature", query_frame(s, plain, signing=NEXT_SIGNING), [resigned.frame])
    about = "Of the new epoch, under a seq that the one before had: seqs go on."
    frame = query_frame(s, now, epoch=rekey.epoch)
    bad("seq_of_former", about, "conflict", frame, [former, rekey.frame])


def _answers(book: Book, s: Sitting, pair: Sitting, birds: Sitting, many: Sitting) -> None:
    def ok(
        name: str,
        about: str,
        s: Sitting,
        form: Form,
        scores: list[float] | None,
        known: list[int],
        **more: Any,
    ) -> None:
        assert s.task is not None
        allowed = frozenset({Form.LABEL} if form is Form.ABSTAIN else {form})
        query = query_frame(s, query_plaintext(s, forms=allowed))
        fields: Fields = {"form": form, "scores": scores, "model_classes": known}
        code = b""
        if scores is not None and form is not Form.ABSTAIN:
            probabilities: Array = spread(np.array(scores), known, s.task.classes)
            log_weight = 0.0  # without a gate an answer claims nothing
            scale = s.task.log_weight
            code = votes.quantize(form, probabilities, log_weight, scale=scale)
            near = np.array(rounded(probabilities))
            # Codes that a last bit of exp or log could change would say nothing about an encoder.
            assert code == votes.quantize(form, near, rounded(log_weight), scale=scale)
            decoded, decoded_weight = votes.dequantize(form, code, s.task.classes, scale=scale)
            fields |= {"given_probabilities": near.tolist(), "given_log_weight": rounded(log_weight)}
            fields |= {"probabilities": rounded(decoded), "log_weight": rounded(decoded_weight)}
        frame = answer_frame(s, query, form, code)
        key = seal.answer_key(
            s.keys.answer,
            frame[:8],
            epoch=s.welcome.epoch,
            query_hash=s.epoch.query_hash(query),
            model=s.model,
        )
        fields |= {"code": code, "query_hash": s.epoch.query_hash(query), "key": key, "frame": frame}
        fields |= more
        book.add(f"answer_ok_{name}", "answer", about, session=f"session_ok_{s.name}", query=query, **fields)

    ten = list(range(10))
    scores = [0.5, -1.25, 3.0, 0.0, 2.125, -4.0, 1.0, 0.25, -0.75, 1.5]
    ok("abstain", "The model failed.", s, Form.ABSTAIN, None, ten)
    ok("label_2", "2 classes.", pair, Form.LABEL, [0.3, 1.1], [0, 1])
    ok("label_10", "10 classes.", s, Form.LABEL, scores, ten)
    row = [round(0.37 * (n * 7 % 17), 2) for n in range(17)]
    ok("label_17", "17 classes; the scale is not the usual one.", birds, Form.LABEL, row, list(range(17)))
    wide = [round(0.05 * (n * 31 % 257), 2) for n in range(257)]
    ok("label_257", "257 classes: 3 bytes.", many, Form.LABEL, wide, list(range(257)))
    for form in VOTE_FORMS[1:]:
        about = "10 classes, of which the model knows 7."
        name = form.title.replace("-", "_")
        ok(f"{name}_10", about, s, form, scores[:7], [0, 1, 2, 4, 7, 8, 9])

    rekey = next_epoch(s)
    after: Fields = {"rekey": rekey.frame, "rekey_epoch_key": rekey.key}
    about = "To a query of the epoch before: it came, then a REKEY, then this."
    ok("former", about, s, Form.LABEL, scores, ten, **after)

    label_or_probs = frozenset({Form.LABEL, Form.PROBS_4})
    query = query_frame(s, query_plaintext(s, forms=label_or_probs))
    code = bytes.fromhex("02bf")
    good = answer_frame(s, query, Form.LABEL, code)

    def bad(name: str, about: str, expect: str, frame: bytes, **more: Any) -> None:
        fields: Fields = {"session": f"session_ok_{s.name}", "query": query, "frame": frame}
        book.add(f"answer_bad_{name}", "answer", about, expect, **fields | more)

    bad("short", "23 bytes.", "length", good[:23])
    bad("long", "4,122 bytes.", "length", good + bytes(4122 - len(good)))
    bad("form_unknown", "Form 8.", "form", answer_frame(s, query, 8, code))
    bad(
        "form_not_allowed",
        "A form the query does not allow.",
        "form",
        answer_frame(s, query, 2, b"\x80\xc0\0\0"),
    )
    bad("form_flipped", "Another form, which the query allows.", "seal", _form(good))
    bad("index", "The index of a fellow member.", "index", answer_frame(s, query, 1, code, index=8))
    bad("session", "A session that is not open.", "session", answer_frame(s, query, 1, code, session=3))
    bad("seq", "A query that was not asked.", "unknown_query", answer_frame(s, query, 1, code, seq=2))
    bad("sealed_flipped", "A bit of the ciphertext.", "seal", flip(good, 8))
    bad("tag_flipped", "A bit of the tag.", "seal", flip(good, -1))
    bad("model", "For another model.", "seal", answer_frame(s, query, 1, code, model=bytes(8)))
    elsewhere = query_frame(s, query_plaintext(s))
    bad("query_hash", "To other content of the query.", "seal", answer_frame(s, elsewhere, 1, code))
    bad("key", "Under another session's key.", "seal", answer_frame(s, query, 1, code, key=pair.keys.answer))
    bad("abstain_bytes", "A byte in an abstention.", "vote", answer_frame(s, query, 0, b"\0"))
    bad("duplicate", "The same again.", "duplicate", good, before=[good])
    bad("late", "After the round's end.", "late", good, closed=True)
    bound = rekey.epoch.query_hash(query)
    key = seal.answer_key(s.keys.answer, good[:8], epoch=rekey.epoch.number, query_hash=bound, model=s.model)
    frame = good[:8] + aead_seal(code, key=key, nonce=0, header=good[:8])
    bad("epoch", "Bound to the new epoch, for a query of the one before.", "seal", frame, **after)


def _form(frame: bytes) -> bytes:
    """LABEL (1) made PROBS_4 (4) in the header, and nothing else."""
    return frame[:1] + bytes([frame[1] & 0xF0 | Form.PROBS_4]) + frame[2:]


def _settled(book: Book, s: Sitting) -> None:
    epoch = s.welcome.epoch
    query = query_frame(s, query_plaintext(s))
    preimage = seal.settle_preimage(SETTLE_SECRET, epoch, 1)
    good = frames.build_settled(epoch, 1, preimage)

    def add(name: str, about: str, expect: str, frame: bytes, **more: Any) -> None:
        fields: Fields = {"session": f"session_ok_{s.name}", "query": query, "frame": frame} | more
        if expect == "ok":
            fields |= {"seq": 1, "preimage": preimage}
            fields["digest"] = seal.settle_digest(preimage, epoch, 1, FEDERATION)
        book.add(f"settled_{name}", "settled", about, expect, **fields)

    add("ok", "Silences a device that has not answered.", "ok", good)
    add("bad_preimage", "Another preimage.", "settled", flip(good, -1))
    foreign = seal.settle_preimage(SETTLE_SECRET, epoch, 2)
    add("bad_foreign", "Another query's preimage.", "settled", frames.build_settled(epoch, 1, foreign))
    add("bad_seq", "A query that is not known.", "unknown_query", flip(good, 9, 1))
    add("bad_epoch", "An epoch that is not held.", "unknown_query", flip(good, 5))
    add("bad_flags", "Flags 1.", "flags", flip(good, 1))
    add("bad_short", "A byte less.", "length", good[:-1])
    rekey = next_epoch(s)
    add("ok_former", "Of the epoch before, whose query it is.", "ok", good, before=[rekey.frame])
    preimage = seal.settle_preimage(SETTLE_SECRET, rekey.epoch.number, 1)
    frame = frames.build_settled(rekey.epoch.number, 1, preimage)
    about = "Of the new epoch, for a query of the one before."
    add("bad_later_epoch", about, "unknown_query", frame, before=[rekey.frame])


def _asks(book: Book, client: Sitting) -> None:
    def add(name: str, about: str, expect: str, frame: bytes, **more: Any) -> None:
        fields: Fields = {"session": "session_ok_client", "task": task_fields(DIGITS), "frame": frame}
        book.add(f"ask_{name}", "ask", about, expect, **fields | more)

    tensor = TENSORS[1]
    payload = payloads.encode_ask(Ask(1, 1500, tensor))
    good = counted(client, Type.ASK, payload)

    def answered(status: Status, **named: Any) -> Fields:
        outcome = Outcome(status=status, **named)
        return {
            "outcome": counted(client, Type.OUTCOME, payloads.encode_outcome(0, outcome)),
            "status": status,
        }

    about = "Of a gateway that has no device: the OUTCOME says NO_MEMBERS."
    fields = {"counter": 0, "deadline_ms": 1500, "payload": payload, "content": tensor.content}
    add("ok", about, "ok", good, **fields | answered(Status.NO_MEMBERS))
    body = payloads.encode_feedback(Feedback(5, 6, 7))
    about = "Feedback on a query that is not known."
    more = answered(Status.REFUSED, epoch=5, seq=6) | {"payload": body}
    add("refused_feedback", about, "refused", counted(client, Type.ASK, body), **more)
    more = answered(Status.REFUSED) | {"payload": body + b"\0"}
    add(
        "refused_feedback_long",
        "Feedback of 12 bytes.",
        "refused",
        counted(client, Type.ASK, body + b"\0"),
        **more,
    )
    add("bad_session", "A session that is not open.", "session", flip(good, 1, 7))
    add("bad_index", "A bit of the index.", "index", flip(good, 3))
    add("bad_tag", "A bit of the tag.", "seal", flip(good, -1))
    for name, about, body in (
        ("deadline_zero", "A deadline of 0.", payload[:1] + bytes(4) + payload[5:]),
        ("payload_long", "A byte after the content.", payload + b"\0"),
        ("task_unknown", "A task that the gateway lacks.", b"\x09" + payload[1:]),
    ):
        more = answered(Status.REFUSED) | {"payload": body}
        add(f"refused_{name}", about, "refused", counted(client, Type.ASK, body), **more)


def _outcomes(book: Book, client: Sitting) -> None:
    ask = counted(client, Type.ASK, payloads.encode_ask(Ask(1, 1500, TENSORS[1])))

    def add(name: str, about: str, expect: str, payload: bytes, **more: Any) -> None:
        frame = counted(client, Type.OUTCOME, payload)
        fields: Fields = {"session": "session_ok_client", "ask": ask, "payload": payload, "frame": frame}
        book.add(f"outcome_{name}", "outcome", about, expect, **fields | more)

    def ok(name: str, about: str, outcome: Outcome) -> bytes:
        payload = payloads.encode_outcome(0, outcome)
        _, read = payloads.decode_outcome(payload)
        add(
            f"ok_{name}",
            about,
            "ok",
            payload,
            counter=0,
            status=read.status,
            label=read.label,
            probabilities=rounded(read.probabilities),
            agreement=rounded(read.agreement),
            strategy=read.strategy,
            reason=read.reason,
            label_set=read.label_set,
            fates=[[device, fate] for device, fate in read.fates],
            epoch=read.epoch,
            seq=read.seq,
            elapsed_us=read.elapsed_us,
        )
        return payload

    fates = tuple((f"pi-0{fate}", fate) for fate in Fate)
    answered = Outcome(
        status=Status.ANSWERED,
        label=2,
        probabilities=(0.125, 0.25, 0.625),
        agreement=2 / 3,
        strategy="familiarity",
        label_set=(1, 2),
        fates=fates,
        epoch=0x01020304,
        seq=1,
        elapsed_us=123_456,
    )
    payload = ok("answered", "A label, and every fate once.", answered)
    ok(
        "no_quorum",
        "No label, no probabilities.",
        Outcome(status=Status.NO_QUORUM, fates=fates[4:5], seq=0xFFFFFFFF, elapsed_us=2_000_000),
    )
    unsure = replace(answered, status=Status.ABSTAINED, label=None, reason="unsure", label_set=())
    ok("unsure", "No label for want of confidence, and the probabilities.", unsure)
    head = struct.Struct(">IBHHIIIHH")
    fixed = list(head.unpack_from(payload))
    rest = payload[head.size :]

    def bad(name: str, about: str, changed: bytes, expect: str = "payload", **more: Any) -> None:
        add(f"bad_{name}", about, expect, changed, **more)

    def with_field(at: int, value: int) -> bytes:
        return head.pack(*[value if n == at else old for n, old in enumerate(fixed)]) + rest

    bad("short", "24 bytes.", payload[:24])
    bad("status", "Status 7.", with_field(1, 7))
    bad("label", "Label 3 of 3.", with_field(2, 3))
    bad("classes_cut", "More classes than bytes.", with_field(7, 4096))
    bad("set_cut", "A set of more classes than bytes.", with_field(8, 4096))
    bad("set_order", "A set out of order.", payload[:31] + b"\0\2\0\1" + payload[35:])
    bad("set_label", "A set with class 3 of 3.", payload[:31] + b"\0\1\0\3" + payload[35:])
    bad("fate", "Fate 7.", payload[:-7] + b"\x07" + payload[-6:])
    bad("name_cut", "A name of 6 letters, of which 5 are there.", payload[:-6] + b"\x06" + payload[-5:])
    bad("name_ascii", "A name that is not ASCII.", payload[:-1] + b"\xe4")
    bad("trailing", "A fate without a name.", payload + b"\x01")
    bad("counter", "A counter that was not asked.", with_field(0, 5), "unknown_query")
    frame = counted(client, Type.OUTCOME, payload)
    bad("tag", "A bit of the tag.", payload, "seal", frame=flip(frame, -1))
    bad("session", "Another session.", payload, "session", frame=flip(frame, 1, 7))
    bad("replay", "The same again.", payload, "replay", before=[frame])


def _misplaced(book: Book, s: Sitting, client: Sitting, others: dict[str, bytes]) -> None:
    query = query_frame(s, query_plaintext(s))
    answer = answer_frame(s, query, Form.LABEL, bytes.fromhex("02bf"))
    preimage = seal.settle_preimage(SETTLE_SECRET, s.welcome.epoch, 1)
    settled = frames.build_settled(s.welcome.epoch, 1, preimage)
    ask = counted(client, Type.ASK, payloads.encode_ask(Ask(1, 1500, TENSORS[1])))
    rekey = next_epoch(s).frame
    for name, about, receiver, level, frame in (
        ("reflected", "A device's own ANSWER, sent back to it.", "device", "d", answer),
        ("settled", "SETTLED to one device alone.", "device", "d", settled),
        ("welcome", "WELCOME to every device.", "device", "q", s.welcome_frame),
        ("rekey", "REKEY to every device.", "device", "q", rekey),
        ("query", "A QUERY sent to the gateway.", "gateway", "a", query),
        ("ask", "A device speaks as a client.", "gateway", "a", ask),
        ("rekey_up", "A REKEY sent to the gateway.", "gateway", "a", rekey),
        ("join_up", "A device sends a JOIN on its own topic.", "gateway", "a", others["join"]),
        ("hello_join", "A HELLO where joiners speak.", "gateway", "join", s.hello),
        ("accept_join", "An ACCEPT where joiners speak.", "gateway", "join", others["accept"]),
        ("claim_roster", "A CLAIM where the roster stands.", "gateway", "gateway/roster", others["claim"]),
        ("roster_claim", "A ROSTER where runs claim.", "gateway", "gateway/claim", others["roster"]),
    ):
        fields: Fields = {"session": f"session_ok_{s.name}", "receiver": receiver, "level": level}
        book.add(f"misplaced_{name}", "misplaced", about, "direction", **fields, frame=frame)


def main() -> None:
    files = build()
    for old in FOLDER.glob("*.json"):
        if old.stem not in files and old.stem not in NOT_OURS:
            old.unlink()
    for name, text in files.items():
        (FOLDER / f"{name}.json").write_text(text, encoding="ascii")
    print(f"{len(files)} vectors")


if __name__ == "__main__":
    main()
