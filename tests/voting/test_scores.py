"""Scores, worked out by hand."""

import math

import numpy as np
import pytest

from edge_fi.voting.scores import BINS, accuracy, ece, nll

FOUR = np.array([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1], [0.5, 0.5]])


def test_accuracy_is_the_percentage_of_right_first_choices() -> None:
    assert accuracy(FOUR, np.array([0, 1, 1, 1])) == 50
    assert accuracy(FOUR, np.array([0, 1, 0, 0])) == 100  # of two equals the first counts


def test_nll_is_the_mean_in_nats() -> None:
    expected = -(math.log(0.7) + math.log(0.6) + math.log(0.1) + math.log(0.5)) / 4
    assert nll(FOUR, np.array([0, 1, 1, 1])) == pytest.approx(expected)


def test_nll_of_a_label_thought_impossible_is_finite() -> None:
    assert nll(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(6 * math.log(10))


def test_a_forecaster_that_is_as_often_right_as_it_says_has_no_calibration_error() -> None:
    assert ece(np.tile([0.75, 0.25], (4, 1)), np.array([0, 0, 0, 1])) == pytest.approx(0)


def test_calibration_errors_are_averaged_over_bins_by_their_rows() -> None:
    # Three rows say 0.9 and one of them is right; one row says 0.6 and is right.
    rows = np.array([[0.9, 0.1]] * 3 + [[0.6, 0.4]])
    expected = 100 * (3 / 4 * (0.9 - 1 / 3) + 1 / 4 * (1 - 0.6))
    assert ece(rows, np.array([0, 1, 1, 0])) == pytest.approx(expected)


def test_errors_of_opposite_sign_cancel_within_a_bin_only() -> None:
    within = np.array([[0.74, 0.26], [0.76, 0.24]])  # the bin (11/15, 12/15]
    assert ece(within, np.array([0, 1])) == pytest.approx(25)
    across = np.array([[0.72, 0.28], [0.74, 0.26]])
    assert ece(across, np.array([0, 1])) == pytest.approx(100 * (0.28 + 0.74) / 2)


def test_a_bin_holds_its_upper_edge() -> None:
    # 9/15 is 0.6 exactly, in the bin of 0.59, not that of 0.61.
    edge = 9 / BINS
    assert ece(np.array([[edge, 1 - edge], [0.59, 0.41]]), np.array([0, 1])) == pytest.approx(
        100 * abs(1 - edge - 0.59) / 2
    )


def test_certainty_is_in_the_last_bin() -> None:
    assert ece(np.array([[1.0, 0.0], [0.95, 0.05]]), np.array([0, 1])) == pytest.approx(47.5)


@pytest.mark.parametrize("score", [accuracy, nll, ece])
@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [(FOUR, np.array([0, 1])), (FOUR[0], np.array([0, 1])), (FOUR[:0], np.array([], dtype=np.int64))],
)
def test_what_does_not_fit_has_no_score(score: object, probabilities: object, labels: object) -> None:
    assert callable(score)
    with pytest.raises(ValueError, match="do not fit"):
        score(probabilities, labels)
