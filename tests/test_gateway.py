"""The gateway machine alone: every input by hand, every effect exactly."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from federation import (
    TASK,
    TENSOR,
    HandMember,
    code,
    gateway_identity,
    lone_gateway,
    only_publish,
    outcome_of,
    published,
    roster_of,
)

from edge_fi import epoch as epoch_module
from edge_fi import gateway as gateway_module
from edge_fi.asks import OUTCOMES_KEPT
from edge_fi.effects import Deliver, Effect, Joined, Noticed, Publish, Rejected, Restless
from edge_fi.epoch import CLOSED_KEPT, MAX_AHEAD
from edge_fi.gateway import AGAIN_US, EPOCH_US, MISSED_UNTIL_SILENT, Gateway
from edge_fi.messages import VOTE_FORMS, Array, Fate, Form, Outcome, Status, Task, Tensor
from edge_fi.replay import WINDOW
from edge_fi.round import RoundPolicy
from edge_fi.voting.strategy import STRATEGIES, Ballots, Strategy
from edge_fi.wire import frames
from edge_fi.wire.payloads import Ready, decode_query, encode_ready
from firmware_sim.stream import Stream

Q = "fi1/acme/q/1"
A = "fi1/acme/a/pi-1"
D = "fi1/acme/d/pi-1"
S = "fi1/acme/s/pi-1"
CA = "fi1/acme/ca/laptop-1"
CD = "fi1/acme/cd/laptop-1"
G = "fi1/acme/gateway/state"
SECOND = 1_000_000
LATER = 60 * SECOND
OTHER_TASK = Task(name="sorts", number=1, labels=("a", "b", "c", "e"), shape=(2,), dtype="uint8")


def joined(*names: str, policy: RoundPolicy | None = None) -> tuple[Gateway, list[HandMember]]:
    """A gateway and its devices, all with a session."""
    names = names or ("pi-1",)
    gateway = lone_gateway(*names, policy=policy)
    return gateway, [HandMember(name, index).join(gateway) for index, name in enumerate(names, 1)]


def with_client(policy: RoundPolicy | None = None) -> tuple[Gateway, HandMember, HandMember]:
    """A gateway with one device and one client, both with a session."""
    gateway = lone_gateway("pi-1", clients=["laptop-1"], policy=policy)
    client = HandMember("laptop-1", 101, "client").join(gateway, ready=False)
    return gateway, HandMember().join(gateway), client


def ask(gateway: Gateway, *, now: int = 0, policy: RoundPolicy | None = None) -> bytes:
    """Ask, and return the QUERY frame."""
    return only_publish(gateway.ask(1, TENSOR, reference="me", now=now, policy=policy)).payload


# Connecting


def test_a_gateway_subscribes_to_members_topics_and_its_own_words_and_to_no_tree() -> None:
    assert lone_gateway().subscriptions == [
        "fi1/acme/a/+",
        "fi1/acme/s/+",
        "fi1/acme/ca/+",
        "fi1/acme/join",
        G,
        "fi1/acme/gateway/roster",
        "fi1/acme/gateway/claim",
    ]


def test_a_gateway_states_its_presence_and_its_boot() -> None:
    gateway = lone_gateway()
    (message,) = published(gateway.connected(now=0))
    assert (message.topic, message.qos, message.retain) == (G, 1, True)
    assert message.payload.startswith(b"ready ") and len(message.payload) == 14
    assert gateway.will == Publish(G, b"lost", qos=1, retain=True)
    assert gateway.farewell == [Publish(G, b"disconnected", qos=1, retain=True)]


def test_a_wrong_retained_state_is_corrected_at_once_and_then_once_a_second() -> None:
    gateway = lone_gateway()
    (state,) = published(gateway.connected(now=0))
    assert gateway.receive(G, state.payload, now=5) == []
    assert gateway.receive(G, b"lost", now=5) == [state]
    assert gateway.receive(G, b"ready 00000001", now=6) == []
    assert gateway.receive(G, b"ready 00000002", now=7) == []
    assert gateway.next_deadline() == 5 + SECOND
    assert gateway.tick(now=5 + SECOND) == [state]
    assert gateway.next_deadline() == EPOCH_US
    assert gateway.receive(G, b"lost", now=5 + 2 * SECOND) == [state]


def test_two_runs_of_a_gateway_have_different_boots_and_epochs() -> None:
    one, other = (lone_gateway(life=life) for life in (0, 1))
    assert one.connected(now=0) != other.connected(now=0)
    mine, theirs = (HandMember().join(gateway).welcomed for gateway in (one, other))
    assert mine is not None and theirs is not None
    assert mine.epoch != theirs.epoch and mine.epoch_key != theirs.epoch_key


def test_a_gateway_that_reconnects_sends_open_queries_again_with_the_same_bytes() -> None:
    gateway, _ = joined()
    query = ask(gateway)
    assert gateway.disconnected(now=1) == []
    assert gateway.connected(now=2)[1:] == [Publish(Q, query)]


@pytest.mark.parametrize("word", ["init", "ready", "disconnected", "lost"])
def test_a_devices_presence_is_noticed_and_changes_nothing(word: str) -> None:
    gateway, _ = joined()
    assert gateway.receive(S, word.encode(), now=0) == [Noticed("pi-1", word)]
    assert gateway.online(1) == ("pi-1",)


# Sessions


def test_a_device_is_online_when_a_frame_opened_and_not_before() -> None:
    gateway, device = lone_gateway(), HandMember()
    answer = only_publish(gateway.receive(A, device.hello(), now=0))
    assert answer.topic == D and gateway.online(1) == ()
    device.welcome(answer.payload)
    assert gateway.receive(A, device.ready(), now=0) == [Joined("pi-1", frozenset(VOTE_FORMS))]
    assert gateway.online(1) == ("pi-1",)


def test_a_ready_names_the_forms_that_its_device_offers() -> None:
    gateway = lone_gateway()
    device = HandMember().join(gateway, ready=False)
    assert device.epoch is not None
    ready = Ready(frozenset({Form.LABEL, Form.LOGITS_8}), device.epoch.number)
    assert gateway.receive(A, device.ready(encode_ready(ready)), now=0) == [Joined("pi-1", ready.forms)]


def test_the_same_hello_gets_the_same_welcome() -> None:
    gateway, hello = lone_gateway(), HandMember().hello()
    first = gateway.receive(A, hello, now=0)
    assert gateway.receive(A, hello, now=1) == first
    assert len(first) == 1


def test_a_welcome_that_nothing_answers_is_sent_again_three_times() -> None:
    gateway = lone_gateway()
    welcome = gateway.receive(A, HandMember().hello(), now=0)
    now = 0
    for wait_us in AGAIN_US:
        now += wait_us
        assert gateway.next_deadline() == now
        assert gateway.tick(now=now - 1) == []
        assert gateway.tick(now=now) == welcome
    assert gateway.next_deadline() is None


def sent_again(gateway: Gateway, *, until: int) -> list[tuple[int, bytes]]:
    """When which WELCOME is sent again, up to this time."""
    sent = []
    while (now := gateway.next_deadline()) is not None and now <= until:
        sent += [(now, message.payload) for message in published(gateway.tick(now=now))]
    return sent


def test_however_many_hellos_come_one_welcome_at_a_time_is_sent_again_the_latest() -> None:
    gateway = lone_gateway()
    for life in range(50):
        hello = HandMember(life=life).hello()
        latest = only_publish(gateway.receive(A, hello, now=life)).payload
    assert len(gateway._wakes) == 1
    assert sent_again(gateway, until=LATER) == [
        (SECOND, latest),
        (5 * SECOND, latest),
        (21 * SECOND, latest),
    ]
    assert gateway.next_deadline() is None


def test_a_hello_during_a_long_wait_is_waited_for_no_longer_than_any_other() -> None:
    gateway = lone_gateway()
    gateway.receive(A, HandMember().hello(), now=0)
    assert [now for now, _ in sent_again(gateway, until=5 * SECOND)] == [SECOND, 5 * SECOND]
    latest = only_publish(gateway.receive(A, HandMember(life=1).hello(), now=6 * SECOND)).payload
    assert sent_again(gateway, until=LATER) == [
        (7 * SECOND, latest),
        (11 * SECOND, latest),
        (27 * SECOND, latest),
    ]
    assert gateway.next_deadline() is None


def test_a_session_that_follows_a_resent_one_has_resends_of_its_own() -> None:
    gateway, device = lone_gateway(), HandMember()
    first = only_publish(gateway.receive(A, device.hello(), now=0)).payload
    sent_again(gateway, until=5 * SECOND)
    gateway.receive(A, device.welcome(first).ready(), now=6 * SECOND)
    latest = only_publish(gateway.receive(A, HandMember(life=1).hello(), now=7 * SECOND)).payload
    assert sent_again(gateway, until=8 * SECOND) == [(8 * SECOND, latest)]


def test_a_clients_welcome_is_not_sent_again() -> None:
    gateway = lone_gateway(clients=["laptop-1"])
    gateway.receive(CA, HandMember("laptop-1", 101, "client").hello(), now=0)
    assert gateway.next_deadline() is None


def test_a_welcome_that_was_answered_is_not_sent_again() -> None:
    gateway, _ = joined()
    assert sent_again(gateway, until=LATER) == []


def test_an_answer_does_what_ready_does() -> None:
    gateway, (first, second) = joined("pi-1", "pi-2")
    query = ask(gateway)
    second.join(gateway, ready=False)
    first.join(gateway, ready=False)
    effects = gateway.receive(A, first.answer(query, code(2)), now=1)
    assert effects == [Joined("pi-1")]


def test_a_second_ready_says_nothing_new() -> None:
    gateway, (device,) = joined()
    assert gateway.receive(A, device.ready(), now=1) == []


def test_a_ready_of_another_size_is_refused_and_begins_nothing() -> None:
    gateway = lone_gateway()
    device = HandMember().join(gateway, ready=False)
    for size in (0, 2, 5, 7):
        refusal = gateway.receive(A, device.ready(bytes(size)), now=1)
        assert refusal == [Rejected(reason="payload", peer="pi-1")]
    assert gateway.online(1) == ()


def begun(gateway: Gateway, member: HandMember, *, now: int) -> list[Effect]:
    """What the gateway tells as this member's new session begins."""
    member.join(gateway, now=now, ready=False)
    is_client = member.identity.role == "client"
    frame = member.ask(task=9) if is_client else member.ready()
    return [
        its for its in gateway.receive(member.topic, frame, now=now) if isinstance(its, Joined | Restless)
    ]


