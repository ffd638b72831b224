"""The device machine alone: every input by hand, every effect exactly."""

from dataclasses import replace

import numpy as np
import pytest
from federation import (
    MODEL,
    TASK,
    TENSOR,
    HandGateway,
    gateway_identity,
    identity,
    labelling,
    lone_device,
    only_infer,
    only_publish,
    softmax,
)

from edge_fi.crypto.keys import SigningKey
from edge_fi.device import SHORT_LINK_US, Device, Labelling, spread
from edge_fi.effects import Infer, Joined, Publish, Rejected, Ticket
from edge_fi.messages import VOTE_FORMS, Array, Form, Tensor
from edge_fi.replay import WINDOW
from edge_fi.session import FIRST_DOUBT_US, FIRST_RETRY_US, LAST_DOUBT_US, SESSION_US
from edge_fi.wire import votes
from edge_fi.wire.frames import Type
from edge_fi.wire.payloads import Ready, decode_ready

Q = "fi1/acme/q/1"
D = "fi1/acme/d/pi-1"
A = "fi1/acme/a/pi-1"
S = "fi1/acme/s/pi-1"
G = "fi1/acme/gateway/state"
READY = Publish(S, b"ready", qos=1, retain=True)
INIT = Publish(S, b"init", qos=1, retain=True)
LOGITS = np.array([5.0, 0.0, 0.0, 0.0])
SECOND = 1_000_000


def hello_of(device: Device, *, now: int) -> bytes:
    """The HELLO that is due."""
    return only_publish(device.tick(now=now)).payload


def joined(its: Labelling | None = None, *, floor: int = 1, now: int = 0) -> tuple[Device, HandGateway]:
    """A device that holds a session with a gateway made by hand."""
    device, gateway = lone_device(its=its), HandGateway()
    _, hello = device.connected(now=now)
    assert isinstance(hello, Publish)
    device.receive(D, gateway.welcome(hello.payload, floor=floor), now=now)
    return device, gateway


def rejoin(device: Device, gateway: HandGateway, *, now: int) -> None:
    """Answer the HELLO that is due."""
    device.receive(D, gateway.welcome(hello_of(device, now=now)), now=now)


def answered(device: Device, query: bytes, *, now: int = 0, scores: Array | None = LOGITS) -> bytes:
    """The ANSWER frame to this query."""
    ticket = only_infer(device.receive(Q, query, now=now)).ticket
    return only_publish(device.inferred(ticket, scores, now=now)).payload


# Joining


def test_a_device_subscribes_to_queries_its_own_topics_and_the_gateways_state() -> None:
    assert lone_device().subscriptions == [Q, D, G, S]


def test_the_will_says_lost_and_the_farewell_says_disconnected() -> None:
    device = lone_device()
    assert device.will == Publish(S, b"lost", qos=1, retain=True)
    assert device.farewell == [Publish(S, b"disconnected", qos=1, retain=True)]


def test_before_it_is_connected_a_device_wants_nothing() -> None:
    assert lone_device().next_deadline() is None


def test_once_connected_a_device_states_its_presence_and_says_hello() -> None:
    device = lone_device()
    presence, hello = device.connected(now=7)
    assert presence == INIT
    assert isinstance(hello, Publish) and hello.topic == A and hello.payload[0] == 0x10


def test_a_hello_that_nobody_answers_is_resent_unchanged() -> None:
    device = lone_device()
    _, first = device.connected(now=0)
    due = device.next_deadline()
    assert due is not None and FIRST_RETRY_US <= due <= FIRST_RETRY_US * 5 // 4
    assert device.tick(now=due - 1) == []
    assert device.tick(now=due) == [first]


def test_a_device_that_reconnects_while_waiting_resends_the_same_hello_at_its_least_distance() -> None:
    device = lone_device()
    _, first = device.connected(now=0)
    assert device.disconnected(now=1) == []
    assert device.next_deadline() is None
    assert device.connected(now=2) == [INIT]
    assert device.next_deadline() == FIRST_RETRY_US
    assert device.tick(now=FIRST_RETRY_US) == [first]


