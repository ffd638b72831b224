"""One task's epoch at the gateway: the key under which its queries travel, and its rounds.

A new epoch has a new key and the next number; seqs go on, so that no query of one epoch can be taken
for one of another. Rounds outlive the epoch in which they were opened. Epoch keys live in memory only
(rule R2). Pure: no clock, randomness as an argument.
"""

from dataclasses import dataclass

from edge_fi.crypto import seal
from edge_fi.crypto.keys import Entropy
from edge_fi.messages import Form, Query, Task, Tensor
from edge_fi.round import Round, RoundPolicy
from edge_fi.session import GatewayIdentity
from edge_fi.wire import frames, payloads

MAX_AHEAD = 512  # open queries of one task; half of what a device's window remembers
CLOSED_KEPT = 256  # closed rounds kept per task, so that a late answer is counted as late
MAX_SEQ = 0xFFFFFFFF
MAX_QUERIES = 1 << 20  # under one epoch key: a thief of one reads no more; the cipher would bear 2^32


@dataclass(slots=True)
class Asked:
    """A query on its way or just closed, with what it takes to check its answers."""

    round: Round
    reference: object
    frame: bytes
    """The QUERY; empty once the round is closed."""
    epoch: int
    query_hash: bytes
    forms: frozenset[Form]


class TaskEpoch:
    """The current epoch of one task, its open rounds, and the latest closed ones."""

    def __init__(self, task: Task, entropy: Entropy, settle_secret: bytes) -> None:
        self.task = task
        self.open: dict[int, Asked] = {}
        """By seq, in the order of their seq."""
        self.closed: dict[int, Asked] = {}
        self.latest_policy: RoundPolicy | None = None
        """Of the latest query."""
        self._settle_secret = settle_secret
        self._next_seq = 1
        self._begin(int.from_bytes(entropy(4), "big"), entropy)

    @property
    def number(self) -> int:
        """Of the current epoch, u32."""
        return self.keys.number

    @property
    def floor(self) -> int:
        """Lowest seq still open."""
        return next(iter(self.open), self._next_seq)

    @property
    def is_full(self) -> bool:
        """Whether no query can be asked now, lest a device's window forget one that is open."""
        return self._next_seq - self.floor >= MAX_AHEAD or self._next_seq > MAX_SEQ

    @property
    def is_spent(self) -> bool:
        """Whether so many queries were asked under this key that the next needs another."""
        return self._asked >= MAX_QUERIES

    def rotate(self, entropy: Entropy) -> None:
        """Begin a new epoch. What is open stays open, under the key it was asked with."""
        self._begin((self.number + 1) & 0xFFFFFFFF, entropy)

    def next_seq(self) -> int:
        """The number of the next query."""
        seq, self._next_seq = self._next_seq, self._next_seq + 1
        return seq

    def ask(self, identity: GatewayIdentity, its_round: Round, tensor: Tensor, reference: object) -> Asked:
        """Seal and sign the round's query, once (R1)."""
        seq, policy, keys = its_round.seq, its_round.policy, self.keys
        preimage = seal.settle_preimage(self._settle_secret, keys.number, seq)
        query = Query(
            task=self.task.number,
            forms=policy.forms,
            deadline_ms=round(policy.timeout_s * 1000),
            settle=seal.settle_digest(preimage, keys.number, seq, identity.federation),
            tensor=tensor,
        )
        header = frames.build_query_header(keys.number, seq)
        signed = header + keys.seal_query(payloads.encode_query(query), seq=seq, header=header)
        frame = signed + seal.sign_query(identity.signing, identity.federation, signed)
        asked = Asked(its_round, reference, frame, keys.number, keys.query_hash(frame), policy.forms)
        self.open[seq] = asked
        self.latest_policy = policy
        self._asked += 1
        return asked

    def find(self, seq: int) -> Asked | None:
        """The query of this number, if it is open or was closed lately."""
        return self.open.get(seq) or self.closed.get(seq)

    def close(self, asked: Asked) -> None:
        """Keep of a closed round what serves to tell late answers: the votes are the outcome's now."""
        seq = asked.round.seq
        del self.open[seq]
        self.closed[seq] = asked
        asked.frame = b""
        asked.round.votes.clear()
        if len(self.closed) > CLOSED_KEPT:
            del self.closed[next(iter(self.closed))]

    def settled(self, asked: Asked) -> bytes:
        """The SETTLED frame of a query."""
        preimage = seal.settle_preimage(self._settle_secret, asked.epoch, asked.round.seq)
        return frames.build_settled(asked.epoch, asked.round.seq, preimage)

    def _begin(self, number: int, entropy: Entropy) -> None:
        self.key = entropy(32)
        """What WELCOME and REKEY carry."""
        self.keys = seal.Epoch.from_key(number, self.key)
        self._asked = 0
