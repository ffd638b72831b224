"""A whole federation: the machines of floor 2 joined by a simulated broker and its links."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from federation import TENSOR, Federation, constant, lone_client, rotated

import edge_fi.gateway
from edge_fi.crypto.keys import SigningKey
from edge_fi.effects import Deliver, Effect, Publish
from edge_fi.epoch import MAX_AHEAD
from edge_fi.gateway import EPOCH_US, MISSED_UNTIL_SILENT
from edge_fi.messages import Array, Fate, Form, Outcome, Status, Task, Tensor
from edge_fi.round import RoundPolicy
from edge_fi.session import SESSION_US
from edge_fi.voting.strategy import STRATEGIES, Ballots
from edge_fi.wire.frames import parse_query
from edge_fi.wire.topics import matches
from firmware_sim.clock import Clock
from firmware_sim.fleet import Fleet, Model
from firmware_sim.link import PERFECT, Link
from firmware_sim.stream import Stream

A_ = constant(5, 0, 0, 0)
B_ = constant(0, 5, 0, 0)
C_ = constant(0, 0, 5, 0)
HESITANT_A = constant(1, 0.9, 0, 0)
DEAD = Link(loss=1.0)
LINKS = {
    "loss": Link(loss=0.1),
    "delay": Link(delay_us=150_000),
    "duplication": Link(duplication=0.5),
    "reordering": Link(jitter_us=200_000),
    "all of it": Link(delay_us=20_000, jitter_us=100_000, loss=0.1, duplication=0.2),
}


def silence(federation: Federation, name: str) -> None:
    """From now on nothing reaches this node and nothing comes from it, and nobody is told."""
    federation.fleet.nodes[name].link = DEAD


# Rounds


def test_a_federation_joins_and_agrees() -> None:
    federation = Federation([A_, A_, B_]).join()
    assert federation.gateway.online(1) == ("pi-1", "pi-2", "pi-3")
    outcome = federation.ask()
    assert (outcome.status, outcome.label, outcome.seq) == (Status.ANSWERED, 0, 1)
    assert outcome.agreement == pytest.approx(2 / 3)
    assert outcome.members(Fate.COUNTED) == ("pi-1", "pi-2", "pi-3")


def test_a_join_takes_one_hello_one_welcome_and_one_ready_each() -> None:
    federation = Federation([A_] * 3).join()
    kinds = Counter(
        payload[0] for topic, payload in federation.fleet.published if topic[9:11] in ("a/", "d/")
    )
    assert kinds == {0x10: 3, 0x11: 3, 0x12: 3}


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_every_strategy_finds_what_all_agree_on(strategy: str) -> None:
    federation = Federation([C_, C_, C_], policy=RoundPolicy(strategy=strategy)).join()
    outcome = federation.ask()
    assert (outcome.label, outcome.strategy) == (2, strategy)


def test_without_gates_a_sure_device_outweighs_two_hesitant_ones_and_not_by_count() -> None:
    def label(strategy: str) -> int | None:
        policy = RoundPolicy(strategy=strategy, forms=frozenset({Form.PROBS_8}))
        return Federation([HESITANT_A, HESITANT_A, B_], policy=policy).join().ask().label

    assert label("familiarity") == 1
    assert label("hard") == 0


def test_a_strategy_of_the_users_own_decides() -> None:
    def veto(ballots: Ballots) -> Array:
        smallest: Array = ballots.probabilities.min(axis=0)
        return np.asarray(smallest / smallest.sum(), np.float64)

    federation = Federation([A_, A_], policy=RoundPolicy(strategy="veto"), strategies={"veto": veto})
    assert federation.join().ask().label == 0


def test_below_the_quorum_there_is_no_outcome() -> None:
    federation = Federation([A_, A_, A_], policy=RoundPolicy(quorum=3)).join()
    assert federation.ask().status is Status.ANSWERED
    silence(federation, "pi-2")
    outcome = federation.ask()
    assert (outcome.status, outcome.label) == (Status.NO_QUORUM, None)
    assert outcome.members(Fate.MISSING) == ("pi-2",)


def test_enough_votes_silence_whoever_is_still_inferring() -> None:
    federation = Federation([A_, A_, A_], policy=RoundPolicy(stop_after=2)).join()
    federation.fleet.nodes["pi-3"].infer_us = 300_000
    outcome = federation.ask()
    assert outcome.members(Fate.COUNTED) == ("pi-1", "pi-2")
    assert outcome.members(Fate.SILENCED) == ("pi-3",)
    assert len(federation.frames("q", 0x03)) == 1
    assert federation.frames("a", 0x02)[2:] == []
    assert federation.fleet.nodes["pi-3"].rejected == {"ticket": 1}


def test_a_deadline_names_who_is_missing() -> None:
    federation = Federation([A_, A_, A_]).join()
    silence(federation, "pi-2")
    outcome = federation.ask()
    assert outcome.status is Status.ANSWERED
    assert outcome.members(Fate.MISSING) == ("pi-2",)
    assert outcome.elapsed_us == 2_000_000


def test_a_re_ask_reaches_a_device_that_missed_the_query() -> None:
    federation = Federation([A_, A_]).join()
    silence(federation, "pi-2")
    reference = federation.start()
    federation.fleet.run(0.1)
    federation.fleet.nodes["pi-2"].link = PERFECT
    federation.fleet.run(10)
    outcome = federation.gateway_node.outcomes[reference]
    assert outcome.members(Fate.COUNTED) == ("pi-1", "pi-2")
    assert outcome.elapsed_us == 500_000
    assert federation.frames("d", 0x01) == federation.frames("q", 0x01)


def test_an_answer_that_was_lost_comes_again_with_the_same_bytes() -> None:
    federation = Federation([A_]).join()
    node = federation.fleet.nodes["pi-1"]
    node.infer_us = 100_000
    reference = federation.start()
    federation.fleet.run(0.05)
    silence(federation, "pi-1")
    federation.fleet.run(0.1)
    node.link = PERFECT
    federation.fleet.run(10)
    assert federation.gateway_node.outcomes[reference].members(Fate.COUNTED) == ("pi-1",)
    lost, heard = [e for e in node.effects if isinstance(e, Publish) and e.payload[:1] == b"\x02"]
    assert lost == heard and federation.frames("a", 0x02) == [heard.payload]


@pytest.mark.parametrize(
    "model",
    [
        lambda tensor: None,
        constant(np.nan, 0, 0, 0),
        constant(np.inf, 0, 0, 0),
        constant(1, 2),
    ],
    ids=["none", "nan", "inf", "wrong shape"],
)
def test_a_model_that_fails_abstains_and_the_others_decide(model: Model) -> None:
    federation = Federation([A_, model]).join()
    outcome = federation.ask()
    assert (outcome.status, outcome.label) == (Status.ANSWERED, 0)
    assert outcome.members(Fate.DECLINED) == ("pi-2",)


def test_when_all_abstain_so_does_the_federation() -> None:
    federation = Federation([lambda tensor: None] * 2).join()
    assert federation.ask().status is Status.ABSTAINED


def test_models_that_know_only_some_labels_cover_them_together() -> None:
    federation = Federation(
        [constant(4, 0), constant(4, 0), constant(0, 0.1)],
        classes={"pi-1": (2, 0), "pi-2": (2, 3), "pi-3": (0, 1)},
        policy=RoundPolicy(forms=frozenset({Form.LOGITS_8})),
    ).join()
    outcome = federation.ask()
    assert outcome.label == 2
    by_name = {vote.device: vote.probabilities for vote in outcome.votes}
    assert by_name["pi-1"][[1, 3]].tolist() == [0.0, 0.0]
    assert by_name["pi-3"][[2, 3]].tolist() == [0.0, 0.0]


def test_a_model_sees_the_tensor_that_was_asked() -> None:
    def reads(tensor: Tensor) -> Array:
        return np.asarray(np.eye(4)[tensor.content[0]] * 5, np.float64)

    federation = Federation([reads] * 2).join()
    labels = [federation.ask(Tensor("uint8", (2,), bytes([label, 9]))).label for label in range(4)]
    assert labels == [0, 1, 2, 3]


# Restarts


def test_a_device_that_dies_mid_round_is_missing_and_the_others_decide() -> None:
    federation = Federation([A_, A_]).join()
    federation.fleet.nodes["pi-2"].infer_us = 100_000
    reference = federation.start()
    federation.fleet.run(0.05)
    federation.fleet.disconnect("pi-2")
    federation.fleet.run(10)
    outcome = federation.gateway_node.outcomes[reference]
    assert (outcome.label, outcome.members(Fate.MISSING)) == (0, ("pi-2",))


def test_a_device_that_reboots_mid_round_still_answers_under_a_new_session() -> None:
    federation = Federation([A_, A_]).join()
    federation.fleet.nodes["pi-2"].infer_us = 100_000
    reference = federation.start()
    federation.fleet.run(0.05)
    federation.reboot("pi-2")
    federation.fleet.run(10)
    outcome = federation.gateway_node.outcomes[reference]
    assert outcome.members(Fate.COUNTED) == ("pi-1", "pi-2")
    assert outcome.elapsed_us < 100_000


def test_a_device_that_answered_and_rebooted_is_counted_once() -> None:
    federation = Federation([A_, A_]).join()
    federation.fleet.nodes["pi-1"].infer_us = 1_000_000
    reference = federation.start()
    federation.fleet.run(0.1)
    federation.reboot("pi-2")
    federation.fleet.run(10)
    outcome = federation.gateway_node.outcomes[reference]
    assert len(outcome.votes) == 2 and outcome.members(Fate.COUNTED) == ("pi-1", "pi-2")


def test_a_device_with_another_model_joins_anew_and_is_heard() -> None:
    federation = Federation([A_, A_]).join()
    federation.reboot("pi-2", model=b"model-02")
    federation.fleet.run(5)
    assert federation.ask().members(Fate.COUNTED) == ("pi-1", "pi-2")


def test_devices_rejoin_a_restarted_gateway_by_its_state() -> None:
    federation = Federation([A_] * 3).join()
    federation.ask()
    federation.restart_gateway()
    assert federation.gateway.online(1) == ()
    federation.fleet.run(5)
    assert federation.gateway.online(1) == ("pi-1", "pi-2", "pi-3")
    outcome = federation.ask()
    assert (outcome.status, outcome.seq) == (Status.ANSWERED, 1)


def test_a_device_rejoins_a_restarted_gateway_by_a_query_of_an_unknown_epoch() -> None:
    federation = Federation([A_, A_]).join()
    federation.fleet.disconnect("pi-2")
    federation.restart_gateway()
    federation.fleet.run(5)
    federation.fleet._retained.clear()
    federation.fleet.connect("pi-2")
    federation.fleet.run(5)
    assert federation.gateway.online(1) == ("pi-1",)
    federation.ask()
    assert federation.gateway.online(1) == ("pi-1", "pi-2")
    assert federation.ask().members(Fate.COUNTED) == ("pi-1", "pi-2")


def test_a_gateway_that_restarts_forgets_its_rounds_and_the_devices_their_answers() -> None:
    federation = Federation([A_]).join()
    federation.fleet.nodes["pi-1"].infer_us = 1_000_000
    reference = federation.start()
    federation.fleet.run(0.1)
    federation.restart_gateway()
    federation.fleet.run(10)
    assert reference not in federation.gateway_node.outcomes
    assert federation.fleet.nodes["pi-1"].rejected == {"ticket": 1}


def test_after_the_broker_restarts_everybody_goes_on_with_the_session_it_had() -> None:
    federation = Federation([A_, A_], clients=1).join()
    federation.fleet.restart_broker()
    federation.fleet.run(1)
    for name in federation.fleet.nodes:
        federation.fleet.connect(name)
    federation.fleet.run(1)
    assert federation.ask().members(Fate.COUNTED) == ("pi-1", "pi-2")
    assert len(federation.frames("a", 0x10)) == 2


def test_a_query_that_the_broker_lost_in_its_restart_is_answered_after_it() -> None:
    federation = Federation([A_, A_], policy=RoundPolicy(timeout_s=20)).join()
    federation.fleet.restart_broker()
    reference = federation.start()
    federation.fleet.run(3)
    for name in federation.fleet.nodes:
        federation.fleet.connect(name)
    federation.fleet.run(20)
    outcome = federation.gateway_node.outcomes[reference]
    assert outcome.members(Fate.COUNTED) == ("pi-1", "pi-2")
    assert outcome.elapsed_us == 3_000_000


def test_a_lost_welcome_comes_again() -> None:
    federation = Federation([A_])
    for name in ("gateway", "pi-1"):
        federation.fleet.connect(name)
    federation.fleet.run(0)
    silence(federation, "pi-1")
    federation.fleet.run(0.1)
    assert len(federation.frames("d", 0x11)) == 1
    federation.fleet.nodes["pi-1"].link = PERFECT
    federation.fleet.run(5)
    assert federation.gateway.online(1) == ("pi-1",)
    assert len(set(federation.frames("d", 0x11))) == 1


def test_a_lost_ready_comes_again() -> None:
    federation = Federation([A_])
    federation.fleet.nodes["pi-1"].link = Link(delay_us=50_000)
    for name in ("gateway", "pi-1"):
        federation.fleet.connect(name)
    federation.fleet.run(0.14)
    silence(federation, "gateway")
    federation.fleet.run(0.1)
    assert len(federation.frames("a", 0x12)) == 1 and federation.gateway.online(1) == ()
    federation.gateway_node.link = PERFECT
    federation.fleet.run(2)
    assert federation.gateway.online(1) == ("pi-1",)
    assert len(federation.frames("a", 0x10)) == 1


def test_two_old_hellos_replayed_before_ready_do_not_lock_a_device_out() -> None:
    federation = Federation([A_, A_]).join()
    for boot in (1, 2):
        federation.reboot("pi-1", boot=boot)
        federation.fleet.run(1)
    first, _, second, _ = federation.frames("a", 0x10)
    federation.restart_gateway()  # or it would know them as replays
    federation.fleet.run(5)
    federation.reboot("pi-1", boot=3)
    federation.fleet.nodes["pi-1"].link = Link(delay_us=50_000)
    federation.fleet.run(0.06)
    federation.inject("a/pi-1", first)
    federation.inject("a/pi-1", second)
    federation.fleet.run(30)
    assert federation.gateway_node.rejected["session"] == 1
    assert federation.ask().members(Fate.COUNTED) == ("pi-1", "pi-2")


def test_over_a_link_slower_than_the_first_resend_members_join_once_and_stay() -> None:
    """Each HELLO sent again brings a copy of the WELCOME, which says nothing new."""
    federation = Federation([A_], clients=1)
    for name in ("pi-1", "laptop-1"):
        federation.fleet.nodes[name].link = Link(delay_us=700_000)
    federation.join(300)
    for level in ("a", "ca"):
        hellos = federation.frames(level, 0x10)
        assert len(hellos) > 1 and len(set(hellos)) == 1
    assert federation.ask(policy=RoundPolicy(timeout_s=5)).members(Fate.COUNTED) == ("pi-1",)


def test_after_a_day_sessions_are_renewed_and_no_round_is_lost() -> None:
    federation = Federation([A_, A_], clients=1).join()
    federation.fleet.run(SESSION_US / 1_000_000 - 20)
    for _ in range(40):
        outcome = federation.ask(seconds=1)
        assert outcome.members(Fate.COUNTED) == ("pi-1", "pi-2")
    assert len(set(federation.frames("a", 0x10))) == 4
    assert len(set(federation.frames("ca", 0x10))) == 2
    assert asked(federation).label == 0


def test_a_query_on_its_way_while_a_session_is_renewed_is_counted() -> None:
    federation = Federation([A_], policy=RoundPolicy(timeout_s=5)).join()
    federation.fleet.run(3600)
    federation.reboot("pi-1")  # or its session's day would end with the epoch's
    federation.fleet.nodes["pi-1"].infer_us = 1_000_000
    federation.fleet.run(SESSION_US / 1_000_000 - 0.2)
    assert federation.ask(seconds=10).members(Fate.COUNTED) == ("pi-1",)
    assert len(set(federation.frames("a", 0x10))) == 3


# Epochs


def epochs_of(federation: Federation) -> list[int]:
    """The epochs of all queries, in the order in which they were asked."""
    return list(dict.fromkeys(parse_query(frame).epoch for frame in federation.frames("q", 0x01)))


def test_each_day_has_its_epoch_and_no_round_is_lost_at_its_end() -> None:
    federation = Federation([A_, A_], policy=RoundPolicy(timeout_s=5)).join()
    federation.fleet.run(3600)
    for name in federation.names:
        federation.reboot(name)
    federation.fleet.run((EPOCH_US - federation.fleet.clock.now) / 1_000_000 - 4)
    for name in federation.names:
        federation.fleet.nodes[name].infer_us = 800_000
    for _ in range(8):
        assert federation.ask(seconds=1).members(Fate.COUNTED) == ("pi-1", "pi-2")
    first, second = epochs_of(federation)
    assert second == first + 1
    assert len(set(federation.frames("d", 0x13))) == len(federation.frames("d", 0x13)) == 2
    assert len(federation.frames("a", 0x10)) == 2 * 2


def test_a_query_on_its_way_while_session_and_epoch_both_end_is_missing_and_causes_no_storm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The new session never had the query's epoch. A copy that is on its way may pass for a hint, once."""
    monkeypatch.setattr(edge_fi.gateway, "EPOCH_US", SESSION_US)
    policy = RoundPolicy(timeout_s=100, reask_s=30)
    federation = Federation([A_], policy=policy).join()
    federation.fleet.nodes["pi-1"].infer_us = 1_000_000
    federation.fleet.run((SESSION_US - federation.fleet.clock.now) / 1_000_000 - 0.2)
    reference = federation.start()
    federation.fleet.run(50)
    for _ in range(10):  # each time, it says READY
        federation.fleet.disconnect("pi-1")
        federation.fleet.connect("pi-1")
        federation.fleet.run(5)
    assert federation.gateway_node.outcomes[reference].members(Fate.MISSING) == ("pi-1",)
    assert len(set(federation.frames("a", 0x10))) <= 1 + 2
    assert federation.ask().members(Fate.COUNTED) == ("pi-1",)


