"""The MQTT link over TLS against real brokers: what passes, and what is said when it does not come about."""

import hashlib
import select
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from certified import HOST, Authority, Mosquitto
from deployed import AUDITOR, DeployedBroker
from live import PATIENCE_S

from broker import certificates
from broker.kinds import BROKERS
from edge_fi.adapters.mqtt import Down, MqttLink, Received, Version
from edge_fi.adapters.tls import make_context
from edge_fi.effects import Publish


class Links:
    """Links to one broker that are waited for together, each for what it asks for and no longer."""

    def __init__(
        self, port: int, ca: Path | None, *, username: str | None = None, password: str | None = None
    ):
        self._port = port
        self._context = None if ca is None else make_context(ca)
        self._username = username
        self._password = password
        self.all: list[MqttLink] = []

    def add(
        self,
        name: str,
        *filters: str,
        will: Publish | None = None,
        host: str = HOST,
        version: Version = "3.1.1",
    ) -> MqttLink:
        made = MqttLink(
            name,
            host=host,
            port=self._port,
            subscriptions=list(filters) or ["fi1/none/none"],
            will=will,
            version=version,
            keepalive_s=4000,  # so that nothing but what is to be done ends a wait
            username=self._username,
            password=self._password,
            tls=self._context,
        )
        self.all.append(made)
        made.start()
        return made

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "it did not come true in time"
            self.turn(deadline)

    def turn(self, deadline: float) -> None:
        waiting = select.poll()
        for link in self.all:
            for descriptor, also_write in link.descriptors():
                waiting.register(descriptor, select.POLLIN | (select.POLLOUT if also_write else 0))
        wake = min(deadline, *(link.next_service() for link in self.all))
        ready = [descriptor for descriptor, _ in waiting.poll(max(0.0, wake - time.monotonic()) * 1000)]
        for link in self.all:
            link.service(ready)

    def close(self) -> None:
        for link in self.all:
            link.close()


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DeployedBroker]:
    """As in production: TLS, and nobody without an account."""
    with DeployedBroker(tmp_path / "broker", request.param, []) as made:
        yield made


def links_to(broker: DeployedBroker, password: str = AUDITOR.password) -> Links:
    ca = broker.folder / certificates.AUTHORITY
    return Links(broker.port, ca, username=AUDITOR.name, password=password)


@pytest.fixture
def links(broker: DeployedBroker) -> Iterator[Links]:
    made = links_to(broker)
    yield made
    made.close()


def received(link: MqttLink) -> list[Received]:
    return [event for event in link.events if isinstance(event, Received)]


def test_thousands_of_small_messages_pass_and_none_waits(links: Links) -> None:
    listener, speaker = links.add("listener", "fi1/acme/+"), links.add("speaker")
    links.until(lambda: listener.is_up and speaker.is_up)
    sent = [number.to_bytes(4, "big") * (1 + number % 10) for number in range(6000)]
    for begin in range(0, len(sent), 500):  # a broker may drop what its subscriber does not take
        for payload in sent[begin : begin + 500]:
            assert speaker.publish(Publish("fi1/acme/t", payload))
        links.until(lambda: len(received(listener)) >= begin + 500)  # noqa: B023 - called at once
    assert [event.payload for event in received(listener)] == sent


def test_messages_of_the_largest_size_pass_in_both_directions_at_once(links: Links) -> None:
    one, other = links.add("one", "fi1/acme/1"), links.add("other", "fi1/acme/2")
    links.until(lambda: one.is_up and other.is_up)
    sent = [hashlib.shake_128(bytes([number])).digest(900_000) for number in range(8)]
    for payload in sent:
        assert one.publish(Publish("fi1/acme/2", payload))
        assert other.publish(Publish("fi1/acme/1", payload))
        expected = len(received(one)) + 1
        links.until(lambda: len(received(one)) == len(received(other)) == expected)  # noqa: B023
    for link in (one, other):
        assert [event.payload for event in received(link)] == sent


def test_the_broker_says_the_will_of_a_dead_link_and_not_of_one_that_left(links: Links) -> None:
    watcher = links.add("watcher", "fi1/s/+")
    dead = links.add("dead", will=Publish("fi1/s/dead", b"lost", qos=1, retain=True))
    left = links.add("left", "fi1/acme/noise", will=Publish("fi1/s/left", b"lost", qos=1, retain=True))
    links.until(lambda: watcher.is_up and dead.is_up and left.is_up)
    for _ in range(200):  # what nobody reads any more must not turn leaving into dying
        watcher.publish(Publish("fi1/acme/noise", bytes(1000)))
    left.publish(Publish("fi1/s/left", b"disconnected", qos=1, retain=True))
    links.all.remove(left)
    left.close()
    connection = dead._client.socket()
    assert connection is not None
    connection.close()
    links.all.remove(dead)
    links.until(lambda: any(event.topic == "fi1/s/dead" for event in received(watcher)))
    seen = {event.topic: event.payload for event in received(watcher)}
    assert seen == {"fi1/s/dead": b"lost", "fi1/s/left": b"disconnected"}
    dead.close()


