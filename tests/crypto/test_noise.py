"""The handshake: the published vector from both sides, and messages that must not open."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_fi.crypto.aead import open_sealed, seal
from edge_fi.crypto.keys import KeyPair
from edge_fi.crypto.noise import HandshakeKK
from edge_fi.errors import SealError

VECTOR: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "noise_kk.json").read_text())
PAYLOADS = [bytes.fromhex(message["payload"]) for message in VECTOR["messages"]]
MESSAGES = [bytes.fromhex(message["ciphertext"]) for message in VECTOR["messages"]]
LOW_ORDER = [bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"]


def of(name: str) -> bytes:
    """A value of the vector."""
    return bytes.fromhex(VECTOR[name])


def initiator(
    *, prologue: bytes | None = None, static: bytes | None = None, peer_static: bytes | None = None
) -> HandshakeKK:
    """The vector's initiator, or one that differs from it in this."""
    return HandshakeKK(
        initiator=True,
        prologue=of("prologue") if prologue is None else prologue,
        static=KeyPair.from_private(of("init_static") if static is None else static),
        ephemeral=KeyPair.from_private(of("init_ephemeral")),
        peer_static=of("init_remote_static") if peer_static is None else peer_static,
    )


def responder(
    *, prologue: bytes | None = None, static: bytes | None = None, peer_static: bytes | None = None
) -> HandshakeKK:
    """The vector's responder, or one that differs from it in this."""
    return HandshakeKK(
        initiator=False,
        prologue=of("prologue") if prologue is None else prologue,
        static=KeyPair.from_private(of("resp_static") if static is None else static),
        ephemeral=KeyPair.from_private(of("resp_ephemeral")),
        peer_static=of("resp_remote_static") if peer_static is None else peer_static,
    )


def finished() -> tuple[HandshakeKK, HandshakeKK]:
    """Both sides when the handshake is over."""
    ours, theirs = initiator(), responder()
    theirs.read_message_1(ours.write_message_1(PAYLOADS[0]))
    ours.read_message_2(theirs.write_message_2(PAYLOADS[1]))
    return ours, theirs


def flipped(message: bytes, place: int) -> bytes:
    """The message with the lowest bit of one byte turned over."""
    return message[:place] + bytes([message[place] ^ 1]) + message[place + 1 :]


# The published vector


def test_the_vector_is_of_this_protocol() -> None:
    assert VECTOR["protocol_name"] == "Noise_KK_25519_ChaChaPoly_BLAKE2b"
    assert KeyPair.from_private(of("init_static")).public == of("resp_remote_static")
    assert KeyPair.from_private(of("resp_static")).public == of("init_remote_static")


def test_the_initiator_says_and_understands_the_published_messages() -> None:
    ours = initiator()
    assert ours.write_message_1(PAYLOADS[0]) == MESSAGES[0]
    assert ours.read_message_2(MESSAGES[1]) == PAYLOADS[1]


def test_the_responder_understands_and_says_the_published_messages() -> None:
    theirs = responder()
    assert theirs.read_message_1(MESSAGES[0]) == PAYLOADS[0]
    assert theirs.write_message_2(PAYLOADS[1]) == MESSAGES[1]


def test_both_sides_end_with_the_published_hash() -> None:
    for side in finished():
        assert side.handshake_hash == of("handshake_hash")


@pytest.mark.parametrize("side", [0, 1])
def test_the_transport_keys_seal_and_open_the_published_messages(side: int) -> None:
    keys = finished()[side].split()
    # Messages 2 to 5 in turn from initiator and responder, each direction with nonces 0 and 1.
    for number in range(2, 6):
        direction, nonce = number % 2, number // 2 - 1
        sealed = seal(PAYLOADS[number], key=keys[direction], nonce=nonce, header=b"")
        assert sealed == MESSAGES[number]
        opened = open_sealed(MESSAGES[number], key=keys[direction], nonce=nonce, header=b"")
        assert opened == PAYLOADS[number]


def test_the_two_directions_have_different_keys_of_32_bytes() -> None:
    to_responder, to_initiator = finished()[0].split()
    assert to_responder != to_initiator
    assert len(to_responder) == len(to_initiator) == 32


# What must not open


@pytest.mark.parametrize("place", range(len(MESSAGES[0])))
def test_a_forged_first_message_is_refused_and_leaves_the_handshake_usable(place: int) -> None:
    theirs = responder()
    with pytest.raises(SealError):
        theirs.read_message_1(flipped(MESSAGES[0], place))
    assert theirs.read_message_1(MESSAGES[0]) == PAYLOADS[0]
    assert theirs.write_message_2(PAYLOADS[1]) == MESSAGES[1]


def test_a_forged_first_message_cannot_be_answered() -> None:
    theirs = responder()
    with pytest.raises(SealError):
        theirs.read_message_1(flipped(MESSAGES[0], 40))
    # Nothing of it is left: there is no ephemeral key to answer to.
    with pytest.raises(KeyError):
        theirs.write_message_2(b"")


@pytest.mark.parametrize("place", range(len(MESSAGES[1])))
def test_a_forged_second_message_is_refused_and_leaves_the_handshake_usable(place: int) -> None:
    ours = initiator()
    ours.write_message_1(PAYLOADS[0])
    with pytest.raises(SealError):
        ours.read_message_2(flipped(MESSAGES[1], place))
    assert ours.read_message_2(MESSAGES[1]) == PAYLOADS[1]
    assert ours.handshake_hash == of("handshake_hash")
    assert ours.split() == finished()[1].split()


