"""A device's gate: how familiar a query is to it, told by what its own data look like in the shared space.

    L = log sum_j n_j exp(-(D/2) (log s_j^2 + |z - c_j|^2 / s_j^2))     over clusters of 5 rows at least
    u = log-odds "mine against public" + log n                            ridge-logistic on random features
    log weight = (L + u) / 2 - origin                                     .7 L without public queries

n_j rows, s_j^2 spread and c_j centre of cluster j, D the map's dimension. p(x, y) = sum_k n_k p_k(x)
p_k(y|x): the best pool weighs a device by how dense its own data is at the query. Never by the distance to
its nearest sample, which tells who is in the data.

Bytes, big-endian; clusters as 8-bit codes in the map's steps:

    "GA1" | map 8 | k u8 | m u8 | C u16 | floor f32 | bias f32 | step f32 (0: no ratio)
    | C x u16 coverage | k x (count u16, spread f32, m x i8) | 1024 x i8, where step is not 0
"""

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edge_fi.errors import DecodeError
from edge_fi.messages import MAX_CLASSES, Array
from edge_fi.voting import clusters
from edge_fi.voting.clusters import LEAST_SPREAD, Clusters
from edge_fi.voting.features import FeatureMap, squared_distances

RANDOM_FEATURES = 1024
MAX_BYTES = 7_000
MAX_CLUSTERS = 100
LEAST_ROWS = 10  # of a device's own data: fewer are no sample of anything
RIDGE = 40.0  # over the rows: with few of them the ratio must not go by single ones
ALONE = 0.7  # what a density counts for without a ratio beside it
FLOOR_QUANTILE = 0.01  # of its own rows' densities ...
FLOOR_MARGIN = (
    10.0  # ... and so many nats for each dimension below that is where nothing is familiar any more
)
ABSURD = 20.0  # nats above the origin: no honest gate comes near, so one made to weigh most weighs nothing
FAR = 1e6  # public queries lie around 1 on each axis; beyond, float32 and the regression fail
_MAGIC = b"GA1"
_HEAD = struct.Struct(">8sBBHfff")
_CLUSTER = struct.Struct(">Hf")
_COUNT_LIMIT = 0xFFFF
_CODE_LIMIT = 127
_STEPS = 60
_LEAST_STEP = 2.0**-40  # far below any that matters; exact in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What `weigh` needs, and what a device can register."""

    map_digest: bytes
    """8 bytes: of the feature map in whose space it is."""
    own: Clusters = field(repr=False)
    coverage: Array = field(repr=False)
    """(classes,): samples of each class, 65,535 at the most."""
    ratio: Array | None = field(default=None, repr=False)
    """(1024,): of the random features; None without public queries."""
    bias: float = 0.0
    floor: float = -math.inf
    """Of L: below it the query is unfamiliar."""

    def weigh(self, row: Array, features: FeatureMap) -> float:
        """Log weight in nats of one query, (m,) in the shared space; minus infinity where unfamiliar."""
        (weight,) = self.weigh_all(row[None], features)
        return float(weight)

    def weigh_all(self, rows: Array, features: FeatureMap) -> Array:
        """Of (n, m) rows, (n,). What is not finite, or absurdly familiar, is unfamiliar."""
        with np.errstate(invalid="ignore", over="ignore"):
            density = _density(rows, self.own, features.dimension)
            ratio = np.full(len(rows), np.nan)
            if self.ratio is not None:
                ratio = random_features(rows) @ self.ratio + self.bias
            return _weights(density, ratio, self.floor, features)

    def encode(self, features: FeatureMap) -> bytes:
        """As bytes, MAX_BYTES at the most. What `decode` gives of them is this gate, rounded."""
        # Not 0 where there is a ratio, though nothing may tell its data from the public ones.
        largest = 0.0 if self.ratio is None else float(np.abs(self.ratio).max())
        step = 0.0 if self.ratio is None else max(largest / _CODE_LIMIT, _LEAST_STEP)
        head = (self.map_digest, len(self.own.counts), len(features.steps), len(self.coverage))
        codes = _codes(self.own.centres / features.steps)
        parts = [
            _MAGIC,
            _HEAD.pack(*head, self.floor, self.bias, step),
            self.coverage.astype(">u2").tobytes(),
            *(
                _CLUSTER.pack(min(int(count), _COUNT_LIMIT), spread) + centre.tobytes()
                for count, spread, centre in zip(self.own.counts, self.own.spreads, codes, strict=True)
            ),
        ]
        if self.ratio is not None:
            parts.append(_codes(self.ratio / step).tobytes())
        return b"".join(parts)

    @classmethod
    def decode(cls, content: bytes, features: FeatureMap) -> "Gate":
        """Inverse of encode. Raises DecodeError("gate"): damaged, absurd, too large, or of another map."""
        try:
            digest, k, m, classes, floor, bias, step = _HEAD.unpack_from(content, len(_MAGIC))
            at = len(_MAGIC) + _HEAD.size
            size = at + 2 * classes + k * (_CLUSTER.size + m) + (RANDOM_FEATURES if step else 0)
            is_absurd = not (math.isfinite(bias) and math.isfinite(step) and step >= 0) or math.isnan(floor)
            if content[: len(_MAGIC)] != _MAGIC or len(content) != size or size > MAX_BYTES or is_absurd:
                raise DecodeError("gate")
            if digest != features.digest or m != len(features.steps) or not k or classes > MAX_CLASSES:
                raise DecodeError("gate")
            coverage = np.frombuffer(content, ">u2", classes, at).astype(np.float64)
            at += 2 * classes
            counts, spreads, centres = np.zeros(k), np.zeros(k), np.zeros((k, m))
            for j in range(k):
                counts[j], spreads[j] = _CLUSTER.unpack_from(content, at)
                centres[j] = np.frombuffer(content, np.int8, m, at + _CLUSTER.size) * features.steps
                at += _CLUSTER.size + m
            if counts.min() < 1 or not np.isfinite(spreads).all() or spreads.min() < LEAST_SPREAD:
                raise DecodeError("gate")
            ratio = np.frombuffer(content, np.int8, RANDOM_FEATURES, at) * step if step else None
        except struct.error:
            raise DecodeError("gate") from None
        own = Clusters(centres, counts, spreads)
        return cls(map_digest=digest, own=own, coverage=coverage, ratio=ratio, bias=bias, floor=floor)