@pytest.mark.parametrize(("name", "index", "role"), [("pi-1", 1, "device"), ("laptop-1", 101, "client")])
def test_a_member_that_begins_session_after_session_is_told_of_once_in_five(
    name: str, index: int, role: str
) -> None:
    """Two devices that hold one key take the session from each other, again and again."""
    gateway = lone_gateway("pi-1", clients=["laptop-1"])
    told = [
        begun(gateway, HandMember(name, index, role, life=life), now=life * 15 * SECOND) for life in range(12)
    ]
    assert [Restless(name) in effects for effects in told] == [False, False, False, False, True] * 2 + [
        False,
        False,
    ]
    assert [type(effects[0]) for effects in told] == [Joined] * 12
    assert gateway.online(1) == (("pi-1",) if role == "device" else ())


def test_a_member_that_boots_now_and_then_and_one_among_many_are_not_told_of() -> None:
    gateway = lone_gateway(*(f"pi-{index}" for index in range(1, 8)))
    told = [begun(gateway, HandMember(life=life), now=life * 16 * SECOND) for life in range(12)]
    told += [begun(gateway, HandMember(f"pi-{index}", index), now=300 * SECOND) for index in range(2, 8)]
    assert [len(effects) for effects in told] == [1] * 18


def test_a_welcome_names_the_lowest_seq_that_is_open() -> None:
    gateway, (first, second) = joined("pi-1", "pi-2")
    query = ask(gateway)
    ask(gateway)
    for peer in (first, second):
        gateway.receive(peer.topic, peer.answer(query, code(0)), now=1)
    welcomed = HandMember(life=1).join(gateway).welcomed
    assert welcomed is not None and welcomed.floor == 2


