"""What a gateway remembers of its clients' questions: which frame got which outcome, and how many."""

from edge_fi.asks import OUTCOMES_KEPT, Asks, ClientAsk


def ask(counter: int, *, client: int = 101, frame: bytes = b"ask") -> ClientAsk:
    """A question of this client."""
    return ClientAsk.of(client, counter, frame + counter.to_bytes(4, "big"))


def open_and_answered(asks: Asks, *counters: int) -> None:
    """These questions come, and are answered one by one."""
    for counter in counters:
        asks.remember(ask(counter))
        asks.answer(ask(counter), b"outcome of %d" % counter)


def test_a_question_that_did_not_come_is_not_known() -> None:
    assert Asks().outcome(ask(0)) is None


def test_a_question_is_known_while_it_is_open_and_has_its_outcome_after() -> None:
    asks = Asks()
    assert asks.remember(ask(0)) is True
    assert asks.outcome(ask(0)) == b""
    asks.answer(ask(0), b"outcome")
    assert asks.outcome(ask(0)) == b"outcome"


def test_an_outcome_belongs_to_the_frame_and_not_to_its_counter() -> None:
    asks = Asks()
    open_and_answered(asks, 0)
    assert asks.outcome(ask(0, frame=b"other")) is None
    assert asks.outcome(ask(0)) == b"outcome of 0"


def test_clients_have_questions_of_their_own() -> None:
    asks = Asks()
    open_and_answered(asks, 0)
    assert asks.outcome(ask(0, client=102)) is None
    assert asks.remember(ask(0, client=102)) is True
    assert asks.outcome(ask(0, client=102)) == b""
    assert asks.outcome(ask(0)) == b"outcome of 0"


def test_a_client_that_is_forgotten_has_asked_nothing() -> None:
    asks = Asks()
    open_and_answered(asks, 0)
    asks.remember(ask(0, client=102))
    asks.forget(101)
    assert asks.outcome(ask(0)) is None
    assert asks.outcome(ask(0, client=102)) == b""
    asks.forget(103)


def test_64_questions_may_be_open_and_the_65th_has_no_room() -> None:
    asks = Asks()
    assert OUTCOMES_KEPT == 64
    assert [asks.remember(ask(counter)) for counter in range(66)] == [True] * 64 + [False] * 2
    # It is known all the same: it gets an outcome that says so.
    assert asks.outcome(ask(65)) == b""
    asks.answer(ask(3), b"outcome")
    asks.answer(ask(64), b"overloaded")
    asks.answer(ask(65), b"overloaded")
    assert asks.remember(ask(66)) is True


def test_of_answered_questions_the_oldest_is_forgotten_first() -> None:
    asks = Asks()
    open_and_answered(asks, *range(OUTCOMES_KEPT + 1))
    assert asks.outcome(ask(0)) is None
    assert asks.outcome(ask(1)) == b"outcome of 1"


def test_an_open_question_is_not_forgotten_for_newer_ones() -> None:
    asks = Asks()
    asks.remember(ask(0))
    open_and_answered(asks, *range(1, OUTCOMES_KEPT + 2))
    assert asks.outcome(ask(0)) == b""
    assert asks.outcome(ask(1)) is None and asks.outcome(ask(2)) is None


def test_a_reference_names_client_counter_and_frame() -> None:
    same = ClientAsk.of(101, 7, b"frame")
    assert same == ClientAsk.of(101, 7, b"frame")
    others = {ClientAsk.of(102, 7, b"frame"), ClientAsk.of(101, 8, b"frame"), ClientAsk.of(101, 7, b"framE")}
    assert same not in others and len(others) == 3 and len(same.digest) == 16
