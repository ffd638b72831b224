"""Two handshakes of the Noise Protocol Framework, revision 34, as its patterns write them.

KK, where both sides know the other's static key; and IKpsk1, where the initiator shows its own under a
pre-shared key. Both with 25519, ChaChaPoly and BLAKE2b. Not here: other patterns, rekeying, and
transport messages beyond the split keys.
"""

import hashlib
import hmac
from dataclasses import dataclass

from edge_fi.crypto.aead import TAG_BYTES, open_sealed, seal
from edge_fi.crypto.keys import KEY_BYTES, KeyPair, dh
from edge_fi.errors import SealError

HASH_BYTES = 64
PSK_BYTES = 32
SEALED_KEY_BYTES = KEY_BYTES + TAG_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pattern:
    """A protocol's name and its lines. Message 1 is the initiator's, message 2 the responder's."""

    name: bytes
    known: tuple[str, ...]
    """Whose static keys the other side has beforehand."""
    message_1: tuple[str, ...]
    message_2: tuple[str, ...]


_KK = _Pattern(
    name=b"Noise_KK_25519_ChaChaPoly_BLAKE2b",
    known=("-> s", "<- s"),
    message_1=("e", "es", "ss"),
    message_2=("e", "ee", "se"),
)
_IKPSK1 = _Pattern(
    name=b"Noise_IKpsk1_25519_ChaChaPoly_BLAKE2b",
    known=("<- s",),
    message_1=("e", "es", "s", "ss", "psk"),
    message_2=("e", "ee", "se"),
)
_MIXED = {"es": ("e", "s"), "ss": ("s", "s"), "ee": ("e", "e"), "se": ("s", "e")}
"""Which of the initiator's and which of the responder's keys each token mixes."""


class _Handshake:
    """One handshake, seen from one side. Write or read each of the two messages in turn, then split.

    A message that does not open leaves the handshake as it was: a forged answer must not spoil the
    genuine one. Keys of low order raise SealError("key"), everything else that is wrong SealError("seal").
    """

    def __init__(
        self,
        pattern: _Pattern,
        *,
        initiator: bool,
        prologue: bytes,
        static: KeyPair,
        ephemeral: KeyPair,
        peer_static: bytes | None,
        psk: bytes = b"",
    ) -> None:
        self._pattern = pattern
        self._initiator = initiator
        self._mine = {"s": static, "e": ephemeral}
        self._theirs = {} if peer_static is None else {"s": peer_static}
        self._psk = psk
        name = pattern.name.ljust(HASH_BYTES, b"\0")
        self._state = _State(name, name)
        self._state.mix_hash(prologue)
        for line in pattern.known:
            is_mine = initiator is (line == "-> s")
            self._state.mix_hash(static.public if is_mine else self._theirs["s"])

    @property
    def handshake_hash(self) -> bytes:
        """64 bytes that name this handshake; the same on both sides when it is done."""
        return self._state.hash

    def write_message_1(self, payload: bytes) -> bytes:
        """Initiator: the first line of the pattern, then the payload."""
        return self._write(payload, self._pattern.message_1)

    def read_message_1(self, message: bytes) -> bytes:
        """Responder: the payload of message 1."""
        return self._read(message, self._pattern.message_1)

    def write_message_2(self, payload: bytes) -> bytes:
        """Responder: the second line of the pattern, then the payload."""
        return self._write(payload, self._pattern.message_2)

    def read_message_2(self, message: bytes) -> bytes:
        """Initiator: the payload of message 2."""
        return self._read(message, self._pattern.message_2)

    def split(self) -> tuple[bytes, bytes]:
        """The transport keys: initiator to responder, and back."""
        to_responder, to_initiator = _hkdf(self._state.chaining_key, b"")
        return to_responder[:KEY_BYTES], to_initiator[:KEY_BYTES]

    def _write(self, payload: bytes, tokens: tuple[str, ...]) -> bytes:
        state, message = self._state.copy(), b""
        for token in tokens:
            match token:
                case "e":
                    public = self._mine["e"].public
                    self._mix_ephemeral(state, public)
                    message += public
                case "s":
                    message += state.seal_and_hash(self._mine["s"].public)
                case _:
                    self._mix(state, token, self._theirs)
        message += state.seal_and_hash(payload)
        self._state = state
        return message

    def _read(self, message: bytes, tokens: tuple[str, ...]) -> bytes:
        sent = tokens.count("e") * KEY_BYTES + tokens.count("s") * SEALED_KEY_BYTES
        if len(message) < sent + TAG_BYTES:
            raise SealError("seal")
        state, theirs = self._state.copy(), self._theirs.copy()
        for token in tokens:
            match token:
                case "e":
                    public, message = message[:KEY_BYTES], message[KEY_BYTES:]
                    self._mix_ephemeral(state, public)
                    theirs["e"] = public
                case "s":
                    sealed, message = message[:SEALED_KEY_BYTES], message[SEALED_KEY_BYTES:]
                    theirs["s"] = state.open_and_hash(sealed)
                case _:
                    self._mix(state, token, theirs)
        payload = state.open_and_hash(message)
        self._state, self._theirs = state, theirs
        return payload

    def _mix_ephemeral(self, state: "_State", public: bytes) -> None:
        state.mix_hash(public)
        if self._psk:
            # Section 9.2: a psk may serve many handshakes; the ephemeral key tells theirs apart.
            state.mix_key(public)

    def _mix(self, state: "_State", token: str, theirs: dict[str, bytes]) -> None:
        match token:
            case "psk":
                state.mix_key_and_hash(self._psk)
            case _:
                initiators, responders = _MIXED[token]
                mine, other = (initiators, responders) if self._initiator else (responders, initiators)
                state.mix_key(dh(self._mine[mine].private, theirs[other]))


