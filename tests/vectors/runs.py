"""Vectors of what a gateway's runs say to each other: CLAIM, HELD, ROSTER. No member reads them."""

import struct

from book import Book, Fields, flip, seeded
from sittings import BOOT, FEDERATION, GATEWAY

from edge_fi.crypto import seal
from edge_fi.crypto.aead import seal as aead_seal
from edge_fi.crypto.keys import KeyPair
from edge_fi.wire import frames, payloads
from edge_fi.wire.frames import Type

OTHER = KeyPair.from_private(seeded("another gateway static"))
LOW, MIDDLE, HIGH = (bytes([first]) + seeded("nonce", 15) for first in (0x10, 0x80, 0xF0))
PURPOSES = {Type.CLAIM: b"fi1 claim", Type.HELD: b"fi1 held"}


def claim_frame(kind: Type, nonce: bytes, *, own: KeyPair = GATEWAY, flags: int = 0) -> bytes:
    """A CLAIM or HELD with a good mac."""
    maced = bytes([kind, flags]) + nonce
    return maced + seal.claim_mac(own.private, PURPOSES[kind], maced)


def roster_frame(version: int, salt: bytes, word: bytes, *, own: KeyPair = GATEWAY, flags: int = 0) -> bytes:
    """A ROSTER of this plaintext."""
    header = struct.pack(">BBI", Type.ROSTER, flags, version) + salt
    return header + aead_seal(word, key=seal.roster_key(own.private, header), nonce=0, header=header)


def runs(book: Book) -> dict[str, bytes]:
    """Add them all. Returns what other vectors take from them."""
    _claims(book)
    _helds(book)
    roster = _rosters(book)
    return {
        "claim": claim_frame(Type.CLAIM, MIDDLE),
        "held": claim_frame(Type.HELD, MIDDLE),
        "roster": roster,
    }


def _gateway(nonce: bytes, *, serves: bool) -> Fields:
    """A run that made a CLAIM under this nonce."""
    return {
        "federation": FEDERATION,
        "gateway_private": GATEWAY.private,
        "boot": BOOT,
        "nonce": nonce,
        "claim": claim_frame(Type.CLAIM, nonce),
        "serves": serves,
    }


def _claims(book: Book) -> None:
    """`answer`: what the run publishes on the same topic; empty if nothing."""
    good = claim_frame(Type.CLAIM, MIDDLE)
    held = claim_frame(Type.HELD, MIDDLE)

    def ok(name: str, about: str, nonce: bytes, answer: bytes, *, serves: bool) -> None:
        fields = _gateway(nonce, serves=serves) | {"frame": good, "answer": answer}
        book.add(f"claim_ok_{name}", "claim", about, **fields)

    ok("serves", "The run serves: it holds its claim.", HIGH, held, serves=True)
    ok("lower", "Both wait, and the run's own nonce is the lower.", LOW, held, serves=False)
    own = claim_frame(Type.CLAIM, HIGH)
    about = "Both wait, and the run's own nonce is the higher: the other may not have heard of it."
    ok("higher", about, HIGH, own, serves=False)
    ok("own", "The run's own CLAIM, as the broker sends it back.", MIDDLE, b"", serves=False)
    _bad(book, "claim", Type.CLAIM)
    fields = _gateway(HIGH, serves=True)
    about = "A HELD whose type was made that of a CLAIM."
    book.add("claim_bad_purpose", "claim", about, "mac", **fields, frame=b"\x41" + held[1:])


def _helds(book: Book) -> None:
    """`halts`: whether the run ends."""

    def ok(name: str, about: str, nonce: bytes, *, serves: bool, halts: bool) -> None:
        fields = _gateway(nonce, serves=serves) | {"frame": claim_frame(Type.HELD, MIDDLE), "halts": halts}
        book.add(f"held_ok_{name}", "held", about, **fields)

    ok("waits", "Another run holds what this one claims.", MIDDLE, serves=False, halts=True)
    ok("serves", "Another run that serves, found late.", MIDDLE, serves=True, halts=True)
    ok("other", "The claim of a third run is held.", LOW, serves=True, halts=False)
    _bad(book, "held", Type.HELD)
    about = "A CLAIM whose type was made that of a HELD."
    frame = b"\x42" + claim_frame(Type.CLAIM, MIDDLE)[1:]
    book.add("held_bad_purpose", "held", about, "mac", **_gateway(MIDDLE, serves=False), frame=frame)


