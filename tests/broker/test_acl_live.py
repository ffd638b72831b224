"""Real brokers deliver to each user what its role may hear, and from it what its role may say: nothing else.

Judged by what arrives, never by acknowledgements: mosquitto grants every subscription, and both brokers
acknowledge what they refuse to deliver. What a role may is written out here, not taken from `broker.access`.
"""

import json
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from deployed import AUDITOR, DeployedBroker, federation, nonce, password
from live import eventually
from raw_mqtt import HOST, PATIENCE_S, ClosedError, Message, RawMqtt, RefusedError, Will

from broker.embedded import BROKERS
from broker.kinds import PACKET_BYTES, find

GATEWAY_SAYS = (
    "q/1 q/2 d/pi-01 d/pi-02 cd/laptop cd/tablet hd/bank hd/vault j/7 j/8 s/pi-01 s/pi-02 "
    "gateway/state gateway/roster gateway/claim"
)
GATEWAY_HEARS = (
    "a/pi-01 a/pi-02 ca/laptop ca/tablet ha/bank ha/vault join s/pi-01 s/pi-02 "
    "gateway/state gateway/roster gateway/claim"
)

SAYS = {
    "gateway": GATEWAY_SAYS,
    "pi-01": "a/pi-01 s/pi-01",
    "pi-02": "a/pi-02 s/pi-02",
    "laptop": "ca/laptop",
    "tablet": "ca/tablet",
    "bank": "ha/bank",
    "vault": "ha/vault",
    "join_7": "join",
    "join_8": "join",
}
HEARS = {
    "gateway": GATEWAY_HEARS,
    "pi-01": "s/pi-01 d/pi-01 q/1 gateway/state",
    "pi-02": "s/pi-02 d/pi-02 q/2 gateway/state",
    "laptop": "cd/laptop gateway/state",
    "tablet": "cd/tablet gateway/state",
    "bank": "hd/bank gateway/state",
    "vault": "hd/vault gateway/state",
    "join_7": "j/7",
    "join_8": "j/8",
}
FOREIGN = [
    "fi1/other/a/pi-01",
    "fi1/other/d/pi-01",
    "fi1/other/gateway/state",
    "fi1/acme/a/pi-01/more",
    "fi1/acme/v2/pi-01",
]
TOPICS = sorted({f"fi1/acme/{topic}" for topic in f"{GATEWAY_SAYS} {GATEWAY_HEARS}".split()}) + FOREIGN
"""Every kind of topic, with one and another member's name, and some that are nobody's."""

LEVELS = ("q", "d", "a", "s", "cd", "ca", "hd", "ha", "j", "gateway")
WILDCARDS = [
    *("#", "+/#", "fi1/#", "fi1/acme/#", "+/+/+/+", "fi1/+/+/+", "fi1/acme/+/+", "fi1/acme/+"),
    *(f"fi1/acme/{level}/+" for level in LEVELS),
    *(f"fi1/acme/{level}/#" for level in (*LEVELS, "join", "d/pi-01", "d/pi-02", "gateway/roster")),
    *(f"fi1/acme/+/{name}" for name in ("pi-01", "pi-02", "laptop", "bank", "7", "8", "state", "roster")),
    *("fi1/+/d/pi-01", "fi1/+/d/pi-02", "$share/x/#", "$share/x/fi1/acme/d/pi-02"),
    *("$SYS/#", "$MQTT/#", "$MQTT/sub/#", "$MQTT/msgs/#", "$MQTT/rmsgs/#", "$JS/#", "_INBOX/#"),
    *(">", "fi1/>", "fi1/acme/>", "fi1/acme/d/*", "fi1/acme/*/*", "fi1.acme.d.pi-02", "fi1.acme.>"),
]
"""Of MQTT, of shared subscriptions, of the brokers' own topics, and what NATS has for them."""


def in_federation(topics: str) -> set[str]:
    return {f"fi1/acme/{topic}" for topic in topics.split()}


@pytest.fixture(scope="module", params=BROKERS)
def broker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DeployedBroker]:
    folder: Path = tmp_path_factory.mktemp("acl") / "broker"
    with DeployedBroker(folder, request.param, federation()) as running:
        yield running


def listen(broker: DeployedBroker) -> tuple[RawMqtt, list[Message]]:
    """A connection that hears everything from now on, and what was retained before."""
    auditor = broker.connect(AUDITOR.name)
    for topic_filter in AUDITOR.read:
        assert auditor.subscribe(topic_filter) == 0
    return auditor, heard(auditor, auditor, "fi1/acme/listening")


def forget_retained(broker: DeployedBroker) -> None:
    auditor = broker.connect(AUDITOR.name)
    for topic in TOPICS:
        auditor.publish(topic, b"", qos=1, retain=True)
    auditor.close()


def topics_of(messages: list[Message]) -> set[str]:
    return {message.topic for message in messages}


def heard(connection: RawMqtt, speaker: RawMqtt, topic: str) -> list[Message]:
    """All that arrived before this: a broker keeps the order of what one connection says to another."""
    end = nonce()
    speaker.publish(topic, end)
    return connection.receive_until(end)


