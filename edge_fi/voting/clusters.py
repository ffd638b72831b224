"""k-means clusters of at least so many rows each: fewer would point at single samples."""

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_fi.messages import Array
from edge_fi.voting.features import squared_distances

LEAST = 5  # rows of a cluster: smaller ones tell who is in the training data
PER_CLUSTER = (
    20  # rows on the average: with fewer, clusters tell more of single rows and are no more often right
)
# Rows that are all the same have none, and no density is infinite for that. Exact in float32, as it travels.
LEAST_SPREAD = 2.0**-20
ITERATIONS = 15  # of Lloyd; later ones move little


class Clusters(NamedTuple):
    """Gaussian and isotropic."""

    centres: Array
    """(k, m)."""
    counts: Array
    """(k,): rows in each."""
    spreads: Array
    """(k,): mean squared distance of its rows from its centre."""


def fit(rows: Array, most: int) -> Clusters:
    """At most so many clusters of (n, m) rows, of LEAST rows each. The same rows give the same clusters.

    Raises ValueError for fewer than LEAST rows.
    """
    if len(rows) < LEAST:
        raise ValueError(f"{len(rows)} rows are too few for a cluster: {LEAST} at least")
    number = max(1, min(most, len(rows) // PER_CLUSTER))
    centres = rows[_draw(len(rows), number)]
    for _ in range(ITERATIONS):
        owner = squared_distances(rows, centres).argmin(axis=1)
        centres = _means(rows, owner)
    owner = squared_distances(rows, centres).argmin(axis=1)
    counts = np.bincount(owner, minlength=len(centres))
    while counts.min() < LEAST:
        centres = np.delete(centres, counts.argmin(), axis=0)
        owner = squared_distances(rows, centres).argmin(axis=1)
        counts = np.bincount(owner, minlength=len(centres))
    centres = _means(rows, owner)
    squares = ((rows - centres[owner]) ** 2).sum(axis=1)
    spreads = np.bincount(owner, weights=squares) / counts
    # One far tighter than the others is of near copies, and tells of them alone.
    least = max(float(np.median(spreads)) / 4, LEAST_SPREAD)
    return Clusters(centres, counts.astype(np.float64), np.maximum(spreads, least))


def _means(rows: Array, owner: NDArray[np.intp]) -> Array:
    """Of each cluster that has rows."""
    _, owner = np.unique(owner, return_inverse=True)
    sums = np.zeros((owner.max() + 1, rows.shape[1]))
    np.add.at(sums, owner, rows)
    return np.asarray(sums / np.bincount(owner)[:, None])


def _draw(n: int, number: int) -> NDArray[np.intp]:
    """So many different indices below n, the same each time."""
    stream = hashlib.shake_256(b"fi1 clusters").digest(4 * n)
    return np.argsort(np.frombuffer(stream, "<u4"), kind="stable")[:number]