class Gates:
    """Several gates of one map, asked together: a query costs little more than one gate does."""

    def __init__(self, gates: Sequence[Gate], features: FeatureMap) -> None:
        """At least one."""
        self._features = features
        self._own = Clusters(
            *(np.concatenate(parts) for parts in zip(*(its.own for its in gates), strict=True))
        )
        sizes = [len(gate.own.counts) for gate in gates]
        self._starts = np.cumsum([0, *sizes[:-1]])
        self._sizes = np.array(sizes)
        self._has_ratio = np.array([gate.ratio is not None for gate in gates])
        nothing = np.zeros(RANDOM_FEATURES)
        self._ratios = np.stack([nothing if gate.ratio is None else gate.ratio for gate in gates])
        self._biases = np.array([gate.bias for gate in gates])
        self._floors = np.array([gate.floor for gate in gates])

    def weigh(self, row: Array) -> Array:
        """Log weight of one query, (m,), by each gate, as `Gate.weigh` gives it: (gates,)."""
        with np.errstate(invalid="ignore", over="ignore"):
            terms = _terms(row[None], self._own, self._features.dimension)[0]
            highest = np.maximum.reduceat(terms, self._starts)
            shares = np.exp(terms - np.repeat(highest, self._sizes))
            density = highest + np.log(np.add.reduceat(shares, self._starts))
            ratios = self._ratios @ random_features(row[None])[0] + self._biases
            return _weights(density, np.where(self._has_ratio, ratios, np.nan), self._floors, self._features)


def map_of(content: bytes) -> bytes:
    """The digest of the feature map that an encoded gate names; empty where it is none."""
    return content[len(_MAGIC) : len(_MAGIC) + 8] if content.startswith(_MAGIC) else b""


def gate_digest(content: bytes) -> bytes:
    """8 bytes that name an encoded gate."""
    return hashlib.blake2b(content, digest_size=8, person=b"fi1 gate").digest()


def random_features(rows: Array) -> Array:
    """(n, m) into (n, 1024): max(0, W z + b), W and b the same for everybody (Rahimi and Recht 2008)."""
    weights, biases = _random_weights(rows.shape[1])
    return np.maximum(rows @ weights + biases, 0)


@lru_cache(maxsize=4)
def _random_weights(m: int) -> tuple[Array, Array]:
    """Uniform on [-1, 1] in steps of 1/127.5, from SHAKE256; rows of W have length 1 on the average."""
    stream = hashlib.shake_256(b"fi1 random features").digest((m + 1) * RANDOM_FEATURES)
    uniform = np.frombuffer(stream, np.uint8).reshape(m + 1, RANDOM_FEATURES) / 127.5 - 1
    return uniform[:m] * math.sqrt(3 / m), uniform[m]