def test_a_lost_rekey_comes_again_and_its_query_is_counted() -> None:
    federation = Federation([A_, A_], policy=RoundPolicy(timeout_s=5, reask_s=4)).join()
    silence(federation, "pi-2")
    federation.update(rotated(federation.roster))
    federation.fleet.run(0.1)
    federation.fleet.nodes["pi-2"].link = PERFECT
    federation.fleet.run(1)  # the first of its resends
    outcome = federation.ask()
    assert outcome.members(Fate.COUNTED) == ("pi-1", "pi-2") and outcome.elapsed_us == 0
    assert len(federation.frames("a", 0x10)) == 2


def test_a_lost_rekey_comes_before_a_query_that_is_asked_again() -> None:
    federation = Federation([A_, A_], policy=RoundPolicy(timeout_s=5, reask_s=0.5)).join()
    silence(federation, "pi-2")
    federation.update(rotated(federation.roster))
    reference = federation.start()
    federation.fleet.run(0.1)
    federation.fleet.nodes["pi-2"].link = PERFECT
    federation.fleet.run(10)
    outcome = federation.gateway_node.outcomes[reference]
    assert outcome.members(Fate.COUNTED) == ("pi-1", "pi-2") and outcome.elapsed_us == 500_000
    assert len(federation.frames("a", 0x10)) == 2


