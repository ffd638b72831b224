"""Label sets: what is promised holds, and nothing is promised too early."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_fi.messages import Array
from edge_fi.voting.conformal import LabelSets, abstain, label_set, least_labels, strangeness, threshold

THREE = np.array([0.3, 0.6, 0.1])


def outcomes(seed: int, count: int) -> tuple[Array, list[int]]:
    """Outcomes over 5 classes that are less sure than they should be, and their labels."""
    random = np.random.default_rng(seed)
    honest = random.dirichlet(np.full(5, 0.3), size=count)
    labels = (honest.cumsum(axis=1) < random.random((count, 1))).sum(axis=1)
    return (honest + 0.2) / 2, np.minimum(labels, 4).tolist()


# Thresholds


def test_a_threshold_is_the_quantile_for_one_score_more() -> None:
    # Of 19 scores, the 18th: 20 * 0.9.
    scores = np.random.default_rng(1).permutation(np.arange(19) / 19)
    assert threshold(scores, 0.9) == 17 / 19


def test_the_rank_is_rounded_up() -> None:
    # 11 * 0.9 is 9.9, the 10th of 10.
    assert threshold(np.arange(10) / 10, 0.9) == 0.9
    assert threshold(np.arange(10) / 10, 1e-12) == 0


@given(st.integers(1, 98))
def test_below_the_least_number_of_labels_the_threshold_is_infinite(percent: int) -> None:
    coverage = percent / 100
    least = least_labels(coverage)
    assert threshold(np.zeros(least - 1), coverage) == math.inf
    assert threshold(np.zeros(least), coverage) == 0


def test_a_promise_of_nine_in_ten_needs_nine_labels() -> None:
    assert [least_labels(coverage) for coverage in (1e-12, 0.5, 0.9, 0.95, 0.99)] == [1, 1, 9, 19, 99]


@pytest.mark.parametrize("coverage", [0.0, 1.0, -0.1, math.nan])
def test_what_is_no_coverage_is_refused(coverage: float) -> None:
    with pytest.raises(ValueError, match="coverage"):
        threshold(np.zeros(100), coverage)
    with pytest.raises(ValueError, match="coverage"):
        LabelSets(coverage)


# Sets


def test_a_label_is_the_stranger_the_less_probable_it_is() -> None:
    # The squares of 0.3, 0.6 and 0.1 are 9, 36 and 1 of 46.
    np.testing.assert_allclose(strangeness(THREE), [37 / 46, 10 / 46, 45 / 46])


def test_a_set_holds_the_labels_up_to_the_threshold_the_most_probable_first() -> None:
    assert label_set(THREE, math.inf) == (1, 0, 2)
    assert label_set(THREE, 0.9) == (1, 0)
    assert label_set(THREE, 0.5) == (1,)
    assert label_set(THREE, float(strangeness(THREE)[0])) == (1, 0)


def test_a_set_is_never_empty() -> None:
    assert label_set(THREE, 0.0) == (1,)


def test_equals_stand_in_the_order_of_classes() -> None:
    assert label_set(np.array([0.2, 0.4, 0.4]), 1.0) == (1, 2, 0)


# The latest labels


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_sets_hold_the_true_label_as_often_as_promised(coverage: float) -> None:
    held, draws = 0.0, 20
    for seed in range(draws):
        pooled, labels = outcomes(seed, 400)
        sets = LabelSets(coverage)
        for outcome, label in zip(pooled[:100], labels[:100], strict=True):
            sets.note(outcome, label)
        rest = zip(pooled[100:], labels[100:], strict=True)
        held += float(np.mean([label in sets.apply(outcome) for outcome, label in rest]))
    assert coverage - 0.015 < held / draws < coverage + 0.03


def test_with_too_few_labels_the_set_is_everything() -> None:
    sets = LabelSets(0.9)
    for missing in range(9, 0, -1):
        assert sets.missing == missing
        assert sets.threshold == math.inf
        assert sets.apply(THREE) == (1, 0, 2)
        sets.note(THREE, 1)
    assert sets.missing == 0
    assert sets.apply(THREE) == (1,)
    sets.note(THREE, 1)
    assert sets.missing == 0


def test_only_the_latest_labels_count() -> None:
    sets = LabelSets(0.5, memory=3)
    for label in (2, 2, 2, 1, 1, 1):
        sets.note(THREE, label)
    assert sets.apply(THREE) == (1,)


def test_a_memory_that_never_suffices_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 99 labels, and memory is 98"):
        LabelSets(0.99, memory=98)
    assert LabelSets(0.99, memory=99).missing == 99


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_refused_and_changes_nothing(label: int) -> None:
    sets = LabelSets()
    with pytest.raises(IndexError, match=f"label {label} of 3 classes"):
        sets.note(THREE, label)
    assert sets.missing == 9


def test_a_snapshot_restores_the_scores_and_their_order() -> None:
    pooled, labels = outcomes(3, 60)
    sets = LabelSets(0.8, memory=30)
    for outcome, label in zip(pooled[:30], labels[:30], strict=True):
        sets.note(outcome, label)
    restored = LabelSets.restore(sets.snapshot(), 0.8, memory=30)
    for outcome, label in zip(pooled[30:45], labels[30:45], strict=True):
        for each in (sets, restored):
            each.note(outcome, label)
    assert restored.threshold == sets.threshold
    assert restored.snapshot() == sets.snapshot()
    assert LabelSets.restore(LabelSets().snapshot()).missing == 9


@pytest.mark.parametrize(
    "snapshot",
    [b"\0" * 7, np.array([1.1]).tobytes(), np.array([-0.1]).tobytes(), np.array([np.nan]).tobytes()],
)
def test_what_is_no_snapshot_is_refused(snapshot: bytes) -> None:
    with pytest.raises(ValueError, match="scores"):
        LabelSets.restore(snapshot)


# Abstaining


def test_an_outcome_that_leaves_open_too_much_is_unsure() -> None:
    assert abstain(THREE, (1, 0))
    assert not abstain(THREE, (1,))
    assert not abstain(THREE, (1, 0), most=2)


def test_an_outcome_without_a_probable_class_is_unsure() -> None:
    assert abstain(THREE, (1,), least=0.7)
    assert not abstain(THREE, (1,), least=0.6)


def test_while_labels_are_too_few_every_outcome_is_unsure() -> None:
    assert abstain(THREE, LabelSets().apply(THREE))
