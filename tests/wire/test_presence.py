"""Presence: what a gateway says of itself, and that nothing else is taken for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_fi.wire import presence


def test_a_gateway_says_that_it_is_ready_and_which_run_it_is() -> None:
    assert presence.build_gateway_state(0xBEEF) == b"ready 0000beef"


@given(st.integers(0, 2**32 - 1))
def test_every_boot_number_travels(boot: int) -> None:
    assert presence.parse_gateway_state(presence.build_gateway_state(boot)) == boot


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"ready",
        b"ready ",
        presence.INIT,
        presence.LOST,
        presence.DISCONNECTED,
        b"ready 0000bee",
        b"ready 0000beef0",
        b"ready 0000beef\n",
        b"Ready 0000beef",
        b"ready  000beef",
        b"ready +000beef",
        b"ready -000beef",
        b"ready 0x00beef",
        b"ready 00_0beef",
        b"ready 0000BEEF",
        b"ready 0000beeg",
        b"ready 0000bee\xff",
        b"lost 0000beef",
        b" ready 0000beef",
    ],
)
def test_anything_else_says_nothing(payload: bytes) -> None:
    assert presence.parse_gateway_state(payload) is None


@given(
    st.one_of(st.binary(max_size=20), st.binary(min_size=8, max_size=8).map(lambda boot: b"ready " + boot))
)
def test_arbitrary_bytes_say_nothing_or_are_what_a_gateway_says(payload: bytes) -> None:
    boot = presence.parse_gateway_state(payload)
    assert boot is None or presence.build_gateway_state(boot) == payload


def test_the_states_of_a_device_are_these_words() -> None:
    states = (presence.INIT, presence.READY, presence.DISCONNECTED, presence.LOST)
    assert states == (b"init", b"ready", b"disconnected", b"lost")
