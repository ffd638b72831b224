"""How each frame of `fi1` is sealed: queries under the epoch key, answers under a key of their own.

The header given here is always the frame's own, so that no part of a frame can be moved to another.
"""

from dataclasses import dataclass, field

from edge_fi.crypto.aead import open_sealed, seal
from edge_fi.crypto.keys import SigningKey, derive, is_equal, verify
from edge_fi.errors import SealError

DIGEST_BYTES = 8
PREIMAGE_BYTES = 16


def name_in(federation: str) -> bytes:
    """A federation's name with its length in front, for use inside a longer string of bytes."""
    return bytes([len(federation)]) + federation.encode("ascii")


def prologue(federation: str, role: str, index: int) -> bytes:
    """What both sides of a session must agree on before it begins."""
    role_name = bytes([len(role)]) + role.encode("ascii")
    return b"fi1" + name_in(federation) + role_name + index.to_bytes(2, "big")


def hello_mac(key: bytes, maced: bytes) -> bytes:
    """8 bytes that let a gateway refuse a stranger's HELLO before any Diffie-Hellman."""
    return derive(key, b"fi1 hello mac", maced, DIGEST_BYTES)


def check_hello_mac(key: bytes, maced: bytes, mac: bytes) -> None:
    """Raises SealError("mac") unless the mac is the key's."""
    if not is_equal(hello_mac(key, maced), mac):
        raise SealError("mac")


@dataclass(frozen=True, slots=True)
class Epoch:
    """The key under which queries of one task travel, for a while."""

    number: int
    seal_key: bytes = field(repr=False)
    digest_key: bytes = field(repr=False)

    @classmethod
    def from_key(cls, number: int, key: bytes) -> "Epoch":
        """The epoch's two keys from the one that travels in WELCOME."""
        return cls(number, derive(key, b"fi1 query seal"), derive(key, b"fi1 query hash"))

    def seal_query(self, plaintext: bytes, *, seq: int, header: bytes) -> bytes:
        """Ciphertext and tag of a query. A seq is used once in an epoch (rule R1)."""
        return seal(plaintext, key=self.seal_key, nonce=seq, header=header)

    def open_query(self, sealed: bytes, *, seq: int, header: bytes) -> bytes:
        """Inverse of seal_query."""
        return open_sealed(sealed, key=self.seal_key, nonce=seq, header=header)

    def query_hash(self, frame: bytes) -> bytes:
        """32 bytes that commit to the epoch and to every byte of the frame; never sent."""
        return derive(self.digest_key, b"fi1 query hash", frame)


def sign_query(signing: SigningKey, federation: str, signed: bytes) -> bytes:
    """The gateway's signature of a QUERY frame: members share the epoch key, but not this one."""
    return signing.sign(b"fi1 query" + name_in(federation) + signed)


def verify_query(public: bytes, federation: str, signed: bytes, signature: bytes) -> None:
    """Raises SealError("signature")."""
    verify(b"fi1 query" + name_in(federation) + signed, signature, public)


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """The keys of one session, by use. The transport keys they come from are gone."""

    answer: bytes = field(repr=False)
    up: bytes = field(repr=False)
    """READY."""
    ask: bytes = field(repr=False)
    down: bytes = field(repr=False)
    """OUTCOME."""

    @classmethod
    def from_transport(cls, to_gateway: bytes, to_member: bytes) -> "SessionKeys":
        """From the two keys that a handshake splits into."""
        return cls(
            derive(to_gateway, b"fi1 answer"),
            derive(to_gateway, b"fi1 frame"),
            derive(to_gateway, b"fi1 ask"),
            derive(to_member, b"fi1 frame"),
        )


def answer_key(session_key: bytes, header: bytes, *, epoch: int, query_hash: bytes, model: bytes) -> bytes:
    """The key of one answer: bound to its header, to the exact query and to the model."""
    context = header + epoch.to_bytes(4, "big") + query_hash + model
    return derive(session_key, b"fi1 answer key", context)


def settle_preimage(secret: bytes, epoch: int, seq: int) -> bytes:
    """16 bytes that only the holder of the secret can tell before they are published."""
    return derive(secret, b"fi1 settle", _place(epoch, seq), PREIMAGE_BYTES)


def settle_digest(preimage: bytes, epoch: int, seq: int, federation: str) -> bytes:
    """8 bytes that travel in the query and recognise the preimage."""
    return derive(preimage, b"fi1 settled", _place(epoch, seq) + name_in(federation), DIGEST_BYTES)


def check_settled(digest: bytes, preimage: bytes, epoch: int, seq: int, federation: str) -> None:
    """Raises SealError("settled") unless the preimage is that of the digest."""
    if not is_equal(settle_digest(preimage, epoch, seq, federation), digest):
        raise SealError("settled")


def _place(epoch: int, seq: int) -> bytes:
    return epoch.to_bytes(4, "big") + seq.to_bytes(4, "big")
