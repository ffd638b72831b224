"""A raw MQTT 3.1.1 client over TLS, for tests of what a broker delivers: it does as it is told, also wrong.

One socket, blocking, no thread. It believes no acknowledgement: who wants to know what arrived receives it.
"""

import socket
import ssl
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

PATIENCE_S = 20.0
HOST = "127.0.0.1"

_CONNACK, _PUBLISH, _PUBACK, _PUBREC, _PUBREL, _PUBCOMP, _SUBACK, _PINGRESP = 2, 3, 4, 5, 6, 7, 9, 13


class RefusedError(Exception):
    """The broker did not take the connection: its CONNACK code, or 0 if it closed without one."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class ClosedError(Exception):
    """The broker closed the connection."""


class Message(NamedTuple):
    topic: str
    payload: bytes
    is_retained: bool


@dataclass(frozen=True, slots=True)
class Will:
    topic: str
    payload: bytes
    qos: int = 0
    is_retained: bool = False


class RawMqtt:
    """One connection to a broker."""

    def __init__(
        self,
        port: int,
        authority: Path,
        user: str | None,
        password: str | None,
        *,
        client_id: str = "",
        will: Will | None = None,
    ) -> None:
        """Raises RefusedError. authority: the CA to which the broker's certificate must lead."""
        self.messages: deque[Message] = deque()
        self._buffer = b""
        self._packet_id = 0
        self._acknowledged: dict[int, deque[bytes]] = {}
        context = ssl.create_default_context(cafile=str(authority))
        plain = socket.create_connection((HOST, port), timeout=PATIENCE_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = context.wrap_socket(plain, server_hostname=HOST)
        try:
            self._connect(user, password, client_id or f"raw-{id(self)}-{time.monotonic_ns()}", will)
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Say goodbye."""
        with suppress(OSError):
            self.socket.sendall(b"\xe0\x00")
        self.socket.close()

    def cut(self) -> None:
        """Go without goodbye, so that the broker sends the Will."""
        self.socket.close()

    def subscribe(self, topic_filter: str, qos: int = 0) -> int:
        """Returns the code of the SUBACK, which means little."""
        packet_id = self._next_id()
        self._send(0x82, packet_id + _text(topic_filter) + bytes([qos]))
        return self._await(_SUBACK)[-1]

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        """Returns once the broker acknowledged, at QoS 1 and 2. Raises ClosedError."""
        packet_id = self._next_id() if qos else b""
        self._send(0x30 | qos << 1 | retain, _text(topic) + packet_id + payload)
        if qos == 1:
            self._await(_PUBACK)
        elif qos == 2:
            self._await(_PUBREC)
            self._send(0x62, packet_id)
            self._await(_PUBCOMP)

    def ping(self) -> None:
        """Returns when the broker has read all that was sent. Raises ClosedError."""
        self._send(0xC0, b"")
        self._await(_PINGRESP)

    def receive_until(self, payload: bytes) -> list[Message]:
        """All messages before the one with this payload. Raises TimeoutError, ClosedError."""
        before: list[Message] = []
        deadline = time.monotonic() + PATIENCE_S
        while True:
            while self.messages:
                message = self.messages.popleft()
                if message.payload == payload:
                    return before
                before.append(message)
            self._read_packet(deadline)

    def await_end(self, within_s: float = PATIENCE_S) -> float:
        """Wait until the broker closes the connection; returns how long that took. Raises TimeoutError."""
        begin = time.monotonic()
        with suppress(ClosedError):
            while True:
                self._read_packet(begin + within_s)
        return time.monotonic() - begin

    def _connect(self, user: str | None, password: str | None, client_id: str, will: Will | None) -> None:
        flags, body = 0x02, _text(client_id)
        if will is not None:
            flags |= 0x04 | will.qos << 3 | will.is_retained << 5
            body += _text(will.topic) + len(will.payload).to_bytes(2, "big") + will.payload
        if user is not None:
            flags |= 0x80
            body += _text(user)
        if password is not None:
            flags |= 0x40
            body += _text(password)
        try:
            self._send(0x10, b"\0\4MQTT\4" + bytes([flags]) + b"\0\x3c" + body)
            code = self._await(_CONNACK)[1]
        except ClosedError:
            raise RefusedError(0) from None
        if code:
            raise RefusedError(code)

    def _next_id(self) -> bytes:
        self._packet_id += 1
        return self._packet_id.to_bytes(2, "big")

    def _send(self, first: int, body: bytes) -> None:
        try:
            self.socket.sendall(bytes([first]) + _length(len(body)) + body)
        except OSError as error:
            raise ClosedError from error

    def _await(self, kind: int) -> bytes:
        """The body of the next packet of this kind; messages on the way are kept."""
        deadline = time.monotonic() + PATIENCE_S
        while not (waiting := self._acknowledged.get(kind)):
            self._read_packet(deadline)
        return waiting.popleft()

    def _read_packet(self, deadline: float) -> None:
        while (packet := _split(self._buffer)) is None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self.socket.settimeout(left_s)
            try:
                piece = self.socket.recv(65_536)
            except TimeoutError:
                raise
            except OSError as error:
                raise ClosedError from error
            if not piece:
                raise ClosedError
            self._buffer += piece
        first, body, self._buffer = packet
        if first >> 4 != _PUBLISH:
            self._acknowledged.setdefault(first >> 4, deque()).append(body)
            return
        end = 2 + int.from_bytes(body[:2], "big")
        topic, qos = body[2:end].decode(), first >> 1 & 3
        if qos:
            self._send(0x40 if qos == 1 else 0x50, body[end : end + 2])
            end += 2
        self.messages.append(Message(topic, body[end:], bool(first & 1)))


def _text(text: str) -> bytes:
    encoded = text.encode()
    return len(encoded).to_bytes(2, "big") + encoded


def _length(size: int) -> bytes:
    encoded = bytearray()
    while size > 127:
        encoded.append(size & 127 | 128)
        size >>= 7
    encoded.append(size)
    return bytes(encoded)


def _split(buffer: bytes) -> tuple[int, bytes, bytes] | None:
    """First byte and body of the first packet, and what is behind it; None if it is not all there."""
    size = 0
    for at in range(1, min(5, len(buffer))):
        size |= (buffer[at] & 127) << 7 * (at - 1)
        if buffer[at] < 128:
            end = at + 1 + size
            return None if len(buffer) < end else (buffer[0], buffer[at + 1 : end], buffer[end:])
    return None
