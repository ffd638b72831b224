"""Invites: every one survives its line, and a line that was touched is refused with a sentence."""

import base64
import hashlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_fi.messages import ROLES
from edge_fi.wire import invites, topics
from edge_fi.wire.invites import Invite

INVITE = Invite(
    federation="acme",
    role="device",
    id="pi-07",
    number=7,
    expires=1_764_000_000,
    token=bytes(range(16)),
    gateway=bytes(range(32)),
    host="192.168.1.10",
    port=8883,
    tls=True,
    pin=bytes(range(100, 116)),
)
LINE = (
    "FI1:AEBQCAAAAADWSJEBAAAACAQDAQCQMBYIBEFAWDANBYHQAAICAMCAKBQHBAEQUCYMBUHA6EARCIJRIFIWC4"
    "MBSGQ3DQOR4H3EMVTGO2DJNJVWY3LON5YHC4TTEKZQYMJZGIXDCNRYFYYS4MJQARQWG3LFAVYGSLJQG4RQK77R"
)

NO_INVITE = "this is no invite: an invite is one line that begins with FI1: - copy all of it"
DAMAGED = "this invite is cut short or mistyped: copy the whole line once more, or use its file"
LATER = "this invite was made by a later version: install the gateway's version of edge_fi here"
NOT_ALLOWED = "this invite holds values that are not allowed: ask the gateway's owner for a new one"
SENTENCES = (NO_INVITE, DAMAGED, LATER, NOT_ALLOWED)


def line_of(content: bytes) -> str:
    """A line with a right checksum around anything."""
    checksum = hashlib.blake2b(content, digest_size=4, person=b"fi1 invite").digest()
    return "FI1:" + base64.b32encode(content + checksum).decode().rstrip("=")


def content_of(line: str) -> bytes:
    letters = line.removeprefix("FI1:")
    return base64.b32decode(letters + "=" * (-len(letters) % 8))[:-4]


def outcome(text: str) -> tuple[Invite | None, str]:
    """What a text is decoded to, or the sentence that it is refused with. Anything else is raised."""
    try:
        return invites.decode(text), ""
    except UnicodeError:  # a ValueError that quotes
        raise AssertionError(text) from None
    except ValueError as error:
        return None, str(error)


def refusal(text: str) -> str:
    """The sentence that a text is refused with."""
    invite, sentence = outcome(text)
    assert invite is None
    return sentence


def is_id(name: str) -> bool:
    return name not in topics.RESERVED_IDS


@st.composite
def any_invite(draw: st.DrawFn) -> Invite:
    tls = draw(st.booleans())
    return Invite(
        federation=draw(st.from_regex(r"[a-z0-9-]{1,16}", fullmatch=True)),
        role=draw(st.sampled_from(ROLES)),
        id=draw(st.from_regex(r"[a-z0-9][a-z0-9-]{0,23}", fullmatch=True).filter(is_id)),
        number=draw(st.integers(1, 2**32 - 1)),
        expires=draw(st.integers(0, 2**32 - 1)),
        token=draw(st.binary(min_size=16, max_size=16)),
        gateway=draw(st.binary(min_size=32, max_size=32)),
        host=draw(st.from_regex(r"[0-9A-Za-z._:-]{1,255}", fullmatch=True)),
        port=draw(st.integers(1, 65535)),
        tls=tls,
        pin=draw(st.sampled_from([b"", bytes(16), bytes(range(16))])) if tls else b"",
    )


def test_this_invite_is_this_line() -> None:
    assert invites.encode(INVITE) == LINE
    assert invites.decode(LINE) == INVITE


@given(any_invite())
def test_an_invite_survives_its_line(invite: Invite) -> None:
    assert invites.decode(invites.encode(invite)) == invite


@given(any_invite())
def test_a_line_has_the_letters_of_a_qr_codes_alphanumeric_mode(invite: Invite) -> None:
    assert set(invites.encode(invite)) <= set("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:")


@pytest.mark.parametrize(
    "text",
    [
        LINE.lower(),
        f"  {LINE}\n",
        "\r\n".join(LINE[at : at + 40] for at in range(0, len(LINE), 40)),
        " ".join(LINE),
        f"\N{NO-BREAK SPACE}{LINE.title()}\t",
    ],
)
def test_white_space_and_lower_case_do_not_matter(text: str) -> None:
    assert invites.decode(text) == INVITE


SLIPS = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:=- \N{LATIN SMALL LETTER LONG S}\N{LATIN SMALL LETTER DOTLESS I}"
)
ALL_SLIPS = [
    LINE[:at] + slip + LINE[at + 1 :] for at in range(len(LINE)) for slip in SLIPS if slip != LINE[at]
]


def test_no_letter_of_a_line_can_be_another() -> None:
    assert {refusal(text) for text in ALL_SLIPS} == {NO_INVITE, DAMAGED}