def test_a_device_that_was_away_while_the_epoch_changed_is_given_it_when_it_is_back() -> None:
    federation = Federation([A_, A_], policy=RoundPolicy(timeout_s=60)).join()
    federation.fleet.disconnect("pi-2")
    for _ in range(3):
        federation.update(rotated(federation.roster))
        federation.fleet.run(100)
    reference = federation.start()
    federation.fleet.run(10)
    federation.fleet.connect("pi-2")
    federation.fleet.run(1)
    outcome = federation.gateway_node.outcomes[reference]
    assert outcome.members(Fate.COUNTED) == ("pi-1", "pi-2") and outcome.elapsed_us == 10_000_000
    assert len(federation.frames("a", 0x10)) == 2


def test_with_a_new_signing_key_everybody_goes_on() -> None:
    federation = Federation([A_, A_], clients=1).join()
    federation.fleet.disconnect("pi-2")
    new = SigningKey.from_seed(b"n" * 32)
    identity = replace(federation.gateway.identity, signing=new)
    now = federation.fleet.clock.now
    effects = federation.gateway.update(federation.roster, now=now, identity=identity)
    federation.fleet.perform(federation.gateway_node, effects)
    federation.fleet.run(60)
    federation.fleet.connect("pi-2")
    federation.fleet.run(1)
    assert federation.ask().members(Fate.COUNTED) == ("pi-1", "pi-2")
    assert asked(federation).label == 0
    assert len(federation.frames("a", 0x10)) == 2


