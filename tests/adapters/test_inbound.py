"""What comes in: packets in any pieces, PUBLISH at QoS 0 taken, everything else left for paho as it is."""

import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_fi.adapters.inbound import KNOWN_TOPICS, MAX_PACKET_BYTES, Inbound

PINGRESP = b"\xd0\x00"
SUBACK = b"\x90\x03\x00\x01\x00"


def length(size: int) -> bytes:
    """MQTT 3.1.1 section 2.2.3."""
    encoded = b""
    while True:
        size, digit = divmod(size, 128)
        encoded += bytes([digit | (0x80 if size else 0)])
        if not size:
            return encoded


def publish(topic: bytes, payload: bytes, *, first: int = 0x30) -> bytes:
    body = len(topic).to_bytes(2, "big") + topic + payload
    return bytes([first]) + length(len(body)) + body


class Line:
    """A broker's end of a connection, and ours."""

    def __init__(self, *, takes_publish: bool = True) -> None:
        self.broker, ours = socket.socketpair()
        ours.setblocking(False)
        self.inbound = Inbound(ours, takes_publish=takes_publish)

    def come(self, data: bytes) -> Inbound:
        self.broker.sendall(data)
        self.inbound.fill()
        return self.inbound

    def close(self) -> None:
        self.broker.close()
        self.inbound.close()


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.close()


def read_by_paho(inbound: Inbound) -> bytes:
    """What paho can read, in its small pieces."""
    read = b""
    while True:
        try:
            piece = inbound.recv(1 if len(read) < 3 else 5)
        except BlockingIOError:
            return read
        if not piece:
            return read
        read += piece


def test_a_publish_is_taken(line: Line) -> None:
    assert line.come(publish(b"a/b", b"payload")).take() == ("a/b", b"payload")
    assert line.inbound.take() is None and not line.inbound.has_packet


def test_a_retained_publish_is_taken_too(line: Line) -> None:
    assert line.come(publish(b"a/b", b"", first=0x31)).take() == ("a/b", b"")


@pytest.mark.parametrize("first", [0x32, 0x34, 0x3A, 0x38])
def test_a_publish_that_is_not_of_qos_0_is_pahos(line: Line, first: int) -> None:
    packet = publish(b"a/b", b"\x00\x01payload", first=first)
    inbound = line.come(packet)
    assert inbound.take() is None and inbound.grant()
    assert read_by_paho(inbound) == packet


def test_packets_keep_their_order(line: Line) -> None:
    inbound = line.come(SUBACK + publish(b"t", b"1") + publish(b"t", b"2") + PINGRESP + publish(b"t", b"3"))
    assert inbound.take() is None and inbound.grant()
    assert read_by_paho(inbound) == SUBACK
    assert [inbound.take(), inbound.take(), inbound.take()] == [("t", b"1"), ("t", b"2"), None]
    assert inbound.grant() and read_by_paho(inbound) == PINGRESP
    assert inbound.take() == ("t", b"3")


def test_paho_is_given_one_packet_and_not_the_next(line: Line) -> None:
    inbound = line.come(PINGRESP + SUBACK)
    assert inbound.grant() and read_by_paho(inbound) == PINGRESP
    with pytest.raises(BlockingIOError):
        inbound.recv(1)


def test_of_a_packet_that_is_not_whole_nothing_is_given(line: Line) -> None:
    packet = SUBACK
    for piece in (packet[:1], packet[1:2], packet[2:4]):
        inbound = line.come(piece)
        assert inbound.take() is None and not inbound.grant() and not inbound.has_packet
    assert line.come(packet[4:]).grant()


def test_with_mqtt_5_paho_reads_everything() -> None:
    line = Line(takes_publish=False)
    packet = publish(b"a/b", b"\x00payload")
    inbound = line.come(packet)
    assert inbound.take() is None and inbound.grant() and read_by_paho(inbound) == packet
    line.close()


@given(
    st.lists(st.tuples(st.sampled_from([b"a", b"fi1/acme/a/pi-07"]), st.binary(max_size=20_000)), max_size=8),
    st.integers(1, 5_000),
)
def test_however_packets_are_cut_they_come_whole(messages: list[tuple[bytes, bytes]], size: int) -> None:
    line, got = Line(), []
    stream = b"".join(publish(topic, payload) for topic, payload in messages)
    for at in range(0, len(stream), size):
        line.come(stream[at : at + size])
        while (message := line.inbound.take()) is not None:
            got.append(message)
    assert got == [(topic.decode(), payload) for topic, payload in messages]
    line.close()


def test_a_topic_that_is_no_text_is_none_of_ours(line: Line) -> None:
    assert line.come(publish(b"\xff\xfe", b"x")).take() == ("", b"x")


def test_a_topic_longer_than_its_packet_is_for_paho_to_refuse(line: Line) -> None:
    inbound = line.come(b"\x30\x04\x00\x09ab")
    assert inbound.take() is None and inbound.grant()


@pytest.mark.parametrize("packet", [b"\x30\x00", b"\x30\x01\x00"])
def test_a_publish_without_a_topic_is_for_paho_to_refuse(line: Line, packet: bytes) -> None:
    inbound = line.come(packet)
    assert inbound.take() is None and inbound.grant() and read_by_paho(inbound) == packet


@pytest.mark.parametrize("start", [b"\x30\xff\xff\xff\xff\x01", b"\x30" + length(MAX_PACKET_BYTES + 1)])
def test_a_length_beyond_all_measure_ends_the_connection(line: Line, start: bytes) -> None:
    inbound = line.come(start)
    assert inbound.take() is None and inbound.grant()
    with pytest.raises(ConnectionError, match="no MQTT"):
        inbound.recv(1)


def test_the_end_of_the_connection_comes_behind_what_came_before(line: Line) -> None:
    line.come(publish(b"t", b"last"))
    line.broker.close()
    line.inbound.fill()
    assert line.inbound.take() == ("t", b"last")
    assert line.inbound.grant() and line.inbound.recv(1) == b""


def test_a_connection_that_was_reset_says_so(line: Line) -> None:
    line.inbound._connection.close()
    line.inbound.fill()
    assert line.inbound.grant()
    with pytest.raises(OSError, match="Bad file descriptor"):
        line.inbound.recv(1)


def test_topics_beyond_a_fleets_are_not_kept(line: Line) -> None:
    for number in range(KNOWN_TOPICS + 5):
        line.come(publish(b"t%d" % number, b""))
        assert line.inbound.take() == (f"t{number}", b"")
    assert len(line.inbound._topics) == KNOWN_TOPICS


def test_what_is_sent_goes_out_as_it_is(line: Line) -> None:
    assert line.inbound.send(b"abc") == 3
    assert line.broker.recv(10) == b"abc"
    assert line.inbound.fileno() > 0 and line.inbound.pending() == 0
    assert line.inbound.family == socket.AF_UNIX