def test_a_link_comes_back_to_a_broker_whose_certificate_was_renewed(
    broker: DeployedBroker, links: Links
) -> None:
    link = links.add("link", "fi1/acme/t")
    links.until(lambda: link.is_up)
    link.events.clear()
    broker.stop(signal.SIGKILL)
    links.until(lambda: bool(link.events))
    (broker.folder / certificates.SERVER_KEY).unlink()
    certificates.renew(broker.folder)
    broker.start()
    links.until(lambda: link.is_up)
    link.publish(Publish("fi1/acme/t", b"again"))
    links.until(lambda: bool(received(link)))


def test_a_wrong_password_is_told(broker: DeployedBroker) -> None:
    links = links_to(broker, password="wrong")
    link = links.add("link")
    links.until(lambda: bool(link.events))
    down = link.events[0]
    assert isinstance(down, Down) and not down.was_up and down.reason.startswith("it refuses: ")
    links.close()


# What is said when there is no connection


def reason(port: int, ca: Path | None, *, host: str = HOST, version: Version = "3.1.1") -> str:
    """Why a link to there does not come up."""
    links = Links(port, ca)
    link = links.add("link", host=host, version=version)
    try:
        links.until(lambda: bool(link.events))
    finally:
        links.close()
    down = link.events[0]
    assert isinstance(down, Down) and not down.was_up
    return down.reason


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_a_certificate_of_another_authority(tmp_path: Path, authority: Authority) -> None:
    expected = "its certificate comes from an authority that is not trusted here: is broker.ca right?"
    with Mosquitto(tmp_path, authority.issue()) as broker:
        assert reason(broker.port, Authority(tmp_path, "other").path) == expected
        twin = tmp_path / "twin"  # of the same name, as one made anew is
        twin.mkdir()
        assert reason(broker.port, Authority(twin).path) == expected


def test_a_certificate_for_another_name_or_address(tmp_path: Path, authority: Authority) -> None:
    expected = "its certificate is for another name or address than broker.host"
    with Mosquitto(tmp_path, authority.issue("broker.example.org", "192.0.2.1")) as broker:
        assert reason(broker.port, authority.path) == expected
        assert reason(broker.port, authority.path, host="localhost") == expected


def test_a_certificate_that_has_expired(tmp_path: Path, authority: Authority) -> None:
    issued = authority.issue(begin=timedelta(days=-3), end=timedelta(days=-2))
    with Mosquitto(tmp_path, issued) as broker:
        told = reason(broker.port, authority.path)
    assert told.startswith("its certificate has expired and must be renewed, unless the date is wrong")


def test_a_certificate_that_is_not_valid_yet_makes_one_think_of_the_clock(
    tmp_path: Path, authority: Authority
) -> None:
    issued = authority.issue(begin=timedelta(days=2), end=timedelta(days=3))
    with Mosquitto(tmp_path, issued) as broker:
        told = reason(broker.port, authority.path)
    today = datetime.now(UTC).date()
    assert told in {
        f"its certificate is not valid yet, but this machine's clock says {date}, which may be wrong"
        for date in (today, today - timedelta(days=1))
    }


@pytest.mark.parametrize("version", ["3.1.1", "5"])
def test_a_broker_without_tls_where_we_speak_it(
    tmp_path: Path, authority: Authority, version: Version
) -> None:
    with Mosquitto(tmp_path, None) as broker:
        told = reason(broker.port, authority.path, version=version)
    assert told == "it closes the connection instead of beginning TLS: does it speak TLS on this port?"


@pytest.mark.parametrize("version", ["3.1.1", "5"])
def test_a_broker_with_tls_where_we_speak_none(
    tmp_path: Path, authority: Authority, version: Version
) -> None:
    with Mosquitto(tmp_path, authority.issue()) as broker:
        told = reason(broker.port, None, version=version)
    assert told == "it ends the connection without an answer: does it want TLS on this port?"


def test_a_broker_of_production_where_we_speak_no_tls(broker: DeployedBroker) -> None:
    told = reason(broker.port, None)
    assert told == "it ends the connection without an answer: does it want TLS on this port?"


def test_a_broker_that_wants_certificates_from_its_clients(tmp_path: Path, authority: Authority) -> None:
    wanting = (f"cafile {authority.path}", "require_certificate true")
    with Mosquitto(tmp_path, authority.issue(), *wanting) as broker:
        told = reason(broker.port, authority.path)
    assert told == "it ends the connection without an answer: does it want a certificate from its clients?"
