"""What a gate tells of the data it was made from.

Can somebody who holds it say who is in there?

The attacker has a row and a device's gate, and guesses "was in the training data" by how familiar the gate
is with it (plain), or by how much more familiar than the mean of the other devices' gates (calibrated,
after Watson et al. 2022). Rows that were in are a device's own; rows that were not are drawn from data that
nobody trained on, in the same shares of classes, so that what a device's classes are, which is no secret
here, does not count. AUC .5 is guessing.
"""

import numpy as np
from numpy.typing import NDArray
from votes import Federation

from edge_fi.messages import Array


def membership_auc(federation: Federation, seed: int) -> tuple[float, float]:
    """AUC, plain and calibrated, the mean over devices."""
    split, shared = federation.trained.split, federation.features
    random = np.random.default_rng([seed, 3])
    own = shared.rows(split.train.astype(np.float64))
    apart = shared.rows(split.outside.astype(np.float64))
    by_class = [np.flatnonzero(split.outside_labels == label) for label in range(len(split.labels))]
    plain, calibrated = [], []
    for device, rows in enumerate(federation.trained.owned):
        labels = split.train_labels[rows]
        outside = np.concatenate(
            [
                random.choice(members, (labels == label).sum())
                for label, members in enumerate(by_class)
                if len(members) and (labels == label).any()
            ]
        )
        both = np.concatenate([own[rows], apart[outside]])
        is_in = np.repeat([True, False], [len(rows), len(outside)])
        scores = np.stack([gate.weigh_all(both, shared) for gate in federation.gates])
        scores = np.where(np.isfinite(scores), scores, -1e3)
        others = np.delete(scores, device, axis=0).mean(axis=0)
        plain.append(_auc(scores[device], is_in))
        calibrated.append(_auc(scores[device] - others, is_in))
    return float(np.mean(plain)), float(np.mean(calibrated))


def _auc(scores: Array, is_in: NDArray[np.bool_]) -> float:
    """Of a threshold on the scores (Mann and Whitney 1947); ties count half."""
    _, ranks, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = (np.cumsum(counts) - (counts - 1) / 2)[ranks]
    inside = int(is_in.sum())
    return float((middle[is_in].sum() - inside * (inside + 1) / 2) / (inside * (len(scores) - inside)))
