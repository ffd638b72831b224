"""The cipher: RFC 8439's own vector, and refusal of everything that was not sealed just so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
)

from edge_fi.crypto.aead import open_sealed, seal
from edge_fi.errors import SealError

KEY = bytes(range(32))

# RFC 8439, appendix A.5; its nonce is 00000000 0102030405060708.
RFC_KEY = bytes.fromhex("1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0")
RFC_NONCE = int.from_bytes(bytes.fromhex("0102030405060708"), "little")
RFC_HEADER = bytes.fromhex("f33388860000000000004e91")
RFC_PLAINTEXT = (
    b"Internet-Drafts are draft documents valid for a maximum of six months and may be updated, "
    b"replaced, or obsoleted by other documents at any time. It is inappropriate to use "
    b"Internet-Drafts as reference material or to cite them other than as "
    b"/\xe2\x80\x9cwork in progress./\xe2\x80\x9d"
)
RFC_CIPHERTEXT_BEGINS = bytes.fromhex("64a0861575861af460f062c79be643bd")
RFC_TAG = bytes.fromhex("eead9d67890cbb22392336fea1851f38")


def test_it_is_the_cipher_of_rfc_8439() -> None:
    sealed = seal(RFC_PLAINTEXT, key=RFC_KEY, nonce=RFC_NONCE, header=RFC_HEADER)
    assert len(sealed) == len(RFC_PLAINTEXT) + 16
    assert sealed[:16] == RFC_CIPHERTEXT_BEGINS
    assert sealed[-16:] == RFC_TAG
    assert open_sealed(sealed, key=RFC_KEY, nonce=RFC_NONCE, header=RFC_HEADER) == RFC_PLAINTEXT


@given(st.binary(max_size=100), st.integers(0, 2**64 - 1), st.binary(max_size=20))
def test_what_was_sealed_opens(plaintext: bytes, nonce: int, header: bytes) -> None:
    sealed = seal(plaintext, key=KEY, nonce=nonce, header=header)
    assert open_sealed(sealed, key=KEY, nonce=nonce, header=header) == plaintext


@pytest.mark.parametrize("nonce", [0, 1, 255, 256, 2**32, 2**64 - 1])
def test_another_nonce_does_not_open(nonce: int) -> None:
    sealed = seal(b"vote", key=KEY, nonce=7, header=b"header")
    with pytest.raises(SealError, match=r"^seal$"):
        open_sealed(sealed, key=KEY, nonce=nonce, header=b"header")


def test_another_key_does_not_open() -> None:
    sealed = seal(b"vote", key=KEY, nonce=7, header=b"header")
    with pytest.raises(SealError, match=r"^seal$"):
        open_sealed(sealed, key=KEY[::-1], nonce=7, header=b"header")


def test_another_header_does_not_open() -> None:
    sealed = seal(b"vote", key=KEY, nonce=7, header=b"header")
    for header in (b"", b"headeR", b"header\0"):
        with pytest.raises(SealError, match=r"^seal$"):
            open_sealed(sealed, key=KEY, nonce=7, header=header)


def test_no_single_flipped_bit_opens() -> None:
    sealed = seal(b"vote", key=KEY, nonce=7, header=b"header")
    for bit in range(8 * len(sealed)):
        flipped = bytearray(sealed)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealError, match=r"^seal$"):
            open_sealed(bytes(flipped), key=KEY, nonce=7, header=b"header")


@given(st.binary(max_size=64))
def test_arbitrary_bytes_do_not_open(sealed: bytes) -> None:
    with pytest.raises(SealError, match=r"^seal$"):
        open_sealed(sealed, key=KEY, nonce=0, header=b"")


def test_an_empty_plaintext_is_a_tag_alone() -> None:
    sealed = seal(b"", key=KEY, nonce=0, header=b"header")
    assert len(sealed) == 16
    assert open_sealed(sealed, key=KEY, nonce=0, header=b"header") == b""
    with pytest.raises(SealError, match=r"^seal$"):
        open_sealed(sealed[:15], key=KEY, nonce=0, header=b"header")


@given(
    st.binary(max_size=300),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=20),
    st.binary(min_size=32, max_size=32),
)
def test_it_does_what_the_public_binding_does(
    plaintext: bytes, nonce: int, header: bytes, key: bytes
) -> None:
    laid_out = bytes(4) + nonce.to_bytes(8, "little")
    sealed = seal(plaintext, key=key, nonce=nonce, header=header)
    assert sealed == crypto_aead_chacha20poly1305_ietf_encrypt(plaintext, header, laid_out, key)
    assert crypto_aead_chacha20poly1305_ietf_decrypt(sealed, header, laid_out, key) == plaintext


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_key_of_another_size_is_refused_before_anything_is_read(size: int) -> None:
    with pytest.raises(ValueError, match="a key is 32 bytes"):
        seal(b"vote", key=bytes(size), nonce=0, header=b"")
    with pytest.raises(ValueError, match="a key is 32 bytes"):
        open_sealed(bytes(20), key=bytes(size), nonce=0, header=b"")
