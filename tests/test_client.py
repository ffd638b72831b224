"""The client machine alone: every input by hand, every effect exactly."""

import pytest
from federation import TASK, TENSOR, HandGateway, lone_client, only_publish

from edge_fi.client import GRACE_US, MAX_OPEN, RESEND_US, Client
from edge_fi.effects import Deliver, Effect, Joined, Publish, Rejected
from edge_fi.messages import MAX_DEADLINE_MS, Fate, Outcome, Status, Tensor
from edge_fi.session import FIRST_DOUBT_US, FIRST_RETRY_US, LAST_DOUBT_US, SESSION_US
from edge_fi.wire.payloads import Ask, decode_ask

CA = "fi1/acme/ca/laptop-1"
CD = "fi1/acme/cd/laptop-1"
G = "fi1/acme/gateway/state"
SECOND = 1_000_000
ANSWER = Outcome(
    status=Status.ANSWERED,
    label=2,
    probabilities=(0.0, 0.0, 1.0, 0.0),
    agreement=1.0,
    strategy="familiarity",
    fates=(("pi-1", Fate.COUNTED),),
    seq=7,
    elapsed_us=9,
)
UNREACHABLE = Outcome(status=Status.UNREACHABLE)


def question(payload: bytes) -> Ask:
    """What an ASK of a task says."""
    told = decode_ask(payload)
    assert isinstance(told, Ask)
    return told


def hand_gateway(life: int = 0) -> HandGateway:
    """The gateway's side towards laptop-1."""
    return HandGateway("laptop-1", 101, "client", life=life)


def joined(*, now: int = 0) -> tuple[Client, HandGateway]:
    """A client that holds a session with a gateway made by hand."""
    client, gateway = lone_client(), hand_gateway()
    hello = only_publish(client.connected(now=now))
    client.receive(CD, gateway.welcome(hello.payload), now=now)
    return client, gateway


def rejoin(client: Client, gateway: HandGateway, *, now: int) -> list[Effect]:
    """Answer the HELLO that is due."""
    hello = only_publish(client.tick(now=now))
    return client.receive(CD, gateway.welcome(hello.payload), now=now)


def ask(client: Client, *, now: int = 0, reference: object = "me", deadline_ms: int = 5000) -> list[Effect]:
    """Ask what is always asked here."""
    return client.ask(TASK, TENSOR, deadline_ms=deadline_ms, reference=reference, now=now)


# Joining


def test_a_client_subscribes_to_its_own_topic_and_the_gateways_state() -> None:
    assert lone_client().subscriptions == [CD, G]


def test_a_client_leaves_nothing_behind() -> None:
    client = lone_client()
    assert client.will is None and client.farewell == []


def test_before_it_is_connected_a_client_wants_nothing() -> None:
    assert lone_client().next_deadline() is None


def test_a_connected_client_says_hello_and_resends_it_unchanged() -> None:
    client = lone_client()
    (first,) = client.connected(now=0)
    assert isinstance(first, Publish) and first.topic == CA and first.payload[0] == 0x10
    due = client.next_deadline()
    assert due is not None and due >= FIRST_RETRY_US
    assert client.tick(now=due) == [first]


def test_a_client_that_reconnects_while_waiting_hastens_the_same_hello() -> None:
    client = lone_client()
    (first,) = client.connected(now=0)
    client.disconnected(now=1)
    assert client.next_deadline() is None
    assert client.connected(now=2) == []
    assert client.tick(now=FIRST_RETRY_US) == [first]


def test_a_welcome_begins_a_session() -> None:
    client, gateway = lone_client(), hand_gateway()
    hello = only_publish(client.connected(now=0))
    assert client.receive(CD, gateway.welcome(hello.payload), now=1) == [Joined("gateway")]
    assert client.next_deadline() == 1 + SESSION_US


def test_a_second_welcome_is_unexpected() -> None:
    client, gateway = joined()
    assert gateway.session is not None
    assert client.receive(CD, gateway.session.welcome, now=1) == [Rejected(reason="unexpected")]
    assert client.next_deadline() == SESSION_US