# What each user says


@pytest.mark.parametrize("retain", [False, True], ids=["", "retained"])
@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("name", SAYS)
def test_a_user_says_what_it_may_and_nothing_else(
    broker: DeployedBroker, name: str, qos: int, retain: bool
) -> None:
    (auditor, _), user = listen(broker), broker.connect(name)
    said = {topic: nonce() for topic in TOPICS}
    for topic, payload in said.items():
        user.publish(topic, payload, qos=qos, retain=retain)
    arrived = heard(auditor, user, f"fi1/acme/{SAYS[name].split()[0]}")
    assert topics_of(arrived) == in_federation(SAYS[name])
    assert all(message.payload == said[message.topic] for message in arrived)
    _, retained = listen(broker)
    assert topics_of(retained) == (in_federation(SAYS[name]) if retain else set())
    forget_retained(broker)


@pytest.mark.parametrize("name", ["pi-01", "join_7"])
def test_qos_2_says_no_more(broker: DeployedBroker, name: str) -> None:
    auditor, _ = listen(broker)
    for topic in TOPICS:
        user = broker.connect(name)
        try:
            user.publish(topic, b"at QoS 2", qos=2)
            user.ping()
        except ClosedError:  # NATS is told to take none at all
            continue
    arrived = heard(auditor, broker.connect(name), f"fi1/acme/{SAYS[name].split()[0]}")
    assert topics_of(arrived) <= in_federation(SAYS[name])


@pytest.mark.parametrize("retain", [False, True], ids=["", "retained"])
@pytest.mark.parametrize("name", ["pi-01", "laptop", "join_7"])
def test_a_will_says_what_its_owner_may_and_nothing_else(
    broker: DeployedBroker, name: str, retain: bool
) -> None:
    auditor, _ = listen(broker)
    own = [topic for topic in TOPICS if topic in in_federation(SAYS[name])]
    foreign = [topic for topic in TOPICS if topic not in own]
    connections = []
    for topic in (*foreign, *own):
        with suppress(RefusedError):
            connections.append(broker.connect(name, will=Will(topic, topic.encode(), 1, retain)))
    for connection in connections:
        connection.cut()
    # A broker need not send Wills in the order of the cuts. All were cut two round trips before the last.
    last = nonce()
    broker.connect(name, will=Will(own[-1], last)).cut()
    arrived = auditor.receive_until(last)
    assert topics_of(arrived) == set(own)
    _, retained = listen(broker)
    assert topics_of(retained) == (set(own) if retain else set())
    forget_retained(broker)


# What each user hears


@pytest.fixture(scope="module")
def kept(broker: DeployedBroker) -> Iterator[None]:
    """A retained message on every topic."""
    auditor = broker.connect(AUDITOR.name)
    for topic in TOPICS:
        auditor.publish(topic, b"kept", qos=1, retain=True)
    yield
    forget_retained(broker)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("name", HEARS)
def test_a_user_hears_what_it_may_and_nothing_else(broker: DeployedBroker, name: str) -> None:
    auditor, user = broker.connect(AUDITOR.name), broker.connect(name)
    for topic in TOPICS:
        user.subscribe(topic)
    for topic in TOPICS:
        auditor.publish(topic, b"now")
    arrived = heard(user, auditor, f"fi1/acme/{HEARS[name].split()[0]}")
    kept, now = ([m for m in arrived if m.payload == payload] for payload in (b"kept", b"now"))
    assert topics_of(kept) == topics_of(now) == in_federation(HEARS[name])
    assert len(kept) + len(now) == len(arrived)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(("name", "qos"), [("pi-01", 0), ("pi-01", 1), ("laptop", 0), ("join_7", 0)])
def test_no_wildcard_brings_more(broker: DeployedBroker, name: str, qos: int) -> None:
    auditor, own = broker.connect(AUDITOR.name), f"fi1/acme/{HEARS[name].split()[0]}"
    for wildcard in WILDCARDS:
        user = broker.connect(name)
        user.subscribe(wildcard, qos)
        user.subscribe(own)
        for topic in TOPICS:
            auditor.publish(topic, b"now", qos=qos)
        arrived = topics_of(heard(user, auditor, own))
        assert arrived <= in_federation(HEARS[name]), f"by the filter {wildcard}"
        user.close()


# Who is let in


def test_a_user_with_its_password_is_taken(broker: DeployedBroker) -> None:
    for name, user in broker.users.items():
        assert not broker.refuses(name, user.password)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("pi-01", "wrong"),
        ("pi-01", ""),
        ("pi-01", None),
        ("gateway", "wrong"),
        ("gateway", None),
        ("nobody", "wrong"),
        ("", "wrong"),
        ("", ""),
        (None, None),
        ("join_9", "wrong"),
        ("PI-01", "own"),
        ("pi-01 ", "own"),
        ("pi-01", "own, and more"),
        ("pi-01", "own, but the last"),
    ],
)
def test_anybody_else_is_refused(broker: DeployedBroker, name: str | None, given: str | None) -> None:
    own = broker.users["pi-01"].password
    passwords = {"wrong": password(), "own": own, "own, and more": own + "x", "own, but the last": own[:-1]}
    assert broker.refuses(name, passwords.get(given, given) if given else given)