# Silent members, limits


def test_a_member_silent_for_three_rounds_is_not_awaited_until_it_is_heard() -> None:
    federation = Federation([A_, A_]).join()
    silence(federation, "pi-2")
    for _ in range(MISSED_UNTIL_SILENT):
        assert federation.ask().elapsed_us == 2_000_000
    assert federation.ask().elapsed_us == 0
    federation.fleet.nodes["pi-2"].link = PERFECT
    assert federation.ask().elapsed_us == 0
    assert federation.gateway_node.rejected["late"] == 1
    federation.fleet.nodes["pi-2"].infer_us = 100_000
    outcome = federation.ask()
    assert outcome.members(Fate.COUNTED) == ("pi-1", "pi-2")
    assert outcome.elapsed_us == 100_000


def test_the_513th_open_query_is_overloaded() -> None:
    federation = Federation([A_]).join()
    federation.fleet.nodes["pi-1"].infer_us = 1_000_000
    references = [federation.start() for _ in range(MAX_AHEAD + 1)]
    federation.fleet.run(30)
    statuses = Counter(federation.gateway_node.outcomes[r].status for r in references)
    assert statuses == {Status.ANSWERED: MAX_AHEAD, Status.OVERLOADED: 1}
    assert federation.gateway_node.outcomes[references[-1]].status is Status.OVERLOADED