def test_a_stray_welcome_is_a_hint_that_the_session_is_lost() -> None:
    client, _ = joined()
    stray = hand_gateway().welcome(only_publish(lone_client(life=1).connected(now=0)).payload)
    assert client.receive(CD, stray, now=SECOND) == [Rejected(reason="unexpected")]
    reborn = hand_gateway(life=1)
    assert rejoin(client, reborn, now=2 * SECOND) == [Joined("gateway")]
    assert question(reborn.open(only_publish(ask(client, now=2 * SECOND)).payload)).task == 1


def test_a_welcome_before_the_hello_was_sent_is_unexpected() -> None:
    client, gateway = joined()
    assert gateway.session is not None
    client.receive(G, b"ready 00000001", now=SECOND)
    due = client.next_deadline()
    assert client.receive(CD, gateway.session.welcome, now=SECOND) == [Rejected(reason="unexpected")]
    assert client.next_deadline() == due


# Age


def test_a_client_renews_its_session_after_a_day_and_asks_under_the_old_one_until_then() -> None:
    client, gateway = joined()
    assert client.tick(now=SESSION_US - 1) == []
    hello = only_publish(client.tick(now=SESSION_US))
    assert hello.payload[0] == 0x10
    now = SESSION_US + 1
    asked = only_publish(ask(client, now=now))
    assert question(gateway.open(asked.payload)).task == 1
    assert client.receive(CD, gateway.outcome(0, ANSWER), now=now) == [Deliver("me", ANSWER)]
    still = only_publish(ask(client, now=now, reference="later"))
    old = gateway.session
    begun, again = client.receive(CD, gateway.welcome(hello.payload), now=now)
    assert begun == Joined("gateway") and isinstance(again, Publish)
    assert gateway.session is not old and again.payload != still.payload
    assert question(gateway.open(again.payload)).task == 1
    assert client.receive(CD, gateway.outcome(0, ANSWER), now=now) == [Deliver("later", ANSWER)]
    assert client.next_deadline() == now + SESSION_US


def test_a_client_whose_link_was_down_when_the_day_was_over_renews_when_it_is_up() -> None:
    client, _ = joined()
    client.disconnected(now=1)
    assert client.next_deadline() is None
    assert only_publish(client.connected(now=SESSION_US + 5)).payload[0] == 0x10


# Asking


def test_a_question_is_sealed_for_the_session_and_its_outcome_delivered() -> None:
    client, gateway = joined()
    message = only_publish(ask(client))
    assert message.topic == CA
    assert question(gateway.open(message.payload)) == Ask(1, 5000, TENSOR)
    assert client.receive(CD, gateway.outcome(0, ANSWER), now=1) == [Deliver("me", ANSWER)]
    assert client.next_deadline() == SESSION_US


def test_outcomes_may_come_in_another_order_than_the_questions() -> None:
    client, gateway = joined()
    ask(client, reference="first")
    ask(client, reference="second")
    assert client.receive(CD, gateway.outcome(1, ANSWER), now=1) == [Deliver("second", ANSWER)]
    assert client.receive(CD, gateway.outcome(0, ANSWER), now=1) == [Deliver("first", ANSWER)]


def test_a_question_that_nothing_answers_is_resent_with_the_same_bytes() -> None:
    client, _ = joined()
    first = ask(client)
    assert client.next_deadline() == RESEND_US
    assert client.tick(now=RESEND_US - 1) == []
    assert client.tick(now=RESEND_US) == first
    assert client.next_deadline() == 2 * RESEND_US


def test_a_question_asked_before_the_session_is_sent_when_it_begins() -> None:
    client, gateway = lone_client(), hand_gateway()
    assert ask(client) == []
    hello = only_publish(client.connected(now=1))
    assert ask(client, now=1, reference="second") == []
    joined_, first, second = client.receive(CD, gateway.welcome(hello.payload), now=2)
    assert joined_ == Joined("gateway")
    assert isinstance(first, Publish) and isinstance(second, Publish)
    assert [question(gateway.open(m.payload)).task for m in (first, second)] == [1, 1]


