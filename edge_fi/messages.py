"""The values that travel or are decided on: tasks, tensors, queries, votes, outcomes.

Each value validates itself. Nothing here knows bytes on the wire (`wire`), keys (`crypto`) or time.
"""

import hashlib
import math
import re
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MAX_CLASSES = 4096  # a vote of the richest form then stays below 4.2 kB
MAX_RANK = 8  # dimensions of a query tensor; more is never an edge model's input
MAX_TENSOR_BYTES = 900_000  # leaves room for the frame: NATS drops the connection above 1 MiB
FEATURES_DIGEST_BYTES = 8
MAX_LABEL_BYTES = 255  # of one label's UTF-8
MAX_DEADLINE_MS = 86_400_000  # a day

ROLES = ("device", "client", "helper")
MAX_INDEX = 0xFFFF  # of a member: one series for all roles, no number of it ever given twice

_NAME = re.compile(r"[a-z0-9-]{1,32}")

DTYPES = {"float32": 4, "float16": 2, "uint8": 1, "int8": 1}
"""Element types of a query tensor, with their size in bytes."""


class Form(IntEnum):
    """How an answer states its vote: the low four bits of its second byte."""

    ABSTAIN = 0
    LABEL = 1
    PROBS_2 = 2
    PROBS_3 = 3
    PROBS_4 = 4
    PROBS_6 = 5
    PROBS_8 = 6
    LOGITS_8 = 7

    @property
    def title(self) -> str:
        """The name in configuration files: `label`, `probs-4`, `logits-8`."""
        return self.name.lower().replace("_", "-")


