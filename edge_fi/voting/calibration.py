"""Calibration: one temperature after the pool, so that what is said with 80 % is right 8 times in 10.

A linear pool says less than it knows, even of calibrated members (Ranjan and Gneiting 2010). Tempering the
pool mends that; tempering each member would cost accuracy. It never changes the label, nor the order of
the classes. Two sources: the outcomes themselves (`observe`), a rough estimate; and labels that come later
(`note`), a hundred of which outweigh it. Not a defence: who sends labels can make outcomes too sure or too
unsure, but not wrong. One temperature for all classes and queries: an offset, or a share of the uniform,
gained no likelihood.

Bounded memory whatever comes: sums on a grid of temperatures, older ones fading. Pure: no clock, no I/O, no
dice. Not for concurrent use.
"""

import math
import struct
from dataclasses import dataclass

import numpy as np

from edge_fi.messages import Array
from edge_fi.voting.pool import LEAST_PROBABILITY

_STEPS = 49
_SHARPNESS = np.geomspace(1 / 4, 16, _STEPS)  # inverse temperatures
_LOGS = np.log(_SHARPNESS)
_SLIP = 0.03  # chance of a label to be a random one: without it, 3 % wrong labels double the error
_STATE = struct.Struct(f"<{2 * _STEPS + 3}d")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationPolicy:
    """How much a calibrator believes of what."""

    memory: int = 500
    """Outcomes, and labels, after which an older one counts 1/e."""
    spread: float = 0.4
    """Standard deviation of log temperature around the estimate without labels: 10 to 40 labels' worth."""
    patience: int = 10
    """Observed outcomes at which half of what they suggest is done."""
    sharpest: float = 3.0
    """Largest inverse temperature without labels: outcomes that know nothing would suggest infinity."""

    def __post_init__(self) -> None:
        if self.memory < 1 or self.spread <= 0 or self.patience < 0 or not 1 <= self.sharpest <= 16:
            raise ValueError(f"no calibration by {self}")


def temper(pooled: Array, sharpness: float | Array) -> Array:
    """Raise distributions to a power and normalise: temperature 1 / sharpness (Guo et al. 2017).

    pooled: (..., n_classes). sharpness: a number, or (..., 1). Returns what the two broadcast to.
    Probabilities below LEAST_PROBABILITY are read as this.
    """
    logs = sharpness * np.log(np.maximum(pooled, LEAST_PROBABILITY))
    powers = np.exp(logs - logs.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


class Calibrator:
    """One task's temperature, learnt from outcomes and labels as they come.

    Give it outcomes as they leave the pool, not what `apply` made of them.
    """

    def __init__(self, policy: CalibrationPolicy = CalibrationPolicy()) -> None:
        self.policy = policy
        self._outcomes = 0.0  # how many, as far as not faded
        self._expected = 0.0  # their confidence as it should be, summed
        self._confidence = np.zeros(_STEPS)  # as it is at each sharpness, summed
        self._labels = 0.0  # how many, as far as not faded
        self._likelihood = np.zeros(_STEPS)  # log-likelihood of the labels at each sharpness

    @property
    def labels(self) -> float:
        """How many labels count, at most the policy's memory; below 20 the temperature is mostly a guess."""
        return self._labels

    @property
    def sharpness(self) -> float:
        """Inverse temperature: the posterior mean of its logarithm, the estimate without labels as prior."""
        prior = -(((_LOGS - self._suggested()) / self.policy.spread) ** 2) / 2
        posterior = prior + self._likelihood
        weights = np.exp(posterior - posterior.max())
        return math.exp(float(weights @ _LOGS / weights.sum()))

    def observe(self, pooled: Array, firsts: Array | None = None) -> None:
        """Learn from an outcome without a label.

        pooled: (n_classes,), the outcome. firsts: (n_classes,), the same pool of the votes' first choices,
        one-hot, where votes are known. An outcome should be as sure as its leading class is against
        the second alone: what is left for the others is mostly what members spread over classes that they do
        not know. The same of firsts, which says how far members agree, and the mean of both. A heuristic:
        too unsure where members err independently, too sure where all err alike, idle for two classes
        without firsts.
        """
        expected = _lead(pooled) if firsts is None else (_lead(pooled) + _lead(firsts)) / 2
        kept = 1 - 1 / self.policy.memory
        self._outcomes = kept * self._outcomes + 1
        self._expected = kept * self._expected + expected
        self._confidence = kept * self._confidence + _tempered(pooled).max(axis=1)

    def note(self, pooled: Array, label: int) -> None:
        """Learn from an outcome whose label has come; it was observed before, and is not again.

        Raises IndexError for a label that is no class.
        """
        if not 0 <= label < len(pooled):
            raise IndexError(f"label {label} of {len(pooled)} classes")
        given = _tempered(pooled)[:, label]
        kept = 1 - 1 / self.policy.memory
        self._labels = kept * self._labels + 1
        self._likelihood = kept * self._likelihood + np.log((1 - _SLIP) * given + _SLIP / len(pooled))

    def apply(self, pooled: Array) -> Array:
        """The outcome (n_classes,), sums to 1, with the confidence it deserves and the label it had."""
        tempered = temper(pooled, self.sharpness)
        # Among more classes than 1 / LEAST_PROBABILITY all may be below it, and equal once tempered.
        return tempered if tempered.argmax() == pooled.argmax() else pooled

    def snapshot(self) -> bytes:
        """All that was learnt, of a fixed size below 1 kB."""
        sums = (self._outcomes, self._expected, self._labels)
        return _STATE.pack(*sums, *self._confidence, *self._likelihood)

    @classmethod
    def restore(cls, snapshot: bytes, policy: CalibrationPolicy = CalibrationPolicy()) -> "Calibrator":
        """The calibrator whose snapshot this is. Raises ValueError for what is none."""
        if len(snapshot) != _STATE.size:
            raise ValueError(f"a snapshot has {_STATE.size} bytes, not {len(snapshot)}")
        sums = np.array(_STATE.unpack(snapshot))
        if not np.isfinite(sums).all():
            raise ValueError("a snapshot has finite sums")
        calibrator = cls(policy)
        calibrator._outcomes, calibrator._expected, calibrator._labels = map(float, sums[:3])
        calibrator._confidence, calibrator._likelihood = sums[3 : 3 + _STEPS], sums[3 + _STEPS :]
        return calibrator

    def _suggested(self) -> float:
        """Log sharpness at which outcomes are as sure as they should be; 0, no change, at first."""
        if self._outcomes == 0:
            return 0.0
        # More sharpness never makes an outcome less sure.
        found = float(np.interp(self._expected, self._confidence, _LOGS))
        trust = self._outcomes / (self._outcomes + self.policy.patience)
        return trust * min(max(found, 0.0), math.log(self.policy.sharpest))


def _lead(distribution: Array) -> float:
    """Share of the leading class in what the two leading classes have."""
    second, first = np.sort(np.maximum(distribution, LEAST_PROBABILITY))[-2:]
    return float(first / (first + second))


def _tempered(pooled: Array) -> Array:
    """An outcome at each sharpness, (_STEPS, n_classes)."""
    return temper(pooled, _SHARPNESS[:, None])
