"""ChaCha20-Poly1305 (RFC 8439): the one authenticated cipher of `fi1`.

Calls libsodium through PyNaCl's own handle to it. The public binding of the same two functions spends
9 of its 12 microseconds on building messages for errors that do not occur, more than everything else
that opening an answer takes (`python benchmarks/gateway.py`). What it checks is checked here, since
libsodium reads as many bytes as it expects, whatever it is given. A test holds one against the other.
"""

from nacl._sodium import ffi, lib

from edge_fi.crypto.keys import KEY_BYTES
from edge_fi.errors import SealError

TAG_BYTES = 16
_NONCE_ZERO = bytes(12)
_encrypt = lib.crypto_aead_chacha20poly1305_ietf_encrypt
_decrypt = lib.crypto_aead_chacha20poly1305_ietf_decrypt


def seal(plaintext: bytes, *, key: bytes, nonce: int, header: bytes) -> bytes:
    """Ciphertext and tag. nonce: an integer, laid out as Noise does: 4 zeros, then 8 bytes,
    little-endian. A (key, nonce) pair must never seal two plaintexts.
    """
    _check(key)
    sealed = ffi.new("unsigned char[]", len(plaintext) + TAG_BYTES)
    _encrypt(sealed, ffi.NULL, plaintext, len(plaintext), header, len(header), ffi.NULL, _nonce(nonce), key)
    return bytes(ffi.buffer(sealed))


def open_sealed(sealed: bytes, *, key: bytes, nonce: int, header: bytes) -> bytes:
    """Inverse of seal. Raises SealError("seal") where key, nonce, header or bytes are other."""
    _check(key)
    size = len(sealed) - TAG_BYTES
    if size < 0:
        raise SealError("seal")
    # libsodium writes nothing beyond the plaintext, but C knows no array of no bytes.
    plaintext = ffi.new("unsigned char[]", size or 1)
    if _decrypt(plaintext, ffi.NULL, ffi.NULL, sealed, len(sealed), header, len(header), _nonce(nonce), key):
        raise SealError("seal")
    return bytes(ffi.buffer(plaintext, size))


def _check(key: bytes) -> None:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key is {KEY_BYTES} bytes")


def _nonce(nonce: int) -> bytes:
    return bytes(4) + nonce.to_bytes(8, "little") if nonce else _NONCE_ZERO
