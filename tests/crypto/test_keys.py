"""Primitives: the RFCs' own vectors, refusal of bad keys, and secrets that never show."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import crypto_generichash_blake2b_salt_personal

from edge_fi.crypto.keys import KeyPair, SigningKey, derive, dh, is_equal, verify
from edge_fi.errors import SealError

# RFC 7748, section 6.1.
ALICE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
ALICE_PUBLIC = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
BOB_PUBLIC = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
SHARED = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")

# RFC 8032, section 7.1, test 2.
SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
VERIFY_KEY = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)

LOW_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


# Key pairs


def test_a_key_pair_is_that_of_rfc_7748() -> None:
    assert KeyPair.from_private(ALICE).public == ALICE_PUBLIC
    assert KeyPair.from_private(BOB).public == BOB_PUBLIC


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_private_key_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="must be 32 bytes"):
        KeyPair.from_private(bytes(size))


def test_both_sides_get_the_shared_secret_of_rfc_7748() -> None:
    assert dh(ALICE, BOB_PUBLIC) == SHARED
    assert dh(BOB, ALICE_PUBLIC) == SHARED


@pytest.mark.parametrize("public", LOW_ORDER)
def test_a_public_key_of_low_order_is_refused(public: str) -> None:
    with pytest.raises(SealError, match=r"^key$"):
        dh(ALICE, bytes.fromhex(public))


@pytest.mark.parametrize("size", [0, 1, 31, 33])
def test_a_public_key_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(SealError, match=r"^key$"):
        dh(ALICE, BOB_PUBLIC.ljust(size, b"\1")[:size])


def test_a_key_pair_does_not_show_its_private_half() -> None:
    shown = repr(KeyPair.from_private(ALICE))
    assert repr(ALICE) not in shown
    assert ALICE.hex() not in shown
    assert "private" not in shown
    assert repr(ALICE_PUBLIC) in shown


# Signatures


def test_a_signature_is_that_of_rfc_8032() -> None:
    signing = SigningKey.from_seed(SEED)
    assert signing.public == VERIFY_KEY
    assert signing.sign(b"\x72") == SIGNATURE
    verify(b"\x72", SIGNATURE, VERIFY_KEY)


def test_the_signature_of_another_message_is_refused() -> None:
    for message in (b"", b"\x73", b"\x72\x72"):
        with pytest.raises(SealError, match=r"^signature$"):
            verify(message, SIGNATURE, VERIFY_KEY)


def test_the_signature_of_another_key_is_refused() -> None:
    with pytest.raises(SealError, match=r"^signature$"):
        verify(b"\x72", SIGNATURE, SigningKey.from_seed(bytes(32)).public)


def test_no_signature_with_a_flipped_bit_is_taken() -> None:
    for bit in range(512):
        flipped = bytearray(SIGNATURE)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealError, match=r"^signature$"):
            verify(b"\x72", bytes(flipped), VERIFY_KEY)


@pytest.mark.parametrize("cut", [0, 1, 32, 63, 65])
def test_a_signature_borrows_no_bytes_from_its_message_and_lends_none(cut: int) -> None:
    # The same bytes in a row as the genuine pair, divided elsewhere.
    both = SIGNATURE + b"\x72"
    with pytest.raises(SealError, match=r"^signature$"):
        verify(both[cut:], both[:cut], VERIFY_KEY)


@pytest.mark.parametrize("public", [b"", VERIFY_KEY[:31], VERIFY_KEY + b"\0", bytes(32), b"\1" + bytes(31)])
def test_a_verify_key_of_another_size_or_of_low_order_is_refused(public: bytes) -> None:
    with pytest.raises(SealError, match=r"^signature$"):
        verify(b"\x72", SIGNATURE, public)


@given(st.binary(max_size=70), st.binary(max_size=40))
def test_arbitrary_bytes_are_no_signature(signature: bytes, message: bytes) -> None:
    with pytest.raises(SealError, match=r"^signature$"):
        verify(message, signature, VERIFY_KEY)


def test_a_seed_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError):
        SigningKey.from_seed(SEED[:31])


def test_a_signing_key_does_not_show_its_secrets() -> None:
    shown = repr(SigningKey.from_seed(SEED))
    assert "seed" not in shown
    assert "expanded" not in shown
    # The expanded key begins with the seed.
    assert repr(SEED)[2:12] not in shown
    assert SEED.hex() not in shown
    assert repr(VERIFY_KEY) in shown


# Derivation


@pytest.mark.parametrize("size", [8, 10, 32, 64])
def test_a_key_is_derived_by_keyed_and_personalised_blake2b(size: int) -> None:
    expected = crypto_generichash_blake2b_salt_personal(
        b"context", digest_size=size, key=bytes(range(32)), person=b"fi1 purpose".ljust(16, b"\0")
    )
    assert derive(bytes(range(32)), b"fi1 purpose", b"context", size) == expected


def test_a_derived_key_is_32_bytes_of_an_empty_context_unless_told_otherwise() -> None:
    assert derive(b"k" * 32, b"purpose") == derive(b"k" * 32, b"purpose", b"", 32)
    assert len(derive(b"k" * 32, b"purpose")) == 32


def test_key_purpose_context_and_size_each_give_another_key() -> None:
    keys = {
        derive(b"k" * 32, b"purpose", b"context"),
        derive(b"l" * 32, b"purpose", b"context"),
        derive(b"k" * 32, b"purposf", b"context"),
        derive(b"k" * 32, b"purpose", b"contexu"),
        derive(b"k" * 32, b"purposec", b"ontext"),
        derive(b"k" * 32, b"purpose", b"context", 33)[:32],
    }
    assert len(keys) == 6


def test_a_purpose_is_at_most_16_bytes() -> None:
    assert derive(b"k", b"p" * 16)
    with pytest.raises(ValueError):
        derive(b"k", b"p" * 17)


def test_secrets_are_equal_only_when_they_are_the_same() -> None:
    assert is_equal(b"secret", bytes(bytearray(b"secret")))
    assert not is_equal(b"secret", b"secreT")
    assert not is_equal(b"secret", b"secret ")
    assert not is_equal(b"secret", b"")
