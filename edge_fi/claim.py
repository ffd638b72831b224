"""That one gateway runs, and that it knows what its former runs knew: its words to itself.

Two runs of one gateway would hand out two epochs and tear the members between them. Each run asks, on
every connect, whether another answers: CLAIM, and HELD, bound to the claim's fresh nonce so that none
can be replayed. A third word, ROSTER, is retained at the broker: the indices that were given and those
that were revoked, sealed for the gateway alone, so that a state restored from an old backup learns
what it has forgotten. Pure; randomness is an argument.
"""

from edge_fi.crypto.aead import open_sealed, seal
from edge_fi.crypto.keys import Entropy, is_equal
from edge_fi.crypto.seal import claim_mac, roster_key
from edge_fi.effects import Adopt
from edge_fi.errors import SealError
from edge_fi.roster import Roster
from edge_fi.wire import frames, payloads
from edge_fi.wire.frames import Type

_PURPOSES = {Type.CLAIM: b"fi1 claim", Type.HELD: b"fi1 held"}


class Claim:
    """The claim of one run. `private`: the gateway's X25519 key, which all its runs share."""

    def __init__(self, private: bytes, entropy: Entropy) -> None:
        self._private = private
        self._entropy = entropy
        self._nonce = b""

    def begin(self) -> bytes:
        """A CLAIM frame under a new nonce."""
        self._nonce = self._entropy(frames.CLAIM_NONCE_BYTES)
        return self._frame(Type.CLAIM, self._nonce)

    def answer(self, frame: bytes, *, is_open: bool) -> bytes:
        """The HELD frame for another run's CLAIM; our own CLAIM again, where that one comes first; empty
        for our own.

        Of two that claim at one time the lower nonce wins. Its run may have begun to listen after we made
        our claim, and can hold against us only what it has heard. Raises ProtocolError.
        """
        nonce = self._read(Type.CLAIM, frame)
        if nonce == self._nonce:
            return b""
        if not is_open and nonce < self._nonce:
            return self._frame(Type.CLAIM, self._nonce)
        return self._frame(Type.HELD, nonce)

    def is_lost(self, frame: bytes) -> bool:
        """Whether this HELD frame answers our own claim. Raises ProtocolError."""
        return self._read(Type.HELD, frame) == self._nonce

    def seal_roster(self, roster: Roster) -> bytes:
        """The ROSTER frame of what must not be forgotten."""
        header = frames.build_roster_header(roster.version, self._entropy(frames.SALT_BYTES))
        word = payloads.encode_roster(roster.highest, roster.revoked)
        return header + seal(word, key=roster_key(self._private, header), nonce=0, header=header)

    def open_roster(self, frame: bytes) -> Adopt:
        """Inverse of seal_roster. Raises ProtocolError."""
        version, header, sealed = frames.parse_roster(frame)
        word = open_sealed(sealed, key=roster_key(self._private, header), nonce=0, header=header)
        highest, revoked = payloads.decode_roster(word)
        return Adopt(version, highest, revoked)

    def _frame(self, kind: Type, nonce: bytes) -> bytes:
        maced = frames.build_claim(kind, nonce)
        return maced + claim_mac(self._private, _PURPOSES[kind], maced)

    def _read(self, kind: Type, frame: bytes) -> bytes:
        nonce, maced, mac = frames.parse_claim(frame)
        if not is_equal(claim_mac(self._private, _PURPOSES[kind], maced), mac):
            raise SealError("mac")
        return nonce