class HandshakeKK(_Handshake):
    """Both sides know the other's static key."""

    def __init__(
        self,
        *,
        initiator: bool,
        prologue: bytes,
        static: KeyPair,
        ephemeral: KeyPair,
        peer_static: bytes,
    ) -> None:
        super().__init__(
            _KK,
            initiator=initiator,
            prologue=prologue,
            static=static,
            ephemeral=ephemeral,
            peer_static=peer_static,
        )


class HandshakeIKpsk1(_Handshake):
    """The initiator knows the responder's static key, and shows its own to whoever holds that and the psk."""

    def __init__(
        self,
        *,
        initiator: bool,
        prologue: bytes,
        static: KeyPair,
        ephemeral: KeyPair,
        peer_static: bytes | None,
        psk: bytes,
    ) -> None:
        """peer_static: the initiator's alone to give; the responder gives None. psk: 32 bytes."""
        if initiator is (peer_static is None):
            raise ValueError("the initiator gives the responder's static key, the responder gives none")
        if len(psk) != PSK_BYTES:
            raise ValueError(f"a pre-shared key must be {PSK_BYTES} bytes")
        super().__init__(
            _IKPSK1,
            initiator=initiator,
            prologue=prologue,
            static=static,
            ephemeral=ephemeral,
            peer_static=peer_static,
            psk=psk,
        )

    @property
    def peer_static(self) -> bytes:
        """The other side's static key. The responder has it once message 1 is read."""
        return self._theirs["s"]


@dataclass(slots=True, eq=False, repr=False)
class _State:
    """The symmetric state (section 5.2), without a nonce: a key seals once, with nonce 0, and is gone.

    That is enough for patterns that mix a new key between any two things they seal, as those above do.
    """

    chaining_key: bytes
    hash: bytes
    key: bytes = b""

    def copy(self) -> "_State":
        """For the next message; no key outlives one."""
        return _State(self.chaining_key, self.hash)

    def mix_hash(self, public: bytes) -> None:
        self.hash = hashlib.blake2b(self.hash + public).digest()

    def mix_key(self, material: bytes) -> None:
        self.chaining_key, key = _hkdf(self.chaining_key, material)
        self.key = key[:KEY_BYTES]

    def mix_key_and_hash(self, material: bytes) -> None:
        self.chaining_key, public, key = _hkdf(self.chaining_key, material, outputs=3)
        self.mix_hash(public)
        self.key = key[:KEY_BYTES]

    def seal_and_hash(self, plaintext: bytes) -> bytes:
        sealed = seal(plaintext, key=self.key, nonce=0, header=self.hash)
        self.key = b""
        self.mix_hash(sealed)
        return sealed

    def open_and_hash(self, sealed: bytes) -> bytes:
        plaintext = open_sealed(sealed, key=self.key, nonce=0, header=self.hash)
        self.key = b""
        self.mix_hash(sealed)
        return plaintext


def _hkdf(chaining_key: bytes, material: bytes, *, outputs: int = 2) -> tuple[bytes, ...]:
    """Section 4.3: 2 or 3 outputs of 64 bytes."""
    # The hash, not its name: by name, hmac takes half as long again.
    temporary = hmac.digest(chaining_key, material, hashlib.blake2b)
    first = hmac.digest(temporary, b"\x01", hashlib.blake2b)
    second = hmac.digest(temporary, first + b"\x02", hashlib.blake2b)
    if outputs == 2:
        return first, second
    return first, second, hmac.digest(temporary, second + b"\x03", hashlib.blake2b)