def test_a_question_asked_while_the_link_is_down_is_sent_when_it_is_up() -> None:
    client, gateway = joined()
    client.disconnected(now=1)
    assert ask(client, now=1) == []
    assert client.next_deadline() == 1 + 5 * SECOND + GRACE_US
    message = only_publish(client.connected(now=2))
    assert question(gateway.open(message.payload)).tensor == TENSOR


def test_a_question_is_given_up_a_little_after_its_deadline() -> None:
    client, _ = joined()
    ask(client, deadline_ms=500)
    due = 500_000 + GRACE_US
    assert client.tick(now=due - 1) != [Deliver("me", UNREACHABLE)]
    assert client.tick(now=due)[0] == Deliver("me", UNREACHABLE)


def test_a_question_is_given_up_while_the_link_is_down_too() -> None:
    client, _ = joined()
    ask(client)
    client.disconnected(now=1)
    assert client.tick(now=5 * SECOND + GRACE_US) == [Deliver("me", UNREACHABLE)]
    assert client.next_deadline() is None


def test_a_client_whose_question_nobody_answered_asks_for_a_new_session() -> None:
    client, _ = joined()
    ask(client)
    delivered, hello = client.tick(now=6 * SECOND)
    assert delivered == Deliver("me", UNREACHABLE)
    assert isinstance(hello, Publish) and hello.payload[0] == 0x10
    reborn = hand_gateway(life=1)
    assert client.receive(CD, reborn.welcome(hello.payload), now=6 * SECOND) == [Joined("gateway")]


def test_a_question_given_up_before_there_was_a_session_leaves_the_hello_as_it_is() -> None:
    client = lone_client()
    first = client.connected(now=0)
    ask(client)
    assert client.tick(now=6 * SECOND) == [Deliver("me", UNREACHABLE), *first]


def test_callers_mistakes_are_errors_and_nothing_is_sent() -> None:
    client, _ = joined()
    with pytest.raises(ValueError, match="takes uint8"):
        client.ask(TASK, Tensor("uint8", (3,), b"abc"), deadline_ms=1, reference="me", now=0)
    for deadline_ms in (-1, 0, MAX_DEADLINE_MS + 1):
        with pytest.raises(ValueError, match="deadline_ms"):
            ask(client, deadline_ms=deadline_ms)
    assert client.next_deadline() == SESSION_US


def test_a_client_holds_64_questions_and_no_more() -> None:
    client, gateway = joined()
    for _ in range(MAX_OPEN):
        ask(client)
    assert ask(client, reference="late") == [Deliver("late", Outcome(status=Status.OVERLOADED))]
    client.receive(CD, gateway.outcome(3, ANSWER), now=1)
    assert len(ask(client)) == 1


# Outcomes


def test_an_outcome_is_delivered_once() -> None:
    client, gateway = joined()
    ask(client)
    frame = gateway.outcome(0, ANSWER)
    client.receive(CD, frame, now=1)
    assert client.receive(CD, frame, now=2) == [Rejected(reason="replay")]


def test_an_outcome_that_nobody_waits_for_is_dropped() -> None:
    client, gateway = joined()
    assert client.receive(CD, gateway.outcome(0, ANSWER), now=1) == [Rejected(reason="unknown_query")]
    ask(client)
    assert client.receive(CD, gateway.outcome(5, ANSWER), now=1) == [Rejected(reason="unknown_query")]


def test_an_outcome_of_another_session_is_dropped() -> None:
    client, gateway = joined()
    ask(client)
    frame = bytearray(gateway.outcome(0, ANSWER))
    frame[1] ^= 0x10
    assert client.receive(CD, bytes(frame), now=1) == [Rejected(reason="session")]
    assert lone_client().receive(CD, gateway.outcome(0, ANSWER), now=1) == [Rejected(reason="session")]


