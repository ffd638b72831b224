"""Calibration: made-up pools whose right temperature is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_fi.messages import Array
from edge_fi.voting import scores
from edge_fi.voting.calibration import CalibrationPolicy, Calibrator, temper

CLASSES = 6


def world(
    seed: int, count: int, *, sharpness: float, concentration: float = 0.3
) -> tuple[Array, scores.Labels]:
    """Outcomes that would be honest at this sharpness, and their labels."""
    random = np.random.default_rng(seed)
    honest = temper(random.dirichlet(np.full(CLASSES, concentration), size=count), 1)
    labels = (honest.cumsum(axis=1) < random.random((count, 1))).sum(axis=1)
    return temper(honest, 1 / sharpness), np.minimum(labels, CLASSES - 1)


def taught(pooled: Array, labels: scores.Labels, policy: CalibrationPolicy | None = None) -> Calibrator:
    """A calibrator that observed no outcome and was told these labels."""
    calibrator = Calibrator(policy or CalibrationPolicy())
    for outcome, label in zip(pooled, labels, strict=True):
        calibrator.note(outcome, int(label))
    return calibrator


# Tempering


def test_tempering_raises_to_a_power() -> None:
    np.testing.assert_allclose(temper(np.array([0.5, 0.3, 0.2]), 2), np.array([25, 9, 4]) / 38)


def test_a_probability_of_zero_is_read_as_a_small_one() -> None:
    np.testing.assert_allclose(temper(np.array([1.0, 0.0]), 0.5), np.array([1, 0.01]) / 1.01)


def test_rows_and_sharpnesses_broadcast() -> None:
    rows = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    np.testing.assert_allclose(temper(rows, 3), [temper(row, 3) for row in rows])
    np.testing.assert_allclose(
        temper(rows[0], np.array([[1.0], [3.0]])), [temper(rows[0], 1), temper(rows[0], 3)]
    )


# Before it has learnt


def test_who_has_learnt_nothing_changes_nothing() -> None:
    calibrator = Calibrator()
    assert calibrator.labels == 0
    np.testing.assert_allclose(calibrator.apply(np.array([0.6, 0.3, 0.1])), [0.6, 0.3, 0.1], atol=0.005)


@pytest.mark.parametrize(
    "wrong", [{"memory": 0}, {"spread": 0.0}, {"patience": -1}, {"sharpest": 0.9}, {"sharpest": 17.0}]
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no calibration by"):
        CalibrationPolicy(**wrong)  # type: ignore[arg-type]


# Labels


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0, 3.0])
def test_labels_show_the_temperature(sharpness: float) -> None:
    calibrator = taught(*world(1, 1000, sharpness=sharpness), CalibrationPolicy(memory=5000))
    assert calibrator.sharpness == pytest.approx(sharpness, rel=0.15)


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 3.0])
def test_a_hundred_labels_mend_outcomes_that_were_not_shown(sharpness: float) -> None:
    pooled, labels = world(2, 2100, sharpness=sharpness)
    calibrator = taught(pooled[:100], labels[:100])
    rest, answers = pooled[100:], labels[100:]
    mended = np.stack([calibrator.apply(outcome) for outcome in rest])
    assert scores.ece(mended, answers) < scores.ece(rest, answers) / 2
    assert scores.nll(mended, answers) < scores.nll(rest, answers)
    assert scores.accuracy(mended, answers) == scores.accuracy(rest, answers)


def test_few_labels_move_little() -> None:
    pooled, labels = world(3, 3, sharpness=3)
    assert taught(pooled, labels).sharpness < 1.6


def test_a_label_that_was_thought_impossible_outweighs_no_hundred_others() -> None:
    pooled, labels = world(4, 200, sharpness=2)
    calibrator = taught(pooled, labels)
    before = calibrator.sharpness
    for _ in range(3):
        calibrator.note(np.array([1.0, 0, 0, 0, 0, 0]), 1)
    assert 0.7 * before < calibrator.sharpness < before


def test_whatever_labels_come_the_temperature_is_bounded() -> None:
    sure = np.array([0.9, 0.02, 0.02, 0.02, 0.02, 0.02])
    wrong, right = Calibrator(), Calibrator()
    for _ in range(3000):
        wrong.note(sure, 1)
        right.note(sure, 0)
    assert 1 / 4 <= wrong.sharpness < 0.5
    assert 2 < right.sharpness <= 16


def test_old_labels_fade() -> None:
    calibrator = taught(*world(5, 600, sharpness=3), CalibrationPolicy(memory=100))
    assert calibrator.labels == pytest.approx(100, rel=0.01)
    for outcome, label in zip(*world(6, 600, sharpness=1), strict=True):
        calibrator.note(outcome, int(label))
    assert calibrator.sharpness == pytest.approx(1, rel=0.3)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_is_no_class_is_refused_and_changes_nothing(label: int) -> None:
    calibrator = Calibrator()
    with pytest.raises(IndexError, match=f"label {label} of 2 classes"):
        calibrator.note(np.array([0.5, 0.5]), label)
    assert calibrator.snapshot() == Calibrator().snapshot()


# Outcomes alone


def test_an_outcome_should_be_as_sure_as_its_two_leading_classes_say() -> None:
    # 0.4 against 0.1 is 0.8; at which sharpness is the largest 0.8?
    outcome = np.array([0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    calibrator = Calibrator(CalibrationPolicy(patience=0, spread=0.05))
    calibrator.observe(outcome)
    assert calibrator.sharpness == pytest.approx(math.log(24) / math.log(4), rel=0.02)
    assert calibrator.apply(outcome).max() == pytest.approx(0.8, abs=0.01)


def test_what_the_votes_choose_first_counts_half() -> None:
    # 0.8 by the outcome, 0.6 by the first choices: 0.7.
    outcome = np.array([0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    firsts = np.array([0.6, 0.4, 0, 0, 0, 0, 0])
    calibrator = Calibrator(CalibrationPolicy(patience=0, spread=0.05))
    calibrator.observe(outcome, firsts)
    assert calibrator.apply(outcome).max() == pytest.approx(0.7, abs=0.01)


def test_the_first_outcomes_are_believed_by_degrees() -> None:
    outcome = np.array([0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    calibrator = Calibrator(CalibrationPolicy(memory=10**6))
    for _ in range(10):
        calibrator.observe(outcome)
    half = math.log(calibrator.sharpness)
    for _ in range(1000):
        calibrator.observe(outcome)
    assert half == pytest.approx(math.log(calibrator.sharpness) / 2, rel=0.05)


def test_outcomes_that_know_nothing_suggest_no_more_than_the_sharpest() -> None:
    calibrator = Calibrator(CalibrationPolicy(patience=0, spread=0.05))
    calibrator.observe(np.full(8, 1 / 8))
    assert calibrator.sharpness == pytest.approx(3, rel=0.02)


def test_outcomes_alone_never_make_it_less_sure() -> None:
    calibrator = Calibrator(CalibrationPolicy(patience=0, spread=0.05))
    calibrator.observe(np.array([0.9, 0.05, 0.05]), np.array([0.5, 0.5, 0.0]))
    assert calibrator.sharpness == pytest.approx(1, rel=0.02)


def test_old_outcomes_fade() -> None:
    policy = CalibrationPolicy(memory=20, patience=0, spread=0.05)
    old, new = Calibrator(policy), Calibrator(policy)
    for _ in range(100):
        old.observe(np.full(8, 1 / 8))
    for calibrator in (old, new):
        for _ in range(300):
            calibrator.observe(np.array([0.5, 0.3, 0.2]))
    assert old.sharpness == pytest.approx(new.sharpness, rel=1e-3)


def test_labels_outweigh_what_outcomes_suggest() -> None:
    pooled, labels = world(7, 400, sharpness=1, concentration=1)
    calibrator = Calibrator()
    for outcome in pooled:
        calibrator.observe(outcome)
    suggested = calibrator.sharpness
    for outcome, label in zip(pooled, labels, strict=True):
        calibrator.note(outcome, int(label))
    assert suggested > 1.4
    assert calibrator.sharpness == pytest.approx(1, abs=0.2)


# Applying


@given(st.integers(2, 12), st.integers(0, 2**32 - 1), st.sampled_from([0.02, 0.3, 3.0]))
def test_no_label_changes_and_the_order_of_classes_stays(
    classes: int, seed: int, concentration: float
) -> None:
    random = np.random.default_rng(seed)
    calibrator = Calibrator()
    for outcome in random.dirichlet(np.full(classes, concentration), size=5):
        calibrator.observe(outcome)
        calibrator.note(outcome, int(random.integers(classes)))
    outcome = random.dirichlet(np.full(classes, concentration))
    calibrated = calibrator.apply(outcome)
    assert calibrated.argmax() == outcome.argmax()
    assert (np.diff(calibrated[np.argsort(outcome)]) >= 0).all()
    assert calibrated.sum() == pytest.approx(1)
    assert calibrated.min() >= 0


def test_the_label_stays_even_where_every_class_is_below_the_floor() -> None:
    outcome = np.full(20_000, 1 / 20_000)
    outcome[7] *= 1.5
    outcome /= outcome.sum()
    np.testing.assert_array_equal(Calibrator().apply(outcome), outcome)


# Over a restart


def test_a_snapshot_restores_all_that_was_learnt() -> None:
    policy = CalibrationPolicy(memory=50)
    calibrator = taught(*world(8, 30, sharpness=2), policy)
    calibrator.observe(np.array([0.4, 0.3, 0.3, 0, 0, 0]))
    restored = Calibrator.restore(calibrator.snapshot(), policy)
    for outcome, label in zip(*world(9, 30, sharpness=2), strict=True):
        for each in (calibrator, restored):
            each.observe(outcome)
            each.note(outcome, int(label))
    assert restored.snapshot() == calibrator.snapshot()
    assert restored.sharpness == calibrator.sharpness
    assert len(restored.snapshot()) < 1000


def test_what_is_no_snapshot_is_refused() -> None:
    snapshot = Calibrator().snapshot()
    with pytest.raises(ValueError, match="bytes"):
        Calibrator.restore(snapshot[1:])
    with pytest.raises(ValueError, match="finite"):
        Calibrator.restore(snapshot[:-8] + np.array([np.nan]).tobytes())
