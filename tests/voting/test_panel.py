"""A panel: gates registered and forgotten, votes weighed and pooled, answers learnt, what survives it."""

from dataclasses import replace

import numpy as np
import pytest
from gates import MAP, OTHER_MAP, PLACES, at, content, gate, weight

from edge_fi.errors import DecodeError
from edge_fi.messages import Form, Vote
from edge_fi.voting import panel as panel_module
from edge_fi.voting.panel import DECIDED_KEPT, LEAST_ROUNDS, Panel
from edge_fi.voting.strategy import familiarity, hard, linear

UNKNOWN = float("nan")
UNFAMILIAR = -np.inf


def vote(label: int, log_weight: float = 0.0, *, share: float = 0.85) -> Vote:
    """For this class of four."""
    probabilities = np.full(4, (1 - share) / 3)
    probabilities[label] = share
    return Vote("", probabilities, log_weight, Form.PROBS_8)


def make_panel(*, is_defended: bool = True) -> Panel:
    """Of the task that has a map."""
    return Panel(PLACES, MAP, is_defended=is_defended)


def decided(panel: Panel, rounds: int, *, label: int = 0) -> None:
    """So many rounds, numbered from 0, in which three members say this."""
    for seq in range(rounds):
        panel.decide((1, seq), {n: vote((label + seq) % 4) for n in (1, 2, 3)}, linear)


# Gates


def test_a_member_is_as_familiar_as_its_gate_says() -> None:
    panel = make_panel()
    panel.register(1, content(10))
    panel.register(7, content(20))
    expected = {1: weight(10, at(12)), 7: weight(20, at(12))}
    assert panel.familiarity(at(12)) == pytest.approx(expected, rel=1e-6)


def test_where_nothing_lies_near_a_member_is_unfamiliar() -> None:
    panel = make_panel()
    panel.register(1, content(10))
    assert panel.familiarity(at(200)) == {1: UNFAMILIAR}


def test_a_gate_that_is_registered_later_or_again_counts_at_once() -> None:
    panel = make_panel()
    panel.register(1, content(10))
    panel.familiarity(at(10))
    panel.register(2, content(10))
    panel.register(1, content(100))
    assert panel.familiarity(at(10)) == pytest.approx({1: UNFAMILIAR, 2: weight(10, at(10))}, rel=1e-6)


def test_without_gates_or_without_a_map_nobody_is_known() -> None:
    assert make_panel().familiarity(at(1)) == {}
    assert Panel(PLACES).familiarity(at(1)) == {}
    with pytest.raises(DecodeError, match=r"^gate$"):
        Panel(PLACES).register(1, content(10))


@pytest.mark.parametrize(
    "spoilt",
    [
        b"",
        content(10)[:-1],
        gate(10, classes=3).encode(MAP),
        content(10).replace(MAP.digest, OTHER_MAP.digest),
    ],
)
def test_a_gate_that_is_none_is_refused_and_the_one_before_stays(spoilt: bytes) -> None:
    panel = make_panel()
    panel.register(1, content(10))
    before = panel.familiarity(at(10))
    with pytest.raises(DecodeError, match=r"^gate$"):
        panel.register(1, spoilt)
    assert panel.familiarity(at(10)) == before


def test_coverage_is_what_the_gate_says() -> None:
    panel = make_panel()
    assert panel.coverage(1) is None
    panel.register(1, content(10))
    covered = panel.coverage(1)
    assert covered is not None and covered.tolist() == [10, 0, 0, 0]


def test_a_gate_can_be_taken_back() -> None:
    panel = make_panel()
    panel.register(1, content(10))
    panel.register(2, content(10))
    panel.familiarity(at(10))
    panel.unregister(1)
    panel.unregister(1)
    assert list(panel.familiarity(at(10))) == [2]
    assert panel.coverage(1) is None