def test_a_welcome_begins_a_session_and_is_answered_by_ready() -> None:
    device, gateway = lone_device(), HandGateway()
    _, hello = device.connected(now=0)
    assert isinstance(hello, Publish)
    begun, ready, presence = device.receive(D, gateway.welcome(hello.payload), now=1)
    assert begun == Joined("gateway") and presence == READY
    assert isinstance(ready, Publish) and ready.topic == A
    assert decode_ready(gateway.open(ready.payload)) == Ready(frozenset(VOTE_FORMS), gateway.epoch.number)
    assert device.next_deadline() == 1 + SESSION_US


def test_a_repeated_welcome_is_answered_by_another_ready() -> None:
    device, gateway = joined()
    assert gateway.session is not None
    first = only_publish(device.receive(D, gateway.session.welcome, now=1))
    second = only_publish(device.receive(D, gateway.session.welcome, now=2))
    assert first.payload != second.payload
    assert gateway.open(first.payload) == gateway.open(second.payload)


def test_a_device_that_reconnects_with_a_session_says_ready_and_no_hello() -> None:
    device, _ = joined()
    device.disconnected(now=SHORT_LINK_US)
    presence, ready = device.connected(now=SHORT_LINK_US + 1)
    assert presence == READY
    assert isinstance(ready, Publish) and ready.payload[0] == 0x12
    assert device.next_deadline() == SESSION_US


def test_after_a_link_of_moments_a_device_doubts_its_session() -> None:
    """A copy of its key took the link and began a session: what comes under ours is dropped."""
    device, _ = joined()
    device.disconnected(now=SHORT_LINK_US - 1)
    _, ready = device.connected(now=SHORT_LINK_US)
    assert isinstance(ready, Publish) and ready.payload[0] == 0x12
    due = device.next_deadline()
    assert due is not None and SHORT_LINK_US <= due <= SHORT_LINK_US + SECOND
    (hello,) = device.tick(now=due)
    assert isinstance(hello, Publish) and hello.payload[0] == 0x10


def test_a_device_that_reconnects_with_a_session_leaves_a_rejoin_that_waits_as_it_is() -> None:
    device, _ = joined()
    device.receive(G, b"ready 00000001", now=SECOND)
    due = device.next_deadline()
    assert due is not None and due > SECOND
    device.disconnected(now=SECOND)
    assert len(device.connected(now=SECOND)) == 2
    assert device.next_deadline() == due


# Age


def test_a_device_renews_its_session_after_a_day_and_answers_under_the_old_one_until_then() -> None:
    device, gateway = joined()
    assert device.tick(now=SESSION_US - 1) == []
    hello = hello_of(device, now=SESSION_US)
    assert hello[0] == 0x10
    now = SESSION_US + 1
    old, query = gateway.session, gateway.query(1)
    form, _ = gateway.open_answer(answered(device, query, now=now), query)
    assert form is Form.LABEL
    begun, ready, presence = device.receive(D, gateway.welcome(hello), now=now)
    assert begun == Joined("gateway") and presence == READY and isinstance(ready, Publish)
    assert gateway.session is not old and gateway.open(ready.payload)
    query = gateway.query(2)
    form, _ = gateway.open_answer(answered(device, query, now=now), query)
    assert form is Form.LABEL
    assert device.next_deadline() == now + SESSION_US


def test_a_device_whose_link_was_down_when_the_day_was_over_says_ready_and_then_renews() -> None:
    device, gateway = joined()
    device.disconnected(now=1)
    assert device.next_deadline() is None
    presence, ready, hello = device.connected(now=SESSION_US + 5)
    assert presence == READY
    assert isinstance(ready, Publish) and isinstance(hello, Publish)
    assert (ready.payload[0], hello.payload[0]) == (0x12, 0x10)
    assert gateway.open(ready.payload)
    assert device.receive(D, gateway.welcome(hello.payload), now=SESSION_US + 6)[0] == Joined("gateway")


# The gateway's presence


def test_another_boot_of_the_gateway_causes_a_hello_within_the_window() -> None:
    device, _ = joined()
    assert device.receive(G, b"ready 00000001", now=SECOND) == []
    due = device.next_deadline()
    assert due is not None and SECOND <= due <= 2 * SECOND
    assert hello_of(device, now=due)[0] == 0x10


