"""Contribution: what each member of a federation is worth, from a history of rounds, without labels.

The worth is the Shapley value (Shapley 1953) of the game in which a coalition earns the probability that
the whole federation's pool gives to the coalition's first choice: the accuracy the coalition would have, if
that pool is calibrated. A coalition that says nothing answers the commonest class.

Only members whose answers say something about the input take part, in the game and in the pool that judges
it: those in significant correlated agreement with their peers (Shnayder et al. 2016). A constant, a random
and a prior-copying member earn 0, whatever weight they claim, and do not change what the others earn.

Not told apart: who errs as the others err. A member that knows one class only, and always says it, looks
like a free rider: it earns if the caller lets it speak by its familiarity, which a constant with the gate
of another then does too. More than a third of the members, if they collude, can vouch for each other.

Everywhere: votes (rounds, members, classes), rows sum to 1, NaN where a member did not vote; log_weights
(rounds, members), familiarity in nats, -inf where a member knows nothing of the input.
"""

import math
from dataclasses import dataclass
from hashlib import shake_256

import numpy as np
from numpy.typing import NDArray

from edge_fi.messages import Array

MOST_EXACT = 12
"""Members up to which all coalitions are counted, 4,096; beyond, orders of joining are sampled."""

ORDERS = 16
"""Sampled orders a round, each also in reverse."""

LEAST_AGREEMENT = 3.5
"""Standard errors by which correlated agreement must exceed 0: by chance one in 1,700, of 40 batches."""

