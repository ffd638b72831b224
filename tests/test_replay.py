"""The replay window: each number once, and none that is too old to tell."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_fi.errors import ProtocolError
from edge_fi.replay import WINDOW, ReplayWindow


def accepting(*numbers: int) -> ReplayWindow:
    """A window that has accepted these, in this order."""
    window = ReplayWindow()
    for number in numbers:
        window.check(number)
        window.accept(number)
    return window


def verdict(window: ReplayWindow, number: int) -> str:
    """The reason of a refusal, or nothing."""
    try:
        window.check(number)
    except ProtocolError as error:
        return error.reason
    return ""


def test_the_window_holds_1024_numbers() -> None:
    assert WINDOW == 1024


@pytest.mark.parametrize("number", [0, 1, 1023, 1024, 5000, 2**32 - 1])
def test_a_new_window_takes_any_number_once(number: int) -> None:
    window = ReplayWindow()
    assert verdict(window, number) == ""
    window.accept(number)
    assert verdict(window, number) == "replay"


def test_checking_changes_nothing() -> None:
    window = accepting(5)
    for _ in range(2):
        assert verdict(window, 6) == ""
        assert verdict(window, 4) == ""
        assert verdict(window, 5) == "replay"


def test_numbers_may_come_in_any_order() -> None:
    window = accepting(3, 0, 2, 7, 1)
    assert [verdict(window, number) for number in range(9)] == [
        "replay",
        "replay",
        "replay",
        "replay",
        "",
        "",
        "",
        "replay",
        "",
    ]


def test_a_number_1023_behind_is_still_told_and_one_1024_behind_is_stale() -> None:
    window = accepting(2000)
    assert verdict(window, 2000 - 1023) == ""
    assert verdict(window, 2000 - 1024) == "stale"
    window.accept(2000 - 1023)
    assert verdict(window, 2000 - 1023) == "replay"
    assert verdict(window, 2000 - 1024) == "stale"


@pytest.mark.parametrize("ahead", [1, 2, 1022, 1023])
def test_what_was_seen_is_still_known_when_a_number_comes_up_to_1023_ahead(ahead: int) -> None:
    window = accepting(100, 102, 100 + ahead + 2)
    assert verdict(window, 102) == "replay"
    assert verdict(window, 101) == ("" if ahead < 1023 else "stale")


@pytest.mark.parametrize(("ahead", "reason"), [(1023, "replay"), (1024, "stale"), (1025, "stale")])
def test_the_edge_of_what_is_remembered_lies_between_1023_and_1024_ahead(ahead: int, reason: str) -> None:
    assert verdict(accepting(100, 100 + ahead), 100) == reason


@pytest.mark.parametrize("ahead", [1024, 1025, 2**32 - 101, 2**64])
def test_a_number_far_ahead_leaves_a_window_in_which_only_it_was_seen(ahead: int) -> None:
    window = accepting(*range(90, 101), 100 + ahead)
    assert verdict(window, 100 + ahead) == "replay"
    assert all(verdict(window, 100 + ahead - behind) == "" for behind in range(1, 1024))
    assert verdict(window, 100 + ahead - 1024) == "stale"


def test_a_number_that_is_too_old_stays_refused() -> None:
    window = accepting(0, 5000)
    assert verdict(window, 0) == "stale"
    assert verdict(window, 1) == "stale"


@given(st.lists(st.one_of(st.integers(0, 2100), st.integers(0, 2**32 - 1)), max_size=60))
def test_it_decides_as_a_set_of_all_numbers_would(numbers: list[int]) -> None:
    window = ReplayWindow()
    seen: set[int] = set()
    for number in numbers:
        expected = "replay" if number in seen else ""
        if seen and number <= max(seen) - 1024:
            expected = "stale"
        assert verdict(window, number) == expected
        if not expected:
            window.accept(number)
            seen.add(number)
