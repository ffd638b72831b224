"""A seeded stream of bytes: the entropy of a simulation, so that a run is a function of its seed."""

import hashlib


class Stream:
    """BLAKE2b in counter mode. Calling it draws bytes, as `os.urandom` does in production."""

    def __init__(self, seed: str) -> None:
        self._key = hashlib.blake2b(seed.encode(), digest_size=32).digest()
        self._blocks = 0
        self._rest = b""

    def __call__(self, size: int) -> bytes:
        """So many bytes, the next in the stream."""
        while len(self._rest) < size:
            counter = self._blocks.to_bytes(8, "big")
            self._rest += hashlib.blake2b(counter, key=self._key).digest()
            self._blocks += 1
        drawn, self._rest = self._rest[:size], self._rest[size:]
        return drawn

    def chance(self) -> float:
        """A number in [0, 1)."""
        return int.from_bytes(self(4), "big") / 2**32