# The gateway's presence


def test_another_boot_of_the_gateway_causes_a_hello_within_the_window_and_questions_move_over() -> None:
    client, gateway = joined()
    old = only_publish(ask(client, now=SECOND))
    assert client.receive(G, b"ready 00000001", now=SECOND) == []
    due = client.next_deadline()
    assert due is not None and SECOND <= due < 2 * SECOND
    assert client.tick(now=due - 1) == []
    joined_, again = rejoin(client, reborn := hand_gateway(life=1), now=due)
    assert joined_ == Joined("gateway") and isinstance(again, Publish)
    assert again.payload != old.payload
    assert question(reborn.open(again.payload)) == question(gateway.open(old.payload))


@pytest.mark.parametrize("state", [b"ready 000b0070", b"lost", b"disconnected", b"", b"ready 0x123456"])
def test_the_same_boot_or_any_other_word_causes_nothing(state: bytes) -> None:
    client, _ = joined()
    assert client.receive(G, state, now=SECOND) == []
    assert client.next_deadline() == SESSION_US


def test_a_gateways_presence_hastens_a_hello_that_waits() -> None:
    client = lone_client()
    client.connected(now=0)
    now = 0
    for _ in range(6):
        now = client.next_deadline() or 0
        client.tick(now=now)
    patient = client.next_deadline()
    assert patient is not None and patient - now >= 16 * SECOND
    assert client.receive(G, b"ready 00000001", now=now + FIRST_RETRY_US) == []
    hastened = client.next_deadline()
    assert hastened is not None and hastened - now <= FIRST_RETRY_US + SECOND
    assert only_publish(client.tick(now=hastened)).payload[0] == 0x10


@pytest.mark.parametrize(("window_ms", "used_us"), [(0, 0), (3000, 3_000_000), (65_535, 60_000_000)])
def test_a_rejoin_is_spread_over_the_window_that_welcome_named_up_to_a_minute(
    window_ms: int, used_us: int
) -> None:
    waits = []
    for life in range(30):
        client, gateway = lone_client(life=life), hand_gateway()
        hello = only_publish(client.connected(now=0))
        client.receive(CD, gateway.welcome(hello.payload, window_ms=window_ms), now=0)
        client.receive(G, b"ready 00000001", now=60 * SECOND)
        waits.append((client.next_deadline() or 0) - 60 * SECOND)
    assert max(waits) <= used_us <= max(waits) * 1.2
    assert used_us == 0 or min(waits) < used_us / 5


def test_a_hint_that_proves_false_makes_the_next_one_wait_twice_as_long() -> None:
    client, gateway = joined()
    now, waits = 0, []
    for boot in range(8):
        client.receive(G, b"ready %08x" % boot, now=now)
        due = client.next_deadline()
        assert due is not None
        waits.append(due - now)
        now = due
        rejoin(client, gateway, now=now)
    assert waits[0] < SECOND and waits[1] <= FIRST_DOUBT_US + SECOND
    assert waits[2:] == [2 * SECOND, 4 * SECOND, 8 * SECOND, 16 * SECOND, LAST_DOUBT_US, LAST_DOUBT_US]


def test_a_client_that_reconnects_with_a_session_leaves_a_rejoin_that_waits_as_it_is() -> None:
    client, _ = joined()
    client.receive(G, b"ready 00000001", now=SECOND)
    due = client.next_deadline()
    assert due is not None and due > SECOND
    client.disconnected(now=SECOND)
    assert client.connected(now=SECOND) == []
    assert client.next_deadline() == due


def test_a_session_outlasts_the_link() -> None:
    client, gateway = joined()
    frame = only_publish(ask(client)).payload
    client.disconnected(now=1)
    assert client.connected(now=2) == [Publish(CA, frame)]
    assert client.receive(CD, gateway.outcome(0, ANSWER), now=3) == [Deliver("me", ANSWER)]
