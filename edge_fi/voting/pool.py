"""Opinion pools: several distributions and their weights into one.

probabilities: (n_votes, n_classes), rows sum to 1. weights: (n_votes,), not negative, not all 0.
Both return (n_classes,), sums to 1.
"""

import numpy as np

from edge_fi.messages import Array

LEAST_PROBABILITY = 1e-4
"""Below this a logarithmic pool reads a probability as this: one member's 0 must be no veto, and the
coarsest vote codes know nothing smaller."""


def linear(probabilities: Array, weights: Array) -> Array:
    """Linear opinion pool (Stone 1961): the weighted mean."""
    pooled = weights @ probabilities
    return np.asarray(pooled / pooled.sum())


def logarithmic(probabilities: Array, weights: Array) -> Array:
    """Logarithmic opinion pool (Genest and Zidek 1986): the weighted geometric mean, normalised."""
    logs = np.log(np.maximum(probabilities, LEAST_PROBABILITY))
    pooled = (weights / weights.sum()) @ logs
    likelihoods = np.exp(pooled - pooled.max())
    return np.asarray(likelihoods / likelihoods.sum())
