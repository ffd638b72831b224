"""Key pairs, key derivation and signatures: the few primitives everything else is made of.

X25519 (RFC 7748), Ed25519 (RFC 8032) and BLAKE2b (RFC 7693). Nothing here draws randomness: every
private key is an argument. Objects that hold a secret never show it in their repr.
"""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field

from nacl.bindings import (
    crypto_scalarmult,
    crypto_scalarmult_base,
    crypto_sign,
    crypto_sign_open,
    crypto_sign_seed_keypair,
)
from nacl.exceptions import CryptoError

from edge_fi.errors import SealError

KEY_BYTES = 32
SIGNATURE_BYTES = 64

Entropy = Callable[[int], bytes]
"""Gives so many random bytes: os.urandom in production, a seeded stream in a simulation."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An X25519 key pair."""

    private: bytes = field(repr=False)
    public: bytes

    @classmethod
    def from_private(cls, private: bytes) -> "KeyPair":
        """The pair of 32 private bytes."""
        # libsodium takes no length and would read past the end.
        if len(private) != KEY_BYTES:
            raise ValueError(f"a private key must be {KEY_BYTES} bytes")
        return cls(private, crypto_scalarmult_base(private))


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An Ed25519 key pair: its seed and its public half."""

    seed: bytes = field(repr=False)
    public: bytes
    _expanded: bytes = field(repr=False)

    @classmethod
    def from_seed(cls, seed: bytes) -> "SigningKey":
        """The pair of 32 bytes of seed."""
        public, expanded = crypto_sign_seed_keypair(seed)
        return cls(seed, public, expanded)

    def sign(self, message: bytes) -> bytes:
        """64 bytes of signature."""
        return crypto_sign(message, self._expanded)[:SIGNATURE_BYTES]


def verify(message: bytes, signature: bytes, public: bytes) -> None:
    """Raises SealError("signature") unless this is the key's signature of the message."""
    # A shorter signature would borrow bytes of the message; a shorter key is read past its end.
    if len(signature) != SIGNATURE_BYTES or len(public) != KEY_BYTES:
        raise SealError("signature")
    try:
        crypto_sign_open(signature + message, public)
    except (CryptoError, ValueError, TypeError):
        raise SealError("signature") from None


def dh(private: bytes, public: bytes) -> bytes:
    """X25519. Raises SealError("key") for a public key of low order or of another size."""
    # libsodium takes no length and would read past the end.
    if len(public) != KEY_BYTES:
        raise SealError("key")
    try:
        return crypto_scalarmult(private, public)
    except (CryptoError, ValueError, TypeError):
        raise SealError("key") from None


def derive(key: bytes, purpose: bytes, context: bytes = b"", size: int = KEY_BYTES) -> bytes:
    """A key or mac of `size` bytes: keyed BLAKE2b of the context, personalised by the purpose.

    purpose: 16 bytes at most. The purposes in use are listed in docs/protocol.md.
    """
    return hashlib.blake2b(context, digest_size=size, key=key, person=purpose).digest()


def is_equal(one: bytes, other: bytes) -> bool:
    """Whether two secrets are the same, in constant time."""
    return hmac.compare_digest(one, other)