@pytest.mark.parametrize(("window_ms", "used_us"), [(0, 0), (3000, 3_000_000), (65_535, 60_000_000)])
def test_a_rejoin_is_spread_over_the_window_that_welcome_named_up_to_a_minute(
    window_ms: int, used_us: int
) -> None:
    waits = []
    for life in range(30):
        device, gateway = lone_device(life=life), HandGateway()
        hello = device.connected(now=0)[1]
        assert isinstance(hello, Publish)
        device.receive(D, gateway.welcome(hello.payload, window_ms=window_ms), now=0)
        device.receive(G, b"ready 00000001", now=60 * SECOND)
        waits.append((device.next_deadline() or 0) - 60 * SECOND)
    assert max(waits) <= used_us <= max(waits) * 1.2
    assert used_us == 0 or min(waits) < used_us / 5


@pytest.mark.parametrize("state", [b"ready 000b0070", b"lost", b"disconnected", b"", b"ready 0x123456"])
def test_the_same_boot_or_any_other_word_causes_nothing(state: bytes) -> None:
    device, _ = joined()
    assert device.receive(G, state, now=SECOND) == []
    assert device.next_deadline() == SESSION_US


def test_a_gateways_presence_hastens_a_hello_that_waits() -> None:
    device = lone_device()
    device.connected(now=0)
    now = 0
    for _ in range(6):
        now = device.next_deadline() or 0
        device.tick(now=now)
    patient = device.next_deadline()
    assert patient is not None and patient - now >= 16 * SECOND
    device.receive(G, b"ready 00000001", now=now + 1)
    hastened = device.next_deadline()
    assert hastened is not None and hastened - now <= 2 * SECOND


def test_a_hint_that_proves_false_makes_the_next_one_wait_twice_as_long() -> None:
    device, gateway = joined()
    now, waits = 0, []
    for boot in range(8):
        device.receive(G, b"ready %08x" % boot, now=now)
        due = device.next_deadline()
        assert due is not None
        waits.append(due - now)
        now = due
        rejoin(device, gateway, now=now)
    assert waits[0] < SECOND and waits[1] <= FIRST_DOUBT_US + SECOND
    assert waits[2:] == [2 * SECOND, 4 * SECOND, 8 * SECOND, 16 * SECOND, LAST_DOUBT_US, LAST_DOUBT_US]


def test_a_false_hint_costs_one_hello_and_not_two() -> None:
    device, gateway = joined()
    device.receive(G, b"ready 00000001", now=0)
    rejoin(device, gateway, now=SECOND)
    assert device.next_deadline() == SECOND + SESSION_US


def test_a_false_hint_while_a_hello_is_out_costs_one_more_and_not_two() -> None:
    device, gateway = lone_device(), HandGateway()
    hello = device.connected(now=0)[1]
    assert isinstance(hello, Publish)
    device.receive(G, b"ready 00000001", now=1)
    device.receive(D, gateway.welcome(hello.payload), now=2)
    rejoin(device, gateway, now=2 * SECOND)
    assert device.next_deadline() == 2 * SECOND + SESSION_US


def test_a_hint_that_proves_true_restores_trust_in_hints() -> None:
    device, gateway = joined()
    for boot in range(4):
        device.receive(G, b"ready %08x" % boot, now=boot * 60 * SECOND)
        rejoin(device, gateway, now=device.next_deadline() or 0)
    reborn = HandGateway(life=1)
    device.receive(G, b"ready %08x" % reborn.boot, now=240 * SECOND)
    rejoin(device, reborn, now=device.next_deadline() or 0)
    device.receive(G, b"ready 00000009", now=242 * SECOND)
    due = device.next_deadline()
    assert due is not None and due <= 243 * SECOND


def test_a_welcome_of_an_older_boot_than_was_announced_is_followed_by_another_hello() -> None:
    device, gateway = lone_device(), HandGateway()
    _, hello = device.connected(now=0)
    assert isinstance(hello, Publish)
    late = gateway.welcome(hello.payload)
    device.receive(G, b"ready %08x" % HandGateway(life=1).boot, now=1)
    assert device.receive(D, late, now=2)[0] == Joined("gateway")
    due = device.next_deadline()
    assert due is not None and due <= 2 + SECOND


