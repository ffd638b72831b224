"""Whole rounds over every broker and MQTT version: gateway, devices, models, connections, all real."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from live import SETTINGS, LiveFederation

from edge_fi.adapters.mqtt import Version
from edge_fi.demo.members import heldout
from edge_fi.messages import Fate, Form, Status
from edge_fi.round import RoundPolicy

ALL = ("pi-01", "pi-02", "pi-03")


@pytest.fixture(params=SETTINGS, ids=["-".join(setting) for setting in SETTINGS])
def setting(request: pytest.FixtureRequest) -> tuple[str, Version]:
    parameter: tuple[str, Version] = request.param
    return parameter


@pytest.fixture
def live(setting: tuple[str, Version], tmp_path: Path) -> Iterator[LiveFederation]:
    with LiveFederation(tmp_path, *setting) as federation:
        federation.await_all()
        yield federation


def test_every_device_is_counted_and_nothing_is_rejected(live: LiveFederation) -> None:
    for number in range(20):
        outcome = live.ask(number)
        assert outcome.status is Status.ANSWERED
        assert outcome.members(Fate.COUNTED) == ALL
    assert live.rejected == []
    assert [
        notice for device in live.devices for notice in device.notices if "Rejected" in repr(notice)
    ] == []


def test_what_comes_over_the_wire_is_what_the_models_say(live: LiveFederation) -> None:
    """The federation over a broker agrees, vote by vote, with the models run here."""
    policy = RoundPolicy(timeout_s=10, forms=frozenset({Form.PROBS_8}))
    live.gateway.policy = policy
    for number in range(10):
        votes = live.ask(number).votes
        assert len(votes) == 3
        for vote, device in zip(votes, live.devices, strict=True):
            model = device.pump._model
            assert model is not None
            (logits,) = model.infer([heldout()[0][number]])
            assert logits is not None
            expected = np.zeros(10)
            expected[list(device.pump._machine.labelling.classes)] = np.exp(logits - logits.max())  # type: ignore[attr-defined]
            expected /= expected.sum()
            # Half a step of 1/255 of the greatest, before and after the sum is made 1.
            assert np.abs(vote.probabilities - expected).max() < 0.01


def test_queries_that_come_at_once_are_all_answered_by_all(live: LiveFederation) -> None:
    for number in range(200):
        live.start_round(number)
    assert live.pump.run_until(lambda: len(live.outcomes) == 200, timeout_s=30)
    assert {outcome.members(Fate.COUNTED) for outcome in live.outcomes.values()} == {ALL}


def test_after_a_broker_restart_the_next_query_is_answered_by_all_within_ten_seconds(
    live: LiveFederation,
) -> None:
    assert live.ask(0).members(Fate.COUNTED) == ALL
    live.broker.kill()
    assert live.pump.run_until(lambda: not live.link.is_up, timeout_s=10)
    live.broker.start()
    began = time.monotonic()
    outcome = live.ask(1)
    assert outcome.members(Fate.COUNTED) == ALL
    assert time.monotonic() - began < 10


def test_a_query_asked_while_the_broker_is_away_waits_for_it(live: LiveFederation) -> None:
    live.broker.kill()
    assert live.pump.run_until(lambda: not live.link.is_up, timeout_s=10)
    live.start_round(1)
    live.pump.run_until(lambda: False, timeout_s=0.2)
    live.broker.start()
    assert live.pump.run_until(lambda: 1 in live.outcomes, timeout_s=12)
    assert live.outcomes[1].members(Fate.COUNTED) == ALL


def test_after_a_gateway_restart_the_devices_join_anew(live: LiveFederation) -> None:
    assert live.ask(0).members(Fate.COUNTED) == ALL
    live.pump.close()
    live.start_gateway()
    live.await_all(within_s=10)
    assert live.ask(1).members(Fate.COUNTED) == ALL


def test_a_device_that_left_is_missing_at_the_deadline_and_the_rest_is_counted(live: LiveFederation) -> None:
    live.gateway.policy = RoundPolicy(timeout_s=1.0)
    live.devices[1].stop()
    outcome = live.ask(0)
    assert outcome.status is Status.ANSWERED
    assert outcome.members(Fate.MISSING) == ("pi-02",)
    assert outcome.members(Fate.COUNTED) == ("pi-01", "pi-03")
    assert 1.0 <= outcome.elapsed_us / 1e6 < 2.0
    live.devices.pop(1)