def _bad(book: Book, name: str, kind: Type) -> None:
    good = claim_frame(kind, MIDDLE)

    def bad(what: str, about: str, expect: str, frame: bytes) -> None:
        fields = _gateway(MIDDLE if kind is Type.HELD else HIGH, serves=False)
        book.add(f"{name}_bad_{what}", name, about, expect, **fields, frame=frame)

    bad("short", "25 bytes.", "length", good[:-1])
    bad("long", "27 bytes.", "length", good + b"\0")
    bad("flags", "Flags 1, with a good mac.", "flags", claim_frame(kind, MIDDLE, flags=1))
    bad("mac", "A bit of the mac.", "mac", flip(good, -1))
    bad("nonce", "A bit of the nonce.", "mac", flip(good, 2))
    bad("key", "By another gateway.", "mac", claim_frame(kind, MIDDLE, own=OTHER))


def _rosters(book: Book) -> bytes:
    """`adopts`: whether it says what the run, with `known_highest` and `known_revoked`, did not know."""
    salt = seeded("roster salt", 16)

    def run(known_highest: int, known_revoked: list[int]) -> Fields:
        return {
            "federation": FEDERATION,
            "gateway_private": GATEWAY.private,
            "boot": BOOT,
            "known_highest": known_highest,
            "known_revoked": known_revoked,
        }

    def ok(
        name: str,
        about: str,
        version: int,
        said: tuple[int, list[int]],
        known: tuple[int, list[int]],
        *,
        adopts: bool,
    ) -> bytes:
        highest, revoked = said
        word = payloads.encode_roster(highest, frozenset(revoked))
        frame = roster_frame(version, salt, word)
        book.add(
            f"roster_ok_{name}",
            "roster",
            about,
            **run(*known),
            salt=salt,
            version=version,
            highest=highest,
            revoked=revoked,
            key=seal.roster_key(GATEWAY.private, frame[: frames.ROSTER_HEADER_BYTES]),
            payload=word,
            frame=frame,
            adopts=adopts,
        )
        return frame

    said = (12, [3, 7, 12])
    good = ok("revoked", "A former member that the run took for one.", 9, said, (12, [3, 7]), adopts=True)
    ok("highest", "A higher index than the run knew of.", 9, (12, [3]), (11, [3, 7]), adopts=True)
    ok("known", "Nothing new, though of a later version.", 9, said, (13, [3, 7, 12, 13]), adopts=False)
    ok("none", "Nobody was ever revoked.", 1, (0, []), (0, []), adopts=False)
    greatest = (0xFFFF, [0xFFFF])
    ok("greatest", "The greatest version and index.", 2**32 - 1, greatest, (0xFFFF, []), adopts=True)

    def bad(name: str, about: str, expect: str, frame: bytes) -> None:
        fields: Fields = run(0, []) | {"frame": frame}
        book.add(f"roster_bad_{name}", "roster", about, expect, **fields)

    word = payloads.encode_roster(12, frozenset({3, 7, 12}))
    bad("short", "37 bytes.", "length", good[:37])
    bad("flags", "Flags 1, sealed so.", "flags", roster_frame(9, salt, word, flags=1))
    bad("version", "A bit of the version.", "seal", flip(good, 5))
    bad("salt", "A bit of the salt.", "seal", flip(good, 6))
    bad("tag", "A bit of the tag.", "seal", flip(good, -1))
    bad("key", "By another gateway.", "seal", roster_frame(9, salt, word, own=OTHER))

    def sealed(name: str, about: str, *numbers: int, more: bytes = b"") -> None:
        word = struct.pack(f">{len(numbers)}H", *numbers) + more
        bad(name, about, "payload", roster_frame(9, salt, word))

    sealed("payload_empty", "No byte.")
    sealed("payload_odd", "Half an index.", 12, 3, more=b"\0")
    sealed("order", "Not in order.", 12, 7, 3)
    sealed("twice", "One index twice.", 12, 7, 7)
    sealed("index", "Index 0.", 12, 0)
    sealed("above", "An index above the highest.", 12, 13)
    return good