def test_a_welcome_that_nobody_asked_for_is_a_hint_that_the_session_is_lost() -> None:
    device, gateway = joined()
    stray = HandGateway().welcome(lone_hello(life=1))
    assert device.receive(D, stray, now=1) == [Rejected(reason="unexpected")]
    rejoin(device, gateway, now=2 * SECOND)
    answered(device, gateway.query(1), now=2 * SECOND)


def lone_hello(*, life: int) -> bytes:
    """Another life's HELLO of pi-1."""
    _, hello = lone_device(life=life).connected(now=0)
    assert isinstance(hello, Publish)
    return hello.payload


# Its own presence


def test_a_wrong_retained_presence_is_corrected_at_once_and_then_once_a_second() -> None:
    device, _ = joined()
    assert device.receive(S, b"ready", now=5) == []
    assert device.receive(S, b"lost", now=5) == [READY]
    assert device.receive(S, b"lost", now=6) == []
    assert device.receive(S, b"lost", now=7) == []
    assert device.next_deadline() == 5 + SECOND
    assert device.tick(now=4 + SECOND) == []
    assert device.tick(now=5 + SECOND) == [READY]
    assert device.next_deadline() == SESSION_US
    assert device.receive(S, b"lost", now=5 + 2 * SECOND) == [READY]


# Queries


def test_a_query_is_given_to_the_model_and_its_answer_to_the_gateway() -> None:
    device, gateway = joined()
    query = gateway.query(1)
    assert device.receive(Q, query, now=10) == [Infer(Ticket(1, 1), TENSOR)]
    (effect,) = device.inferred(Ticket(1, 1), LOGITS, now=20)
    assert isinstance(effect, Publish) and effect.topic == A and effect.qos == 0
    form, code = gateway.open_answer(effect.payload, query)
    expected = softmax(*LOGITS)
    assert form is Form.LABEL
    assert code == votes.quantize(Form.LABEL, expected, float(np.log(expected.max())), scale=TASK.log_weight)


def test_an_answer_takes_the_richest_form_that_query_and_owner_allow() -> None:
    device, gateway = joined(labelling(forms=frozenset({Form.LABEL, Form.PROBS_4})))
    query = gateway.query(1, forms=frozenset({Form.LABEL, Form.PROBS_4, Form.LOGITS_8}))
    form, _ = gateway.open_answer(answered(device, query), query)
    assert form is Form.PROBS_4


@pytest.mark.parametrize(
    "scores",
    [
        None,
        np.array([1.0, np.nan, 0.0, 0.0]),
        np.array([1.0, np.inf, 0.0, 0.0]),
        np.array([1.0, 0.0, 0.0]),
        np.array([[1.0, 0.0, 0.0, 0.0]]),
    ],
    ids=["none", "nan", "inf", "too few", "a batch"],
)
def test_a_device_abstains_on_scores_that_are_no_vote(scores: Array | None) -> None:
    device, gateway = joined()
    query = gateway.query(1)
    assert gateway.open_answer(answered(device, query, scores=scores), query) == (Form.ABSTAIN, b"")


def test_a_device_abstains_where_no_form_suits_both() -> None:
    device, gateway = joined(labelling(forms=frozenset({Form.LOGITS_8})))
    query = gateway.query(1)
    assert gateway.open_answer(answered(device, query), query) == (Form.ABSTAIN, b"")


def test_a_model_that_knows_two_labels_gives_the_others_nothing() -> None:
    device, gateway = joined(labelling(classes=(3, 1)))
    query = gateway.query(1, forms=frozenset({Form.LOGITS_8}))
    frame = answered(device, query, scores=np.array([2.0, 1.0]))
    _, code = gateway.open_answer(frame, query)
    probabilities, _ = votes.dequantize(Form.LOGITS_8, code, 4, scale=TASK.log_weight)
    assert probabilities.argmax() == 3
    assert probabilities[[0, 2]].tolist() == [0.0, 0.0]


def test_a_re_ask_of_a_pending_query_yields_nothing() -> None:
    device, gateway = joined()
    query = gateway.query(1)
    device.receive(Q, query, now=0)
    assert device.receive(D, query, now=1) == []


