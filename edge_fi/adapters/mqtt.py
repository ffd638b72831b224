"""MQTT by paho, driven from the pump's own loop: no network thread, so no message changes threads.

What paho must be told, each measured or read in its source: TCP_NODELAY (without it a QoS 1 round
trip takes 40 ms), a reconnect delay of seconds rather than two minutes, callbacks that only enqueue.
Only the blocking part of connecting runs in a thread of its own, since a black hole would otherwise
stop the rounds that wait for their deadlines.

Over TLS a descriptor does not tell everything: bytes that were decrypted wait where no poll() looks. So
`next_service` says when there are any, and `service` takes them without being told of the descriptor.
"""

import contextlib
import os
import random
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_fi.adapters.inbound import Inbound
from edge_fi.adapters.tls import explain
from edge_fi.effects import Publish

FIRST_DELAY_S = 0.25
LAST_DELAY_S = 4.0  # a broker that is back must be found within seconds
CONNECT_TIMEOUT_S = 5.0  # for TCP, and as much again for TLS
HANDSHAKE_TIMEOUT_S = 10.0  # of MQTT: from the connection to the last SUBACK
STEADY_S = 5.0  # a link that was up for less has not earned a quick return; above LAST_DELAY_S
SHORT_LIVED_LINKS = 3  # without a steady one between; then the likely cause is said
LEAVE_S = 1.0  # for the broker to read DISCONNECT
KEEPALIVE_LOOKS = 4  # in each keep-alive; an idle device wakes for nothing else
READ_AT_ONCE = 64  # packets taken in one go; also the largest batch of queries

_UNANSWERED = {
    False: "it ends the connection without an answer: does it want TLS on this port?",
    True: "it ends the connection without an answer: does it want a certificate from its clients?",
}
"""The likely cause, without TLS and with it."""

Version = Literal["3.1.1", "5"]


class _Client(Client):
    """paho's, on a connection whose messages are taken before paho reads them."""

    def _create_socket(self) -> Any:
        # Not public, but the one place where paho lets something else than a socket be its socket: it puts
        # its own wrapper of WebSockets there.
        takes_publish = self.protocol != MQTTProtocolVersion.MQTTv5
        connection: Any = super()._create_socket()
        return Inbound(connection, takes_publish=takes_publish)


@dataclass(frozen=True, slots=True)
class Up:
    """The link is up and every subscription is in place."""


@dataclass(frozen=True, slots=True)
class Down:
    """The link is down, or could not come up; why, in one sentence."""

    reason: str
    was_up: bool


@dataclass(frozen=True, slots=True)
class Received:
    """A message came."""

    topic: str
    payload: bytes


Event = Up | Down | Received