def test_a_former_member_is_forgotten_with_all_that_the_jury_knew() -> None:
    panel = make_panel()
    panel.register(1, content(10))
    decided(panel, 3)
    panel.forget(1)
    panel.forget(99)
    others = make_panel()
    for seq in range(3):
        others.decide((1, seq), {n: vote(seq % 4) for n in (2, 3)}, linear)
    assert panel.familiarity(at(10)) == {}
    assert panel.jury.snapshot() == others.jury.snapshot()


# Deciding


def test_the_familiar_outweigh_the_others() -> None:
    votes = {1: vote(0, -20.0), 2: vote(0, -20.0), 3: vote(2, 0.0)}
    pooled = make_panel().decide((1, 1), votes, familiarity).probabilities
    assert pooled is not None and pooled.argmax() == 2 and pooled.sum() == pytest.approx(1)


def test_the_order_of_arrival_has_no_say() -> None:
    votes = {n: vote(n, -float(n)) for n in (1, 2, 3)}
    turned = dict(reversed(votes.items()))
    one, other = (make_panel().decide((1, 1), its, familiarity).probabilities for its in (votes, turned))
    assert one is not None and other is not None and one.tolist() == other.tolist()


@pytest.mark.parametrize("is_defended", [True, False])
def test_where_nobody_is_familiar_there_is_no_answer_and_no_strategy_is_asked(is_defended: bool) -> None:
    panel = make_panel(is_defended=is_defended)
    pooled = panel.decide((1, 1), {1: vote(0, UNFAMILIAR), 2: vote(1, UNFAMILIAR)}, hard)
    assert (pooled.probabilities, pooled.reason, pooled.label_set) == (None, "unfamiliar", ())
    assert not panel.learn((1, 1), 0)


@pytest.mark.parametrize("is_defended", [True, False])
def test_who_told_nothing_is_no_stranger_to_a_query(is_defended: bool) -> None:
    panel = make_panel(is_defended=is_defended)
    pooled = panel.decide((1, 1), {1: vote(3, UNKNOWN), 2: vote(0, UNFAMILIAR)}, linear)
    assert pooled.probabilities is not None and pooled.reason == ""


def test_without_any_weight_votes_count_by_their_certainty() -> None:
    votes = {1: vote(0, UNKNOWN, share=0.3), 2: vote(0, UNKNOWN, share=0.3), 3: vote(1, UNKNOWN, share=0.99)}
    pooled = make_panel().decide((1, 1), votes, familiarity).probabilities
    assert pooled is not None and pooled.argmax() == 1


class Judging:
    """A jury that has expelled these."""

    def __init__(self, *expelled: int) -> None:
        self.expelled = frozenset(expelled)

    def weigh(self, members: list[int], log_weights: np.ndarray) -> np.ndarray:
        return np.array(
            [-np.inf if m in self.expelled else w for m, w in zip(members, log_weights, strict=True)]
        )

    def note(self, *round_: object) -> None:
        """Nothing is remembered."""


def test_the_expelled_are_not_heard_by_any_strategy() -> None:
    panel = make_panel()
    panel.jury = Judging(1, 2)  # type: ignore[assignment]
    pooled = panel.decide((1, 1), {1: vote(0), 2: vote(0), 3: vote(1)}, hard).probabilities
    assert pooled is not None and pooled.argmax() == 1
    undefended = make_panel(is_defended=False).decide((1, 1), {1: vote(0), 2: vote(0), 3: vote(1)}, hard)
    assert undefended.probabilities is not None and undefended.probabilities.argmax() == 0


def test_where_only_the_expelled_are_familiar_there_is_no_answer() -> None:
    panel = make_panel()
    panel.jury = Judging(1)  # type: ignore[assignment]
    pooled = panel.decide((1, 1), {1: vote(0), 2: vote(0, UNFAMILIAR)}, linear)
    assert (pooled.probabilities, pooled.reason) == (None, "unfamiliar")


# Learning