def test_a_re_ask_of_an_answered_query_yields_the_cached_bytes() -> None:
    device, gateway = joined()
    query = gateway.query(1)
    frame = answered(device, query)
    assert device.receive(D, query, now=1) == [Publish(A, frame)]
    assert device.receive(Q, query, now=2) == [Publish(A, frame)]


def test_an_inference_that_comes_after_the_deadline_is_not_answered() -> None:
    device, gateway = joined()
    query = gateway.query(1, deadline_ms=100)
    device.receive(Q, query, now=0)
    assert device.inferred(Ticket(1, 1), LOGITS, now=100_001) == [Rejected(reason="expired", seq=1)]
    assert device.receive(D, query, now=100_002) == []
    assert device.inferred(Ticket(1, 1), LOGITS, now=100_003) == [Rejected(reason="ticket", seq=1)]


def test_at_the_deadline_itself_an_answer_is_still_given() -> None:
    device, gateway = joined()
    device.receive(Q, gateway.query(1, deadline_ms=100), now=0)
    assert only_publish(device.inferred(Ticket(1, 1), LOGITS, now=100_000)).topic == A


def test_settled_silences_a_pending_query() -> None:
    device, gateway = joined()
    query = gateway.query(1)
    device.receive(Q, query, now=0)
    assert device.receive(Q, gateway.settled(1), now=1) == []
    assert device.inferred(Ticket(1, 1), LOGITS, now=2) == [Rejected(reason="ticket", seq=1)]
    assert device.receive(D, query, now=3) == []


def test_settled_leaves_a_given_answer_as_it_is() -> None:
    device, gateway = joined()
    query = gateway.query(1)
    frame = answered(device, query)
    assert device.receive(Q, gateway.settled(1), now=1) == []
    assert device.receive(D, query, now=2) == [Publish(A, frame)]


@pytest.mark.parametrize("ticket", [Ticket(1, 9), Ticket(2, 1), Ticket(0, 1)])
def test_an_inference_that_nobody_asked_for_is_dropped(ticket: Ticket) -> None:
    device, gateway = joined()
    device.receive(Q, gateway.query(1), now=0)
    assert device.inferred(ticket, LOGITS, now=1) == [Rejected(reason="ticket", seq=ticket.seq)]
    assert only_publish(device.inferred(Ticket(1, 1), LOGITS, now=2)).topic == A


def test_a_ticket_makes_one_answer_only() -> None:
    device, gateway = joined()
    answered(device, gateway.query(1))
    assert device.inferred(Ticket(1, 1), LOGITS, now=1) == [Rejected(reason="ticket", seq=1)]


def test_before_a_session_there_are_no_tickets() -> None:
    assert lone_device().inferred(Ticket(0, 1), LOGITS, now=0) == [Rejected(reason="ticket", seq=1)]


def test_a_pending_query_dies_with_its_session() -> None:
    device, gateway = joined()
    query = gateway.query(1)
    device.receive(Q, query, now=0)
    device.receive(G, b"ready 00000001", now=0)
    rejoin(device, gateway, now=SECOND)
    assert device.inferred(Ticket(1, 1), LOGITS, now=SECOND) == [Rejected(reason="ticket", seq=1)]
    assert device.receive(D, query, now=SECOND) == [Infer(Ticket(2, 1), TENSOR)]


def test_an_answer_dies_with_its_session_and_is_sealed_anew_under_the_next() -> None:
    device, gateway = joined()
    query = gateway.query(1)
    first = answered(device, query)
    device.receive(G, b"ready 00000001", now=0)
    rejoin(device, gateway, now=SECOND)
    second = answered(device, query, now=SECOND)
    assert second != first
    form, _ = gateway.open_answer(second, query)
    assert form is Form.LABEL


# The window


def test_a_query_below_the_floor_is_stale() -> None:
    device, gateway = joined(floor=5)
    assert device.receive(Q, gateway.query(4), now=0) == [Rejected(reason="stale")]
    answered(device, gateway.query(5))


