"""The link against a broker of a few bytes, which does what no good broker does, with TLS and without."""

import hashlib
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from certified import Authority, Issued

from edge_fi.adapters import mqtt
from edge_fi.adapters.inbound import Inbound
from edge_fi.adapters.mqtt import READ_AT_ONCE, Down, MqttLink, Received, Up
from edge_fi.adapters.tls import make_context
from edge_fi.effects import Publish

PATIENCE_S = 20.0
CONNACK = b"\x20\x02\x00\x00"


def suback(code: int, packet: int) -> bytes:
    return b"\x90\x03" + packet.to_bytes(2, "big") + bytes([code])


def publish(payload: bytes) -> bytes:
    """A PUBLISH on the topic `t` at QoS 0."""
    assert len(payload) < 125
    return bytes([0x30, 3 + len(payload)]) + b"\x00\x01t" + payload


class Bench:
    """A link, and the listener it finds instead of a broker.

    issued: what the listener presents over TLS, and the link trusts; no TLS if None.
    """

    def __init__(self, authority: Authority | None = None, issued: Issued | None = None) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(PATIENCE_S)
        self.is_secure = issued is not None
        self._server: ssl.SSLContext | None = None
        if issued is not None:
            self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._server.load_cert_chain(issued.certificate, issued.key)
        self.link = MqttLink(
            "x",
            host="127.0.0.1",
            port=self.listener.getsockname()[1],
            subscriptions=["t"],
            keepalive_s=4000,  # so that nothing but what is to be done ends a wait
            tls=None if authority is None else make_context(authority.path),
        )
        self.link.start()
        self._subscriptions = 0
        self.turns = 0

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "it did not come true in time"
            self.link.service()
            time.sleep(0.001)

    def turn(self) -> None:
        """Wait as the pump does, for what the link asks for and no longer; then let it do that alone."""
        self.turns += 1
        assert self.turns < 10_000, "it turns without end"
        waiting = select.poll()
        for descriptor, also_write in self.link.descriptors():
            waiting.register(descriptor, select.POLLIN | (select.POLLOUT if also_write else 0))
        wait_s = max(0.0, self.link.next_service() - time.monotonic())
        ready = waiting.poll(min(wait_s, PATIENCE_S) * 1000)
        assert ready or wait_s <= PATIENCE_S, "nothing ended the wait"
        self.link.service([descriptor for descriptor, _ in ready])

    def accept(self) -> socket.socket:
        """The next connection, with nothing answered."""
        self.until(lambda: self.link._attempt is not None)
        connection, _ = self.listener.accept()
        connection.settimeout(PATIENCE_S)
        if self._server is not None:
            connection = self._server.wrap_socket(connection, server_side=True)
        self.until(lambda: self.link._attempt is None and self.link._client.socket() is not None)
        return connection

    def answer(self, code: int = 0, *, behind: bytes = b"") -> socket.socket:
        """The next connection, with the subscription granted or refused, and more in the same record."""
        connection = self.accept()
        self._subscriptions += 1
        connection.sendall(CONNACK + suback(code, self._subscriptions) + behind)
        return connection

    def close(self) -> None:
        self.link.close()
        self.listener.close()

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


@pytest.fixture(autouse=True)
def _delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(mqtt, "LAST_DELAY_S", 0.08)


@pytest.fixture
def plain() -> Iterator[Bench]:
    """Without TLS: what a test sees of the connection is what the peer sent."""
    made = Bench()
    yield made
    made.close()


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[Bench]:
    authority = Authority(tmp_path)
    made = Bench(authority, authority.issue())
    yield made
    made.close()