def _weights(density: Array, ratio: Array, floor: Array | float, features: FeatureMap) -> Array:
    """ratio: NaN where there is none."""
    weights = np.where(np.isnan(ratio), ALONE * density, (density + ratio) / 2) - features.origin
    return np.where((weights < ABSURD) & np.isfinite(weights) & (density >= floor), weights, -np.inf)


def _density(rows: Array, own: Clusters, dimension: float) -> Array:
    terms = _terms(rows, own, dimension)
    highest = terms.max(axis=1)
    return np.asarray(highest + np.log(np.exp(terms - highest[:, None]).sum(axis=1)))


def _terms(rows: Array, own: Clusters, dimension: float) -> Array:
    """Of each row and cluster, (n, k)."""
    squares = squared_distances(rows, own.centres)
    return np.asarray(np.log(own.counts) - dimension / 2 * (np.log(own.spreads) + squares / own.spreads))


def fit(rows: Array, labels: NDArray[np.int64], features: FeatureMap, *, classes: int) -> Gate:
    """A gate from a device's own data: (n, m) rows in the shared space, (n,) labels below `classes`.

    Raises ValueError, naming what is wrong: too few rows, another dimension, values that are not finite.
    """
    m = len(features.steps)
    if rows.ndim != 2 or rows.shape[1] != m:
        raise ValueError(f"rows have {rows.shape[-1]} features, but the task's map gives {m}")
    if len(rows) < LEAST_ROWS:
        raise ValueError(f"{len(rows)} samples are too few for a gate: {LEAST_ROWS} at least")
    if not np.isfinite(rows).all():
        raise ValueError("a sample has features that are not finite")
    if np.abs(rows).max() > FAR:
        raise ValueError(f"a sample has features beyond {FAR:.0f}: it is nothing like the public queries")
    if len(labels) != len(rows) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"each of {len(rows)} samples needs one label, 0 to {classes - 1}")
    gate = Gate(
        map_digest=features.digest,
        own=clusters.fit(rows, most_clusters(m, classes)),
        coverage=np.minimum(np.bincount(labels, minlength=classes), _COUNT_LIMIT).astype(np.float64),
    )
    if len(features.public) >= LEAST_ROWS:
        ratio, bias = _logistic(random_features(rows), random_features(features.public))
        gate = replace(gate, ratio=ratio, bias=bias + math.log(len(rows)))
    gate = Gate.decode(gate.encode(features), features)  # its floor is of the gate as it travels
    own = _density(rows, gate.own, features.dimension)
    floor = float(np.quantile(own, FLOOR_QUANTILE)) - FLOOR_MARGIN * features.dimension
    return replace(gate, floor=floor)


def most_clusters(m: int, classes: int) -> int:
    """So many that the gate stays below MAX_BYTES. Raises ValueError where not even one fits."""
    left = MAX_BYTES - len(_MAGIC) - _HEAD.size - 2 * classes - RANDOM_FEATURES
    if left < _CLUSTER.size + m:
        raise ValueError(f"a gate of {classes} classes does not fit in {MAX_BYTES} bytes")
    return min(MAX_CLUSTERS, left // (_CLUSTER.size + m))


def anchored(features: FeatureMap) -> FeatureMap:
    """The map with an origin: half of what a gate of all public queries says of a typical one of them."""
    public = features.public
    own = clusters.fit(public, MAX_CLUSTERS)
    typical = float(np.median(_density(public, own, features.dimension)))
    return replace(features, origin=(typical + math.log(len(public))) / 2)


def _codes(values: Array) -> NDArray[np.int8]:
    return np.clip(np.round(values), -_CODE_LIMIT, _CODE_LIMIT).astype(np.int8)


def _logistic(own: Array, public: Array) -> tuple[Array, float]:
    """Weights and bias of a ridge-logistic regression, both sides counting alike."""
    x = np.vstack([own, public])
    x = np.hstack([x, np.ones((len(x), 1))])
    y = np.repeat([1.0, 0.0], [len(own), len(public)])
    share = np.repeat([0.5 / len(own), 0.5 / len(public)], [len(own), len(public)])
    ridge = RIDGE / len(own) * np.append(np.ones(own.shape[1]), 1e-6)
    # Boehning and Lindsay 1988: p (1 - p) is 1/4 at the most, so one matrix serves every step.
    bound = np.linalg.inv((x * (share / 4)[:, None]).T @ x + np.diag(ridge))
    weights = np.zeros(x.shape[1])
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        weights -= bound @ (x.T @ (share * (p - y)) + ridge * weights)
    return weights[:-1], float(weights[-1])