def test_a_query_is_forgotten_when_the_window_has_passed_it() -> None:
    device, gateway = joined()
    first, second = gateway.query(1), gateway.query(2)
    answered(device, first)
    frame = answered(device, second)
    answered(device, gateway.query(WINDOW + 1))
    assert device.receive(D, first, now=1) == [Rejected(reason="stale")]
    assert device.receive(D, second, now=1) == [Publish(A, frame)]


def test_queries_may_come_in_any_order_within_the_window() -> None:
    device, gateway = joined()
    for seq in (WINDOW, 1, 500, 2):
        answered(device, gateway.query(seq))


def test_a_query_of_another_input_than_the_tasks_is_refused() -> None:
    device, gateway = joined()
    other = gateway.query(1, tensor=Tensor("uint8", (3,), b"abc"))
    assert device.receive(Q, other, now=0) == [Rejected(reason="task")]
    assert device.receive(Q, gateway.query(2, task=2), now=0) == [Rejected(reason="task")]
    answered(device, gateway.query(3))


# Epochs


def test_a_genuine_query_of_an_unknown_epoch_causes_a_hello() -> None:
    device, _ = joined()
    reborn = HandGateway(life=1)
    assert device.receive(Q, reborn.query(3), now=SECOND) == [Rejected(reason="epoch", seq=3)]
    due = device.next_deadline()
    assert due is not None and SECOND <= due <= 2 * SECOND
    rejoin(device, reborn, now=due)
    answered(device, reborn.query(3), now=due)


def test_queries_of_an_unknown_epoch_are_looked_at_once_a_second() -> None:
    device, _ = joined()
    forged = HandGateway(life=1).query(3)[:-1] + b"\0"
    genuine = HandGateway(life=2).query(4)
    assert device.receive(Q, forged, now=0) == [Rejected(reason="signature")]
    assert device.receive(Q, genuine, now=SECOND - 1) == [Rejected(reason="epoch")]
    assert device.next_deadline() == SESSION_US
    assert device.receive(Q, genuine, now=SECOND) == [Rejected(reason="epoch", seq=4)]
    due = device.next_deadline()
    assert due is not None and due <= 2 * SECOND


def test_a_query_that_comes_before_the_welcome_is_not_answered_and_its_signature_not_looked_at() -> None:
    """Whose signature it would have to be is told by the WELCOME alone."""
    device = lone_device()
    device.connected(now=0)
    genuine = HandGateway().query(1)
    for query in (genuine, genuine[:-1] + bytes([genuine[-1] ^ 1])):
        assert device.receive(Q, query, now=0) == [Rejected(reason="epoch")]
    due = device.next_deadline()
    assert due is not None and due >= FIRST_RETRY_US


def readied(device: Device, gateway: HandGateway, rekey: bytes, *, now: int = 0) -> int:
    """The epoch that the READY names which this REKEY causes, and nothing but a READY."""
    (ready,) = device.receive(D, rekey, now=now)
    assert isinstance(ready, Publish) and ready.topic == A and ready.payload[0] == 0x12
    said = decode_ready(gateway.open(ready.payload))
    assert said.forms == frozenset(VOTE_FORMS)
    return said.epoch


def test_a_rekey_begins_an_epoch_and_is_answered_by_ready() -> None:
    device, gateway = joined()
    before = gateway.epoch.number
    assert readied(device, gateway, gateway.rekey()) == gateway.epoch.number == before + 1
    query = gateway.query(1)
    form, _ = gateway.open_answer(answered(device, query), query)
    assert form is Form.LABEL
    assert device.next_deadline() == SESSION_US


def test_a_copy_of_the_rekey_is_answered_by_another_ready_and_changes_nothing() -> None:
    device, gateway = joined()
    rekey = gateway.rekey(grace_ms=100)
    numbers = [readied(device, gateway, rekey, now=now) for now in (0, 90_000, 200_000)]
    assert numbers == [gateway.epoch.number] * 3
    former = gateway.epochs[gateway.epoch.number - 1]
    # The copies gave the former epoch no longer time.
    assert device.receive(Q, gateway.query(1, epoch=former), now=100_001) == [Rejected(reason="epoch", seq=1)]


