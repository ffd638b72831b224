"""Liars: what a dishonest member of a federation answers instead of its honest vote.

Pure functions of all members' honest votes: votes (members, n, classes), rows sum to 1, and
log_weights (members, n) in nats. Nothing is changed in place. An `Attack` gives the votes in which
the named members lie; what they claim for it is `claim_most`, or left as it is: a registered gate
is evaluated by the gateway and cannot be inflated.
"""

from collections.abc import Callable, Sequence

import numpy as np

from edge_fi.messages import Array
from firmware_sim.stream import Stream

Attack = Callable[[Array, Sequence[int], Stream], Array]
"""votes (members, n, classes), the liars' rows, dice: votes with the lies."""

SLEEP = 300  # queries that a sleeper answers honestly


def derangement(classes: int, stream: Stream) -> list[int]:
    """A permutation of the classes that leaves none in its place: one cycle through all (Sattolo 1986)."""
    order = list(range(classes))
    for last in range(classes - 1, 0, -1):
        other = int(stream.chance() * last)
        order[last], order[other] = order[other], order[last]
    return order


def flip(votes: Array, liars: Sequence[int], stream: Stream) -> Array:
    """Label flip: each liar moves its probabilities to other classes, each by its own derangement."""
    lies = votes.copy()
    for liar in liars:
        lies[liar] = votes[liar][:, derangement(votes.shape[2], stream)]
    return lies


def collude(votes: Array, liars: Sequence[int], stream: Stream) -> Array:
    """All liars move their probabilities by the same derangement: where their models agree, their lies do."""
    lies = votes.copy()
    lies[list(liars)] = votes[list(liars)][:, :, derangement(votes.shape[2], stream)]
    return lies


def chorus(votes: Array, liars: Sequence[int], stream: Stream) -> Array:
    """As `collude`, but the liars pool their honest votes first, so that they agree on every query."""
    mean = votes[list(liars)].mean(axis=0, keepdims=True)
    lies = votes.copy()
    lies[list(liars)] = mean[:, :, derangement(votes.shape[2], stream)]
    return lies


def swap(votes: Array, liars: Sequence[int], stream: Stream) -> Array:
    """All liars exchange the same two classes and are honest about the others."""
    order = list(range(votes.shape[2]))
    one, other, *_ = derangement(votes.shape[2], stream)
    order[one], order[other] = other, one
    lies = votes.copy()
    lies[list(liars)] = votes[list(liars)][:, :, order]
    return lies


def constant(votes: Array, liars: Sequence[int], stream: Stream) -> Array:
    """Each liar is certain of one class, whatever it is asked."""
    lies = votes.copy()
    for liar in liars:
        lies[liar] = np.eye(votes.shape[2])[int(stream.chance() * votes.shape[2])]
    return lies


def guess(votes: Array, liars: Sequence[int], stream: Stream) -> Array:
    """Each answer is one class at random, with certainty."""
    lies = votes.copy()
    _, queries, classes = votes.shape
    for liar in liars:
        labels = np.frombuffer(stream(4 * queries), dtype=np.uint32) % classes
        lies[liar] = np.eye(classes)[labels]
    return lies


def copy(votes: Array, liars: Sequence[int], stream: Stream) -> Array:
    """Copycat: each liar echoes one honest member."""
    honest = [member for member in range(len(votes)) if member not in liars]
    lies = votes.copy()
    for liar in liars:
        lies[liar] = votes[honest[int(stream.chance() * len(honest))]]
    return lies


ATTACKS: dict[str, Attack] = {
    "flip": flip,
    "collude": collude,
    "chorus": chorus,
    "swap": swap,
    "constant": constant,
    "guess": guess,
    "copy": copy,
}


def claim_most(log_weights: Array, liars: Sequence[int], ceiling: float) -> Array:
    """Log weights in which the liars always claim the most that can be stated, in nats."""
    claims = log_weights.copy()
    claims[list(liars)] = ceiling
    return claims


def asleep(honest: Array, lies: Array, turn: int = SLEEP) -> Array:
    """Sleepers: votes or log weights that are honest in the first `turn` queries and lies from then on."""
    both = lies.copy()
    both[:, :turn] = honest[:, :turn]
    return both


def leave_alone(votes: Array, holder: int, label: int) -> Array:
    """Votes of a fleet in which one honest member alone knows a class: no other ever gives it any share."""
    alone = votes.copy()
    others = [member for member in range(len(votes)) if member != holder]
    # What an ignorant model spreads over the rest; the floor is for one that was certain of this class.
    rest = np.maximum(np.delete(votes[others], label, axis=2), 1e-6)
    alone[others] = np.insert(rest / rest.sum(axis=2, keepdims=True), label, 0.0, axis=2)
    return alone
