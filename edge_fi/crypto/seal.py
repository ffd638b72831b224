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


def join_prologue(federation: str, role: str, member: str, invite: int) -> bytes:
    """What both sides of joining must agree on: all that an invite grants, and to whom."""
    names = b"".join(bytes([len(name)]) + name.encode("ascii") for name in (role, member))
    return b"fi1 join" + name_in(federation) + names + invite.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class JoinKeys:
    """What follows from an invite's token. Strangers have none of it."""

    psk: bytes = field(repr=False)
    mac: bytes = field(repr=False)

    @classmethod
    def from_token(cls, token: bytes, join_prologue: bytes) -> "JoinKeys":
        """token: 16 bytes."""
        return cls(
            derive(token, b"fi1 join psk", join_prologue), derive(token, b"fi1 join key", join_prologue)
        )


def join_mac(key: bytes, maced: bytes) -> bytes:
    """8 bytes that let a gateway refuse a stranger's JOIN before any Diffie-Hellman."""
    return derive(key, b"fi1 join mac", maced, DIGEST_BYTES)


def check_join_mac(key: bytes, maced: bytes, mac: bytes) -> None:
    """Raises SealError("mac") unless the mac is the key's."""
    if not is_equal(join_mac(key, maced), mac):
        raise SealError("mac")


def refused_mac(key: bytes, maced: bytes, mac: bytes) -> bytes:
    """8 bytes by which the sender of one JOIN, of this mac, knows its refusal as the gateway's."""
    return derive(key, b"fi1 refused", maced + mac, DIGEST_BYTES)


def join_password(token: bytes) -> str:
    """The MQTT password of whoever holds an invite: the broker's user can exist before the member."""
    return derive(token, b"fi1 join user", size=DIGEST_BYTES * 2).hex()


def member_password(shared: bytes, context: bytes) -> str:
    """A member's MQTT password, which both sides know without sending it.

    shared: DH of its static key and the gateway's. context: its prologue.
    """
    return derive(shared, b"fi1 broker", context, DIGEST_BYTES * 2).hex()


def gateway_password(private: bytes, federation: str) -> str:
    """The gateway's own MQTT password."""
    return derive(private, b"fi1 broker", prologue(federation, "gateway", 0), DIGEST_BYTES * 2).hex()


def claim_mac(private: bytes, purpose: bytes, maced: bytes) -> bytes:
    """8 bytes that only a run with the same gateway key can make. purpose: `fi1 claim`, `fi1 held`."""
    return derive(derive(private, b"fi1 claim key"), purpose, maced, DIGEST_BYTES)


def roster_key(private: bytes, header: bytes) -> bytes:
    """The key of the gateway's word to its later runs. header: with a salt, so that each has its own."""
    return derive(derive(private, b"fi1 roster"), b"fi1 roster", header)


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
    """OUTCOME, REKEY."""

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