_BATCHES = 40  # of rounds in sequence: neighbouring rounds may be about the same scene
_CHUNK_VALUES = 1 << 21  # 16 MiB of pooled values at once
_MOST_CLASSES = 64  # the commonest: agreement needs no more, and counts pairs of classes
_ROUNDING = 1e-12  # signals are of the order of 1
_LEAST_LOG = -600.0  # nats below the heaviest vote of a round: exp() of it is still a normal number
_NOBODY = 1e-300  # weight of the commonest class in every pool: decides where nobody else votes


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What one member is worth."""

    value: float
    """Shapley value in points of accuracy (0 to 100); all values sum to the gain over the commonest class."""
    error: float
    """Its standard error in points, over rounds and sampled orders; infinite for a single round."""
    agreement: float
    """Correlated agreement with its peers, in standard errors above chance."""
    share: float
    """Of what is to be shared, 0 to 1, in proportion to positive values. Equal if no value is positive."""


def contributions(
    votes: Array, log_weights: Array, *, by_familiarity: bool = False, seed: bytes = b""
) -> tuple[Contribution, ...]:
    """The worth of each member against the consensus of those that agree beyond chance.

    by_familiarity: as in `correlated_agreement`. seed: of the sampled orders, beyond 12 members that agree.
    Raises ValueError for arrays that do not fit.
    """
    masses = _masses(votes, log_weights)
    agreement = correlated_agreement(votes, log_weights, by_familiarity=by_familiarity)
    takes_part = agreement > LEAST_AGREEMENT
    pooled = masses[:, takes_part].sum(axis=1)
    answered = pooled.sum(axis=1) > 0
    beliefs = pooled[answered] / pooled[answered].sum(axis=1, keepdims=True)
    worth = np.zeros((len(beliefs), masses.shape[1]))
    if takes_part.any():
        worth[:, takes_part] = _shapley(masses[answered][:, takes_part], beliefs, seed=seed)
    return _report(worth, agreement)


def labelled_contributions(
    votes: Array, log_weights: Array, labels: NDArray[np.integer], *, seed: bytes = b""
) -> tuple[Contribution, ...]:
    """The same game with the truth in the place of the consensus, and every member in it: for studies.

    labels: (rounds,), the true class of each input. Raises ValueError for arrays that do not fit.
    """
    masses = _masses(votes, log_weights)
    rounds, _, classes = masses.shape
    if labels.shape != (rounds,) or not ((labels >= 0) & (labels < classes)).all():
        raise ValueError(f"labels {labels.shape} are not one class for each of {rounds} rounds")
    beliefs = np.eye(classes)[labels]
    return _report(_shapley(masses, beliefs, seed=seed), correlated_agreement(votes, log_weights))


def correlated_agreement(votes: Array, log_weights: Array, *, by_familiarity: bool = False) -> Array:
    """Correlated agreement of each member with its peers, (members,), in standard errors above chance.

    Shnayder et al. 2016, "Informed truthfulness in multi-task peer prediction". A member's signal is its
    vote; its peers' are their votes times the rank of the weight in each one's own history, so that
    nothing is gained by claiming more. Which of them go together is learned on every other batch of rounds
    and counted on the rest, so that chance comes to 0 and not above. The best third of the vouchers is left
    out: fewer that collude cannot vouch for each other.
    by_familiarity: also the member's own signal has the rank in it. For registered gates only.
    0 for a history of fewer than 40 rounds. Raises ValueError for arrays that do not fit.
    """
    has_voted = _has_voted(votes, log_weights)
    rounds, members = has_voted.shape
    if rounds < _BATCHES:
        return np.zeros(members)
    answers = np.where(has_voted[:, :, None], votes, 0.0)
    answers = answers[:, :, np.argsort(-answers.sum(axis=(0, 1)), kind="stable")[:_MOST_CLASSES]]
    peers = _centred(answers * _ranks(log_weights, has_voted)[:, :, None], has_voted)
    own = peers if by_familiarity else _centred(answers, has_voted)
    batches = _batches(rounds)
    is_even = batches[::2].any(axis=0)
    scores = np.zeros((_BATCHES, members, members))
    for counted in (is_even, ~is_even):
        learned, rest = peers[~counted].reshape((~counted).sum(), -1), peers[counted]
        for member in range(members):
            go_together = np.sign(own[~counted, member].T @ learned)
            products = (own[counted, member] @ go_together).reshape(rest.shape) * rest
            scores[:, member] += batches[:, counted] @ products.sum(axis=2)
    best_first = np.argsort(-np.where(np.eye(members), np.inf, scores.sum(axis=0)), axis=1)
    left_out = best_first[:, : 1 + (members - 1) // 3]  # first, each itself
    scores[:, np.arange(members)[:, None], left_out] = 0.0
    totals = scores.sum(axis=2)
    errors = totals.std(axis=0, ddof=1) / math.sqrt(_BATCHES)
    # The signals of a constant are 0 but for rounding, whose ratio to itself means nothing.
    return np.where(errors > _ROUNDING, totals.mean(axis=0) / np.maximum(errors, _ROUNDING), 0.0)


def _batches(rounds: int) -> Array:
    """Which rounds are averaged together, (batches, rounds): rows sum to 1, in sequence, of like size."""
    count = min(_BATCHES, rounds)
    is_in = np.arange(rounds) * count // rounds == np.arange(count)[:, None]
    return np.asarray(is_in / is_in.sum(axis=1, keepdims=True))


def _ranks(log_weights: Array, has_voted: NDArray[np.bool_]) -> Array:
    """The rank of each weight in its member's history, (rounds, members), 0 to 1; ties share theirs.

    0 where a member is unfamiliar or absent.
    """
    ranks = np.zeros(has_voted.shape)
    for member, voted in enumerate(has_voted.T):
        weights = log_weights[voted, member]
        _, place, ties = np.unique(weights, return_inverse=True, return_counts=True)
        middle = (np.cumsum(ties) - ties / 2) / max(1, len(weights))
        ranks[voted, member] = np.where(weights > -np.inf, middle[place], 0.0)
    return ranks


def _centred(signals: Array, has_voted: NDArray[np.bool_]) -> Array:
    """Signals less each member's mean over the rounds in which it voted; 0 in the others."""
    means = signals.sum(axis=0) / np.maximum(1, has_voted.sum(axis=0))[:, None]
    return np.where(has_voted[:, :, None], signals - means, 0.0)


def _masses(votes: Array, log_weights: Array) -> Array:
    """Weight times vote, the heaviest weight of each round 1: (rounds, members, classes), 0 where absent."""
    counts = _has_voted(votes, log_weights) & (log_weights > -np.inf)
    logs = np.where(counts, log_weights, -np.inf)
    heaviest = logs.max(axis=1, keepdims=True)
    relative = np.maximum(logs - np.where(heaviest > -np.inf, heaviest, 0.0), _LEAST_LOG)
    return np.where(counts[:, :, None], np.exp(relative)[:, :, None] * votes, 0.0)


