"""Sessions: who is who, the handshake from both sides, and frames under a session's keys.

A member says HELLO until a WELCOME opens. The gateway keeps at most two pending sessions a member;
the first frame that opens under one makes it current. Identical HELLO bytes get the identical
WELCOME, so that a lost one costs only a resend. Session keys and ephemeral keys live in memory only
(rule R2). Pure: `now` in microseconds, randomness as an argument.
"""

from dataclasses import dataclass, field

from edge_fi.crypto.aead import open_sealed, seal
from edge_fi.crypto.keys import Entropy, KeyPair, SigningKey, derive, dh
from edge_fi.crypto.noise import HandshakeKK
from edge_fi.crypto.seal import SessionKeys, check_hello_mac, hello_mac, prologue
from edge_fi.errors import ProtocolError
from edge_fi.messages import Form
from edge_fi.replay import ReplayWindow
from edge_fi.wire import frames, payloads
from edge_fi.wire.frames import SessionFrame, Type

FIRST_RETRY_US = 500_000  # a WELCOME takes one round trip; most links make that in half a second
LAST_RETRY_US = 30_000_000  # a gateway that is away for a day costs a member 3 kB an hour
MAX_PENDING = 2  # a genuine HELLO and one that crosses it
SESSION_NUMBERS = 16  # four bits in every header


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A member's own keys, and the gateway's public ones that it trusts."""

    federation: str
    role: str
    """device or client."""
    id: str
    index: int
    static: KeyPair
    gateway_static: bytes
    gateway_verify: bytes

    @property
    def mqtt_client_id(self) -> str:
        """Stable, so that a takeover orders the Will; unguessable, so that nobody else can force one."""
        return mqtt_client_id(self.static)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayIdentity:
    """The gateway's keys."""

    federation: str
    static: KeyPair
    signing: SigningKey

    @property
    def mqtt_client_id(self) -> str:
        """As a member's."""
        return mqtt_client_id(self.static)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One line of the roster: a member as the gateway knows it."""

    id: str
    index: int
    role: str
    public: bytes


def mqtt_client_id(static: KeyPair) -> str:
    """22 characters derived from the private key."""
    return "fi" + derive(static.private, b"fi1 client id", size=10).hex()


@dataclass(slots=True)
class Session:
    """One handshake's keys and counters, on either side."""

    number: int
    index: int
    keys: SessionKeys = field(repr=False)
    task: int = 0
    """The task a device named in its HELLO; 0 for a client."""
    model: bytes = b""
    """The model a device named in its HELLO."""
    forms: frozenset[Form] = frozenset()
    """The forms a device offered in READY; empty until then."""
    hello: bytes = field(default=b"", repr=False)
    welcome: bytes = field(default=b"", repr=False)
    _sent: int = 0
    _windows: dict[Type, ReplayWindow] = field(default_factory=dict, repr=False)

    def seal(self, kind: Type, payload: bytes) -> bytes:
        """A whole READY, ASK or OUTCOME frame, under the next counter."""
        counter, self._sent = self._sent, self._sent + 1
        header = frames.build_session_header(kind, self.number, self.index, counter)
        return header + seal(payload, key=self._key(kind), nonce=counter, header=header)

    def open(self, kind: Type, frame: SessionFrame) -> bytes:
        """The payload of such a frame, once. Raises ProtocolError."""
        window = self._windows.setdefault(kind, ReplayWindow())
        window.check(frame.number)
        payload = open_sealed(frame.sealed, key=self._key(kind), nonce=frame.number, header=frame.header)
        window.accept(frame.number)
        return payload

    def _key(self, kind: Type) -> bytes:
        return {
            Type.READY: self.keys.up,
            Type.ASK: self.keys.ask,
            Type.OUTCOME: self.keys.down,
        }[kind]


def hello_key(static: KeyPair, peer: bytes, context: bytes) -> bytes:
    """The key of HELLO's mac, the same on both sides, from the two static keys alone."""
    return derive(dh(static.private, peer), b"fi1 hello key", context)


