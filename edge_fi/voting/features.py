"""A task's feature map: the space, shared by all members, in which they say how familiar a query is.

Made once from public unlabelled queries, and shipped with the task. A query becomes a row of numbers by
the map's kind; these are standardised and turned to at most 64 half-whitened principal axes:

    z = A (x - mean) / scale        each axis divided by the fourth root of its variance

It also carries the public queries in that space, so that each device can tell its own data from them, and
the intrinsic dimension (Levina and Bickel 2004) by which densities in it are measured.

Bytes, big-endian but for the arrays, which are little-endian; `a(n)` is n elements of that type:

    "FM1" | kind u8 | side u8 | rank u8 | rank x u32 shape | d u32 | m u16 | p u32 | dimension f32
    | origin f32 | mean f32(d) | scale f32(d) | axes f16(m d) | steps f32(m) | public i8(p m)
    | onnx: to the end
"""

import hashlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from edge_fi.errors import DecodeError
from edge_fi.messages import MAX_RANK, MAX_TENSOR_BYTES, Array, Tensor
from edge_fi.voting.hog import hog

MAX_AXES = 64
MAX_COLUMNS = 65_536  # of a row before its projection
LEAST_PUBLIC = 30  # queries: fewer show no axes
NEIGHBOURS = 10  # of the estimate of the dimension
_MAGIC = b"FM1"
_HEAD = struct.Struct(">BBB")
_SIZES = struct.Struct(">IHIff")
_CODE_LIMIT = 127
_MOST_SIDE = 255  # one byte
_ROUNDING = 1e-12  # of a column's values, relative to the largest: a smaller spread is none
_LEAST_VARIANCE = 1e-6  # of an axis, relative to the first: below it there is only rounding

KINDS = ("columns", "pixels", "hog", "onnx")
"""columns: the elements as they are. pixels: images, made smaller. hog: their gradients. onnx: a frozen
network."""