# Clients


def asked(federation: Federation, *, deadline_ms: int = 5000, seconds: float = 10) -> Outcome:
    """What laptop-1 is told."""
    federation.client_asks("q", deadline_ms=deadline_ms)
    federation.fleet.run(seconds)
    return federation.fleet.nodes["laptop-1"].outcomes.pop("q")


def test_a_client_is_told_what_the_federation_says() -> None:
    outcome = asked(Federation([A_, A_], clients=1).join())
    assert (outcome.status, outcome.label, outcome.votes) == (Status.ANSWERED, 0, ())
    assert outcome.members(Fate.COUNTED) == ("pi-1", "pi-2")


def test_a_question_asked_before_anybody_joined_is_answered() -> None:
    federation = Federation([A_], clients=1)
    federation.client_asks("q")
    for name in ("gateway", "pi-1"):
        federation.fleet.connect(name)
    federation.fleet.run(1)
    federation.fleet.connect("laptop-1")
    federation.fleet.run(3)
    assert federation.fleet.nodes["laptop-1"].outcomes["q"].label == 0


def test_a_lost_ask_is_resent_and_answered_once() -> None:
    federation = Federation([A_], clients=1).join()
    silence(federation, "laptop-1")
    federation.client_asks("q")
    federation.fleet.run(0.5)
    federation.fleet.nodes["laptop-1"].link = PERFECT
    federation.fleet.run(5)
    assert federation.fleet.nodes["laptop-1"].outcomes["q"].label == 0
    assert len(federation.frames("q", 0x01)) == 1


