"""Scores of distributions against labels: how right, and how honest about it.

probabilities: (n, n_classes), rows sum to 1. labels: (n,), class indices. There is at least one row, or
ValueError. Shared by the study, the demo and a gateway's reports, so that their figures compare.
"""

import numpy as np
from numpy.typing import NDArray

from edge_fi.messages import Array

LEAST_PROBABILITY = 1e-6
"""Below this nll reads a probability as this: quantized votes pool to exact zeros, which would cost
infinitely much. One such miss costs 13.8 nats."""

BINS = 15
"""Bins of the calibration error, as in Guo et al. 2017."""

Labels = NDArray[np.int64]


def accuracy(probabilities: Array, labels: Labels) -> float:
    """Percent of rows whose most probable class is the label; of equals the first counts."""
    _check(probabilities, labels)
    return float(100 * (probabilities.argmax(axis=1) == labels).mean())


def nll(probabilities: Array, labels: Labels) -> float:
    """Mean negative log-likelihood of the label, in nats; each at most -log(LEAST_PROBABILITY)."""
    _check(probabilities, labels)
    given = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(given, LEAST_PROBABILITY)).mean())


def ece(probabilities: Array, labels: Labels) -> float:
    """Expected calibration error in percent (Guo et al. 2017, equation 3).

    Rows are binned by confidence, their largest probability, in BINS bins ((m-1)/BINS, m/BINS] of equal
    width. It is the mean, over rows, of |share that is right - mean confidence| of the row's bin. It is
    biased upwards (Kumar et al. 2019): a perfectly calibrated forecaster shows about 3 % on 250 rows and
    2 % on 2,000, so compare it only at equal n.
    """
    _check(probabilities, labels)
    confidence = probabilities.max(axis=1)
    is_right = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, weights=is_right - confidence, minlength=BINS)
    return float(100 * np.abs(gaps).sum() / len(labels))


def _check(probabilities: Array, labels: Labels) -> None:
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or len(labels) == 0:
        raise ValueError(f"{probabilities.shape} probabilities and {labels.shape} labels do not fit")
