"""ChaCha20-Poly1305 (RFC 8439): the one authenticated cipher of `fi1`."""

from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from edge_fi.errors import SealError

TAG_BYTES = 16
_ZEROS = bytes(12)


def seal(plaintext: bytes, *, key: bytes, nonce: int, header: bytes) -> bytes:
    """Ciphertext and tag. nonce: an integer, laid out as Noise does: 4 zeros, then 8 bytes,
    little-endian. A (key, nonce) pair must never seal two plaintexts.
    """
    return crypto_aead_chacha20poly1305_ietf_encrypt(plaintext, header, _nonce(nonce), key)


def open_sealed(sealed: bytes, *, key: bytes, nonce: int, header: bytes) -> bytes:
    """Inverse of seal. Raises SealError("seal") where key, nonce, header or bytes are other."""
    if len(sealed) < TAG_BYTES:
        raise SealError("seal")
    try:
        return crypto_aead_chacha20poly1305_ietf_decrypt(sealed, header, _nonce(nonce), key)
    except CryptoError:
        raise SealError("seal") from None


def _nonce(nonce: int) -> bytes:
    return bytes(4) + nonce.to_bytes(8, "little") if nonce else _ZEROS