@pytest.mark.parametrize("public", LOW_ORDER)
def test_an_ephemeral_key_of_low_order_is_refused_and_leaves_the_handshake_usable(public: bytes) -> None:
    theirs = responder()
    with pytest.raises(SealError, match=r"^key$"):
        theirs.read_message_1(public + MESSAGES[0][32:])
    assert theirs.read_message_1(MESSAGES[0]) == PAYLOADS[0]
    ours = initiator()
    ours.write_message_1(PAYLOADS[0])
    with pytest.raises(SealError, match=r"^key$"):
        ours.read_message_2(public + MESSAGES[1][32:])
    assert ours.read_message_2(MESSAGES[1]) == PAYLOADS[1]


@pytest.mark.parametrize("public", LOW_ORDER)
def test_no_message_is_written_to_a_static_key_of_low_order(public: bytes) -> None:
    with pytest.raises(SealError, match=r"^key$"):
        initiator(peer_static=public).write_message_1(b"")


def test_a_message_that_cannot_be_written_leaves_the_handshake_as_it_was() -> None:
    ours = initiator(peer_static=bytes(32))
    before = ours.handshake_hash
    with pytest.raises(SealError):
        ours.write_message_1(b"")
    assert ours.handshake_hash == before


@pytest.mark.parametrize("size", [0, 1, 31, 32, 47])
def test_a_message_shorter_than_a_key_and_a_tag_is_refused(size: int) -> None:
    theirs = responder()
    with pytest.raises(SealError):
        theirs.read_message_1(MESSAGES[0][:size])
    assert theirs.read_message_1(MESSAGES[0]) == PAYLOADS[0]


@given(st.binary(max_size=100))
def test_arbitrary_bytes_are_refused(message: bytes) -> None:
    with pytest.raises(SealError):
        responder().read_message_1(message)
    ours = initiator()
    ours.write_message_1(b"")
    with pytest.raises(SealError):
        ours.read_message_2(message)


@pytest.mark.parametrize("prologue", [b"", b"Prologue124", b"Prologue123\0"])
def test_another_prologue_opens_nothing(prologue: bytes) -> None:
    with pytest.raises(SealError, match=r"^seal$"):
        responder(prologue=prologue).read_message_1(MESSAGES[0])
    ours = initiator(prologue=prologue)
    ours.write_message_1(PAYLOADS[0])
    with pytest.raises(SealError, match=r"^seal$"):
        ours.read_message_2(MESSAGES[1])


def test_an_initiator_with_another_static_key_is_refused() -> None:
    stranger = initiator(static=b"stranger".ljust(32, b"\1"))
    with pytest.raises(SealError, match=r"^seal$"):
        responder().read_message_1(stranger.write_message_1(b""))


def test_an_initiator_that_claims_the_static_key_of_another_is_refused() -> None:
    # It knows every public key, and holds neither private one.
    impostor = HandshakeKK(
        initiator=True,
        prologue=of("prologue"),
        static=KeyPair(b"impostor".ljust(32, b"\1"), of("resp_remote_static")),
        ephemeral=KeyPair.from_private(b"ephemeral".ljust(32, b"\1")),
        peer_static=of("init_remote_static"),
    )
    with pytest.raises(SealError, match=r"^seal$"):
        responder().read_message_1(impostor.write_message_1(b""))


def test_a_responder_that_claims_the_static_key_of_another_understands_nothing() -> None:
    impostor = HandshakeKK(
        initiator=False,
        prologue=of("prologue"),
        static=KeyPair(b"impostor".ljust(32, b"\1"), of("init_remote_static")),
        ephemeral=KeyPair.from_private(b"ephemeral".ljust(32, b"\1")),
        peer_static=of("resp_remote_static"),
    )
    with pytest.raises(SealError, match=r"^seal$"):
        impostor.read_message_1(MESSAGES[0])


def test_a_member_does_not_take_its_own_message_for_an_answer() -> None:
    ours = initiator()
    mine = ours.write_message_1(b"")
    with pytest.raises(SealError, match=r"^seal$"):
        ours.read_message_2(mine)


def test_an_answer_to_another_handshake_is_refused() -> None:
    first = initiator()
    first.write_message_1(b"one")
    second, theirs = initiator(), responder()
    theirs.read_message_1(second.write_message_1(b"other"))
    with pytest.raises(SealError, match=r"^seal$"):
        first.read_message_2(theirs.write_message_2(b""))


def test_the_payload_is_part_of_what_the_keys_and_the_hash_name() -> None:
    hashes = set()
    for payload in (b"", b"one", b"other"):
        ours, theirs = initiator(), responder()
        assert theirs.read_message_1(ours.write_message_1(payload)) == payload
        assert ours.handshake_hash == theirs.handshake_hash
        hashes.add(ours.handshake_hash)
    assert len(hashes) == 3


def test_a_handshake_does_not_show_its_secrets() -> None:
    for side in finished():
        for name in ("init_static", "init_ephemeral", "resp_static", "resp_ephemeral"):
            assert repr(of(name)) not in repr(side)
            assert of(name).hex() not in repr(side)
