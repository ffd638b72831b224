"""Noise_KK_25519_ChaChaPoly_BLAKE2b (The Noise Protocol Framework, revision 34).

Both sides know the other's static key. Message 1 is `e, es, ss`, message 2 is `e, ee, se`. Not here:
other patterns, rekeying, and transport messages beyond the split keys.
"""

import hashlib
import hmac

from edge_fi.crypto.aead import open_sealed, seal
from edge_fi.crypto.keys import KEY_BYTES, KeyPair, dh

PROTOCOL_NAME = b"Noise_KK_25519_ChaChaPoly_BLAKE2b"
HASH_BYTES = 64
_TOKENS = {"es": ("e", "s"), "ss": ("s", "s"), "ee": ("e", "e"), "se": ("s", "e")}
"""Which of the initiator's and which of the responder's keys each token mixes."""


class HandshakeKK:
    """One handshake, seen from one side. Write or read each of the two messages in turn, then split.

    A message that does not open leaves the handshake as it was: a forged WELCOME must not spoil the
    genuine one.
    """

    def __init__(
        self,
        *,
        initiator: bool,
        prologue: bytes,
        static: KeyPair,
        ephemeral: KeyPair,
        peer_static: bytes,
    ) -> None:
        self._initiator = initiator
        self._mine = {"s": static, "e": ephemeral}
        self._theirs = {"s": peer_static}
        name = PROTOCOL_NAME.ljust(HASH_BYTES, b"\0")
        statics = (static.public, peer_static) if initiator else (peer_static, static.public)
        self._chaining_key = name
        self._hash = name
        for public in (prologue, *statics):
            self._hash = hashlib.blake2b(self._hash + public).digest()

    @property
    def handshake_hash(self) -> bytes:
        """64 bytes that name this handshake; the same on both sides when it is done."""
        return self._hash

    def write_message_1(self, payload: bytes) -> bytes:
        """Initiator: `e, es, ss`, then the payload."""
        return self._write(payload, ("es", "ss"))

    def read_message_1(self, message: bytes) -> bytes:
        """Responder: the payload of message 1."""
        return self._read(message, ("es", "ss"))

    def write_message_2(self, payload: bytes) -> bytes:
        """Responder: `e, ee, se`, then the payload."""
        return self._write(payload, ("ee", "se"))

    def read_message_2(self, message: bytes) -> bytes:
        """Initiator: the payload of message 2."""
        return self._read(message, ("ee", "se"))

    def split(self) -> tuple[bytes, bytes]:
        """The transport keys: initiator to responder, and back."""
        to_responder, to_initiator = _hkdf(self._chaining_key, b"")
        return to_responder[:KEY_BYTES], to_initiator[:KEY_BYTES]

    def _write(self, payload: bytes, tokens: tuple[str, str]) -> bytes:
        public = self._mine["e"].public
        chaining_key, key = self._mix_keys(tokens)
        mixed = hashlib.blake2b(self._hash + public).digest()
        sealed = seal(payload, key=key, nonce=0, header=mixed)
        self._hash = hashlib.blake2b(mixed + sealed).digest()
        self._chaining_key = chaining_key
        return public + sealed

    def _read(self, message: bytes, tokens: tuple[str, str]) -> bytes:
        public, sealed = message[:KEY_BYTES], message[KEY_BYTES:]
        kept = self._theirs
        self._theirs = kept | {"e": public}
        try:
            chaining_key, key = self._mix_keys(tokens)
            mixed = hashlib.blake2b(self._hash + public).digest()
            payload = open_sealed(sealed, key=key, nonce=0, header=mixed)
        except BaseException:
            self._theirs = kept
            raise
        self._hash = hashlib.blake2b(mixed + sealed).digest()
        self._chaining_key = chaining_key
        return payload

    def _mix_keys(self, tokens: tuple[str, str]) -> tuple[bytes, bytes]:
        chaining_key, key = self._chaining_key, b""
        for token in tokens:
            initiators, responders = _TOKENS[token]
            mine, theirs = (initiators, responders) if self._initiator else (responders, initiators)
            shared = dh(self._mine[mine].private, self._theirs[theirs])
            chaining_key, key = _hkdf(chaining_key, shared)
        return chaining_key, key[:KEY_BYTES]


def _hkdf(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes]:
    """Noise section 4.3, two outputs of 64 bytes."""
    temporary = hmac.digest(chaining_key, material, "blake2b")
    first = hmac.digest(temporary, b"\x01", "blake2b")
    return first, hmac.digest(temporary, first + b"\x02", "blake2b")
