"""What comes in on an MQTT connection: read in large pieces, PUBLISH at QoS 0 taken out before paho.

paho reads a packet in four calls of the system and 40 us of Python. Nearly all that reaches a gateway is
of one shape, PUBLISH of MQTT 3.1.1 at QoS 0, which is parsed here in 2 us; every other packet goes to paho
as it is, whole. So what a stranger floods costs the broker and the network more than it costs us.

Stands in for paho's socket: it has what paho's `SocketLike` asks for.
"""

import socket
import ssl
from typing import Any

READ_BYTES = 65_536
MAX_PACKET_BYTES = 2_000_000  # no broker of ours forwards more than half of it; more would fill the memory
KNOWN_TOPICS = 10_000  # kept as text: a fleet's; beyond, they are decoded each time

_LENGTH_BYTES = 4  # at most (section 2.2.3)
_PUBLISH_QOS_0 = 0x30  # MQTT 3.1.1 section 3.3.1; its lowest bit is RETAIN


class Inbound:
    """One connection's incoming bytes. `takes_publish`: false for MQTT 5, whose PUBLISH is another."""

    def __init__(self, connection: socket.socket, *, takes_publish: bool) -> None:
        self._connection = connection
        self._takes_publish = takes_publish
        self._buffer = bytearray()
        self._at = 0
        """Where in the buffer the next packet begins."""
        self._granted = 0
        """Bytes from there that are paho's to read: of one whole packet."""
        self._is_over = False
        self._failure: OSError | None = None
        self._topics: dict[bytes, str] = {}

    # What paho asks of a socket

    def recv(self, size: int) -> bytes:
        """Bytes of the packet that was granted; empty at the connection's end."""
        if self._granted:
            end = self._at + min(size, self._granted)
            piece = bytes(self._buffer[self._at : end])
            self._granted -= end - self._at
            self._at = end
            return piece
        if self._failure is not None:
            raise self._failure
        if self._is_over:
            return b""
        raise BlockingIOError

    def send(self, data: bytes) -> int:
        """As a socket's."""
        return self._connection.send(data)

    def fileno(self) -> int:
        """As a socket's."""
        return self._connection.fileno()

    def close(self) -> None:
        """As a socket's."""
        self._connection.close()

    def setblocking(self, flag: bool) -> None:
        """As a socket's."""
        self._connection.setblocking(flag)

    def pending(self) -> int:
        """As that of a socket with TLS: bytes that are decrypted and not read."""
        return self._connection.pending() if isinstance(self._connection, ssl.SSLSocket) else 0

    def shut(self) -> None:
        """End the connection, in both directions; what is to be read is still read."""
        # Not the method of a TLS socket: that forgets TLS, and what comes is then read as it is.
        socket.socket.shutdown(self._connection, socket.SHUT_RDWR)

    def __getattr__(self, name: str) -> Any:
        """Anything else of the socket's."""
        return getattr(self._connection, name)

    # What the link does

    def fill(self) -> bool:
        """Read what is there, as much as one reading gives. Whether there may be more."""
        try:
            piece = self._connection.recv(READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError as error:
            self._failure = error
            return False
        if not piece:
            self._is_over = True
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += piece
        # TLS gives one record at a time, which brokers make of every single message.
        return len(piece) == READ_BYTES or (bool(piece) and isinstance(self._connection, ssl.SSLSocket))

    def take(self) -> tuple[str, bytes] | None:
        """Topic and payload of the next packet, where that is a whole PUBLISH at QoS 0."""
        end, begins = self._next_packet()
        if not self._takes_publish or end < begins + 2 or self._buffer[self._at] & 0xFE != _PUBLISH_QOS_0:
            return None
        topic_at = begins + 2
        topic_end = topic_at + (self._buffer[begins] << 8 | self._buffer[begins + 1])
        if topic_end > end:
            return None  # paho has the words for it
        topic = self._topic(bytes(self._buffer[topic_at:topic_end]))
        payload = bytes(self._buffer[topic_end:end])
        self._at = end
        return topic, payload

    def grant(self) -> bool:
        """Give paho the next packet to read. Whether there is one, or the connection has ended."""
        end, _ = self._next_packet()
        self._granted = end - self._at if end else 0
        return bool(end) or self._is_over or self._failure is not None

    @property
    def has_packet(self) -> bool:
        """Whether a whole packet waits."""
        return self._next_packet()[0] > 0

    def _next_packet(self) -> tuple[int, int]:
        """Where the next packet ends, and where what follows its length begins; 0 where it is not whole."""
        buffer, at, length = self._buffer, self._at, 0
        for place in range(at + 1, min(at + 1 + _LENGTH_BYTES, len(buffer))):
            length |= (buffer[place] & 0x7F) << 7 * (place - at - 1)
            if buffer[place] < 0x80:
                end = place + 1 + length
                if length > MAX_PACKET_BYTES:
                    break
                return (end, place + 1) if end <= len(buffer) else (0, 0)
        else:
            if len(buffer) <= at + _LENGTH_BYTES:
                return 0, 0
        self._failure = self._failure or ConnectionError("it sends what is no MQTT")
        return 0, 0

    def _topic(self, name: bytes) -> str:
        topic = self._topics.get(name)
        if topic is None:
            try:
                topic = name.decode()
            except UnicodeDecodeError:  # no topic of ours is like that
                topic = ""
            if len(self._topics) < KNOWN_TOPICS:
                self._topics[name] = topic
        return topic