VOTE_FORMS = tuple(form for form in Form if form is not Form.ABSTAIN)
"""Forms that state a vote, cheapest first. ABSTAIN is always allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a federation agrees on: a label space and the shape of a query."""

    name: str
    """For people and files; it travels in ACCEPT, and is no part of what members must agree on."""
    number: int
    """1 to 255, the task's topic; never reused within a federation."""
    labels: tuple[str, ...]
    shape: tuple[int, ...]
    """Of one query, without a batch axis."""
    dtype: str
    """One of DTYPES."""
    log_weight: tuple[int, int] = (-8, 0)
    """Nats that the lowest and the highest weight code of an answer stand for."""
    description: str = ""
    features: bytes = b""
    """8 bytes: the digest of its feature map; empty where it has none."""

    def __post_init__(self) -> None:
        if len(self.features) not in (0, FEATURES_DIGEST_BYTES):
            raise ValueError(f"features must be a digest of {FEATURES_DIGEST_BYTES} bytes, or empty")
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} must be 1 to 32 of the characters a-z, 0-9 and '-'")
        if not 1 <= self.number <= 255:
            raise ValueError("number must be 1 to 255")
        if not 2 <= len(self.labels) <= MAX_CLASSES:
            raise ValueError(f"labels must be 2 to {MAX_CLASSES} names")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must differ from one another")
        if not all(1 <= len(label.encode()) <= MAX_LABEL_BYTES for label in self.labels):
            raise ValueError(f"each label must be 1 to {MAX_LABEL_BYTES} bytes of UTF-8")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}")
        if not 1 <= len(self.shape) <= MAX_RANK or min(self.shape) < 1:
            raise ValueError(f"shape must be 1 to {MAX_RANK} positive sizes")
        if self.tensor_bytes > MAX_TENSOR_BYTES:
            raise ValueError(f"shape times dtype must be at most {MAX_TENSOR_BYTES} bytes")
        low, high = self.log_weight
        if not -32768 <= low < high <= 32767:
            raise ValueError("log_weight must be two whole numbers of nats, the lower first")

    @property
    def tensor_bytes(self) -> int:
        """Size of one query's tensor."""
        return math.prod(self.shape) * DTYPES[self.dtype]

    @property
    def classes(self) -> int:
        """Number of labels."""
        return len(self.labels)

    def definition(self) -> bytes:
        """Everything that changes what a vote means, in the order of docs/protocol.md."""
        parts = [
            bytes([self.number, tuple(DTYPES).index(self.dtype), len(self.shape)]),
            *(size.to_bytes(4, "big") for size in self.shape),
            *(nats.to_bytes(2, "big", signed=True) for nats in self.log_weight),
            self.classes.to_bytes(2, "big"),
            *(bytes([len(label.encode())]) + label.encode() for label in self.labels),
            bytes([len(self.features)]) + self.features,
        ]
        return b"".join(parts)

    def digest(self) -> bytes:
        """8 bytes that differ when the definition does."""
        return hashlib.blake2b(self.definition(), digest_size=8, person=b"fi1 task").digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One line of the roster: a member as the gateway knows it."""

    id: str
    index: int
    role: str
    """One of ROLES."""
    public: bytes
    """32 bytes, X25519."""
    task: int = 0
    """The one task that a device may join; 0 for any of the federation."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One query's input. `content` is row-major, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes

    def fits(self, task: Task) -> bool:
        """Whether this is an input of the task."""
        return (
            self.dtype == task.dtype and self.shape == task.shape and len(self.content) == task.tensor_bytes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What a gateway asks of its cohort; the plaintext of a QUERY frame."""

    task: int
    forms: frozenset[Form]
    """Forms that an answer may take; ABSTAIN always may."""
    deadline_ms: int
    """After this long from its first arrival, a device no longer answers."""
    settle: bytes
    """8 bytes; the preimage, published later, silences devices that have not answered."""
    tensor: Tensor


class Trust(IntEnum):
    """Who says how familiar a device is with a query. The values are those of HELLO frames."""

    NOBODY = 0
    """It has no gate."""
    DEVICE = 1
    """The device itself: its gate is private, and its claim travels in each answer."""
    GATE = 2
    """The gateway, from the gate that the device has registered."""


class Vote(NamedTuple):
    """An opened, verified, dequantized answer. A gateway makes thousands a second."""

    device: str
    probabilities: Array
    """(classes,), sums to 1."""
    log_weight: float
    """Its familiarity with the query in nats; NaN where that is not known, minus infinity for none."""
    form: Form
    coverage: Array | None = None
    """(classes,): samples that the device has of each class, where it has told."""

    @property
    def label(self) -> int:
        """The class voted for."""
        return int(self.probabilities.argmax())


class Fate(IntEnum):
    """What became of one member's part in one round. The values are those of OUTCOME frames."""

    ASKED = 0
    COUNTED = 1
    DECLINED = 2
    SILENCED = 3
    MISSING = 4
    LATE = 5
    REVOKED = 6
    """The member was taken from the roster while the round was open; its vote does not count."""


class Status(IntEnum):
    """How a round ended. The values are those of OUTCOME frames."""

    ANSWERED = 0
    NO_QUORUM = 1
    ABSTAINED = 2
    NO_MEMBERS = 3
    OVERLOADED = 4
    REFUSED = 5
    UNREACHABLE = 6
    """Only ever stated by a client to itself: no outcome came in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a federation says to one query, and who said it."""

    status: Status
    label: int | None = None
    """The class, where the status is ANSWERED."""
    probabilities: tuple[float, ...] = ()
    agreement: float = 0.0
    """Share of the counted votes whose own label is the outcome's."""
    strategy: str = ""
    reason: str = ""
    """Why there is no label, where the status is ABSTAINED: "declined", "unfamiliar" or "unsure"."""
    label_set: tuple[int, ...] = ()
    """Classes that hold the right one as often as the gateway's policy promises; empty without one."""
    fates: tuple[tuple[str, Fate], ...] = ()
    """Every member asked and what became of it, in the order of the roster."""
    votes: tuple[Vote, ...] = ()
    """Empty at a client: votes stay with the gateway."""
    epoch: int = 0
    seq: int = 0
    """The query's number; 0 when nothing was asked. With its epoch, what feedback names it by."""
    elapsed_us: int = 0

    def members(self, fate: Fate) -> tuple[str, ...]:
        """Ids of the members with this fate."""
        return tuple(device for device, its_fate in self.fates if its_fate is fate)