Embedding = Callable[[Array], Array]
"""Of kind onnx: (n, *shape) into (n, d)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureMap:
    """Queries into the shared space. Raises ValueError where its parts do not fit one another."""

    kind: str
    """One of KINDS."""
    shape: tuple[int, ...]
    """Of a query: the task's."""
    side: int = 1
    """Of kind pixels: how many pixels a side become one."""
    mean: Array
    scale: Array
    """(d,) both."""
    axes: Array
    """(m, d)."""
    steps: Array
    """(m,): what one step of an 8-bit code is worth on each axis."""
    dimension: float
    """Intrinsic, of the public queries."""
    origin: float = 0.0
    """Nats that a log weight is told from, so that those of familiar queries lie around 0."""
    public: Array
    """(p, m): the public queries in this space."""
    network: bytes = field(default=b"", repr=False)
    """Of kind onnx: the model file."""
    embedding: Embedding | None = field(default=None, repr=False, compare=False)
    """Of kind onnx: runs it. No part of the bytes."""

    def __post_init__(self) -> None:
        d, m = len(self.mean), len(self.steps)
        fits = self.scale.shape == (d,) and self.axes.shape == (m, d) and self.public.shape[1:] == (m,)
        arrays = (self.mean, self.scale, self.axes, self.steps, self.public)
        is_finite = all(np.isfinite(one).all() for one in arrays) and math.isfinite(self.origin)
        if self.kind not in KINDS or (self.kind == "onnx") != bool(self.network):
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, and onnx with a network")
        if not fits or not 1 <= m <= MAX_AXES or not is_finite:
            raise ValueError("the feature map's parts do not fit one another")
        if self.scale.min() <= 0 or self.steps.min() <= 0 or not 0 < self.dimension <= d:
            raise ValueError("the feature map's scales and dimension must be positive")
        if self.kind != "onnx" and _columns(self.kind, self.shape, self.side) != d:
            raise ValueError(
                f"a map of kind {self.kind} does not give {d} columns for shape {list(self.shape)}"
            )

    def rows(self, queries: Array) -> Array:
        """(n, *shape) into (n, m). Raises ValueError for another shape; what is not finite stays so."""
        if queries.shape[1:] != self.shape:
            raise ValueError(f"features are of queries {list(self.shape)}, not {list(queries.shape[1:])}")
        with np.errstate(invalid="ignore", over="ignore"):
            raw = _raw(self.kind, self.side, queries, self.embedding)
            rows = (raw - self.mean) / self.scale @ self.axes.T
        # A margin that is cut off, or a network's max(0, x), may hide them.
        is_finite = np.isfinite(queries).all(axis=tuple(range(1, queries.ndim)), keepdims=True)
        return np.where(is_finite.reshape(-1, 1), rows, np.nan)

    def row(self, tensor: Tensor) -> Array:
        """One query into (m,). Raises ValueError where it is none of the task's."""
        return np.asarray(self.rows(as_array(tensor)[None])[0])

    @cached_property
    def digest(self) -> bytes:
        """8 bytes that differ when the map does."""
        return digest(self.encoded)

    @cached_property
    def encoded(self) -> bytes:
        """As bytes; what `decode` gives of them is this map, rounded, and has the same bytes."""
        sizes = (len(self.mean), len(self.steps), len(self.public), self.dimension, self.origin)
        codes = np.clip(np.round(self.public / self.steps), -_CODE_LIMIT, _CODE_LIMIT)
        return b"".join(
            [
                _MAGIC,
                _HEAD.pack(KINDS.index(self.kind), self.side, len(self.shape)),
                struct.pack(f">{len(self.shape)}I", *self.shape),
                _SIZES.pack(*sizes),
                self.mean.astype("<f4").tobytes(),
                self.scale.astype("<f4").tobytes(),
                self.axes.astype("<f2").tobytes(),
                self.steps.astype("<f4").tobytes(),
                codes.astype(np.int8).tobytes(),
                self.network,
            ]
        )

    @classmethod
    def decode(cls, content: bytes) -> "FeatureMap":
        """Inverse of `encoded`. Raises DecodeError("features")."""
        try:
            kind, side, rank = _HEAD.unpack_from(content, len(_MAGIC))
            if content[: len(_MAGIC)] != _MAGIC or kind >= len(KINDS) or not 1 <= rank <= MAX_RANK:
                raise DecodeError("features")
            at = len(_MAGIC) + _HEAD.size
            shape = struct.unpack_from(f">{rank}I", content, at)
            at += 4 * rank
            d, m, p, dimension, origin = _SIZES.unpack_from(content, at)
            is_query = 0 < math.prod(shape) <= MAX_TENSOR_BYTES
            if not (is_query and 1 <= d <= MAX_COLUMNS and 1 <= m <= MAX_AXES):
                raise DecodeError("features")
            at += _SIZES.size
            parts = []
            for kind_of, count in (("<f4", d), ("<f4", d), ("<f2", m * d), ("<f4", m), ("i1", p * m)):
                with np.errstate(invalid="ignore"):
                    parts.append(np.frombuffer(content, kind_of, count, at).astype(np.float64))
                at += count * np.dtype(kind_of).itemsize
            mean, scale, axes, steps, codes = parts
            if not np.isfinite(steps).all():
                raise DecodeError("features")
            return cls(
                kind=KINDS[kind],
                shape=shape,
                side=side,
                mean=mean,
                scale=scale,
                axes=axes.reshape(m, d),
                steps=steps,
                dimension=float(dimension),
                origin=float(origin),
                public=codes.reshape(p, m) * steps,
                network=content[at:],
            )
        except (struct.error, ValueError):
            raise DecodeError("features") from None