def test_the_rejoin_window_grows_with_the_roster() -> None:
    few, many = lone_gateway("pi-1"), lone_gateway(*(f"pi-{n}" for n in range(1, 101)))
    windows = [HandMember().join(gateway).welcomed for gateway in (few, many)]
    assert [w.rejoin_window_ms for w in windows if w is not None] == [100, 500]


def test_a_device_whose_task_file_differs_is_refused_by_name() -> None:
    gateway = lone_gateway()
    hello = HandMember().hello(task=OTHER_TASK)
    assert gateway.receive(A, hello, now=0) == [Rejected(reason="task_mismatch", peer="pi-1")]


def test_a_device_of_an_unknown_task_is_refused() -> None:
    gateway = lone_gateway()
    hello = HandMember().hello(task=Task(name="x", number=9, labels=("a", "b"), shape=(1,), dtype="int8"))
    assert gateway.receive(A, hello, now=0) == [Rejected(reason="task_mismatch", peer="pi-1")]


def test_a_ready_brings_the_open_queries_that_were_missed_to_the_device_alone() -> None:
    gateway, (first, _) = joined("pi-1", "pi-2")
    answered, missed = ask(gateway), ask(gateway)
    gateway.receive(A, first.answer(answered, code(0)), now=1)
    assert gateway.receive(A, first.ready(), now=2) == [Publish(D, missed)]