def test_a_lost_outcome_is_sent_again_without_another_round() -> None:
    federation = Federation([A_], clients=1).join()
    federation.fleet.nodes["pi-1"].infer_us = 200_000
    federation.client_asks("q")
    federation.fleet.run(0.1)
    silence(federation, "laptop-1")
    federation.fleet.run(0.5)
    federation.fleet.nodes["laptop-1"].link = PERFECT
    federation.fleet.run(5)
    assert federation.fleet.nodes["laptop-1"].outcomes["q"].label == 0
    assert len(federation.frames("q", 0x01)) == 1
    assert len(set(federation.frames("cd", 0x21))) == 1 and len(federation.frames("cd", 0x21)) == 2


def test_a_question_survives_a_restart_of_the_gateway_that_its_client_slept_through() -> None:
    federation = Federation([A_], clients=1).join()
    federation.fleet.nodes["pi-1"].infer_us = 300_000
    federation.client_asks("q", deadline_ms=20_000)
    federation.fleet.run(0.1)
    federation.fleet.disconnect("laptop-1")
    federation.restart_gateway()
    federation.fleet.run(5)
    federation.fleet.connect("laptop-1")
    federation.fleet.run(5)
    assert federation.fleet.nodes["laptop-1"].outcomes["q"].label == 0


def test_a_client_that_missed_the_restart_of_the_gateway_finds_out_by_its_silence() -> None:
    federation = Federation([A_], clients=1).join()
    federation.fleet.disconnect("laptop-1")
    federation.restart_gateway()
    federation.fleet.run(5)
    federation.fleet._retained.clear()
    federation.fleet.connect("laptop-1")
    assert asked(federation).status is Status.UNREACHABLE
    assert asked(federation).label == 0


def test_without_a_gateway_a_question_is_unreachable() -> None:
    federation = Federation([A_], clients=1).join()
    federation.fleet.disconnect("gateway")
    assert asked(federation).status is Status.UNREACHABLE


def test_without_devices_a_client_is_told_so() -> None:
    assert asked(Federation([], clients=1).join()).status is Status.NO_MEMBERS


def test_a_client_of_another_task_is_refused() -> None:
    federation = Federation([A_], clients=1).join()
    node = federation.fleet.nodes["laptop-1"]
    other = Task(name="other", number=2, labels=("a", "b"), shape=(2,), dtype="uint8")
    effects = federation.client().ask(
        other, TENSOR, deadline_ms=1000, reference="q", now=federation.fleet.clock.now
    )
    federation.fleet.perform(node, effects)
    federation.fleet.run(5)
    assert node.outcomes["q"].status is Status.REFUSED


def test_a_client_is_told_when_the_gateway_is_overloaded() -> None:
    federation = Federation([A_], clients=1).join()
    federation.fleet.nodes["pi-1"].infer_us = 1_000_000
    for _ in range(MAX_AHEAD):
        federation.start()
    assert asked(federation).status is Status.OVERLOADED


def test_a_client_that_restarts_is_not_given_an_answer_to_its_former_question() -> None:
    federation = Federation([A_], clients=1).join()
    federation.fleet.nodes["pi-1"].infer_us = 1_000_000
    federation.client_asks("former")
    federation.fleet.run(0.1)
    federation.fleet.disconnect("laptop-1")
    federation.fleet.add("laptop-1", lone_client(life=1))
    federation.fleet.connect("laptop-1")
    federation.fleet.run(0.1)
    federation.fleet.nodes["pi-1"].model = B_
    federation.client_asks("next", tensor=Tensor("uint8", (2,), b"zz"))
    federation.fleet.run(0.85)
    federation.fleet.nodes["pi-1"].model = C_
    federation.fleet.run(10)
    outcomes = federation.fleet.nodes["laptop-1"].outcomes
    assert set(outcomes) == {"next"} and outcomes["next"].label == 2


# Determinism


def story(seed: str) -> list[tuple[str, bytes]]:
    """Everything the broker saw of an eventful day."""
    federation = Federation([A_, B_, C_], clients=1, seed=seed, link=LINKS["all of it"]).join()
    federation.ask()
    federation.client_asks("q")
    federation.reboot("pi-2")
    federation.fleet.run(10)
    federation.restart_gateway()
    federation.fleet.run(10)
    federation.ask()
    return federation.fleet.published