def _has_voted(votes: Array, log_weights: Array) -> NDArray[np.bool_]:
    """Who voted in which round, (rounds, members). Raises ValueError for what is not a history."""
    if votes.ndim != 3 or log_weights.shape != votes.shape[:2]:
        raise ValueError(f"votes {votes.shape} and log weights {log_weights.shape} do not fit")
    has_voted = np.asarray(~np.isnan(votes).any(axis=2))
    if not (log_weights[has_voted] < np.inf).all():
        raise ValueError("a vote without a weight, or of infinite weight")
    return has_voted


def _shapley(masses: Array, beliefs: Array, *, seed: bytes) -> Array:
    """Each member's Shapley value in each round, (rounds, members): exact, or of sampled orders.

    beliefs: (rounds, classes), what a coalition earns for each first choice. An answer of nobody is the
    class most believed in over all rounds.
    """
    rounds, members, classes = masses.shape
    nobody = _NOBODY * np.eye(classes)[beliefs.sum(axis=0).argmax()]
    is_exact = members <= MOST_EXACT
    values_a_round = classes * (2**members if is_exact else members + 1)
    step = max(1, _CHUNK_VALUES // values_a_round)
    worth = np.zeros((rounds, members))
    for start in range(0, rounds, step):
        part = slice(start, start + step)
        if is_exact:
            worth[part] = _of_all_coalitions(masses[part], beliefs[part], nobody)
        else:
            worth[part] = _of_orders(masses[part], beliefs[part], nobody, seed=seed + start.to_bytes(8))
    return worth


def _of_all_coalitions(masses: Array, beliefs: Array, nobody: Array) -> Array:
    """The mean gain by each member's joining, over all coalitions of the others and by their size."""
    rounds, members, classes = masses.shape
    is_in = np.arange(2**members)[:, None] >> np.arange(members) & 1 == 1
    pools = is_in.astype(float) @ masses.transpose(1, 0, 2).reshape(members, -1)
    choices = (pools.reshape(-1, rounds, classes) + nobody).argmax(axis=2)
    earned = beliefs[np.arange(rounds), choices]
    others = is_in.sum(axis=1, keepdims=True) - is_in
    chances = np.array([1 / (members * math.comb(members - 1, size)) for size in range(members)] + [0.0])
    return np.asarray(earned.T @ np.where(is_in, chances[others], -chances[others]))


def _of_orders(masses: Array, beliefs: Array, nobody: Array, *, seed: bytes) -> Array:
    """The mean gain by each member's joining, in sampled orders (Castro et al. 2009), each round its own.

    Each order is also taken in reverse: antithetic, who came late then comes early. As every round has
    its own orders, the spread over rounds has the sampling error in it.
    """
    rounds, members, _ = masses.shape
    drawn = shake_256(seed).digest(8 * ORDERS * rounds * members)
    orders = np.frombuffer(drawn, dtype="<u8").reshape(ORDERS, rounds, members).argsort(axis=2)
    row = np.arange(rounds)[:, None]
    worth = np.zeros((rounds, members))
    for order in (*orders, *orders[:, :, ::-1]):
        choices = (masses[row, order].cumsum(axis=1) + nobody).argmax(axis=2)
        earned = beliefs[row, choices]
        worth[row, order] += np.diff(earned, axis=1, prepend=beliefs[:, [nobody.argmax()]])
    return worth / (2 * ORDERS)


def _report(worth: Array, agreement: Array) -> tuple[Contribution, ...]:
    """Means over rounds in points, with the standard error of batch means (Conway 1963)."""
    rounds, members = worth.shape
    values, errors = np.zeros(members), np.full(members, np.inf)
    if rounds:
        values = 100 * worth.mean(axis=0)
    if rounds > 1:
        means = 100 * _batches(rounds) @ worth
        errors = means.std(axis=0, ddof=1) / math.sqrt(len(means))
    gains = np.maximum(values, 0.0)
    shares = gains / gains.sum() if gains.any() else np.full(members, 1 / members)
    columns = (column.tolist() for column in (values, errors, agreement, shares))
    return tuple(
        Contribution(value=value, error=error, agreement=sigmas, share=share)
        for value, error, sigmas, share in zip(*columns, strict=True)
    )