@given(any_invite(), st.data())
def test_no_letter_of_any_line_can_be_another(invite: Invite, data: st.DataObject) -> None:
    line = invites.encode(invite)
    at = data.draw(st.integers(0, len(line) - 1))
    slip = data.draw(st.characters().filter(lambda slip: slip not in line[at] + line[at].lower()))
    assert refusal(line[:at] + slip + line[at + 1 :]) in (NO_INVITE, DAMAGED)


@given(any_invite(), st.data())
def test_no_part_is_enough(invite: Invite, data: st.DataObject) -> None:
    line = invites.encode(invite)
    begin = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(begin, len(line)))
    if end > begin:
        assert refusal(line[:begin] + line[end:]) in (NO_INVITE, DAMAGED)


@given(st.one_of(st.text(), st.text().map("FI1:".__add__), st.binary(max_size=400).map(line_of)))
def test_any_text_is_an_invite_or_refused_with_a_sentence_that_does_not_quote_it(text: str) -> None:
    invite, sentence = outcome(text)
    if invite is None:
        assert sentence in SENTENCES
    else:
        assert invites.encode(invite) == "".join(text.split()).upper()


@pytest.mark.parametrize(
    "text", ["", "\n", "pi-07", "https://example.org/", LINE[4:], "\N{LATIN SMALL LETTER LONG S}"]
)
def test_what_is_no_invite_is_told_so(text: str) -> None:
    assert refusal(text) == NO_INVITE


@pytest.mark.parametrize(
    "text",
    ["FI1:", "FI1:A", "FI1:AAAAAAA", LINE[:-1], LINE + "A", LINE + "=", LINE.replace("Q", "8"), line_of(b"")],
)
def test_what_was_cut_or_mistyped_is_told_so(text: str) -> None:
    assert refusal(text) == DAMAGED


def test_the_bits_behind_the_last_byte_must_be_zero() -> None:
    """Base32 itself ignores them."""
    line = next(
        line
        for size in range(1, 9)
        if len(content_of(line := invites.encode(replace(INVITE, host="h" * size)))) % 5 in (0, 2)
    )
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    touched = line[:-1] + alphabet[alphabet.index(line[-1]) + 1]
    assert content_of(touched) == content_of(line)
    assert refusal(touched) == DAMAGED


def test_a_later_version_is_told_from_a_slip() -> None:
    assert refusal(line_of(b"\x02" + content_of(LINE)[1:])) == LATER


CONTENT = content_of(LINE)


@pytest.mark.parametrize(
    "content",
    [
        CONTENT[:1] + b"\x07" + CONTENT[2:],  # a flag that nobody knows
        CONTENT[:1] + b"\x02" + CONTENT[2:],  # a pin without TLS
        CONTENT[:1] + b"\x01" + CONTENT[2:],  # the pin is read as what is behind it
        CONTENT[:2] + b"\x00" + CONTENT[3:],  # no role
        CONTENT[:2] + b"\x04" + CONTENT[3:],
        CONTENT[:3] + bytes(4) + CONTENT[7:],  # no number
        CONTENT[:75] + bytes(2) + CONTENT[77:],  # no port
        CONTENT[:77] + b"\xff" + CONTENT[78:],  # a host that is longer than all
        CONTENT[:78] + b"\xe9" + CONTENT[79:],  # a host that is not ASCII
        CONTENT[:78] + b"\n" + CONTENT[79:],
        CONTENT[:-5] + b"PI-07",
        CONTENT[:-1],
        CONTENT + b"\x00",
        CONTENT[:59],
    ],
)
def test_an_invite_with_impossible_fields_is_told_so(content: bytes) -> None:
    assert refusal(line_of(content)) == NOT_ALLOWED


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"federation": "Acme"}, "federation 'Acme' must be"),
        ({"id": "gateway"}, "id 'gateway' must be"),
        ({"role": "gateway"}, "role must be one of device, client, helper"),
        ({"number": 0}, "number must be 1 to 4294967295"),
        ({"number": 2**32}, "number must be"),
        ({"expires": -1}, "expires must be"),
        ({"expires": 2**32}, "expires must be"),
        ({"token": bytes(15)}, "token must be 16 bytes"),
        ({"gateway": bytes(33)}, "gateway must be 32 bytes"),
        ({"host": ""}, "host must be"),
        ({"host": "h" * 256}, "host must be"),
        ({"host": "a b"}, "host must be"),
        ({"host": "br\N{LATIN SMALL LETTER U WITH DIAERESIS}cke"}, "host must be"),
        ({"port": 0}, "port must be"),
        ({"port": 65536}, "port must be"),
        ({"pin": bytes(15)}, "pin must be 16 bytes"),
        ({"tls": False}, "a pin needs TLS"),
    ],
)
def test_an_invite_checks_itself(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(INVITE, **change)


@pytest.mark.parametrize("host", ["broker.example.org", "fe80::1", "edge_broker", "h" * 255])
def test_a_broker_may_have_this_name(host: str) -> None:
    assert invites.decode(invites.encode(replace(INVITE, host=host))).host == host


def test_no_repr_shows_the_token() -> None:
    invite = replace(INVITE, token=b"0123456789abcdef")
    assert "token" not in repr(invite) and "0123456789abcdef" not in repr(invite)