def test_an_answer_is_learnt_once() -> None:
    panel = make_panel()
    decided(panel, 2)
    assert panel.learn((1, 0), 0)
    assert not panel.learn((1, 0), 0)
    assert panel.learn((1, 1), 1)


def test_an_answer_to_no_query_that_is_known_is_not_learnt() -> None:
    panel = make_panel()
    decided(panel, 1)
    assert not panel.learn((1, 1), 0)
    assert not panel.learn((2, 0), 0)
    assert not panel.learn((1, 0), 4)
    assert panel.learn((1, 0), 3)


def test_the_latest_rounds_are_remembered_and_no_more() -> None:
    panel = make_panel(is_defended=False)
    for seq in range(DECIDED_KEPT + 1):
        panel.decide((1, seq), {1: vote(0)}, linear)
    assert not panel.learn((1, 0), 0)
    assert panel.learn((1, 1), 0)
    assert len(panel._decided) == DECIDED_KEPT


def test_a_label_set_comes_with_enough_answers_and_holds_the_label() -> None:
    panel = make_panel()
    seq = 0
    while panel.label_sets.missing:
        assert panel.decide((1, seq), {n: vote(1) for n in (1, 2, 3)}, linear).label_set == ()
        panel.learn((1, seq), 1)
        seq += 1
    pooled = panel.decide((1, seq), {n: vote(1) for n in (1, 2, 3)}, linear)
    assert 1 in pooled.label_set and list(pooled.label_set) == sorted(pooled.label_set)


def test_a_canary_teaches_of_members_alone() -> None:
    panel = make_panel()
    decided(panel, 1)
    labels, missing, jury = panel.calibrator.labels, panel.label_sets.missing, panel.jury.snapshot()
    assert panel.learn((1, 0), 0, is_canary=True)
    assert (panel.calibrator.labels, panel.label_sets.missing) == (labels, missing)
    assert panel.jury.snapshot() != jury


# Contributions


def test_contributions_need_rounds() -> None:
    panel = make_panel()
    decided(panel, LEAST_ROUNDS - 1)
    assert panel.contributions() == (LEAST_ROUNDS - 1, {})
    assert make_panel().contributions() == (0, {})


def test_contributions_are_of_those_that_voted_and_canaries_are_left_out() -> None:
    panel = make_panel()
    decided(panel, LEAST_ROUNDS + 5)
    panel.decide((2, 0), {9: vote(1)}, linear)
    panel.learn((2, 0), 1, is_canary=True)
    rounds, its = panel.contributions()
    assert (rounds, sorted(its)) == (LEAST_ROUNDS + 5, [1, 2, 3])


def test_where_so_many_votes_would_be_too_many_values_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    panel = make_panel()
    decided(panel, LEAST_ROUNDS)
    monkeypatch.setattr(panel_module, "_COUNTED_VALUES", 11)
    assert panel.contributions() == (0, {})


# What survives


def test_a_panel_is_restored_as_it_was() -> None:
    panel, other = make_panel(), make_panel()
    decided(panel, 15)
    panel.learn((1, 3), 3)
    other.restore(panel.snapshot())
    assert other.snapshot() == panel.snapshot() != make_panel().snapshot()


@pytest.mark.parametrize("size", [0, 2, 3, 5, 10, -1])
def test_a_snapshot_that_is_none_is_refused_and_nothing_has_changed(size: int) -> None:
    panel, other = make_panel(), make_panel()
    decided(panel, 15)
    before = other.snapshot()
    with pytest.raises(ValueError, match=r"."):
        other.restore(panel.snapshot()[:size])
    with pytest.raises(ValueError, match=r"."):
        other.restore(panel.snapshot() + b"\0")
    assert other.snapshot() == before


def test_a_snapshot_of_a_task_of_other_classes_is_refused() -> None:
    panel = make_panel()
    decided(panel, 15)
    fewer = Panel(replace(PLACES, labels=("a", "b")))
    with pytest.raises(ValueError, match=r"."):
        fewer.restore(panel.snapshot())
