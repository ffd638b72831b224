"""Strategies: how the votes of a round become one distribution.

A strategy is a plain function of Ballots, the votes of a round as arrays. There is at least one vote.
It returns (n_classes,), sums to 1, and must not depend on the order of the votes. Where nobody is
familiar with a query a round has no outcome, and no strategy is asked.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from edge_fi.messages import Array, Vote
from edge_fi.voting import pool

_TIE_BREAK = 1e-6  # far below one vote's share, far above rounding
_SMOOTHING = 0.5  # samples of a class that a member without any is taken to have, where logarithms are
_NOISE = 30.0  # samples: the variance of a log weight that comes of its gate alone is this over the voter's
_USUAL_NOISE = 0.1  # of a voter that has not told how many samples it has
_DAMPING = 0.5  # of coupled evidence: members err alike, and are no independent witnesses


class Ballots(NamedTuple):
    """The votes of a round; rows are votes."""

    probabilities: Array
    """(n, C), rows sum to 1."""
    log_weights: Array
    """(n,): familiarity with the query in nats; NaN where it is not known, minus infinity for none."""
    coverage: Array
    """(n, C): samples that the voter has of each class; a row of NaN where it is not known."""


Strategy = Callable[[Ballots], Array]


def hard(ballots: Ballots) -> Array:
    """Plurality: the share of first choices each class got; a tie falls to the linear pool."""
    _, classes = ballots.probabilities.shape
    firsts = np.bincount(ballots.probabilities.argmax(axis=1), minlength=classes)
    shares = firsts / firsts.sum() + _TIE_BREAK * linear(ballots)
    return np.asarray(shares / shares.sum())


def linear(ballots: Ballots) -> Array:
    """Soft vote: the mean of the distributions."""
    return pool.linear(ballots.probabilities, np.ones(len(ballots.probabilities)))


def logarithmic(ballots: Ballots) -> Array:
    """The normalised geometric mean of the distributions."""
    return pool.logarithmic(ballots.probabilities, np.ones(len(ballots.probabilities)))


def entropy(ballots: Ballots) -> Array:
    """Linear pool weighted by certainty: 1 - H(p) / log C, from each vote's Shannon entropy H.

    Misled under label skew: who knows one class is certain of everything.
    """
    return pool.linear(ballots.probabilities, certainty(ballots.probabilities))


def consensus(ballots: Ballots) -> Array:
    """Linear pool weighted by nearness to the mean: 1 - JS(p, mean) / log 2 (Jensen-Shannon divergence).

    Misled under label skew: it silences the only member that knows.
    """
    mean = ballots.probabilities.mean(axis=0)
    middle = (ballots.probabilities + mean) / 2
    divergence = (
        _entropies(middle) - (_entropies(ballots.probabilities) + _entropies(mean[None])) / 2
    ) / np.log(2)
    return pool.linear(ballots.probabilities, np.maximum(1 - divergence, 1e-9))


def spectral(ballots: Ballots) -> Array:
    """Linear pool weighted by the leading eigenvector of the votes' cosine similarities.

    The idea of Parisi et al. 2014 (a spectral meta-learner), on one query's votes.
    """
    lengths = np.linalg.norm(ballots.probabilities, axis=1, keepdims=True)
    unit = ballots.probabilities / lengths
    _, vectors = np.linalg.eigh(unit @ unit.T + _TIE_BREAK)
    # Without the tie break, of votes that have nothing in common one would be drawn by its place.
    # Similarities are not negative, so neither is their leading eigenvector (Perron), but for its sign.
    return pool.linear(ballots.probabilities, np.maximum(np.abs(vectors[:, -1]), 1e-9))


def coverage(ballots: Ballots) -> Array:
    """Linear pool weighted, class by class, by the share of that class's samples that a voter has.

    Of voters that told nothing, and where nobody did: entropy.
    """
    is_told = np.isfinite(ballots.coverage).all(axis=1)
    if not is_told.any():
        return entropy(ballots)
    counts = ballots.coverage[is_told] + _SMOOTHING
    scores = (counts * ballots.probabilities[is_told]).sum(axis=0)
    return np.asarray(scores / scores.sum())


def coupled(ballots: Ballots) -> Array:
    """Sum of log-likelihood ratios, each voter's posterior against its own prior, which its coverage is.

    log p(c) = sum_k log(p_k(c) / prior_k(c)), damped, over the voters that have samples of c, per voter.
    Where nobody told a coverage, or has any sample: the logarithmic pool.
    """
    is_told = np.isfinite(ballots.coverage).all(axis=1)
    counts = ballots.coverage[is_told]
    if not counts.any():
        return logarithmic(ballots)
    prior = (counts + _SMOOTHING) / (counts + _SMOOTHING).sum(axis=1, keepdims=True)
    evidence = np.log(np.maximum(ballots.probabilities[is_told], pool.LEAST_PROBABILITY) / prior)
    knows = counts > 0
    total = np.where(knows, evidence, 0.0).sum(axis=0) / np.maximum(knows.sum(axis=0), 1)
    scores = np.where(knows.any(axis=0), _DAMPING * total * np.sqrt(knows.sum(axis=0)), -np.inf)
    likelihoods = np.exp(scores - scores.max())
    return np.asarray(likelihoods / likelihoods.sum())


def familiarity(ballots: Ballots) -> Array:
    """Linear pool weighted by how dense each voter's own data are at the query: exp(shrunk log weight).

    Where voters have data alike, their log weights differ by little but noise: their differences are shrunk
    by v / (v + noise), v their variance at this query (empirical Bayes, Efron and Morris 1975). A voter whose
    familiarity is not known weighs as the median of the others. Where nobody's is known: class coverage, and
    without that entropy.
    """
    weights = ballots.log_weights
    is_known = ~np.isnan(weights)
    if not is_known.any():
        return coverage(ballots)
    weights = np.where(is_known, weights, np.median(weights[is_known]))
    highest = weights.max()
    if not np.isfinite(highest):
        return coverage(ballots)
    heard = np.isfinite(weights)
    samples = ballots.coverage.sum(axis=1)
    told = samples[np.isfinite(samples) & heard]
    noise = _NOISE / max(float(np.median(told)), 1.0) if len(told) else _USUAL_NOISE
    variance = float(weights[heard].var())
    shrunk = np.full(len(weights), -np.inf)
    shrunk[heard] = (weights[heard] - highest) * variance / (variance + noise)
    return pool.linear(ballots.probabilities, np.exp(shrunk))


STRATEGIES: dict[str, Strategy] = {
    "hard": hard,
    "linear": linear,
    "logarithmic": logarithmic,
    "entropy": entropy,
    "consensus": consensus,
    "spectral": spectral,
    "coverage": coverage,
    "coupled": coupled,
    "familiarity": familiarity,
}
DEFAULT = "familiarity"


def first_choices(ballots: Ballots) -> Ballots:
    """The same votes, as if each had said its first choice alone."""
    return ballots._replace(
        probabilities=np.eye(ballots.probabilities.shape[1])[ballots.probabilities.argmax(axis=1)]
    )


def stack(votes: Sequence[Vote]) -> Ballots:
    """What a strategy takes, of votes in this order."""
    probabilities = np.stack([vote.probabilities for vote in votes])
    nothing = np.full(probabilities.shape[1], np.nan)
    return Ballots(
        probabilities,
        np.array([vote.log_weight for vote in votes]),
        np.stack([nothing if vote.coverage is None else vote.coverage for vote in votes]),
    )


def aggregate(votes: Sequence[Vote], strategy: Strategy) -> Array:
    """Apply a strategy to votes, (n_classes,). Independent of the order in which they came."""
    return strategy(stack(sorted(votes, key=lambda vote: vote.device)))


def certainty(probabilities: Array) -> Array:
    """(n, C) into (n,): what `entropy` weighs votes by, above 0."""
    _, classes = probabilities.shape
    # All votes uniform: every weight would be 0, and no vote is better than another.
    return np.asarray(np.maximum(1 - _entropies(probabilities) / np.log(classes), 1e-9))


def _entropies(probabilities: Array) -> Array:
    """Shannon, in nats, of each row."""
    logs = np.log(np.where(probabilities > 0, probabilities, 1.0))
    return np.asarray(-(probabilities * logs).sum(axis=1))
