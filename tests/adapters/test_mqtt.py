"""The link against a broker of a few bytes, which does what no good broker does."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from edge_fi.adapters import mqtt
from edge_fi.adapters.mqtt import Down, MqttLink, Up

PATIENCE_S = 20.0
CONNACK = b"\x20\x02\x00\x00"


def suback(code: int, packet: int) -> bytes:
    return b"\x90\x03" + packet.to_bytes(2, "big") + bytes([code])


class Bench:
    """A link, and the listener it finds instead of a broker."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(PATIENCE_S)
        port = self.listener.getsockname()[1]
        self.link = MqttLink("x", host="127.0.0.1", port=port, subscriptions=["t"])
        self.link.start()
        self._subscriptions = 0

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "it did not come true in time"
            self.link.service()
            time.sleep(0.001)

    def accept(self) -> socket.socket:
        """The next connection, with nothing answered."""
        self.until(lambda: self.link._attempt is None and self.link._client.socket() is not None)
        return self.listener.accept()[0]

    def answer(self, code: int = 0) -> socket.socket:
        """The next connection, with the subscription granted or refused."""
        connection = self.accept()
        self._subscriptions += 1
        connection.sendall(CONNACK + suback(code, self._subscriptions))
        return connection

    def serve_and_reset(self) -> Down:
        """A link that comes up and is gone at once."""
        self.link.events.clear()
        with self.answer() as connection:
            self.until(lambda: self.link.is_up)
            reset(connection)
        self.until(lambda: not self.link.is_up)
        assert self.link.events.popleft() == Up()
        down = self.link.events.popleft()
        assert isinstance(down, Down) and down.was_up
        return down


def reset(connection: socket.socket) -> None:
    """RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(mqtt, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(mqtt, "LAST_DELAY_S", 0.08)
    made = Bench()
    yield made
    made.link.close()
    made.listener.close()


def test_while_a_connect_runs_the_link_asks_for_no_service(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pump would spin until the connect is over."""
    monkeypatch.setattr(mqtt, "HANDSHAKE_TIMEOUT_S", 0.0)
    gate = threading.Event()
    monkeypatch.setattr(bench.link._client, "connect", lambda *_, **__: gate.wait(PATIENCE_S))
    try:
        bench.link.service()
        assert bench.link._attempt is not None
        assert bench.link.next_service() > time.monotonic() + 1
    finally:
        gate.set()


def test_a_connect_that_took_longer_than_the_handshake_may_is_not_dropped(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "HANDSHAKE_TIMEOUT_S", 0.3)
    gate = threading.Event()
    connect = bench.link._client.connect

    def late(*arguments: object, **more: object) -> object:
        assert gate.wait(PATIENCE_S)
        return connect(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.link._client, "connect", late)
    began = time.monotonic()
    bench.until(lambda: time.monotonic() > began + 0.4)
    gate.set()
    with bench.answer():
        bench.until(lambda: bool(bench.link.events))
        assert list(bench.link.events) == [Up()]


def test_a_connection_that_was_reset_can_still_be_given_up(bench: Bench) -> None:
    connection = bench.accept()
    reset(connection)
    own = bench.link._client.socket()
    assert own is not None
    descriptor = own.fileno()
    with socket.socket(fileno=socket.dup(descriptor)) as seen:
        seen.settimeout(PATIENCE_S)
        with pytest.raises(OSError):
            seen.recv(1)  # so that the reset is known to have come
        with pytest.raises(OSError):
            seen.shutdown(socket.SHUT_RDWR)
        seen.setblocking(False)
        bench.link._give_up_at = 0.0
        bench.link.service([])
    bench.until(lambda: bool(bench.link.events))
    assert bench.link.events.popleft() == Down("it took the connection but does not answer", was_up=False)
    with bench.accept():
        pass


def test_a_refused_subscription_brings_the_link_down_and_it_tries_again(bench: Bench) -> None:
    with bench.answer(code=0x80):
        bench.until(lambda: bool(bench.link.events))
        down = bench.link.events.popleft()
        assert isinstance(down, Down) and not down.was_up
        assert down.reason.startswith("it refuses a subscription")
    with bench.answer():
        bench.until(lambda: bench.link.is_up)


def test_links_that_do_not_last_come_back_ever_later_and_name_the_likely_cause(bench: Bench) -> None:
    reasons = [bench.serve_and_reset().reason for _ in range(4)]
    assert ["another process use this key" in reason for reason in reasons] == [False, False, True, True]
    assert bench.link._delay_s == 0.08


def test_a_link_that_lasted_comes_back_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        bench.serve_and_reset()
    monkeypatch.setattr(mqtt, "STEADY_S", 0.0)
    assert "another process" not in bench.serve_and_reset().reason
    assert bench.link._delay_s == 0.01


def test_a_link_fought_over_is_never_steady() -> None:
    """Else the fight would begin anew: each of two holds it while the other waits."""
    assert mqtt.LAST_DELAY_S < mqtt.STEADY_S