class MqttLink:
    """One connection that comes back by itself. Call `start`, then `service` whenever it is time."""

    def __init__(
        self,
        client_id: str,
        *,
        host: str,
        port: int,
        subscriptions: list[str],
        will: Publish | None = None,
        version: Version = "3.1.1",
        keepalive_s: int = 30,
        username: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.events: deque[Event] = deque()
        self.is_up = False
        self._subscriptions = subscriptions
        self._keepalive_s = keepalive_s
        self._misc_every_s = keepalive_s / KEEPALIVE_LOOKS
        self._delay_s = FIRST_DELAY_S
        self._up_at = 0.0
        self._short_lived = 0
        self._misc_at = 0.0
        self._attempt_at: float | None = None
        self._give_up_at: float | None = None
        self._attempt: threading.Thread | None = None
        self._is_attempt_over = False
        self._failure = ""
        self._refusal = ""
        self._is_answered = False
        """Whether the broker has said anything on this connection."""
        self._is_closing = False
        self._wake: tuple[socket.socket, socket.socket] | None = None
        """Receiver and sender."""
        self._is_five = version == "5"
        self._has_tls = tls is not None
        self._client = self._make_client(client_id, username, password, will, tls)

    def start(self) -> None:
        """Connect at the next `service`."""
        self._wake = socket.socketpair()
        for end in self._wake:
            end.setblocking(False)
        self._attempt_at = time.monotonic()

    def descriptors(self) -> list[tuple[int, bool]]:
        """What to wait for: each file descriptor, and whether also for being writable."""
        waiting = [] if self._wake is None else [(self._wake[0].fileno(), False)]
        if self._attempt is None and (connection := self._client.socket()) is not None:
            waiting.append((connection.fileno(), self._client.want_write()))
        return waiting

    def next_service(self) -> float:
        """When to call `service` at the latest, on the clock of time.monotonic."""
        if self._holds_more():
            return time.monotonic()
        times = [time.monotonic() + self._misc_every_s]
        if self._attempt is None:  # otherwise its end wakes the wait
            times += [at for at in (self._attempt_at, self._give_up_at) if at is not None]
        return min(times)

    def wake(self) -> None:
        """End a wait from another thread or a signal handler."""
        if self._wake is not None:
            with contextlib.suppress(OSError):  # full: then it will end anyway
                self._wake[1].send(b"\0")

    def service(self, ready: Collection[int] | None = None) -> None:
        """Read, write, connect: whatever is due. Fills `events`.

        ready: the descriptors that a wait found ready, so that nothing else is tried; all of them if
        None.
        """
        if self._wake is not None and (ready is None or self._wake[0].fileno() in ready):
            with contextlib.suppress(BlockingIOError):
                self._wake[0].recv(4096)
        if self._attempt is not None:
            if not self._is_attempt_over:
                return
            self._attempt.join()
            self._attempt = None
            if self._failure:
                self._down(self._failure)
            elif self._client.socket() is not None:
                self._give_up_at = time.monotonic() + HANDSHAKE_TIMEOUT_S
        now = time.monotonic()
        if self._attempt_at is not None and now >= self._attempt_at:
            self._begin_attempt()
            return
        connection: Any = self._client.socket()
        if connection is None:
            return
        if self._give_up_at is not None and now >= self._give_up_at:
            self._drop("it took the connection but does not answer")
            ready = None
        if ready is None or connection.fileno() in ready or self._holds_more():
            self._read(connection)
        if self._client.want_write():
            self._client.loop_write()
        if now >= self._misc_at:
            self._misc_at = now + self._misc_every_s
            self._client.loop_misc()

    def publish(self, message: Publish) -> bool:
        """Send a message. False where the link is down: nothing is kept for later."""
        if not self.is_up:
            return False
        info = self._client.publish(message.topic, message.payload, message.qos, message.retain)
        return info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS

    def close(self) -> None:
        """Send what is still to be sent, leave the broker, free the sockets."""
        self._is_closing = True
        if self._attempt is not None:
            self._attempt.join(CONNECT_TIMEOUT_S * (1 + self._has_tls) + 1)
        connection = self._client.socket()
        if connection is not None:
            if connection.fileno() >= 0 and self.is_up:
                self._leave(connection.fileno())
            connection.close()
        for end in self._wake or ():
            end.close()

    def _leave(self, descriptor: int) -> None:
        """DISCONNECT, and stay until the broker has read it.

        paho closes the socket behind DISCONNECT. Where a message has come in meanwhile, the kernel
        then resets the connection, the broker may never read DISCONNECT, and says the Will. A second
        descriptor of the same connection keeps it open until the broker closes its side. Over TLS that
        one sees ciphertext, which is all the same; what it shuts is the TCP connection, without TLS's
        own farewell: DISCONNECT says as much.
        """
        deadline = time.monotonic() + LEAVE_S
        with socket.socket(fileno=os.dup(descriptor)) as held:
            room = select.poll()
            room.register(held, select.POLLOUT)
            self._client.disconnect()
            # Until it is on its way, which closes the socket; so does a connection that is lost.
            while self._client.socket() is not None and (left_s := deadline - time.monotonic()) > 0:
                room.poll(left_s * 1000)
                self._client.loop_write()
            held.settimeout(LEAVE_S)
            with contextlib.suppress(OSError):
                held.shutdown(socket.SHUT_WR)
                while held.recv(65_536) and time.monotonic() < deadline:
                    pass

    def _make_client(
        self,
        client_id: str,
        username: str | None,
        password: str | None,
        will: Publish | None,
        tls: ssl.SSLContext | None,
    ) -> Client:
        five = self._is_five
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=None if five else True,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(100)
        client.max_queued_messages_set(1000)
        client.on_socket_open = _set_nodelay
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        if username is not None:
            client.username_pw_set(username, password)
        if tls is not None:
            client.tls_set_context(tls)
        if will is not None:
            client.will_set(will.topic, will.payload, will.qos, will.retain)
        return client

    def _begin_attempt(self) -> None:
        self._attempt_at = None
        self._is_attempt_over = False
        self._failure = self._refusal = ""
        self._is_answered = False
        self._give_up_at = None
        self._attempt = threading.Thread(target=self._connect, name="mqtt-connect", daemon=True)
        self._attempt.start()

    def _connect(self) -> None:
        try:
            # MQTT 5 keeps a session by default, and with it subscriptions that nobody asked for.
            clean: dict[str, Any] = {"clean_start": True} if self._is_five else {}
            self._client.connect(self.host, self.port, self._keepalive_s, **clean)
        except (OSError, ValueError) as error:
            self._failure = explain(error)
        finally:
            self._is_attempt_over = True
            self.wake()

    def _read(self, inbound: Inbound) -> None:
        """Take in what is there: messages at once, every other packet by paho."""
        is_more = True
        for _ in range(READ_AT_ONCE):
            message = inbound.take()  # what was not taken last time comes first, and TCP is the inbox
            if message is not None:
                self.events.append(Received(*message))
            elif inbound.grant():
                self._client.loop_read()
                if self._client.socket() is None:
                    return  # that was the connection's end
            elif is_more:
                is_more = inbound.fill()
            else:
                return

    def _holds_more(self) -> bool:
        """Whether there is something to read of which the descriptor does not tell."""
        inbound = None if self._attempt is not None else self._client.socket()
        return isinstance(inbound, Inbound) and (inbound.has_packet or inbound.pending() > 0)

    def _drop(self, reason: str) -> None:
        """Shut the connection; the next read finds its end, and the link comes down.

        Not read here: inside a callback paho's loop_read would take the same packet a second time and
        wait for a lock that this thread holds.
        """
        self._refusal = reason
        self._give_up_at = None
        connection: Any = self._client.socket()
        if connection is not None:
            with contextlib.suppress(OSError):  # the peer was first: reading says so too
                connection.shut()

    def _down(self, reason: str) -> None:
        now = time.monotonic()
        is_steady = self.is_up and now - self._up_at >= STEADY_S
        # Two processes of one id take the link from each other for ever: each must come back ever later.
        self._delay_s = FIRST_DELAY_S if is_steady else min(self._delay_s * 2, LAST_DELAY_S)
        # A failed attempt between does not end the row: NATS refuses for a while who takes over too often.
        self._short_lived = 0 if is_steady else self._short_lived + self.is_up
        if self.is_up and self._short_lived >= SHORT_LIVED_LINKS:
            reason += "; does another process use this key?"
        self.events.append(Down(reason, self.is_up))
        self.is_up = False
        self._give_up_at = None
        # A fleet that lost its broker at one instant must not come back at one.
        wait_s = self._delay_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        self._attempt_at = None if self._is_closing else now + wait_s

    def _on_connect(
        self, client: Client, _: object, flags: ConnectFlags, code: ReasonCode, properties: object
    ) -> None:
        self._is_answered = True
        if code.is_failure:
            self._refusal = f"it refuses: {code}".lower()
            return
        client.subscribe([(topic_filter, 0) for topic_filter in self._subscriptions])

    def _on_subscribe(
        self, client: Client, _: object, mid: int, codes: list[ReasonCode], properties: object
    ) -> None:
        if self._refusal:  # given up already, and this was on its way
            return
        refused = [code for code in codes if code.is_failure]
        if refused:
            self._drop(f"it refuses a subscription: {refused[0]}".lower())
            return
        self.is_up = True
        self._up_at = time.monotonic()
        self._give_up_at = None
        self.events.append(Up())

    def _on_disconnect(
        self,
        client: Client,
        _: object,
        flags: DisconnectFlags,
        code: ReasonCode,
        properties: Properties | None,
    ) -> None:
        lost = f"connection lost: {code}".lower() if self._is_answered else _UNANSWERED[self._has_tls]
        self._down(self._refusal or lost)

    def _on_message(self, client: Client, _: object, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:  # paho decodes it only now; no topic of ours is like that
            topic = ""
        self.events.append(Received(topic, bytes(message.payload)))


def packet_bytes(message: Publish) -> int:
    """Size of the MQTT 3.1.1 PUBLISH packet of a message (section 3.3): what the link carries."""
    rest = 2 + len(message.topic.encode()) + len(message.payload) + (2 if message.qos else 0)
    lengths = 1 if rest < 128 else 2 if rest < 16_384 else 3 if rest < 2_097_152 else 4
    return 1 + lengths + rest


def _set_nodelay(client: Client, _: object, connection: Any) -> None:
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