@pytest.mark.parametrize("name", ["gateway", "pi-02", "laptop", "join_7"])
def test_the_password_of_one_user_does_not_let_it_be_another(broker: DeployedBroker, name: str) -> None:
    assert broker.refuses(name, broker.users["pi-01"].password)


def test_a_member_of_another_federation_is_refused_under_the_same_id(broker: DeployedBroker) -> None:
    other = {user.name: user for user in federation()}
    for name, user in other.items():
        assert broker.refuses(name, user.password)


def test_what_is_not_tls_gets_no_answer(broker: DeployedBroker) -> None:
    with socket.create_connection((HOST, broker.port), timeout=PATIENCE_S) as plain:
        plain.sendall(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00")
        answer = b""
        with suppress(ConnectionResetError):
            while piece := plain.recv(100):
                answer += piece
    assert b"\x20\x02\x00\x00" not in answer


def test_the_broker_sends_its_authority_behind_its_certificate(broker: DeployedBroker) -> None:
    authority = ssl.PEM_cert_to_DER_cert((broker.folder / "ca.pem").read_text())
    assert authority in handshake_bytes(broker.port)


def handshake_bytes(port: int) -> bytes:
    """What a broker sends in a handshake of TLS 1.2: the last version that does not hide certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    incoming, outgoing, received = ssl.MemoryBIO(), ssl.MemoryBIO(), b""
    tls = context.wrap_bio(incoming, outgoing)
    with socket.create_connection((HOST, port), timeout=PATIENCE_S) as connection:
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                connection.sendall(outgoing.read())
                piece = connection.recv(65_536)
                assert piece, "the broker gave up the handshake"
                incoming.write(piece)
                received += piece
            else:
                return received


# Limits


def test_a_frame_at_the_limit_arrives_and_one_above_it_ends_its_connection(broker: DeployedBroker) -> None:
    (auditor, _), topic = listen(broker), "fi1/acme/a/pi-01"
    room = PACKET_BYTES - 1 - 4 - 2 - len(topic)  # type, length, and length of the topic
    user = broker.connect("pi-01")
    user.publish(topic, b"x" * (room - 16))
    assert [len(message.payload) for message in heard(auditor, user, topic)] == [room - 16]
    with suppress(ClosedError):
        user.publish(topic, b"x" * (room + 16))
    user.await_end()
    assert heard(auditor, broker.connect("pi-01"), topic) == []


def test_a_frame_above_the_limit_is_refused_by_its_length_alone(broker: DeployedBroker) -> None:
    user = broker.connect("pi-01")
    user.socket.sendall(b"\x30\xff\xff\xff\x7f" + b"\0\x10fi1/acme/a/pi-01")  # 256 MB to come
    assert user.await_end(within_s=10) < 10


@pytest.mark.parametrize("kind", BROKERS)
def test_connections_beyond_the_limit_are_refused_and_the_others_stay(tmp_path: Path, kind: str) -> None:
    if kind == "mosquitto" and mosquitto_version() < (2, 0, 12):
        pytest.skip("mosquitto counts its connections wrongly before 2.0.12 (its issue 1460)")
    with DeployedBroker(tmp_path / "broker", kind, federation(), max_connections=3) as broker:
        inside = [broker.connect(name) for name in ("pi-01", "pi-02", "gateway")]
        with pytest.raises((RefusedError, ConnectionError, ssl.SSLError)):
            broker.connect("laptop")
        for connection in inside:
            connection.ping()


def mosquitto_version() -> tuple[int, ...]:
    program = find("mosquitto").path()
    if program is None:
        return ()
    said = subprocess.run([program, "-h"], capture_output=True, text=True).stdout
    return tuple(int(part) for part in re.findall(r"\d+", said.splitlines()[0]))


# NATS has a protocol of its own, on a port that cannot be left out


def test_no_user_may_speak_the_protocol_of_nats(tmp_path: Path) -> None:
    with DeployedBroker(tmp_path / "broker", "nats", federation()) as broker:
        eventually(lambda: bool(list(broker.folder.glob("*.ports"))))
        ports = json.loads(next(broker.folder.glob("*.ports")).read_text())
        port = urlsplit(ports["nats"][0]).port
        for user in broker.users.values():
            with socket.create_connection((HOST, port), timeout=PATIENCE_S) as connection:
                greeting = b'CONNECT {"verbose":true,"user":"%b","pass":"%b"}\r\nPING\r\n'
                connection.sendall(greeting % (user.name.encode(), user.password.encode()))
                answer = b""
                with suppress(ConnectionResetError):
                    while piece := connection.recv(4_096):
                        answer += piece
                assert b"Authorization Violation" in answer and b"PONG" not in answer
