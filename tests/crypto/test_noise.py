"""The handshakes: the published vectors from both sides, and messages that must not open."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edge_fi.crypto.noise
from edge_fi.crypto.aead import open_sealed, seal
from edge_fi.crypto.keys import KeyPair
from edge_fi.crypto.noise import HandshakeIKpsk1, HandshakeKK
from edge_fi.errors import SealError

Side = TypeVar("Side", HandshakeKK, HandshakeIKpsk1)
LOW_ORDER = [bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"]


class Published(Generic[Side]):
    """A published vector, with its two sides, or sides that differ from them in what is given."""

    def __init__(self, name: str, make: Callable[..., Side]) -> None:
        self.vector: dict[str, Any] = json.loads(
            (Path(__file__).parents[1] / "vectors" / f"{name}.json").read_text()
        )
        self.make: Callable[..., Side] = make
        self.payloads = [bytes.fromhex(message["payload"]) for message in self.vector["messages"]]
        self.messages = [bytes.fromhex(message["ciphertext"]) for message in self.vector["messages"]]

    def of(self, name: str) -> bytes:
        """A value of the vector."""
        return bytes.fromhex(self.vector[name])

    def initiator(self, **different: object) -> Side:
        return self._side("init", initiator=True, **different)

    def responder(self, **different: object) -> Side:
        return self._side("resp", initiator=False, **different)

    def finished(self) -> tuple[Side, Side]:
        """Both sides when the handshake is over."""
        ours, theirs = self.initiator(), self.responder()
        theirs.read_message_1(ours.write_message_1(self.payloads[0]))
        ours.read_message_2(theirs.write_message_2(self.payloads[1]))
        return ours, theirs

    def _side(self, side: str, **different: object) -> Side:
        remote = f"{side}_remote_static"
        arguments: dict[str, object] = {
            "prologue": self.of("prologue"),
            "static": KeyPair.from_private(self.of(f"{side}_static")),
            "ephemeral": KeyPair.from_private(self.of(f"{side}_ephemeral")),
            "peer_static": self.of(remote) if remote in self.vector else None,
        }
        if f"{side}_psks" in self.vector:
            (psk,) = self.vector[f"{side}_psks"]
            arguments["psk"] = bytes.fromhex(psk)
        made: Side = self.make(**(arguments | different))
        return made


KK = Published("noise_kk", HandshakeKK)
IK = Published("noise_ikpsk1", HandshakeIKpsk1)
Either = Published[Any]
both = pytest.mark.parametrize("its", [pytest.param(KK, id="KK"), pytest.param(IK, id="IKpsk1")])


def every_byte_of(number: int) -> pytest.MarkDecorator:
    """Parametrize a test by the bytes of this message of both vectors."""
    places = [
        pytest.param(its, place, id=f"{name}-{place}")
        for name, its in (("KK", KK), ("IKpsk1", IK))
        for place in range(len(its.messages[number]))
    ]
    return pytest.mark.parametrize(("its", "place"), places)


def flipped(message: bytes, place: int) -> bytes:
    """The message with the lowest bit of one byte turned over."""
    return message[:place] + bytes([message[place] ^ 1]) + message[place + 1 :]


# The published vectors


def test_the_vectors_are_of_these_protocols() -> None:
    assert KK.vector["protocol_name"] == "Noise_KK_25519_ChaChaPoly_BLAKE2b"
    assert IK.vector["protocol_name"] == "Noise_IKpsk1_25519_ChaChaPoly_BLAKE2b"
    assert KeyPair.from_private(KK.of("init_static")).public == KK.of("resp_remote_static")
    for its in (KK, IK):
        assert KeyPair.from_private(its.of("resp_static")).public == its.of("init_remote_static")


@both
def test_the_initiator_says_and_understands_the_published_messages(its: Either) -> None:
    ours = its.initiator()
    assert ours.write_message_1(its.payloads[0]) == its.messages[0]
    assert ours.read_message_2(its.messages[1]) == its.payloads[1]


@both
def test_the_responder_understands_and_says_the_published_messages(its: Either) -> None:
    theirs = its.responder()
    assert theirs.read_message_1(its.messages[0]) == its.payloads[0]
    assert theirs.write_message_2(its.payloads[1]) == its.messages[1]


@both
def test_both_sides_end_with_the_published_hash(its: Either) -> None:
    for side in its.finished():
        assert side.handshake_hash == its.of("handshake_hash")


@both
@pytest.mark.parametrize("side", [0, 1])
def test_the_transport_keys_seal_and_open_the_published_messages(its: Either, side: int) -> None:
    keys = its.finished()[side].split()
    # Messages 2 to 5 in turn from initiator and responder, each direction with nonces 0 and 1.
    for number in range(2, 6):
        direction, nonce = number % 2, number // 2 - 1
        sealed = seal(its.payloads[number], key=keys[direction], nonce=nonce, header=b"")
        assert sealed == its.messages[number]
        opened = open_sealed(its.messages[number], key=keys[direction], nonce=nonce, header=b"")
        assert opened == its.payloads[number]


@both
def test_the_two_directions_have_different_keys_of_32_bytes(its: Either) -> None:
    to_responder, to_initiator = its.finished()[0].split()
    assert to_responder != to_initiator
    assert len(to_responder) == len(to_initiator) == 32


@both
def test_no_key_of_a_handshake_seals_twice(its: Either, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[bytes] = []

    def recording(plaintext: bytes, *, key: bytes, nonce: int, header: bytes) -> bytes:
        assert nonce == 0
        keys.append(key)
        return seal(plaintext, key=key, nonce=nonce, header=header)

    monkeypatch.setattr(edge_fi.crypto.noise, "seal", recording)
    its.finished()
    # The payloads of both messages; and in IKpsk1 the initiator's static key.
    assert len(set(keys)) == len(keys) == (2 if its is KK else 3)


def test_a_key_is_gone_once_it_has_sealed_or_opened() -> None:
    ours, theirs = (edge_fi.crypto.noise._State(bytes(64), bytes(64)) for _ in range(2))
    for state in (ours, theirs):
        state.mix_key(b"shared")
    assert theirs.open_and_hash(ours.seal_and_hash(b"one")) == b"one"
    # A pattern that sealed again without a new key would fail, not repeat a nonce.
    with pytest.raises(ValueError, match=r"^a key is 32 bytes$"):
        ours.seal_and_hash(b"two")
    with pytest.raises(ValueError, match=r"^a key is 32 bytes$"):
        theirs.open_and_hash(bytes(19))


# What must not open


@every_byte_of(0)
def test_a_forged_first_message_is_refused_and_leaves_the_handshake_usable(its: Either, place: int) -> None:
    theirs = its.responder()
    before = theirs.handshake_hash
    with pytest.raises(SealError):
        theirs.read_message_1(flipped(its.messages[0], place))
    assert theirs.handshake_hash == before
    assert theirs.read_message_1(its.messages[0]) == its.payloads[0]
    assert theirs.write_message_2(its.payloads[1]) == its.messages[1]


@both
@pytest.mark.parametrize("place", [40, -1])
def test_a_forged_first_message_cannot_be_answered(its: Either, place: int) -> None:
    theirs = its.responder()
    with pytest.raises(SealError):
        theirs.read_message_1(flipped(its.messages[0], place % len(its.messages[0])))
    # Nothing of it is left: there is no ephemeral key to answer to.
    with pytest.raises(KeyError):
        theirs.write_message_2(b"")


@every_byte_of(1)
def test_a_forged_second_message_is_refused_and_leaves_the_handshake_usable(its: Either, place: int) -> None:
    ours = its.initiator()
    ours.write_message_1(its.payloads[0])
    with pytest.raises(SealError):
        ours.read_message_2(flipped(its.messages[1], place))
    assert ours.read_message_2(its.messages[1]) == its.payloads[1]
    assert ours.handshake_hash == its.of("handshake_hash")
    assert ours.split() == its.finished()[1].split()


@both
@pytest.mark.parametrize("public", LOW_ORDER)
def test_an_ephemeral_key_of_low_order_is_refused_and_leaves_the_handshake_usable(
    its: Either, public: bytes
) -> None:
    theirs = its.responder()
    with pytest.raises(SealError, match=r"^key$"):
        theirs.read_message_1(public + its.messages[0][32:])
    assert theirs.read_message_1(its.messages[0]) == its.payloads[0]
    ours = its.initiator()
    ours.write_message_1(its.payloads[0])
    with pytest.raises(SealError, match=r"^key$"):
        ours.read_message_2(public + its.messages[1][32:])
    assert ours.read_message_2(its.messages[1]) == its.payloads[1]


@both
@pytest.mark.parametrize("public", LOW_ORDER)
def test_no_message_is_written_to_a_static_key_of_low_order(its: Either, public: bytes) -> None:
    with pytest.raises(SealError, match=r"^key$"):
        its.initiator(peer_static=public).write_message_1(b"")


@both
def test_a_message_that_cannot_be_written_leaves_the_handshake_as_it_was(its: Either) -> None:
    ours = its.initiator(peer_static=bytes(32))
    before = ours.handshake_hash
    with pytest.raises(SealError):
        ours.write_message_1(b"")
    assert ours.handshake_hash == before


@pytest.mark.parametrize(
    ("its", "size"),
    [(KK, size) for size in (0, 1, 31, 32, 47)] + [(IK, size) for size in (0, 1, 31, 32, 48, 79, 80, 95)],
)
def test_a_first_message_without_room_for_its_keys_and_tags_is_refused_at_no_cost(
    its: Either, size: int, dh_calls: list[bytes]
) -> None:
    theirs = its.responder()
    with pytest.raises(SealError, match=r"^seal$"):
        theirs.read_message_1(its.messages[0][:size])
    assert dh_calls == []
    assert theirs.read_message_1(its.messages[0]) == its.payloads[0]


@both
@pytest.mark.parametrize("size", [0, 1, 31, 32, 47])
def test_a_second_message_without_room_for_a_key_and_a_tag_is_refused_at_no_cost(
    its: Either, size: int, dh_calls: list[bytes]
) -> None:
    ours = its.initiator()
    ours.write_message_1(its.payloads[0])
    del dh_calls[:]
    with pytest.raises(SealError, match=r"^seal$"):
        ours.read_message_2(its.messages[1][:size])
    assert dh_calls == []
    assert ours.read_message_2(its.messages[1]) == its.payloads[1]


@pytest.mark.parametrize(("its", "sizes"), [(KK, (48, 48)), (IK, (96, 48))])
def test_messages_with_empty_payloads_are_the_shortest_that_are_read(
    its: Either, sizes: tuple[int, int]
) -> None:
    ours, theirs = its.initiator(), its.responder()
    first = ours.write_message_1(b"")
    assert theirs.read_message_1(first) == b""
    second = theirs.write_message_2(b"")
    assert ours.read_message_2(second) == b""
    assert (len(first), len(second)) == sizes


@both
@given(message=st.binary(max_size=150))
def test_arbitrary_bytes_are_refused(its: Either, message: bytes) -> None:
    with pytest.raises(SealError):
        its.responder().read_message_1(message)
    ours = its.initiator()
    ours.write_message_1(b"")
    with pytest.raises(SealError):
        ours.read_message_2(message)


@both
@pytest.mark.parametrize(
    "change",
    [lambda _: b"", lambda its: flipped(its, 0), lambda its: its + b"\0"],
    ids=["none", "bit", "long"],
)
def test_another_prologue_opens_nothing(its: Either, change: Callable[[bytes], bytes]) -> None:
    prologue = change(its.of("prologue"))
    with pytest.raises(SealError, match=r"^seal$"):
        its.responder(prologue=prologue).read_message_1(its.messages[0])
    ours = its.initiator(prologue=prologue)
    ours.write_message_1(its.payloads[0])
    with pytest.raises(SealError, match=r"^seal$"):
        ours.read_message_2(its.messages[1])


def test_an_initiator_with_another_static_key_is_refused() -> None:
    stranger = KK.initiator(static=KeyPair.from_private(b"stranger".ljust(32, b"\1")))
    with pytest.raises(SealError, match=r"^seal$"):
        KK.responder().read_message_1(stranger.write_message_1(b""))


@both
def test_an_initiator_that_claims_the_static_key_of_another_is_refused(its: Either) -> None:
    # It knows every public key, in IKpsk1 the psk too, and holds neither private one.
    impostor = its.initiator(
        static=KeyPair(b"impostor".ljust(32, b"\1"), KeyPair.from_private(its.of("init_static")).public),
        ephemeral=KeyPair.from_private(b"ephemeral".ljust(32, b"\1")),
    )
    with pytest.raises(SealError, match=r"^seal$"):
        its.responder().read_message_1(impostor.write_message_1(b""))


@both
def test_a_responder_that_claims_the_static_key_of_another_understands_nothing(its: Either) -> None:
    impostor = its.responder(
        static=KeyPair(b"impostor".ljust(32, b"\1"), its.of("init_remote_static")),
        ephemeral=KeyPair.from_private(b"ephemeral".ljust(32, b"\1")),
    )
    with pytest.raises(SealError, match=r"^seal$"):
        impostor.read_message_1(its.messages[0])


@both
def test_a_member_does_not_take_its_own_message_for_an_answer(its: Either) -> None:
    ours = its.initiator()
    mine = ours.write_message_1(b"")
    with pytest.raises(SealError, match=r"^seal$"):
        ours.read_message_2(mine)


@both
def test_an_answer_to_another_handshake_is_refused(its: Either) -> None:
    first = its.initiator()
    first.write_message_1(b"one")
    second, theirs = its.initiator(), its.responder()
    theirs.read_message_1(second.write_message_1(b"other"))
    with pytest.raises(SealError, match=r"^seal$"):
        first.read_message_2(theirs.write_message_2(b""))


@both
def test_the_payload_is_part_of_what_the_keys_and_the_hash_name(its: Either) -> None:
    hashes = set()
    for payload in (b"", b"one", b"other"):
        ours, theirs = its.initiator(), its.responder()
        assert theirs.read_message_1(ours.write_message_1(payload)) == payload
        assert ours.handshake_hash == theirs.handshake_hash
        hashes.add(ours.handshake_hash)
    assert len(hashes) == 3


@both
def test_a_message_of_the_other_protocol_is_refused(its: Either) -> None:
    other = IK if its is KK else KK
    with pytest.raises(SealError, match=r"^seal$"):
        its.responder(prologue=b"").read_message_1(other.initiator(prologue=b"").write_message_1(bytes(64)))


@both
def test_a_handshake_does_not_show_its_secrets(its: Either) -> None:
    secrets = [its.of(name) for name in ("init_static", "init_ephemeral", "resp_static", "resp_ephemeral")]
    secrets += [bytes.fromhex(psk) for psk in its.vector.get("init_psks", [])]
    for side in its.finished():
        for secret in secrets:
            assert repr(secret) not in repr(side)
            assert secret.hex() not in repr(side)


# A static key that only message 1 shows


def test_the_responder_learns_the_initiators_static_key_from_the_first_message() -> None:
    theirs = IK.responder()
    with pytest.raises(KeyError):
        _ = theirs.peer_static
    theirs.read_message_1(IK.messages[0])
    assert theirs.peer_static == KeyPair.from_private(IK.of("init_static")).public


def test_the_initiator_has_the_responders_static_key_from_the_beginning() -> None:
    assert IK.initiator().peer_static == IK.of("init_remote_static")


def test_any_static_key_is_learnt_from_whoever_holds_the_psk() -> None:
    newcomer = KeyPair.from_private(b"newcomer".ljust(32, b"\1"))
    ours, theirs = IK.initiator(static=newcomer), IK.responder()
    assert theirs.read_message_1(ours.write_message_1(b"hello")) == b"hello"
    assert theirs.peer_static == newcomer.public
    assert ours.read_message_2(theirs.write_message_2(b"welcome")) == b"welcome"
    assert ours.split() == theirs.split()


def test_the_initiators_static_key_does_not_travel_in_clear() -> None:
    public = KeyPair.from_private(IK.of("init_static")).public
    assert public not in IK.initiator().write_message_1(b"")


@pytest.mark.parametrize("place", [79, 80, -1])
def test_a_static_key_is_not_learnt_from_a_message_that_does_not_open(place: int) -> None:
    # Its own tag ends at 80; what follows may be forged while the key itself opens.
    theirs = IK.responder()
    with pytest.raises(SealError, match=r"^seal$"):
        theirs.read_message_1(flipped(IK.messages[0], place % len(IK.messages[0])))
    with pytest.raises(KeyError):
        _ = theirs.peer_static


@pytest.mark.parametrize("place", [0, 31])
def test_another_psk_opens_nothing(place: int) -> None:
    psk = flipped(bytes.fromhex(IK.vector["init_psks"][0]), place)
    theirs = IK.responder()
    with pytest.raises(SealError, match=r"^seal$"):
        theirs.read_message_1(IK.initiator(psk=psk).write_message_1(b""))
    with pytest.raises(KeyError):
        _ = theirs.peer_static
    assert theirs.read_message_1(IK.messages[0]) == IK.payloads[0]


def test_a_message_to_another_responder_is_refused() -> None:
    stranger = KeyPair.from_private(b"stranger".ljust(32, b"\1"))
    with pytest.raises(SealError, match=r"^seal$"):
        IK.responder().read_message_1(IK.initiator(peer_static=stranger.public).write_message_1(b""))


@pytest.mark.parametrize("public", LOW_ORDER)
def test_a_static_key_of_low_order_is_refused_although_its_message_opens(public: bytes) -> None:
    # Sealed by someone who holds the psk, and says that this is its key.
    ours = IK.initiator(static=KeyPair(IK.of("init_static"), public))
    theirs = IK.responder()
    with pytest.raises(SealError, match=r"^key$"):
        theirs.read_message_1(ours.write_message_1(b""))
    assert theirs.read_message_1(IK.messages[0]) == IK.payloads[0]


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_psk_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=r"^a pre-shared key must be 32 bytes$"):
        IK.initiator(psk=bytes(size))


def test_the_initiator_alone_names_its_peer() -> None:
    with pytest.raises(ValueError, match=r"^the initiator gives"):
        IK.initiator(peer_static=None)
    with pytest.raises(ValueError, match=r"the responder gives none$"):
        IK.responder(peer_static=KeyPair.from_private(IK.of("init_static")).public)