def test_a_rekey_that_a_later_one_has_overtaken_is_stale() -> None:
    device, gateway = joined()
    early, late = gateway.rekey(), gateway.rekey()
    readied(device, gateway, late)
    assert device.receive(D, early, now=1) == [Rejected(reason="stale")]
    answered(device, gateway.query(1), now=1)
    assert readied(device, gateway, late, now=2) == gateway.epoch.number


def test_a_rekey_of_the_epoch_before_is_stale() -> None:
    device, gateway = joined()
    first = gateway.rekey()
    readied(device, gateway, first)
    readied(device, gateway, gateway.rekey())
    assert device.receive(D, first, now=1) == [Rejected(reason="stale")]
    answered(device, gateway.query(1), now=1)


def test_a_device_that_reconnects_names_the_epoch_that_it_holds() -> None:
    device, gateway = joined()
    readied(device, gateway, gateway.rekey())
    device.disconnected(now=1)
    _, ready = device.connected(now=2)
    assert isinstance(ready, Publish)
    assert decode_ready(gateway.open(ready.payload)).epoch == gateway.epoch.number


def test_a_query_of_the_former_epoch_is_answered_within_the_grace_and_not_after() -> None:
    device, gateway = joined()
    former = gateway.epoch
    early, late, later = (gateway.query(seq) for seq in (1, 2, 3))
    readied(device, gateway, gateway.rekey(grace_ms=500), now=SECOND)
    form, _ = gateway.open_answer(answered(device, early, now=SECOND + 1), early)
    assert form is Form.LABEL
    answered(device, late, now=SECOND + 500_000)
    assert device.receive(Q, later, now=SECOND + 500_001) == [Rejected(reason="epoch", seq=3)]
    assert former.number != gateway.epoch.number
    answered(device, gateway.query(4), now=SECOND + 500_001)


def test_without_grace_the_former_epoch_is_over_at_once() -> None:
    device, gateway = joined()
    former = gateway.query(1)
    readied(device, gateway, gateway.rekey(), now=SECOND)
    assert device.receive(Q, former, now=SECOND + 1) == [Rejected(reason="epoch", seq=1)]


def test_what_was_asked_in_the_former_epoch_is_answered_in_it_however_long_the_model_takes() -> None:
    device, gateway = joined()
    query = gateway.query(1, deadline_ms=60_000)
    ticket = only_infer(device.receive(Q, query, now=0)).ticket
    readied(device, gateway, gateway.rekey())
    readied(device, gateway, gateway.rekey())
    frame = only_publish(device.inferred(ticket, LOGITS, now=50 * SECOND)).payload
    form, _ = gateway.open_answer(frame, query)
    assert form is Form.LABEL


def test_an_answer_is_sent_again_unchanged_after_the_epoch_has_changed() -> None:
    device, gateway = joined()
    query = gateway.query(1)
    frame = answered(device, query)
    readied(device, gateway, gateway.rekey(grace_ms=500))
    assert device.receive(D, query, now=1) == [Publish(A, frame)]


def test_settled_silences_a_query_of_the_former_epoch() -> None:
    device, gateway = joined()
    former = gateway.epoch
    ticket = only_infer(device.receive(Q, gateway.query(1), now=0)).ticket
    readied(device, gateway, gateway.rekey(grace_ms=500))
    assert device.receive(Q, gateway.settled(1), now=1) == [Rejected(reason="unknown_query")]
    assert device.receive(Q, gateway.settled(1, epoch=former), now=1) == []
    assert device.inferred(ticket, LOGITS, now=2) == [Rejected(reason="ticket", seq=1)]


def test_the_epoch_before_the_former_one_is_over_when_a_third_begins() -> None:
    device, gateway = joined()
    first = gateway.query(1)
    readied(device, gateway, gateway.rekey(grace_ms=500))
    second = gateway.query(2)
    readied(device, gateway, gateway.rekey(grace_ms=500))
    assert device.receive(Q, first, now=1) == [Rejected(reason="epoch", seq=1)]
    answered(device, second, now=1)
    answered(device, gateway.query(3), now=1)


def test_a_seq_is_used_once_whatever_the_epoch() -> None:
    device, gateway = joined()
    answered(device, gateway.query(1))
    readied(device, gateway, gateway.rekey())
    assert device.receive(Q, gateway.query(1), now=1) == [Rejected(reason="conflict")]