def fit(
    queries: Array,
    *,
    kind: str = "columns",
    axes: int = MAX_AXES,
    side: int | None = None,
    network: bytes = b"",
    embedding: Embedding | None = None,
) -> FeatureMap:
    """A map from public queries, (n, *shape). side: of kind pixels; by itself, for 14 to 27 pixels a side.

    Raises ValueError: too few queries, a shape that the kind does not take, or values that are not finite.
    """
    if len(queries) < LEAST_PUBLIC:
        raise ValueError(f"{len(queries)} public queries are too few: {LEAST_PUBLIC} at least, better 1,500")
    shape = tuple(int(size) for size in queries.shape[1:])
    if not 1 <= axes <= MAX_AXES:
        raise ValueError(f"axes must be 1 to {MAX_AXES}")
    if side is None:
        side = max(1, min(_plane(shape)) // 14) if kind == "pixels" else 1
    if kind != "onnx":
        _columns(kind, shape, side)
    raw = _raw(kind, side, queries, embedding)
    if not np.isfinite(raw).all():
        raise ValueError("a public query has values that are not finite")
    if raw.shape[1] > MAX_COLUMNS:
        raise ValueError(f"{raw.shape[1]} columns are too many, {MAX_COLUMNS} at the most: use another kind")
    mean = raw.mean(axis=0)
    spread = raw.std(axis=0)
    spread[spread <= _ROUNDING * np.abs(raw).max(axis=0)] = 0
    if not spread.any():
        raise ValueError("the public queries are all the same")
    # Columns are in units of their own; the pixels of an image are not, and its dark corners tell nothing.
    scale = np.where(spread > 0, spread, 1.0) if kind == "columns" else np.full(len(mean), spread.max())
    centred = (raw - mean) / scale
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    variances = singular**2 / len(raw)
    kept = np.flatnonzero(variances[:axes] > _LEAST_VARIANCE * variances[0])
    half_white = directions[kept] / variances[kept, None] ** 0.25
    half_white /= math.sqrt(
        float((np.sqrt(variances[kept])).mean())
    )  # so that a coordinate's mean square is 1
    rows = centred @ half_white.T
    return FeatureMap(
        kind=kind,
        shape=shape,
        side=side,
        mean=mean,
        scale=scale,
        axes=half_white,
        steps=np.maximum(np.abs(rows).max(axis=0), 1e-6) / _CODE_LIMIT,
        dimension=min(intrinsic_dimension(rows), float(len(mean))),
        public=rows,
        network=network,
        embedding=embedding,
    )


def intrinsic_dimension(rows: Array) -> float:
    """Of (n, m) rows; maximum likelihood (Levina and Bickel 2004, averaged as MacKay and Ghahramani 2005)."""
    squares = squared_distances(rows, rows)
    # Copies are no neighbours, nor is a row its own; what rounding leaves of such a distance is as small.
    squares[squares <= 1e-12 * (rows**2).sum(axis=1).max()] = np.inf
    near = np.sqrt(np.sort(squares, axis=1)[:, :NEIGHBOURS])
    near = near[np.isfinite(near).all(axis=1)]
    if not near.size:
        return 1.0
    inverse = np.log(near[:, -1:] / near[:, :-1]).mean()
    return max(1.0, 1 / max(float(inverse), 1e-6))


def squared_distances(rows: Array, others: Array) -> Array:
    """(n, m) and (k, m) into (n, k)."""
    products = rows @ others.T
    squares = (rows**2).sum(axis=1)[:, None] + (others**2).sum(axis=1) - 2 * products
    return np.asarray(np.maximum(squares, 0))


def as_array(tensor: Tensor) -> Array:
    """A query's elements, in its shape."""
    content = np.frombuffer(tensor.content, np.dtype(tensor.dtype).newbyteorder("<"))
    return content.reshape(tensor.shape).astype(np.float64)


def digest(content: bytes) -> bytes:
    """8 bytes that name an encoded map."""
    return hashlib.blake2b(content, digest_size=8, person=b"fi1 features").digest()


def _raw(kind: str, side: int, queries: Array, embedding: Embedding | None) -> Array:
    """(n, *shape) into (n, d), before the projection."""
    if kind == "onnx":
        if embedding is None:
            raise ValueError("a map of kind onnx needs something that runs its network")
        return embedding(queries).reshape(len(queries), -1)
    if kind == "columns":
        return queries.reshape(len(queries), -1)
    height, width = _plane(queries.shape[1:])
    # One plane: a colour image is looked at in grey.
    channels_last = queries.ndim == 4 and queries.shape[-1] <= 4
    planes = queries.mean(axis=-1 if channels_last else 1) if queries.ndim == 4 else queries
    if kind == "hog":
        return hog(planes)
    rows, columns = height // side, width // side
    cut = planes[:, : rows * side, : columns * side].reshape(len(queries), rows, side, columns, side)
    return np.asarray(cut.mean(axis=(2, 4)).reshape(len(queries), -1))


def _columns(kind: str, shape: tuple[int, ...], side: int) -> int:
    """How many there are before the projection. Raises ValueError for a shape that the kind does not take."""
    if not 1 <= side <= _MOST_SIDE:
        raise ValueError(f"side must be 1 to {_MOST_SIDE}")
    if kind == "columns":
        return math.prod(shape)
    columns = int(_raw(kind, side, np.zeros((1, *shape)), None).shape[1])
    if not columns:
        raise ValueError(f"an image of shape {list(shape)} is too small for kind {kind}")
    return columns


def _plane(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of an image: (h, w), (h, w, channels) or (channels, h, w)."""
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) == 3 and shape[2] <= 4:
        return shape[0], shape[1]
    if len(shape) == 3 and shape[0] <= 4:
        return shape[1], shape[2]
    raise ValueError(f"shape {list(shape)} is no image: use kind columns")
