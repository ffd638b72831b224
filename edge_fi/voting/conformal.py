"""Conformal label sets: which labels an outcome leaves open, right in a promised share of the cases.

Split conformal prediction (Vovk et al. 2005; Angelopoulos and Bates 2021) with the score 1 - p(label), which
makes the smallest sets (Sadinle et al. 2019). The promise holds on average over queries like those whose
labels came, whatever the members are worth; not for each class, nor after the queries have drifted. With too
few labels nothing is promised but everything: the set of all labels.

Give it outcomes as they leave the pool: a calibrator changes as it learns, and old scores would be of another
kind than new ones. Pure: no clock, no I/O, no dice. Not for concurrent use.
"""

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

from edge_fi.messages import Array
from edge_fi.voting.calibration import temper

_SHARPNESS = 2.0  # linear pools say too little: sharper ones make sets up to a seventh smaller, at 26 classes


def least_labels(coverage: float) -> int:
    """How many labels a promise of this coverage needs before sets are smaller than everything: 9 at 0.9."""
    _check(coverage)
    # Rounded, since 0.9 / 0.1 is a little more than 9.
    return max(1, math.ceil(round(coverage / (1 - coverage), 9)))


def strangeness(pooled: Array) -> Array:
    """Score of every label, (n_classes,), 0 to 1: 1 - p, of the outcome at half its temperature."""
    return np.asarray(1 - temper(pooled, _SHARPNESS))


def threshold(scores: NDArray[np.float64], coverage: float) -> float:
    """Largest score of a label in a set, so that a new outcome's true label is in with at least this chance.

    scores: (n,), of past outcomes and their labels. It is the ceil((n + 1) coverage)-th smallest; infinity if
    there are fewer. Coverage is above 0 and below 1, or ValueError.
    """
    _check(coverage)
    rank = max(1, math.ceil(round((len(scores) + 1) * coverage, 9)))
    if rank > len(scores):
        return math.inf
    return float(np.partition(scores, rank - 1)[rank - 1])


def label_set(pooled: Array, threshold: float) -> tuple[int, ...]:
    """Labels whose score is at most the threshold, the most probable first; always that one.

    Equals stand in the order of classes.
    """
    order = np.argsort(-pooled, kind="stable")
    is_in = strangeness(pooled)[order] <= threshold
    is_in[0] = True
    return tuple(int(label) for label in order[is_in])


def abstain(calibrated: Array, labels: tuple[int, ...], *, most: int = 1, least: float = 0.0) -> bool:
    """Whether an outcome is too unsure to be used, and should be said to be so.

    calibrated: (n_classes,), the calibrated outcome. labels: its set. It is so if the set has more than
    `most` labels, as while true labels are too few, or if no class has the probability `least`.
    """
    return len(labels) > most or float(calibrated.max()) < least


class LabelSets:
    """One task's promise, from the latest labels."""

    def __init__(self, coverage: float = 0.9, *, memory: int = 500) -> None:
        """coverage: share of sets that shall hold the true label. memory: how many labels are kept."""
        self.coverage = coverage
        self._least = least_labels(coverage)
        if memory < self._least:
            raise ValueError(f"a coverage of {coverage} needs {self._least} labels, and memory is {memory}")
        self._scores: deque[float] = deque(maxlen=memory)

    @property
    def missing(self) -> int:
        """Labels that must still come before sets say anything."""
        return max(0, self._least - len(self._scores))

    @property
    def threshold(self) -> float:
        """Largest score in a set; infinity while labels are missing."""
        return threshold(np.array(self._scores), self.coverage)

    def note(self, pooled: Array, label: int) -> None:
        """Learn from an outcome whose label has come. Raises IndexError for a label that is no class."""
        if not 0 <= label < len(pooled):
            raise IndexError(f"label {label} of {len(pooled)} classes")
        self._scores.append(float(strangeness(pooled)[label]))

    def apply(self, pooled: Array) -> tuple[int, ...]:
        """The labels that an outcome leaves open, the most probable first."""
        return label_set(pooled, self.threshold)

    def snapshot(self) -> bytes:
        """The scores, oldest first, 8 bytes each."""
        return np.array(self._scores, dtype="<f8").tobytes()

    @classmethod
    def restore(cls, snapshot: bytes, coverage: float = 0.9, *, memory: int = 500) -> "LabelSets":
        """The sets whose snapshot this is. Raises ValueError for what is none."""
        if len(snapshot) % 8:
            raise ValueError(f"scores have 8 bytes each, and {len(snapshot)} are no multiple of it")
        scores = np.frombuffer(snapshot, dtype="<f8")
        if not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError("scores are between 0 and 1")
        sets = cls(coverage, memory=memory)
        sets._scores.extend(scores.tolist())
        return sets


def _check(coverage: float) -> None:
    if not 0 < coverage < 1:
        raise ValueError(f"coverage is above 0 and below 1, not {coverage}")
