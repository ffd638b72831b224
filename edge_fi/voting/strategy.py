"""Strategies: how the votes of a round become one distribution.

A strategy is a plain function of two arrays: probabilities (n_votes, n_classes), rows sum to 1, and
log_weights (n_votes,), the weights that the devices claim for themselves, in nats. There is at least
one vote. It returns (n_classes,), sums to 1, and must not depend on the order of the votes.
"""

from collections.abc import Callable, Sequence

import numpy as np

from edge_fi.messages import Array, Vote
from edge_fi.voting import pool

Strategy = Callable[[Array, Array], Array]

_TIE_BREAK = 1e-6  # far below one vote's share, far above rounding


def hard(probabilities: Array, log_weights: Array) -> Array:
    """Plurality: the share of first choices each class got; a tie falls to the linear pool."""
    _, classes = probabilities.shape
    firsts = np.bincount(probabilities.argmax(axis=1), minlength=classes)
    shares = firsts / firsts.sum() + _TIE_BREAK * linear(probabilities, log_weights)
    return np.asarray(shares / shares.sum())


def linear(probabilities: Array, log_weights: Array) -> Array:
    """Soft vote: the mean of the distributions."""
    return pool.linear(probabilities, np.ones(len(probabilities)))


def logarithmic(probabilities: Array, log_weights: Array) -> Array:
    """The normalised geometric mean of the distributions."""
    return pool.logarithmic(probabilities, np.ones(len(probabilities)))


def entropy(probabilities: Array, log_weights: Array) -> Array:
    """Linear pool weighted by certainty: 1 - H(p) / log C, from each vote's Shannon entropy H.

    Misled under label skew: who knows one class is certain of everything.
    """
    _, classes = probabilities.shape
    logs = np.log(np.where(probabilities > 0, probabilities, 1.0))
    certainty = 1 + (probabilities * logs).sum(axis=1) / np.log(classes)
    # All votes uniform: every weight is 0, and no vote is better than another.
    return pool.linear(probabilities, np.maximum(certainty, 1e-9))


def confidence(probabilities: Array, log_weights: Array) -> Array:
    """Linear pool weighted by what each device claims for itself."""
    return pool.linear(probabilities, np.exp(log_weights - log_weights.max()))


STRATEGIES: dict[str, Strategy] = {
    "hard": hard,
    "linear": linear,
    "logarithmic": logarithmic,
    "entropy": entropy,
    "confidence": confidence,
}


def stack(votes: Sequence[Vote]) -> tuple[Array, Array]:
    """What a strategy takes, of votes in the order of their devices: whoever came first has no say."""
    ordered = sorted(votes, key=lambda vote: vote.device)
    probabilities = np.stack([vote.probabilities for vote in ordered])
    return probabilities, np.array([vote.log_weight for vote in ordered])


def aggregate(votes: Sequence[Vote], strategy: Strategy) -> Array:
    """Apply a strategy to votes, (n_classes,). Independent of the order in which they came."""
    return strategy(*stack(votes))