def test_the_same_seed_gives_the_same_bytes_on_every_topic() -> None:
    assert story("one") == story("one")


def test_another_seed_gives_other_bytes() -> None:
    one, other = ({payload for _, payload in story(seed) if len(payload) > 20} for seed in ("one", "two"))
    assert one and other and not one & other


# Links


@pytest.fixture(params=LINKS)
def link(request: pytest.FixtureRequest) -> Link:
    """A bad link, for everybody."""
    return LINKS[request.param]


def test_over_a_bad_link_a_federation_joins_answers_and_tells_its_client(link: Link) -> None:
    policy = RoundPolicy(timeout_s=10, reask_s=1)
    federation = Federation([A_] * 5, clients=1, link=link, policy=policy).join(60)
    assert federation.gateway.online(1) == ("pi-1", "pi-2", "pi-3", "pi-4", "pi-5")
    counted: Counter[str] = Counter()
    for _ in range(10):
        outcome = federation.ask()
        assert (outcome.status, outcome.label) == (Status.ANSWERED, 0)
        counted.update(outcome.members(Fate.COUNTED))
    # Asked twice at most: over four lossy hops each, at 10 % a hop, 88 % of the answers come.
    assert counted.total() >= 40
    assert asked(federation, deadline_ms=20_000, seconds=30).label == 0


def test_over_a_bad_link_epochs_change_in_the_middle_of_rounds_and_these_are_answered(link: Link) -> None:
    policy = RoundPolicy(timeout_s=10, reask_s=1)
    federation = Federation([A_] * 5, link=link, policy=policy).join(60)
    counted: Counter[str] = Counter()
    for _ in range(10):
        for name in federation.names:
            federation.fleet.nodes[name].infer_us = 200_000
        before = federation.start()
        federation.fleet.run(0.1)
        federation.update(rotated(federation.roster))
        after = federation.start()
        federation.fleet.run(30)
        for reference in (before, after):
            outcome = federation.gateway_node.outcomes[reference]
            assert (outcome.status, outcome.label) == (Status.ANSWERED, 0)
            counted.update(outcome.members(Fate.COUNTED))
    assert len(epochs_of(federation)) == 11
    assert counted.total() >= 80
    assert federation.gateway.online(1) == ("pi-1", "pi-2", "pi-3", "pi-4", "pi-5")


# The simulator's own pieces


def test_a_clock_runs_what_is_due_in_the_order_of_time_then_of_coming() -> None:
    clock, seen = Clock(), []
    for time, name in ((5, "c"), (3, "a"), (3, "b"), (9, "never")):
        clock.at(time, lambda name=name: seen.append((clock.now, name)))  # type: ignore[misc]
    clock.run(8)
    assert seen == [(3, "a"), (3, "b"), (5, "c")] and clock.now == 8


def test_a_clock_never_goes_back() -> None:
    clock, seen = Clock(), []
    clock.run(10)
    clock.at(4, lambda: seen.append(clock.now))
    clock.run(10)
    assert seen == [10]


def test_a_stream_is_a_function_of_its_seed_and_not_of_the_sizes_drawn() -> None:
    one, other = Stream("seed"), Stream("seed")
    assert one(100) + one(3) == other(1) + other(102)
    assert Stream("else")(103) != Stream("seed")(103)
    assert one(0) == b""


def test_chances_are_spread_over_the_unit_interval() -> None:
    stream = Stream("dice")
    draws = [stream.chance() for _ in range(2000)]
    assert 0 <= min(draws) < 0.01 and 0.99 < max(draws) < 1
    assert sum(draws) / 2000 == pytest.approx(0.5, abs=0.02)


def test_a_perfect_link_delivers_at_once_and_once() -> None:
    assert PERFECT.delays(Stream("any")) == [0]


def test_a_link_loses_duplicates_and_delays_as_often_as_it_says() -> None:
    stream, link = Stream("link"), Link(delay_us=100, jitter_us=50, loss=0.25, duplication=0.5)
    arrivals = [link.delays(stream) for _ in range(2000)]
    sizes = Counter(len(delays) for delays in arrivals)
    assert sizes[0] / 2000 == pytest.approx(0.25, abs=0.03)
    assert sizes[2] / (sizes[1] + sizes[2]) == pytest.approx(0.5, abs=0.03)
    delays = {delay for each in arrivals for delay in each}
    assert delays == set(range(100, 150))