class Joiner:
    """The member's side: says HELLO, resends it unchanged with back-off, opens WELCOME."""

    def __init__(self, identity: Identity, entropy: Entropy) -> None:
        self._identity = identity
        self._entropy = entropy
        self._prologue = prologue(identity.federation, identity.role, identity.index)
        self._mac_key = hello_key(identity.static, identity.gateway_static, self._prologue)
        self._handshake: HandshakeKK | None = None
        self._payload = b""
        self._hello = b""
        self._retry_us = FIRST_RETRY_US
        self._earliest_us = 0
        self.due_us: int | None = None
        """When `poll` next has a HELLO; None where none is wanted."""

    def begin(self, payload: bytes, *, at: int) -> None:
        """Want a session: a new HELLO, due at this time."""
        self._payload = payload
        self._handshake = HandshakeKK(
            initiator=True,
            prologue=self._prologue,
            static=self._identity.static,
            ephemeral=KeyPair.from_private(self._entropy(32)),
            peer_static=self._identity.gateway_static,
        )
        header = frames.build_handshake_header(Type.HELLO, self._identity.index)
        maced = header + self._handshake.write_message_1(payload)
        self._hello = maced + hello_mac(self._mac_key, maced)
        self._retry_us = FIRST_RETRY_US
        self.due_us = max(at, self._earliest_us)

    def hasten(self, *, at: int) -> None:
        """Somebody may be listening now: resend by this time, and start the back-off again.

        Hints come unauthenticated: however many come, HELLOs keep their least distance.
        """
        if self.due_us is not None:
            self.due_us = max(min(self.due_us, at), self._earliest_us)
            self._retry_us = FIRST_RETRY_US

    @property
    def is_waiting(self) -> bool:
        """Whether a HELLO is out that no WELCOME has answered."""
        return self._handshake is not None

    def poll(self, *, now: int) -> bytes | None:
        """The HELLO frame, if it is due."""
        if self.due_us is None or now < self.due_us:
            return None
        jitter = self._retry_us * int.from_bytes(self._entropy(1)) // 1024
        self.due_us = now + self._retry_us + jitter
        self._earliest_us = now + FIRST_RETRY_US
        self._retry_us = min(self._retry_us * 2, LAST_RETRY_US)
        return self._hello

    def finish(self, frame: bytes) -> tuple[Session, payloads.Welcome]:
        """The session that a WELCOME frame begins. Raises ProtocolError, and then goes on waiting."""
        parsed = frames.parse_handshake(frame)
        if self._handshake is None:
            raise ProtocolError("unexpected")
        if parsed.index != self._identity.index:
            raise ProtocolError("index")
        payload = self._handshake.read_message_2(parsed.message)
        try:
            welcome = payloads.decode_welcome(payload, is_device=self._identity.role == "device")
        except ProtocolError:
            # The handshake is used up. A gateway of another version says this each time: no faster.
            retry_us = self._retry_us
            self.begin(self._payload, at=self.due_us or 0)
            self._retry_us = retry_us
            raise
        keys = SessionKeys.from_transport(*self._handshake.split())
        self._handshake = None
        self.due_us = None
        return Session(welcome.session, parsed.index, keys, welcome=frame), welcome


class Peer:
    """The gateway's side of one member: its pending sessions and its current one."""

    def __init__(self, member: Member, identity: GatewayIdentity) -> None:
        self.member = member
        self.current: Session | None = None
        self.missed = 0
        """Rounds in a row that ended without a sign of this member."""
        self._identity = identity
        self._prologue = prologue(identity.federation, member.role, member.index)
        self._mac_key = b""
        self._pending: list[Session] = []
        self._next_number = 0

    def read_hello(self, frame: bytes, *, entropy: Entropy) -> tuple[bytes, HandshakeKK | Session]:
        """The payload of a new HELLO and the handshake to answer it with, or the session that these
        very bytes began before. Raises ProtocolError.
        """
        parsed = frames.parse_handshake(frame)
        if parsed.index != self.member.index:
            raise ProtocolError("index")
        # One Diffie-Hellman a member and run, whatever strangers send.
        self._mac_key = self._mac_key or hello_key(self._identity.static, self.member.public, self._prologue)
        check_hello_mac(self._mac_key, parsed.maced, parsed.mac)
        if self.current is not None and self.current.hello == frame:
            raise ProtocolError("replay")
        for session in self._pending:
            if session.hello == frame:
                return b"", session
        handshake = HandshakeKK(
            initiator=False,
            prologue=self._prologue,
            static=self._identity.static,
            ephemeral=KeyPair.from_private(entropy(32)),
            peer_static=self.member.public,
        )
        return handshake.read_message_1(parsed.message), handshake

    def next_number(self) -> int:
        """A session number that no live session of this member has."""
        taken = {session.number for session in self._live()}
        while self._next_number in taken:
            self._next_number = (self._next_number + 1) % SESSION_NUMBERS
        return self._next_number

    def welcome(
        self,
        hello: bytes,
        handshake: HandshakeKK,
        welcome: payloads.Welcome,
        *,
        task: int = 0,
        model: bytes = b"",
    ) -> Session:
        """A pending session, with the WELCOME frame to send."""
        header = frames.build_handshake_header(Type.WELCOME, self.member.index)
        message = handshake.write_message_2(payloads.encode_welcome(welcome))
        session = Session(
            welcome.session,
            self.member.index,
            SessionKeys.from_transport(*handshake.split()),
            task=task,
            model=model,
            hello=hello,
            welcome=header + message,
        )
        self._pending = [*self._pending, session][-MAX_PENDING:]
        self._next_number = (welcome.session + 1) % SESSION_NUMBERS
        return session

    @property
    def latest_pending(self) -> Session | None:
        """The newest session under which nothing has opened yet."""
        return self._pending[-1] if self._pending else None

    def find(self, number: int) -> Session:
        """The live session of this number. Raises ProtocolError("session")."""
        for session in self._live():
            if session.number == number:
                return session
        raise ProtocolError("session")

    def promote(self, session: Session) -> bool:
        """A frame opened under this session: it is the current one. Whether it was not before."""
        if session is self.current:
            return False
        # What was begun before this session will not be finished by a member that has this one.
        self._pending = self._pending[self._pending.index(session) + 1 :]
        self.current = session
        return True

    def _live(self) -> list[Session]:
        return self._pending if self.current is None else [self.current, *self._pending]