def test_a_flood_of_readies_brings_the_open_queries_once_a_second_and_loses_none() -> None:
    policy = RoundPolicy(timeout_s=60, reask_s=60)
    gateway, (device, _) = joined("pi-1", "pi-2", policy=policy)
    queries = [ask(gateway) for _ in range(3)]
    sent: dict[int, list[bytes]] = {}
    for now in range(0, 5 * SECOND, SECOND // 10):
        effects = gateway.tick(now=now)
        if now < 2 * SECOND:  # the flood
            effects += gateway.receive(A, device.ready(), now=now)
        assert all(effect.topic == D for effect in published(effects)) and effects == published(effects)
        if effects:
            sent[now] = [message.payload for message in published(effects)]
    # The last of them may have come of a new session: what it asks for is late, and not forgotten.
    assert sent == {0: queries, SECOND: queries, 2 * SECOND: queries}


def test_a_ready_that_brought_nothing_does_not_delay_the_next() -> None:
    gateway, (device,) = joined()
    assert gateway.receive(A, device.ready(), now=1) == []
    query = ask(gateway, now=2)
    assert gateway.receive(A, device.ready(), now=3) == [Publish(D, query)]


def test_one_members_readies_do_not_delay_anothers() -> None:
    gateway, (first, second) = joined("pi-1", "pi-2")
    query = ask(gateway)
    assert gateway.receive(A, first.ready(), now=1) == [Publish(D, query)]
    assert gateway.receive(second.topic, second.ready(), now=1) == [Publish("fi1/acme/d/pi-2", query)]


def test_a_ready_brings_a_million_bytes_of_open_queries_and_no_more_the_oldest_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert gateway_module.CATCH_UP_BYTES == frames.MAX_FRAME_BYTES == 1_000_000
    gateway, (device,) = joined()
    queries = [ask(gateway) for _ in range(5)]
    monkeypatch.setattr(gateway_module, "CATCH_UP_BYTES", 3 * len(queries[0]))
    assert published(gateway.receive(A, device.ready(), now=1)) == [Publish(D, q) for q in queries[:3]]
    for query in queries[:2]:
        gateway.receive(A, device.answer(query, code(0)), now=2)
    monkeypatch.setattr(gateway_module, "CATCH_UP_BYTES", 3 * len(queries[0]) - 1)
    effects = gateway.receive(A, device.ready(), now=1 + SECOND)
    assert published(effects) == [Publish(D, query) for query in queries[2:4]]


def test_a_ready_brings_no_query_that_the_device_was_not_asked() -> None:
    gateway = lone_gateway("pi-1", "pi-2")
    HandMember("pi-2", 2).join(gateway)
    ask(gateway)
    late = HandMember().join(gateway, ready=False)
    assert gateway.receive(A, late.ready(), now=1) == [Joined("pi-1", frozenset(VOTE_FORMS))]


# Rounds


def test_a_query_goes_to_the_topic_of_its_task_sealed_and_signed() -> None:
    gateway, (device,) = joined(policy=RoundPolicy(timeout_s=1.5))
    (effect,) = gateway.ask(1, TENSOR, reference="me", now=0)
    assert isinstance(effect, Publish) and (effect.topic, effect.qos, effect.retain) == (Q, 0, False)
    frame = frames.parse_query(effect.payload)
    assert device.epoch is not None and frame.seq == 1
    query = decode_query(device.epoch.open_query(frame.sealed, seq=1, header=frame.header))
    assert (query.task, query.deadline_ms, query.tensor) == (1, 1500, TENSOR)
    assert query.forms == frozenset({Form.LABEL})


def test_a_round_closes_when_everybody_awaited_has_answered() -> None:
    gateway, (first, second) = joined("pi-1", "pi-2")
    query = ask(gateway, now=5)
    assert gateway.receive(A, first.answer(query, code(1)), now=6) == []
    outcome = outcome_of(gateway.receive(second.topic, second.answer(query, code(1)), now=25))
    assert (outcome.status, outcome.label, outcome.agreement) == (Status.ANSWERED, 1, 1.0)
    assert outcome.fates == (("pi-1", Fate.COUNTED), ("pi-2", Fate.COUNTED))
    assert (outcome.seq, outcome.elapsed_us, len(outcome.votes)) == (1, 20, 2)


def test_silent_devices_are_asked_once_more_with_the_same_bytes() -> None:
    gateway, (first, _) = joined("pi-1", "pi-2")
    gateway.tick(now=LATER)
    query = ask(gateway, now=LATER)
    gateway.receive(A, first.answer(query, code(0)), now=LATER + 1)
    assert gateway.next_deadline() == LATER + SECOND // 2
    assert gateway.tick(now=LATER + SECOND // 2 - 1) == []
    assert gateway.tick(now=LATER + SECOND // 2) == [Publish("fi1/acme/d/pi-2", query)]
    assert gateway.next_deadline() == LATER + 2 * SECOND


def test_no_re_ask_comes_after_the_deadline() -> None:
    gateway, _ = joined(policy=RoundPolicy(timeout_s=0.5, reask_s=0.5))
    gateway.tick(now=LATER)
    ask(gateway, now=LATER)
    (effect,) = gateway.tick(now=LATER + SECOND // 2)
    assert isinstance(effect, Deliver) and effect.outcome.status is Status.NO_QUORUM
    ask(gateway, now=LATER, policy=RoundPolicy(timeout_s=0.5, reask_s=1))
    gateway.tick(now=LATER + SECOND // 2)
    assert gateway.next_deadline() is None


def test_a_deadline_names_who_is_missing() -> None:
    gateway, (first, _) = joined("pi-1", "pi-2")
    query = ask(gateway)
    gateway.receive(A, first.answer(query, code(3)), now=1)
    outcome = outcome_of(gateway.tick(now=2 * SECOND))
    assert (outcome.status, outcome.label) == (Status.ANSWERED, 3)
    assert outcome.members(Fate.MISSING) == ("pi-2",)


def test_enough_votes_settle_a_round_and_silence_the_others() -> None:
    gateway, (first, _) = joined("pi-1", "pi-2", policy=RoundPolicy(stop_after=1))
    query = ask(gateway)
    delivered, settled = gateway.receive(A, first.answer(query, code(0)), now=1)
    assert isinstance(delivered, Deliver)
    assert delivered.outcome.members(Fate.SILENCED) == ("pi-2",)
    assert isinstance(settled, Publish) and settled.topic == Q and settled.payload[0] == 0x03


def test_an_answer_after_the_close_is_late_and_changes_nothing() -> None:
    gateway, (first, second) = joined("pi-1", "pi-2", policy=RoundPolicy(stop_after=1))
    query = ask(gateway)
    gateway.receive(A, first.answer(query, code(0)), now=1)
    late = second.answer(query, code(1))
    assert gateway.receive(second.topic, late, now=2) == [Rejected(reason="late", peer="pi-2", seq=1)]
    assert gateway.receive(second.topic, late, now=3) == [Rejected(reason="duplicate", peer="pi-2", seq=1)]


def test_a_round_that_everybody_declined_is_abstained() -> None:
    gateway, (device,) = joined()
    query = ask(gateway)
    outcome = outcome_of(gateway.receive(A, device.answer(query, b"", form=Form.ABSTAIN), now=1))
    assert outcome.status is Status.ABSTAINED and outcome.label is None
    assert outcome.members(Fate.DECLINED) == ("pi-1",)


def test_fewer_votes_than_the_quorum_are_no_outcome() -> None:
    gateway, (first, _) = joined("pi-1", "pi-2", policy=RoundPolicy(quorum=2))
    query = ask(gateway)
    gateway.receive(A, first.answer(query, code(0)), now=1)
    outcome = outcome_of(gateway.tick(now=2 * SECOND))
    assert (outcome.status, outcome.label, outcome.probabilities) == (Status.NO_QUORUM, None, ())


def test_without_members_the_outcome_comes_at_once() -> None:
    gateway = lone_gateway()
    effects = gateway.ask(1, TENSOR, reference="me", now=0)
    assert effects == [Deliver("me", Outcome(status=Status.NO_MEMBERS))]


def test_a_device_that_was_not_asked_has_no_vote() -> None:
    gateway = lone_gateway("pi-1", "pi-2")
    HandMember("pi-1", 1).join(gateway)
    late = HandMember("pi-2", 2).join(gateway, ready=False)
    query = ask(gateway)
    assert gateway.receive(late.topic, late.answer(query, code(0)), now=1) == [
        Joined("pi-2"),
        Rejected(reason="not_asked", peer="pi-2", seq=1),
    ]


@pytest.mark.parametrize(("form", "content"), [(Form.ABSTAIN, b"\0"), (Form.LABEL, b"\0")])
def test_a_vote_that_no_encoder_makes_is_refused_and_the_device_stays_asked(
    form: Form, content: bytes
) -> None:
    gateway, (device,) = joined()
    query = ask(gateway)
    effects = gateway.receive(A, device.answer(query, content, form=form), now=1)
    assert effects == [Rejected(reason="vote", peer="pi-1", seq=1)]
    assert outcome_of(gateway.receive(A, device.answer(query, code(2)), now=2)).label == 2


def test_an_answer_of_another_model_than_the_session_named_does_not_open() -> None:
    gateway, (device,) = joined()
    query = ask(gateway)
    effects = gateway.receive(A, device.answer(query, code(0), model=b"model-02"), now=1)
    assert effects == [Rejected(reason="seal", peer="pi-1")]


def test_callers_mistakes_are_errors_and_nothing_is_sent() -> None:
    gateway, _ = joined()
    with pytest.raises(ValueError, match="no task number 2"):
        gateway.ask(2, TENSOR, reference="me", now=0)
    with pytest.raises(ValueError, match=r"takes uint8 \[2\], not uint8 \[3\] of 3 bytes"):
        gateway.ask(1, Tensor("uint8", (3,), b"abc"), reference="me", now=0)
    with pytest.raises(ValueError, match="no strategy 'loudest'"):
        gateway.ask(1, TENSOR, reference="me", now=0, policy=RoundPolicy(strategy="loudest"))
    assert frames.parse_query(ask(gateway)).seq == 1


def make_gateway(
    strategies: Mapping[str, Strategy], *, policy: RoundPolicy | None = None, clients: Sequence[str] = ()
) -> Gateway:
    """A gateway that knows these strategies."""
    roster = roster_of("pi-1", clients=clients)
    return Gateway(
        gateway_identity(), roster, [TASK], Stream("gateway"), policy=policy, strategies=strategies
    )


def test_tasks_may_come_as_any_iterable() -> None:
    gateway = Gateway(gateway_identity(), roster_of("pi-1"), iter([TASK]), Stream("gateway"))
    HandMember().join(gateway)
    assert gateway.online(1) == ("pi-1",)


@pytest.mark.parametrize(
    "name", ["", "l\xe4ngste", "\u0661", "x" * 256], ids=["empty", "latin", "digit", "long"]
)
def test_a_strategys_name_is_ascii_of_1_to_255_characters(name: str) -> None:
    with pytest.raises(ValueError, match="strategy's name"):
        make_gateway({**STRATEGIES, name: STRATEGIES["hard"]})


@pytest.mark.parametrize("name", ["x", "x" * 255], ids=len)
def test_a_strategys_name_of_any_allowed_length_reaches_the_client(name: str) -> None:
    policy = RoundPolicy(strategy=name)
    gateway = make_gateway({name: STRATEGIES["hard"]}, policy=policy, clients=["laptop-1"])
    device, client = HandMember().join(gateway), HandMember("laptop-1", 101, "client").join(gateway)
    query = only_publish(gateway.receive(CA, client.ask(), now=0)).payload
    reply = only_publish(gateway.receive(A, device.answer(query, code(2)), now=1))
    assert client.open(reply.payload)[1].strategy == name


def test_a_strategy_of_the_users_own_is_used() -> None:
    def last(ballots: Ballots) -> Array:
        return np.asarray(ballots.probabilities[-1])

    gateway = make_gateway({"last": last}, policy=RoundPolicy(strategy="last"))
    device = HandMember().join(gateway)
    query = ask(gateway)
    outcome = outcome_of(gateway.receive(A, device.answer(query, code(2)), now=1))
    assert (outcome.label, outcome.strategy) == (2, "last")


# Silent members


def silence(gateway: Gateway, present: HandMember, *, rounds: int, now: int) -> int:
    """So many rounds that only this device answers. Returns when the last is over."""
    for _ in range(rounds):
        query = ask(gateway, now=now)
        gateway.receive(present.topic, present.answer(query, code(0)), now=now)
        now += 2 * SECOND
        gateway.tick(now=now)
    return now


def test_a_member_that_missed_three_rounds_is_asked_but_not_awaited() -> None:
    gateway, (first, second) = joined("pi-1", "pi-2")
    now = silence(gateway, first, rounds=MISSED_UNTIL_SILENT, now=LATER)
    query = ask(gateway, now=now)
    outcome = outcome_of(gateway.receive(A, first.answer(query, code(0)), now=now))
    assert outcome.members(Fate.MISSING) == ("pi-2",)
    late = gateway.receive(second.topic, second.answer(query, code(0)), now=now)
    assert late == [Rejected(reason="late", peer="pi-2", seq=4)]
    query = ask(gateway, now=now)
    assert gateway.receive(A, first.answer(query, code(0)), now=now) == []


def test_a_member_that_is_always_late_is_no_longer_awaited() -> None:
    gateway, (first, second) = joined("pi-1", "pi-2")
    now, waited = LATER, []
    for _ in range(2 * MISSED_UNTIL_SILENT):
        query = ask(gateway, now=now)
        at_once = gateway.receive(A, first.answer(query, code(0)), now=now)
        waited.append(not at_once)
        now += 2 * SECOND
        gateway.tick(now=now)
        (late,) = gateway.receive(second.topic, second.answer(query, code(0)), now=now)
        assert isinstance(late, Rejected) and late.reason == "late"
    assert waited == [True] * MISSED_UNTIL_SILENT + [False] * MISSED_UNTIL_SILENT


def test_a_member_not_awaited_that_answers_before_the_deadline_is_awaited_again() -> None:
    """However fast the others are: their round is over when its answer comes, and it was in time."""
    gateway, (first, second) = joined("pi-1", "pi-2")
    now = silence(gateway, first, rounds=MISSED_UNTIL_SILENT, now=LATER)
    query = ask(gateway, now=now)
    assert outcome_of(gateway.receive(A, first.answer(query, code(0)), now=now)).label == 0
    late = second.answer(query, code(0))
    assert gateway.receive(second.topic, late, now=now + 2 * SECOND - 1) == [
        Rejected(reason="late", peer="pi-2", seq=4)
    ]
    now += 2 * SECOND
    query = ask(gateway, now=now)
    assert gateway.receive(A, first.answer(query, code(0)), now=now) == []


def test_a_vote_that_is_counted_at_the_last_moment_is_a_sign_of_life() -> None:
    """The tick at the deadline may come after it: what was counted was not missed."""
    gateway, (first, second) = joined("pi-1", "pi-2")
    now = silence(gateway, first, rounds=MISSED_UNTIL_SILENT - 1, now=LATER)
    query = ask(gateway, now=now)
    now += 2 * SECOND
    assert gateway.receive(second.topic, second.answer(query, code(0)), now=now) == []
    gateway.tick(now=now)
    now = silence(gateway, first, rounds=MISSED_UNTIL_SILENT - 1, now=now)
    query = ask(gateway, now=now)
    assert gateway.receive(A, first.answer(query, code(0)), now=now) == []


def test_two_missed_rounds_are_not_enough_to_be_given_up() -> None:
    gateway, (first, _) = joined("pi-1", "pi-2")
    now = silence(gateway, first, rounds=MISSED_UNTIL_SILENT - 1, now=LATER)
    query = ask(gateway, now=now)
    assert gateway.receive(A, first.answer(query, code(0)), now=now) == []


def test_a_ready_makes_a_silent_member_awaited_again() -> None:
    gateway, (first, second) = joined("pi-1", "pi-2")
    now = silence(gateway, first, rounds=MISSED_UNTIL_SILENT, now=LATER)
    gateway.receive(second.topic, second.ready(), now=now)
    query = ask(gateway, now=now)
    assert gateway.receive(A, first.answer(query, code(0)), now=now) == []


def test_a_replayed_answer_does_not_make_a_silent_member_awaited() -> None:
    gateway, (first, second) = joined("pi-1", "pi-2")
    query = ask(gateway, now=LATER)
    old = second.answer(query, code(0))
    gateway.receive(second.topic, old, now=LATER)
    gateway.receive(A, first.answer(query, code(0)), now=LATER)
    now = silence(gateway, first, rounds=MISSED_UNTIL_SILENT, now=LATER)
    assert gateway.receive(second.topic, old, now=now) == [Rejected(reason="duplicate", peer="pi-2", seq=1)]
    query = ask(gateway, now=now)
    assert outcome_of(gateway.receive(A, first.answer(query, code(0)), now=now)).label == 0


def test_where_everybody_is_silent_everybody_is_awaited() -> None:
    gateway, (first, second) = joined("pi-1", "pi-2")
    now = LATER
    for _ in range(MISSED_UNTIL_SILENT):
        ask(gateway, now=now)
        now += 2 * SECOND
        gateway.tick(now=now)
    query = ask(gateway, now=now)
    assert gateway.receive(A, first.answer(query, code(1)), now=now) == []
    assert outcome_of(gateway.receive(second.topic, second.answer(query, code(1)), now=now)).label == 1


def test_a_member_that_was_silenced_was_not_silent() -> None:
    gateway, (first, _) = joined("pi-1", "pi-2")
    for _ in range(MISSED_UNTIL_SILENT):
        query = ask(gateway, policy=RoundPolicy(stop_after=1))
        outcome = outcome_of(gateway.receive(A, first.answer(query, code(0)), now=1))
        assert outcome.members(Fate.SILENCED) == ("pi-2",)
    query = ask(gateway)
    assert gateway.receive(A, first.answer(query, code(0)), now=1) == []


# Limits


def test_a_task_with_512_open_queries_is_overloaded_until_the_oldest_closes() -> None:
    gateway, (device,) = joined()
    oldest = ask(gateway)
    for _ in range(MAX_AHEAD - 1):
        ask(gateway)
    assert gateway.ask(1, TENSOR, reference="me", now=0) == [Deliver("me", Outcome(status=Status.OVERLOADED))]
    gateway.receive(A, device.answer(oldest, code(0)), now=1)
    assert frames.parse_query(ask(gateway, now=1)).seq == MAX_AHEAD + 1
    assert MAX_AHEAD < WINDOW


def test_a_run_ends_before_its_sequence_numbers_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch_module, "MAX_SEQ", 1)
    gateway, _ = joined()
    ask(gateway)
    assert outcome_of(gateway.ask(1, TENSOR, reference="me", now=0)).status is Status.OVERLOADED


def test_closed_rounds_are_remembered_up_to_a_limit() -> None:
    gateway, (device,) = joined()
    queries = [ask(gateway) for _ in range(CLOSED_KEPT + 1)]
    for query in queries:
        gateway.receive(A, device.answer(query, code(0)), now=1)
    first, second = (device.answer(query, code(0)) for query in queries[:2])
    assert gateway.receive(A, first, now=2) == [Rejected(reason="unknown_query", peer="pi-1")]
    assert gateway.receive(A, second, now=2) == [Rejected(reason="duplicate", peer="pi-1", seq=2)]


def test_a_closed_round_keeps_no_votes_and_its_outcome_does() -> None:
    gateway, (device,) = joined()
    query = ask(gateway)
    outcome = outcome_of(gateway.receive(A, device.answer(query, code(0)), now=1))
    (closed,) = gateway._epochs[1].closed.values()
    assert len(outcome.votes) == 1 and closed.round.votes == {} and closed.frame == b""


# Clients


def test_a_client_is_delivered_its_outcome_under_its_own_session() -> None:
    gateway, device, client = with_client()
    joined_, query = gateway.receive(CA, client.ask(), now=0)
    assert joined_ == Joined("laptop-1") and isinstance(query, Publish) and query.topic == Q
    delivered, reply = gateway.receive(A, device.answer(query.payload, code(2)), now=9)
    assert isinstance(delivered, Deliver) and isinstance(reply, Publish) and reply.topic == CD
    counter, outcome = client.open(reply.payload)
    assert (counter, outcome.status, outcome.label, outcome.votes) == (0, Status.ANSWERED, 2, ())
    assert outcome.fates == (("pi-1", Fate.COUNTED),)


def test_a_resent_ask_yields_nothing_while_the_round_is_open_and_the_same_outcome_after() -> None:
    gateway, device, client = with_client()
    frame = client.ask()
    gateway.receive(CA, frame, now=0)
    assert gateway.receive(CA, frame, now=1) == []
    reply = only_publish(gateway.receive(A, device.answer(ask_of(gateway), code(2)), now=9))
    assert gateway.receive(CA, frame, now=10) == [reply]


def ask_of(gateway: Gateway) -> bytes:
    """The one query that is open."""
    (message,) = gateway.connected(now=0)[1:]
    assert isinstance(message, Publish)
    return message.payload


def test_other_bytes_under_a_known_counter_get_no_outcome() -> None:
    gateway, device, client = with_client()
    frame = client.ask()
    gateway.receive(CA, frame, now=0)
    gateway.receive(A, device.answer(ask_of(gateway), code(2)), now=1)
    forged = frame[:-1] + bytes([frame[-1] ^ 1])
    assert gateway.receive(CA, forged, now=2) == [Rejected(reason="replay", peer="laptop-1")]


def test_a_clients_deadline_shortens_the_gateways() -> None:
    gateway, _, client = with_client()
    gateway.tick(now=LATER)
    gateway.receive(CA, client.ask(deadline_ms=300), now=LATER)
    delivered, _ = gateway.tick(now=LATER + 300_000)
    assert isinstance(delivered, Deliver) and delivered.outcome.status is Status.NO_QUORUM


def test_a_clients_deadline_cannot_outlast_the_gateways() -> None:
    gateway, _, client = with_client()
    gateway.tick(now=LATER)
    gateway.receive(CA, client.ask(deadline_ms=3_600_000), now=LATER)
    effects = gateway.tick(now=LATER + 2 * SECOND)
    assert outcome_of(effects).status is Status.NO_QUORUM


@pytest.mark.parametrize(
    ("task", "tensor"),
    [(2, TENSOR), (1, Tensor("uint8", (3,), b"abc"))],
    ids=["no such task", "no such input"],
)
def test_a_client_that_asks_nonsense_is_refused(task: int, tensor: Tensor) -> None:
    gateway, _, client = with_client()
    reply = only_publish(gateway.receive(CA, client.ask(task=task, tensor=tensor), now=0))
    assert client.open(reply.payload)[1].status is Status.REFUSED


def test_a_clients_ask_that_does_not_decode_is_refused() -> None:
    gateway, _, client = with_client()
    reply = only_publish(gateway.receive(CA, client.ask(deadline_ms=0), now=0))
    assert client.open(reply.payload)[1].status is Status.REFUSED


def test_an_outcome_of_a_former_session_answers_no_question_of_the_next() -> None:
    gateway, device, client = with_client()
    gateway.receive(CA, client.ask(), now=0)
    before = ask_of(gateway)
    again = HandMember("laptop-1", 101, "client", life=1).join(gateway, ready=False)
    gateway.receive(CA, again.ask(tensor=Tensor("uint8", (2,), b"zz")), now=1)
    effects = gateway.receive(A, device.answer(before, code(2)), now=2)
    assert outcome_of(effects).label == 2
    assert published(effects) == []
    reply = only_publish(gateway.receive(A, device.answer(ask_of(gateway), code(3)), now=3))
    assert again.open(reply.payload)[1].label == 3


def test_a_client_whose_session_is_new_gets_nothing_of_the_old_one() -> None:
    gateway, device, client = with_client()
    gateway.receive(CA, client.ask(), now=0)
    query = ask_of(gateway)
    again = HandMember("laptop-1", 101, "client", life=1).join(gateway)
    gateway.receive(CA, again.ask(), now=1)  # takes the new session up
    # Both rounds have counter 0; the old session's outcome is nobody's, and the new one's still to come.
    assert published(gateway.receive(A, device.answer(query, code(2)), now=2)) == []


def test_outcomes_are_kept_for_the_latest_64_asks() -> None:
    gateway, device, client = with_client()
    asks = [client.ask() for _ in range(OUTCOMES_KEPT + 1)]
    for frame in asks:
        gateway.receive(CA, frame, now=0)
        gateway.receive(A, device.answer(ask_of(gateway), code(0)), now=0)
    assert gateway.receive(CA, asks[0], now=1) == [Rejected(reason="replay", peer="laptop-1")]
    assert len(published(gateway.receive(CA, asks[1], now=1))) == 1


def test_an_open_ask_is_not_forgotten_for_newer_ones() -> None:
    gateway, device, client = with_client()
    gateway.receive(CA, client.ask(), now=0)
    slow = ask_of(gateway)
    for _ in range(OUTCOMES_KEPT + 1):
        gateway.receive(CA, client.ask(), now=0)
        _, newest = gateway.connected(now=0)[1:]
        assert isinstance(newest, Publish)
        gateway.receive(A, device.answer(newest.payload, code(0)), now=0)
    reply = only_publish(gateway.receive(A, device.answer(slow, code(1)), now=0))
    counter, outcome = client.open(reply.payload)
    assert (counter, outcome.label) == (0, 1)


def test_a_client_with_64_open_asks_is_overloaded_and_leaves_room_for_others() -> None:
    gateway, _, client = with_client()
    for _ in range(OUTCOMES_KEPT):
        gateway.receive(CA, client.ask(), now=0)
    for _ in range(3):
        reply = only_publish(gateway.receive(CA, client.ask(), now=0))
        assert reply.topic == CD and client.open(reply.payload)[1].status is Status.OVERLOADED
    assert frames.parse_query(ask(gateway)).seq == OUTCOMES_KEPT + 1


def test_a_client_has_no_ready_to_say() -> None:
    gateway = lone_gateway("pi-1", clients=["laptop-1"])
    client = HandMember("laptop-1", 101, "client").join(gateway, ready=False)
    ready = client.ready(b"")
    assert gateway.receive(CA, ready, now=0) == [Rejected(reason="direction", peer="laptop-1")]