@pytest.mark.parametrize(
    ("topic_filter", "topic", "matched"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("+/b", "a/b", True),
        ("a/+", "a/b/c", False),
        ("a/b", "a/c", False),
    ],
)
def test_filters_match_as_in_mqtt(topic_filter: str, topic: str, matched: bool) -> None:
    assert matches(topic_filter, topic) is matched


def test_a_broker_says_the_will_of_who_is_gone_and_keeps_it() -> None:
    federation = Federation([A_]).join()
    federation.fleet.disconnect("pi-1")
    federation.fleet.run(0)
    assert federation.fleet.published[-1] == ("fi1/acme/s/pi-1", b"lost")
    assert federation.fleet._retained["fi1/acme/s/pi-1"] == b"lost"


def test_a_broker_says_nothing_for_who_left_on_purpose_or_has_no_will() -> None:
    federation = Federation([A_], clients=1).join()
    before = len(federation.fleet.published)
    federation.fleet.disconnect("pi-1", is_clean=True)
    federation.fleet.disconnect("laptop-1")
    federation.fleet.run(1)
    assert len(federation.fleet.published) == before


class Listener:
    """A machine that wants one topic and only listens."""

    subscriptions = ("x/+",)
    will = None

    def __init__(self) -> None:
        self.heard: list[tuple[int, str, bytes]] = []

    def next_deadline(self) -> None:
        return None

    def connected(self, *, now: int) -> list[Effect]:
        return []

    disconnected = tick = connected

    def receive(self, topic: str, payload: bytes, *, now: int) -> list[Effect]:
        self.heard.append((now, topic, payload))
        return []


def listening(link: Link = PERFECT) -> tuple[Fleet, Listener]:
    """A fleet of one listener that is connected."""
    fleet, listener = Fleet(), Listener()
    fleet.add("listener", listener, link=link)  # type: ignore[arg-type]
    fleet.connect("listener")
    return fleet, listener


def test_a_retained_message_reaches_who_connects_later_and_others_do_not() -> None:
    fleet, listener = listening()
    fleet.disconnect("listener")
    fleet.publish(Publish("x/kept", b"1", retain=True))
    fleet.publish(Publish("x/gone", b"2"))
    fleet.publish(Publish("y/kept", b"3", retain=True))
    fleet.run(1)
    fleet.connect("listener")
    fleet.run(1)
    assert listener.heard == [(1_000_000, "x/kept", b"1")]


def test_an_empty_retained_message_clears_its_topic() -> None:
    fleet, listener = listening()
    fleet.disconnect("listener")
    fleet.publish(Publish("x/kept", b"1", retain=True))
    fleet.publish(Publish("x/kept", b"", retain=True))
    fleet.run(1)
    fleet.connect("listener")
    fleet.run(1)
    assert listener.heard == []


def test_a_message_reaches_only_who_subscribed_to_its_topic() -> None:
    fleet, listener = listening()
    fleet.publish(Publish("x/a", b"1"))
    fleet.publish(Publish("y/a", b"2"))
    fleet.run(1)
    assert listener.heard == [(0, "x/a", b"1")]


def test_qos_1_outlives_a_link_that_loses_everything_else() -> None:
    fleet, listener = listening(Link(delay_us=70, loss=1.0))
    fleet.publish(Publish("x/a", b"1"))
    fleet.publish(Publish("x/b", b"2", qos=1))
    fleet.run(1)
    assert listener.heard == [(70, "x/b", b"2")]


def test_a_duplicating_link_delivers_twice() -> None:
    fleet, listener = listening(Link(duplication=1.0))
    fleet.publish(Publish("x/a", b"1"))
    fleet.run(1)
    assert listener.heard == [(0, "x/a", b"1")] * 2


def test_a_broker_that_restarts_keeps_nothing() -> None:
    fleet, listener = listening()
    fleet.disconnect("listener")
    fleet.publish(Publish("x/kept", b"1", retain=True))
    fleet.run(1)
    fleet.restart_broker()
    fleet.connect("listener")
    fleet.run(1)
    assert listener.heard == []


def test_a_node_without_a_model_never_answers() -> None:
    federation = Federation([A_]).join()
    federation.fleet.nodes["pi-1"].model = None
    assert federation.ask().members(Fate.MISSING) == ("pi-1",)


def test_what_a_node_wants_sent_while_its_link_is_down_is_not_sent() -> None:
    federation = Federation([A_]).join()
    federation.fleet.disconnect("gateway")
    federation.fleet.run(1)
    before = len(federation.fleet.published)
    outcome = federation.ask()
    assert outcome.members(Fate.MISSING) == ("pi-1",)
    assert len(federation.fleet.published) == before


def test_a_fleet_remembers_what_its_machines_wanted() -> None:
    federation = Federation([A_]).join()
    outcome = federation.ask()
    assert Deliver(1, outcome) in federation.gateway_node.effects
