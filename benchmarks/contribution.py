"""How well contribution without labels agrees with that by the truth, and what a free rider earns."""

import numpy as np
from votes import Federation

from edge_fi.messages import Array
from edge_fi.voting.contribution import contributions, labelled_contributions

ROUNDS = 1000


def contribution(federation: Federation) -> dict[str, float]:
    """Spearman's correlation of the two, and the share of a member that is always certain of one class."""
    votes = federation.votes[:, :ROUNDS].transpose(1, 0, 2)
    weights = federation.log_weights[:, :ROUNDS].T
    truth = federation.truth[:ROUNDS]
    earned = np.array([its.value for its in contributions(votes, weights)])
    judged = np.array([its.value for its in labelled_contributions(votes, weights, truth)])
    constant = np.zeros((len(votes), 1, votes.shape[2]))
    constant[:, :, 0] = 1
    most = np.full((len(votes), 1), weights.max())
    beside = contributions(np.hstack([votes, constant]), np.hstack([weights, most]))
    return {"spearman": _spearman(earned, judged), "free_rider_share": beside[-1].share}


def _spearman(one: Array, other: Array) -> float:
    """Of values without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
