"""The MQTT link against real brokers: up, down, up again, and what the broker says for the dead."""

import socket
import time
from collections.abc import Callable, Iterator

import pytest
from live import PATIENCE_S, SETTINGS, need

from broker.embedded import EmbeddedBroker
from edge_fi.adapters.inbound import Inbound
from edge_fi.adapters.mqtt import Down, MqttLink, Received, Up, Version, packet_bytes
from edge_fi.effects import Publish


class Broker:
    """A broker and the links that a test makes to it."""

    def __init__(self, kind: str, version: Version) -> None:
        need(kind)
        self.embedded = EmbeddedBroker(kind)
        self.version = version
        self.links: list[MqttLink] = []

    def link(self, name: str, *filters: str, will: Publish | None = None) -> MqttLink:
        made = MqttLink(
            name,
            host="127.0.0.1",
            port=self.embedded.port,
            subscriptions=list(filters) or [f"none/{name}"],
            will=will,
            version=self.version,
        )
        self.links.append(made)
        made.start()
        return made

    def until(self, condition: Callable[[], bool], *, within_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, "it did not come true in time"
            for link in self.links:
                link.service()
            time.sleep(0.002)


@pytest.fixture(params=SETTINGS, ids=["-".join(setting) for setting in SETTINGS])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    made = Broker(*request.param)
    made.embedded.start()
    yield made
    for link in made.links:
        link.close()
    made.embedded.stop()


def received(link: MqttLink) -> list[Received]:
    return [event for event in link.events if isinstance(event, Received)]


def test_a_link_is_up_when_its_subscriptions_are(broker: Broker) -> None:
    listener = broker.link("listener", "t/+")
    speaker = broker.link("speaker")
    broker.until(lambda: listener.is_up and speaker.is_up)
    assert listener.events.popleft() == Up()
    assert speaker.publish(Publish("t/1", b"\x00hello"))
    broker.until(lambda: bool(listener.events))
    assert listener.events.popleft() == Received("t/1", b"\x00hello")


def test_small_packets_are_not_held_back(broker: Broker) -> None:
    link = broker.link("link")
    broker.until(lambda: link.is_up)
    connection = link._client.socket()
    assert isinstance(connection, Inbound)
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_a_frame_of_the_largest_size_passes(broker: Broker) -> None:
    listener = broker.link("listener", "t/1")
    broker.until(lambda: listener.is_up)
    payload = bytes(range(256)) * 3906
    listener.publish(Publish("t/1", payload))
    broker.until(lambda: bool(received(listener)))
    assert received(listener)[0].payload == payload


def test_retained_messages_reach_a_later_subscriber_and_an_empty_one_removes_them(broker: Broker) -> None:
    speaker = broker.link("speaker", "t/#")
    broker.until(lambda: speaker.is_up)
    speaker.publish(Publish("t/1", b"kept", qos=1, retain=True))
    broker.until(lambda: len(received(speaker)) == 1)
    late = broker.link("late", "t/#")
    broker.until(lambda: bool(received(late)))
    assert received(late) == [Received("t/1", b"kept")]
    speaker.publish(Publish("t/1", b"", qos=1, retain=True))
    broker.until(lambda: len(received(speaker)) == 2)
    later = broker.link("later", "t/#")
    broker.until(lambda: later.is_up)
    speaker.publish(Publish("t/2", b"after"))
    broker.until(lambda: bool(received(later)))
    assert [event.topic for event in received(later)] == ["t/2"]


def test_the_broker_says_the_will_of_a_dead_link_and_not_of_one_that_left(broker: Broker) -> None:
    watcher = broker.link("watcher", "s/+")
    dead = broker.link("dead", will=Publish("s/dead", b"lost", qos=1, retain=True))
    # Messages that nobody reads any more must not turn leaving into dying.
    left = broker.link("left", "noise", will=Publish("s/left", b"lost", qos=1, retain=True))
    broker.until(lambda: watcher.is_up and dead.is_up and left.is_up)
    for _ in range(200):
        watcher.publish(Publish("noise", bytes(100)))
    left.publish(Publish("s/left", b"disconnected", qos=1, retain=True))
    broker.links.remove(left)
    left.close()
    connection = dead._client.socket()
    assert connection is not None
    connection.close()
    broker.links.remove(dead)
    broker.until(lambda: any(event.topic == "s/dead" for event in received(watcher)))
    seen = {event.topic: event.payload for event in received(watcher)}
    assert seen == {"s/dead": b"lost", "s/left": b"disconnected"}
    dead.close()


def test_a_link_comes_back_with_its_subscriptions_after_the_broker_died(broker: Broker) -> None:
    link = broker.link("link", "t/1")
    broker.until(lambda: link.is_up)
    link.events.clear()
    broker.embedded.kill()
    broker.until(lambda: bool(link.events))
    down = link.events.popleft()
    assert isinstance(down, Down) and down.was_up
    assert not link.publish(Publish("t/1", b"nowhere"))
    broker.embedded.start()
    broker.until(lambda: link.is_up, within_s=10)
    link.publish(Publish("t/1", b"again"))
    broker.until(lambda: bool(received(link)))
    assert received(link) == [Received("t/1", b"again")]


def test_a_broker_that_is_not_there_is_reported_and_found_later(broker: Broker) -> None:
    broker.embedded.kill()
    link = broker.link("link")
    broker.until(lambda: len(link.events) >= 2)
    for event in link.events:
        assert event == Down("Connection refused", was_up=False)
    broker.embedded.start()
    broker.until(lambda: link.is_up, within_s=10)


def test_a_second_client_of_the_same_id_takes_over(broker: Broker) -> None:
    first = broker.link("same")
    broker.until(lambda: first.is_up)
    first.events.clear()
    broker.link("same")
    broker.until(lambda: any(isinstance(event, Down) and event.was_up for event in first.events))


def test_two_clients_of_one_id_do_not_fight_without_end(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_fi.adapters.mqtt.FIRST_DELAY_S", 0.05)
    monkeypatch.setattr("edge_fi.adapters.mqtt.LAST_DELAY_S", 0.4)
    first, second = broker.link("same"), broker.link("same")
    hint = "; does another process use this key?"
    for link in (first, second):
        told = lambda link=link: any(isinstance(e, Down) and hint in e.reason for e in link.events)  # noqa: E731
        broker.until(told)
        assert link._delay_s == 0.4


def test_a_host_that_answers_nothing_is_given_up(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_fi.adapters.mqtt.HANDSHAKE_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        link = MqttLink("x", host="127.0.0.1", port=mute.getsockname()[1], subscriptions=["t"])
        broker.links.append(link)
        link.start()
        broker.until(lambda: bool(link.events))
        assert link.events[0] == Down("it took the connection but does not answer", was_up=False)


def test_a_topic_that_is_not_text_does_not_end_the_link(broker: Broker) -> None:
    """A hostile broker can send what no client may publish."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        link = MqttLink("x", host="127.0.0.1", port=server.getsockname()[1], subscriptions=["t"])
        broker.links.append(link)
        link.start()
        broker.until(lambda: link._attempt is None and link._client.socket() is not None)
        hostile, _ = server.accept()
        with hostile:
            hostile.sendall(b"\x20\x02\x00\x00" + b"\x90\x03\x00\x01\x00" + b"\x30\x05\x00\x02\xff\xfex")
            broker.until(lambda: bool(received(link)))
            assert received(link) == [Received("", b"x")]
            assert link.is_up


@pytest.mark.parametrize(
    ("message", "size"),
    [
        (Publish("fi1/acme/a/pi-07", bytes(26)), 46),
        (Publish("t", b"", qos=1), 7),
        (Publish("t", bytes(124)), 2 + 2 + 1 + 124),
        (Publish("t", bytes(125)), 3 + 2 + 1 + 125),
        (Publish("t", bytes(20_000)), 4 + 2 + 1 + 20_000),
        (Publish("t", bytes(3_000_000)), 5 + 2 + 1 + 3_000_000),
    ],
)
def test_the_size_of_a_packet_is_that_of_mqtt_3_1_1(message: Publish, size: int) -> None:
    assert packet_bytes(message) == size