def test_a_new_signing_key_comes_with_the_epoch_and_the_former_one_goes_with_its_own() -> None:
    device, gateway = joined()
    old, new = gateway.identity.signing, SigningKey.from_seed(b"n" * 32)
    former = gateway.epoch
    readied(device, gateway, gateway.rekey(grace_ms=500, signing=new))
    answered(device, gateway.query(1, epoch=former, signing=old), now=1)
    answered(device, gateway.query(2), now=1)
    assert device.receive(Q, gateway.query(3, signing=old), now=1) == [Rejected(reason="signature")]
    forged = gateway.query(4, epoch=former, signing=new)
    assert device.receive(Q, forged, now=1) == [Rejected(reason="signature")]
    # Once the grace is over, the key of that time says nothing any more, not even a hint.
    late = gateway.query(5, epoch=former, signing=old)
    assert device.receive(Q, late, now=500_001) == [Rejected(reason="signature")]
    assert device.next_deadline() == SESSION_US


def test_the_key_of_a_welcome_is_the_one_that_queries_are_verified_under() -> None:
    device, gateway = lone_device(), HandGateway()
    gateway.identity = replace(gateway.identity, signing=SigningKey.from_seed(b"n" * 32))
    _, hello = device.connected(now=0)
    assert isinstance(hello, Publish)
    device.receive(D, gateway.welcome(hello.payload), now=0)
    answered(device, gateway.query(1))
    former = gateway_identity().signing
    assert device.receive(Q, gateway.query(2, signing=former), now=1) == [Rejected(reason="signature")]


def test_a_new_session_knows_no_former_epoch() -> None:
    device, gateway = joined()
    former = gateway.query(1)
    readied(device, gateway, gateway.rekey(grace_ms=60_000))
    device.receive(G, b"ready 00000001", now=0)
    rejoin(device, gateway, now=SECOND)
    assert device.receive(Q, former, now=SECOND) == [Rejected(reason="epoch", seq=1)]
    answered(device, gateway.query(2), now=SECOND)


def test_a_rekey_of_the_session_before_is_dropped() -> None:
    device, gateway = joined()
    before = gateway.rekey()
    readied(device, gateway, before)
    device.receive(G, b"ready 00000001", now=0)
    rejoin(device, gateway, now=SECOND)
    assert device.receive(D, before, now=SECOND) == [Rejected(reason="session")]
    answered(device, gateway.query(1), now=SECOND)


def test_the_rekeys_of_a_new_session_are_counted_anew() -> None:
    device, gateway = joined()
    for _ in range(3):
        readied(device, gateway, gateway.rekey())
    device.receive(G, b"ready 00000001", now=0)
    rejoin(device, gateway, now=SECOND)
    assert readied(device, gateway, gateway.rekey(), now=SECOND) == gateway.epoch.number
    answered(device, gateway.query(1), now=SECOND)


@pytest.mark.parametrize("size", [0, 71, 73])
def test_a_rekey_of_another_version_is_dropped_and_the_epoch_stays(size: int) -> None:
    device, gateway = joined()
    assert gateway.session is not None
    broken = gateway.session.seal(Type.REKEY, bytes(size))
    assert device.receive(D, broken, now=0) == [Rejected(reason="payload")]
    assert device.receive(D, broken, now=1) == [Rejected(reason="replay")]
    answered(device, gateway.query(1), now=1)


# Values


@pytest.mark.parametrize("classes", [(), (0, 0), (4,), (-1,)])
def test_a_labelling_names_classes_of_the_task_each_once(classes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="class"):
        Labelling(task=TASK, model=MODEL, classes=classes)


def test_spread_is_a_softmax_at_the_models_places() -> None:
    spread_out = spread(np.array([1000.0, 1000.0]), (2, 0), 4)
    assert spread_out.tolist() == [0.5, 0.0, 0.5, 0.0]


def test_a_device_shows_no_secret_in_its_identity() -> None:
    its = identity("pi-1", 1)
    assert its.static.private.hex() not in repr(its) and repr(its.static.private) not in repr(its)
