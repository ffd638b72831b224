"""Frames: hand-written bytes, the sizes of each type, and refusal of everything else."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_fi.errors import DecodeError
from edge_fi.wire.frames import (
    HandshakeFrame,
    JoiningFrame,
    QueryFrame,
    SessionFrame,
    Type,
    build_claim,
    build_handshake_header,
    build_joining_header,
    build_query_header,
    build_roster_header,
    build_session_header,
    build_settled,
    parse_claim,
    parse_handshake,
    parse_joining,
    parse_query,
    parse_roster,
    parse_session_frame,
    parse_settled,
    parse_type,
)

BYTES = {
    Type.QUERY: 0x01,
    Type.ANSWER: 0x02,
    Type.SETTLED: 0x03,
    Type.HELLO: 0x10,
    Type.WELCOME: 0x11,
    Type.READY: 0x12,
    Type.REKEY: 0x13,
    Type.GATE: 0x14,
    Type.ASK: 0x20,
    Type.OUTCOME: 0x21,
    Type.JOIN: 0x30,
    Type.ACCEPT: 0x31,
    Type.REFUSED: 0x32,
    Type.ROSTER: 0x40,
    Type.CLAIM: 0x41,
    Type.HELD: 0x42,
}
SIZES = {
    # header, then key 32, tag 16, mac 8, signature 64, preimage 16; at least one byte of a query
    Type.QUERY: (10 + 1 + 16 + 64, 1_000_000),
    Type.ANSWER: (8 + 16, 8 + 1 + 4096 + 16),
    Type.SETTLED: (10 + 16, 10 + 16),
    Type.HELLO: (4 + 32 + 16 + 8, 256),
    Type.WELCOME: (4 + 32 + 16, 256),
    Type.READY: (8 + 16, 1024),
    Type.REKEY: (8 + 16, 1024),
    Type.GATE: (8 + 1 + 16, 8 + 16_384 + 16),
    Type.ASK: (8 + 1 + 16, 1_000_000),
    Type.OUTCOME: (8 + 1 + 16, 1_000_000),
    # header, ephemeral key 32, static key 32 and its tag 16, tag 16, mac 8
    Type.JOIN: (6 + 32 + 48 + 16 + 8, 6 + 32 + 48 + 16 + 8),
    Type.ACCEPT: (6 + 32 + 16, 200_000),
    Type.REFUSED: (6 + 1 + 8, 6 + 1 + 8),
    Type.ROSTER: (22 + 16, 1_000_000),
    Type.CLAIM: (2 + 16 + 8, 2 + 16 + 8),
    Type.HELD: (2 + 16 + 8, 2 + 16 + 8),
}
SESSION_KINDS = (Type.ANSWER, Type.READY, Type.REKEY, Type.GATE, Type.ASK, Type.OUTCOME)


def parse(frame: bytes) -> object:
    """As a machine does: the type first, then the parser of that type."""
    kind = parse_type(frame)
    if kind is Type.QUERY:
        return parse_query(frame)
    if kind is Type.SETTLED:
        return parse_settled(frame)
    if kind in (Type.HELLO, Type.WELCOME):
        return parse_handshake(frame)
    if kind in (Type.JOIN, Type.ACCEPT, Type.REFUSED):
        return parse_joining(frame)
    if kind is Type.ROSTER:
        return parse_roster(frame)
    if kind in (Type.CLAIM, Type.HELD):
        return parse_claim(frame)
    return parse_session_frame(frame)


def test_every_type_has_its_byte() -> None:
    assert {kind: int(kind) for kind in Type} == BYTES


@pytest.mark.parametrize("kind", Type)
def test_a_frame_of_least_or_greatest_size_has_its_type(kind: Type) -> None:
    for size in SIZES[kind]:
        assert parse_type(bytes([BYTES[kind]]).ljust(size, b"\0")) is kind


@pytest.mark.parametrize("kind", Type)
def test_a_frame_a_byte_too_short_or_too_long_is_refused(kind: Type) -> None:
    least, greatest = SIZES[kind]
    for size in (1, least - 1, greatest + 1):
        with pytest.raises(DecodeError, match=r"^length$"):
            parse_type(bytes([BYTES[kind]]).ljust(size, b"\0"))


def test_an_empty_frame_is_refused() -> None:
    with pytest.raises(DecodeError, match=r"^length$"):
        parse_type(b"")


@pytest.mark.parametrize("byte", sorted(set(range(256)) - set(BYTES.values())))
def test_an_unknown_type_is_refused_whatever_its_size(byte: int) -> None:
    for size in (1, 100):
        with pytest.raises(DecodeError, match=r"^type$"):
            parse_type(bytes([byte]) * size)


def test_a_query_header_is_these_bytes() -> None:
    assert build_query_header(0x01020304, 0xA0B0C0D0) == bytes.fromhex("01 00 01020304 a0b0c0d0")


def test_a_query_comes_apart() -> None:
    header = bytes.fromhex("01 00 01020304 00000005")
    sealed, signature = b"s" * 20, b"g" * 64
    assert parse_query(header + sealed + signature) == QueryFrame(
        epoch=0x01020304,
        seq=5,
        header=header,
        sealed=sealed,
        signed=header + sealed,
        signature=signature,
    )


@pytest.mark.parametrize("flags", [1, 0x80, 0xFF])
@pytest.mark.parametrize("kind", [kind for kind in Type if kind not in SESSION_KINDS])
def test_flags_of_a_later_version_are_refused(kind: Type, flags: int) -> None:
    with pytest.raises(DecodeError, match=r"^flags$"):
        parse(bytes([BYTES[kind], flags]).ljust(SIZES[kind][0], b"\0"))


def test_a_settled_frame_is_these_bytes() -> None:
    frame = build_settled(0x01020304, 5, b"p" * 16)
    assert frame == bytes.fromhex("03 00 01020304 00000005") + b"p" * 16
    assert parse_settled(frame) == (0x01020304, 5, b"p" * 16)


def test_an_answer_header_is_these_bytes() -> None:
    header = build_session_header(Type.ANSWER, 15, 0x0102, 0x03040506, 7)
    assert header == bytes.fromhex("02 f7 0102 03040506")


def test_an_answer_comes_apart() -> None:
    header = bytes.fromhex("02 91 0102 03040506")
    assert parse_session_frame(header + b"x" * 18) == SessionFrame(
        session=9, form=1, index=0x0102, number=0x03040506, header=header, sealed=b"x" * 18
    )


@pytest.mark.parametrize("kind", SESSION_KINDS[1:])
def test_a_session_frame_comes_apart(kind: Type) -> None:
    header = build_session_header(kind, 3, 7, 2)
    assert header == bytes([BYTES[kind], 0x30]) + bytes.fromhex("0007 00000002")
    assert parse_session_frame(header + b"x" * 18) == SessionFrame(3, 0, 7, 2, header, b"x" * 18)


@pytest.mark.parametrize("form", range(16))
def test_an_answer_has_one_of_eight_forms(form: int) -> None:
    frame = bytes([0x02, form]).ljust(24, b"\0")
    if form <= 7:
        assert parse_session_frame(frame).form == form
    else:
        with pytest.raises(DecodeError, match=r"^form$"):
            parse_session_frame(frame)


@pytest.mark.parametrize("kind", SESSION_KINDS[1:])
def test_only_an_answer_has_a_form(kind: Type) -> None:
    with pytest.raises(DecodeError, match=r"^form$"):
        parse_session_frame(bytes([BYTES[kind], 0x01]).ljust(25, b"\0"))


def test_a_hello_comes_apart() -> None:
    header = build_handshake_header(Type.HELLO, 0x0102)
    assert header == bytes.fromhex("10 00 0102")
    assert parse_handshake(header + b"n" * 48 + b"m" * 8) == HandshakeFrame(
        index=0x0102, message=b"n" * 48, maced=header + b"n" * 48, mac=b"m" * 8
    )


def test_a_welcome_comes_apart_and_has_no_mac() -> None:
    header = build_handshake_header(Type.WELCOME, 0x0102)
    assert header == bytes.fromhex("11 00 0102")
    assert parse_handshake(header + b"n" * 48) == HandshakeFrame(
        index=0x0102, message=b"n" * 48, maced=header + b"n" * 48, mac=b""
    )


def test_a_join_comes_apart() -> None:
    header = build_joining_header(Type.JOIN, 0x01020304)
    assert header == bytes.fromhex("30 00 01020304")
    assert parse_joining(header + b"n" * 96 + b"m" * 8) == JoiningFrame(
        invite=0x01020304, message=b"n" * 96, maced=header + b"n" * 96, mac=b"m" * 8
    )


def test_an_accept_comes_apart_and_has_no_mac() -> None:
    header = build_joining_header(Type.ACCEPT, 0x01020304)
    assert header == bytes.fromhex("31 00 01020304")
    assert parse_joining(header + b"n" * 60) == JoiningFrame(
        invite=0x01020304, message=b"n" * 60, maced=header + b"n" * 60, mac=b""
    )


def test_a_refusal_comes_apart() -> None:
    header = build_joining_header(Type.REFUSED, 0x01020304)
    assert header == bytes.fromhex("32 00 01020304")
    assert parse_joining(header + b"\x05" + b"m" * 8) == JoiningFrame(
        invite=0x01020304, message=b"\x05", maced=header + b"\x05", mac=b"m" * 8
    )


def test_a_roster_word_comes_apart() -> None:
    header = build_roster_header(0x01020304, b"s" * 16)
    assert header == bytes.fromhex("40 00 01020304") + b"s" * 16
    assert parse_roster(header + b"w" * 18) == (0x01020304, header, b"w" * 18)


@pytest.mark.parametrize("kind", [Type.CLAIM, Type.HELD])
def test_a_claim_and_what_answers_it_come_apart(kind: Type) -> None:
    maced = build_claim(kind, b"n" * 16)
    assert maced == bytes([BYTES[kind], 0]) + b"n" * 16
    assert parse_claim(maced + b"m" * 8) == (b"n" * 16, maced, b"m" * 8)


typed = st.builds(lambda kind, rest: bytes([kind]) + rest, st.sampled_from(Type), st.binary(max_size=300))


@given(st.one_of(st.binary(max_size=300), typed))
@example(b"\x01" + b"\xff" * 90)
@example(b"\x02" + b"\xff" * 23)
@example(b"\x30\x00" + b"\xff" * 108)
@example(b"\x32\x00" + b"\xff" * 13)
@example(b"\x40\x00" + b"\xff" * 36)
@example(b"\x42\x00" + b"\xff" * 24)
def test_arbitrary_bytes_are_refused_or_come_apart_without_loss(frame: bytes) -> None:
    try:
        parsed = parse(frame)
    except DecodeError:
        return
    kind = Type(frame[0])
    match parsed:
        case QueryFrame(epoch, seq, header, sealed, signed, signature):
            assert build_query_header(epoch, seq) == header
            assert (header + sealed, signed + signature) == (signed, frame)
        case SessionFrame(session, form, index, number, header, sealed):
            assert build_session_header(kind, session, index, number, form) == header
            assert header + sealed == frame
        case HandshakeFrame(index, message, maced, mac):
            assert build_handshake_header(kind, index) + message == maced
            assert maced + mac == frame
        case JoiningFrame(invite, message, maced, mac):
            assert build_joining_header(kind, invite) + message == maced
            assert maced + mac == frame
        case (int(version), bytes(header), bytes(sealed)):
            assert build_roster_header(version, header[6:]) == header
            assert header + sealed == frame
        case (bytes(nonce), bytes(maced), bytes(mac)):
            assert build_claim(kind, nonce) == maced
            assert maced + mac == frame
        case (int(epoch), int(seq), bytes(preimage)):
            assert build_settled(epoch, seq, preimage) == frame
        case _:
            raise AssertionError(parsed)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_every_epoch_and_seq_fits(epoch: int, seq: int) -> None:
    parsed = parse_query(build_query_header(epoch, seq) + bytes(81))
    assert (parsed.epoch, parsed.seq) == (epoch, seq)


@given(st.integers(0, 15), st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 7))
def test_every_session_index_number_and_form_fits(session: int, index: int, number: int, form: int) -> None:
    parsed = parse_session_frame(build_session_header(Type.ANSWER, session, index, number, form) + bytes(16))
    assert (parsed.session, parsed.index, parsed.number, parsed.form) == (session, index, number, form)