@pytest.fixture(params=["plain", "secure"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """With TLS and without."""
    made = request.getfixturevalue(request.param)
    assert isinstance(made, Bench)
    return made


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


def test_a_connection_that_was_reset_can_still_be_given_up(plain: Bench) -> None:
    connection = plain.accept()
    reset(connection)
    own = plain.link._client.socket()
    assert own is not None
    descriptor = own.fileno()
    with socket.socket(fileno=socket.dup(descriptor)) as seen:
        seen.settimeout(PATIENCE_S)
        with pytest.raises(OSError):
            seen.recv(1)  # so that the reset is known to have come
        with pytest.raises(OSError):
            seen.shutdown(socket.SHUT_RDWR)
        seen.setblocking(False)
        plain.link._give_up_at = 0.0
        plain.link.service([])
    plain.until(lambda: bool(plain.link.events))
    assert plain.link.events.popleft() == Down("it took the connection but does not answer", was_up=False)
    with plain.accept():
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


def received(link: MqttLink) -> list[bytes]:
    return [event.payload for event in link.events if isinstance(event, Received)]


MANY = [number.to_bytes(2, "big") for number in range(2000)]


def test_no_message_waits_in_what_was_decrypted_already(bench: Bench) -> None:
    """One record of TLS holds 16 kB, and its descriptor tells of none of the messages behind the first."""
    with bench.answer(behind=b"".join(map(publish, MANY))):
        while len(received(bench.link)) < len(MANY):
            before = len(bench.link.events)
            bench.turn()
            assert len(bench.link.events) - before <= READ_AT_ONCE
    assert received(bench.link) == MANY


def test_a_message_may_begin_in_one_record_and_end_in_another(bench: Bench) -> None:
    with bench.answer() as connection:
        bench.until(lambda: bench.link.is_up)
        whole = publish(b"first") + publish(b"second")
        for byte in whole:
            connection.sendall(bytes([byte]))
        while len(received(bench.link)) < 2:
            bench.turn()
    assert received(bench.link) == [b"first", b"second"]


def test_messages_that_came_together_are_taken_together(bench: Bench) -> None:
    """Each in a record of its own, as brokers send them: a model infers what one turn took as one batch."""
    with bench.answer() as connection:
        bench.until(lambda: bench.link.is_up)
        for payload in MANY[:30]:
            connection.sendall(publish(payload))
        before = bench.turns
        while len(received(bench.link)) < 30:
            bench.turn()
        assert bench.turns - before < 10


def test_what_is_no_message_does_not_hide_the_messages_behind_it(bench: Bench) -> None:
    pingresp, puback = b"\xd0\x00", b"\x40\x02\x00\x09"
    with bench.answer(behind=(pingresp + puback) * 100 + publish(b"seen")):
        while not received(bench.link):
            bench.turn()


def test_what_the_peer_does_not_take_yet_is_sent_when_it_does(bench: Bench) -> None:
    """And what it sends meanwhile is heard."""
    sent = [bytes([number]) * 900_000 for number in range(10)]
    with bench.answer() as connection:
        bench.until(lambda: bench.link.is_up)
        for payload in sent:
            assert bench.link.publish(Publish("t", payload))
        assert [also_write for _, also_write in bench.link.descriptors()] == [False, True]
        connection.sendall(publish(b"heard"))
        bench.until(lambda: received(bench.link) == [b"heard"])
        taken = hashlib.sha256()
        reader = threading.Thread(target=take, args=[connection, 10 * 900_007, taken])
        reader.start()
        while any(also_write for _, also_write in bench.link.descriptors()):
            bench.turn()
        reader.join(PATIENCE_S)
    expected = hashlib.sha256()
    for payload in sent:
        expected.update(b"\x30\xa3\xf7\x36\x00\x01t" + payload)
    assert taken.digest() == expected.digest()


def take(connection: socket.socket, size: int, into: "hashlib._Hash") -> None:
    """Read CONNECT and SUBSCRIBE away, then so many bytes."""
    for _ in range(2):
        (length,) = read(connection, 2)[1:]
        read(connection, length)
    while size > 0:
        piece = connection.recv(min(size, 65_536))
        into.update(piece)
        size -= len(piece)


def read(connection: socket.socket, size: int) -> bytes:
    taken = b""
    while len(taken) < size:
        piece = connection.recv(size - len(taken))
        assert piece, "the link closed the connection"
        taken += piece
    return taken


def test_small_packets_are_not_held_back(bench: Bench) -> None:
    with bench.answer():
        bench.until(lambda: bench.link.is_up)
        inbound = bench.link._client.socket()
        assert isinstance(inbound, Inbound)
        connection = inbound._connection
        assert isinstance(connection, ssl.SSLSocket) == bench.is_secure
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_a_link_that_leaves_says_so_whatever_it_has_not_read(bench: Bench) -> None:
    """The kernel resets a connection that is closed with something unread: nobody would read DISCONNECT."""
    with bench.answer() as connection:
        bench.until(lambda: bench.link.is_up)
        for _ in range(100):
            connection.sendall(publish(b"unread"))
        leaving = threading.Thread(target=bench.link.close)
        leaving.start()
        assert everything(connection).endswith(b"\xe0\x00")
        connection.close()
        leaving.join(PATIENCE_S)
        assert not leaving.is_alive()


def everything(connection: socket.socket) -> bytes:
    """All that comes, until the end."""
    taken = b""
    while piece := connection.recv(65_536):
        taken += piece
    return taken


def test_a_connection_that_ends_without_an_answer_is_told_with_its_likely_cause(bench: Bench) -> None:
    bench.accept().close()
    bench.until(lambda: bool(bench.link.events))
    down = bench.link.events.popleft()
    cause = "want a certificate from its clients?" if bench.is_secure else "want TLS on this port?"
    assert down == Down(f"it ends the connection without an answer: does it {cause}", was_up=False)


def test_a_peer_that_does_not_begin_tls_is_given_up(
    secure: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mqtt, "CONNECT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        context = make_context(tmp_path / "authority.pem")
        secure.link.close()
        secure.link = MqttLink("x", host="127.0.0.1", port=port, subscriptions=["t"], tls=context)
        secure.link.start()
        secure.until(lambda: bool(secure.link.events))
        assert secure.link.events[0] == Down("it took the connection but does not answer", was_up=False)
