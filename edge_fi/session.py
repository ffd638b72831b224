"""Sessions: who is who, the handshake from both sides, and frames under a session's keys.

A member says HELLO until a WELCOME opens. The gateway keeps at most two pending sessions a member;
the first frame that opens under one makes it current. Identical HELLO bytes get the identical
WELCOME, so that a lost one costs only a resend. Session keys and ephemeral keys live in memory only
(rule R2). Pure: `now` in microseconds, randomness as an argument.
"""

from collections import deque
from dataclasses import dataclass, field

from edge_fi.crypto.aead import open_sealed, seal
from edge_fi.crypto.keys import Entropy, KeyPair, SigningKey, derive, dh
from edge_fi.crypto.noise import HandshakeKK
from edge_fi.crypto.seal import (
    SessionKeys,
    check_hello_mac,
    gateway_password,
    hello_mac,
    member_password,
    prologue,
)
from edge_fi.errors import ProtocolError
from edge_fi.messages import Member, Trust
from edge_fi.replay import ReplayWindow
from edge_fi.wire import frames, payloads
from edge_fi.wire.frames import SessionFrame, Type

FIRST_RETRY_US = 500_000  # a WELCOME takes one round trip; most links make that in half a second
LAST_RETRY_US = 30_000_000  # a gateway that is away costs a member 11 kB an hour
FIRST_REJOIN_WINDOW_MS = 1_000  # before any WELCOME has named one
LONGEST_REJOIN_WINDOW_MS = 60_000  # so that no gateway, however large, sends a fleet to sleep
FIRST_DOUBT_US = 1_000_000  # after a rejoin that a hint caused for nothing, hints rest this long, ...
LAST_DOUBT_US = 30_000_000  # ... then twice as long, up to this
SESSION_US = 86_400_000_000  # a day; then a session is renewed
MAX_PENDING = 2  # a genuine HELLO and one that crosses it
MAX_SPENT = 16  # HELLOs of earlier sessions that are known as replays without a Diffie-Hellman
SESSION_NUMBERS = 16  # four bits in every header
RESTLESS_SESSIONS = 5  # so many sessions of one member ...
RESTLESS_US = 60_000_000  # ... within a minute: a copy of its key, or a device that boots again and again


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A member's own keys, and the gateway's public one that it trusts."""

    federation: str
    role: str
    """device, client or helper."""
    id: str
    index: int
    static: KeyPair
    gateway_static: bytes

    @property
    def mqtt_client_id(self) -> str:
        """Stable, so that a takeover orders the Will; unguessable, so that nobody else can force one."""
        return mqtt_client_id(self.static)

    @property
    def mqtt_password(self) -> str:
        """For the broker, as user `id`; the gateway knows it too, and nobody has sent it."""
        shared = dh(self.static.private, self.gateway_static)
        return member_password(shared, prologue(self.federation, self.role, self.index))


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayIdentity:
    """The gateway's keys."""

    federation: str
    static: KeyPair
    signing: SigningKey

    def mqtt_client_id(self, boot: int) -> str:
        """Of one run: two that took the link from each other would never hear each other's claims."""
        return mqtt_client_id(self.static, boot.to_bytes(4, "big"))

    @property
    def mqtt_password(self) -> str:
        """For the broker, as user `gateway`."""
        return gateway_password(self.static.private, self.federation)

    def member_password(self, member: Member) -> str:
        """A member's own `mqtt_password`."""
        shared = dh(self.static.private, member.public)
        return member_password(shared, prologue(self.federation, member.role, member.index))


def mqtt_client_id(static: KeyPair, run: bytes = b"") -> str:
    """22 characters derived from the private key; for a gateway also from its run."""
    return "fi" + derive(static.private, b"fi1 client id", run, size=10).hex()


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
    trust: Trust = Trust.NOBODY
    """Who says how familiar it is with a query, as its HELLO has it."""
    is_gate_due: bool = False
    """Whether the device was asked for its gate, and has not sent it."""
    epochs: set[int] = field(default_factory=set, repr=False)
    """Numbers of the epochs that the gateway gave a device under it."""
    hello: bytes = field(default=b"", repr=False)
    welcome: bytes = field(default=b"", repr=False)
    _sent: int = 0
    _windows: dict[Type, ReplayWindow] = field(default_factory=dict, repr=False)

    def seal(self, kind: Type, payload: bytes) -> bytes:
        """A whole READY, REKEY, ASK or OUTCOME frame, under the next counter."""
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
            Type.REKEY: self.keys.down,
            Type.GATE: self.keys.up,
            Type.ASK: self.keys.ask,
            Type.OUTCOME: self.keys.down,
        }[kind]


def hello_key(static: KeyPair, peer: bytes, context: bytes) -> bytes:
    """The key of HELLO's mac, the same on both sides, from the two static keys alone."""
    return derive(dh(static.private, peer), b"fi1 hello key", context)


class Joiner:
    """The member's side: says HELLO, resends it unchanged with back-off, opens WELCOME, once a day anew.

    That the gateway lost our session is told by nothing that is sealed for us: only by hints that
    anybody can make or replay. A hint that proves false makes the next ones wait, twice as long each
    time, since each rejoin costs what is being inferred.
    """

    def __init__(self, identity: Identity, payload: bytes, entropy: Entropy) -> None:
        self._identity = identity
        self._payload = payload
        self._entropy = entropy
        self._prologue = prologue(identity.federation, identity.role, identity.index)
        self._mac_key = hello_key(identity.static, identity.gateway_static, self._prologue)
        self._handshake: HandshakeKK | None = None
        self._hello = b""
        self._is_sent = False
        self._is_hinted = False
        """Whether a hint caused the HELLO that is out, or did the last one."""
        self._welcome = b""
        """The frame that began the session."""
        self._retry_us = FIRST_RETRY_US
        self._earliest_us = 0
        self._boot: int | None = None
        self._announced: int | None = None
        """The latest boot that the gateway's presence named while a HELLO was out."""
        self._doubt_us = 0
        self._hints_from_us = 0
        self._rejoin_window_ms = FIRST_REJOIN_WINDOW_MS
        self.due_us: int | None = None
        """When `poll` next has a HELLO; None before the first `begin`."""

    @property
    def is_waiting(self) -> bool:
        """Whether a HELLO is out, or due, that no WELCOME has answered."""
        return self._handshake is not None

    def begin(self, *, at: int) -> None:
        """Want a session: a new HELLO, due at this time."""
        self._handshake = HandshakeKK(
            initiator=True,
            prologue=self._prologue,
            static=self._identity.static,
            ephemeral=KeyPair.from_private(self._entropy(32)),
            peer_static=self._identity.gateway_static,
        )
        header = frames.build_handshake_header(Type.HELLO, self._identity.index)
        maced = header + self._handshake.write_message_1(self._payload)
        self._hello = maced + hello_mac(self._mac_key, maced)
        self._is_sent = self._is_hinted = False
        self._retry_us = FIRST_RETRY_US
        self.due_us = max(at, self._earliest_us)

    def hasten(self, *, at: int) -> None:
        """Somebody may be listening now: resend by this time, and start the back-off again.

        However often this is called, HELLOs keep their least distance.
        """
        if self._handshake is not None and self.due_us is not None:
            self.due_us = max(min(self.due_us, at), self._earliest_us)
            self._retry_us = FIRST_RETRY_US

    def connected(self, *, now: int) -> None:
        """The link is up: before the first session, a HELLO is due at once.

        Later, one that waits goes on waiting: where all reconnect together, its window spreads them.
        """
        if self._boot is not None:
            return
        if self._handshake is not None:
            self.hasten(at=now)
        else:
            self.begin(at=now)

    def announced(self, boot: int, *, now: int) -> None:
        """The gateway's presence, or somebody in its name, says which run of it this is."""
        if self._handshake is not None:
            self._announced = boot
        if self._handshake is not None or boot != self._boot:
            self.hint(now=now)

    def hint(self, *, now: int) -> None:
        """The gateway may not hold our session: a HELLO soon, unless such hints proved false lately."""
        share = int.from_bytes(self._entropy(4), "big")
        wait_us = self._rejoin_window_ms * 1000 * share >> 32
        at = max(now + wait_us, self._hints_from_us)
        if self._handshake is not None:
            self.hasten(at=at)
        else:
            self.begin(at=at)
            self._is_hinted = True

    def poll(self, *, now: int) -> bytes | None:
        """The HELLO frame, if it is due."""
        if self.due_us is None or now < self.due_us:
            return None
        if self._handshake is None:
            self.begin(at=now)  # the session is a day old
        jitter = self._retry_us * int.from_bytes(self._entropy(1)) // 1024
        self.due_us = now + self._retry_us + jitter
        self._earliest_us = now + FIRST_RETRY_US
        self._retry_us = min(self._retry_us * 2, LAST_RETRY_US)
        self._is_sent = True
        return self._hello

    def finish(self, frame: bytes, *, now: int) -> tuple[Session, payloads.Welcome]:
        """The session that a WELCOME frame begins. Raises ProtocolError, and then goes on waiting."""
        parsed = frames.parse_handshake(frame)
        if parsed.index != self._identity.index:
            raise ProtocolError("index")
        if self._handshake is None:
            # Old HELLOs of ours, replayed, can have cost the gateway the session that we hold. Not
            # so a copy: over a slow link, each HELLO sent again brings one.
            if frame != self._welcome:
                self.hint(now=now)
            raise ProtocolError("unexpected")
        if not self._is_sent:
            raise ProtocolError("unexpected")  # nobody can have answered yet
        payload = self._handshake.read_message_2(parsed.message)
        try:
            welcome = payloads.decode_welcome(payload, is_device=self._identity.role == "device")
        except ProtocolError:
            # The handshake is used up. A gateway of another version says this each time: no faster.
            retry_us = self._retry_us
            self.begin(at=self.due_us or 0)
            self._retry_us = retry_us
            raise
        keys = SessionKeys.from_transport(*self._handshake.split())
        self._handshake = None
        self._welcome = frame
        self.due_us = now + SESSION_US
        self._weigh_hints(welcome, now=now)
        return Session(welcome.session, parsed.index, keys, welcome=frame), welcome

    def _weigh_hints(self, welcome: payloads.Welcome, *, now: int) -> None:
        """A hint was false if it led to the run of the gateway that was joined before."""
        if welcome.boot == self._boot and self._is_hinted:
            self._doubt_us = min(max(self._doubt_us * 2, FIRST_DOUBT_US), LAST_DOUBT_US)
        elif welcome.boot != self._boot:
            self._doubt_us = 0
        self._hints_from_us = now + self._doubt_us
        self._boot = welcome.boot
        self._rejoin_window_ms = min(welcome.rejoin_window_ms, LONGEST_REJOIN_WINDOW_MS)
        announced, self._announced = self._announced, None
        if announced not in (None, welcome.boot):
            self.hint(now=now)  # the gateway may have begun anew since it sent this


class Peer:
    """The gateway's side of one member: its pending sessions and its current one."""

    def __init__(self, member: Member, identity: GatewayIdentity) -> None:
        self.member = member
        self.current: Session | None = None
        self.missed = 0
        """Rounds in a row that ended without a timely answer of this member."""
        self.caught_up_us = -1 << 62
        """When it was last sent what it may have missed: never."""
        self.is_catching_up = False
        """Whether it will be sent that again as soon as it may."""
        self.gate = b""
        """The digest of the gate that it has registered; empty without one."""
        self.rekey = b""
        """The REKEY frame that the device has not acknowledged; empty if there is none."""
        self.began_us: deque[int] = deque(maxlen=RESTLESS_SESSIONS)
        """When its latest sessions began."""
        self._identity = identity
        self._prologue = prologue(identity.federation, member.role, member.index)
        self._mac_key = b""
        self._pending: list[Session] = []
        self._spent: deque[bytes] = deque(maxlen=MAX_SPENT)
        """Macs of the HELLOs whose sessions were superseded by a later one that was taken up."""
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
        is_current = self.current is not None and self.current.hello == frame
        if is_current or parsed.mac in self._spent:
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
        trust: Trust = Trust.NOBODY,
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
            trust=trust,
            is_gate_due=welcome.wants_gate,
            epochs={welcome.epoch} if welcome.epoch_key else set(),
            hello=hello,
            welcome=header + message,
        )
        self._pending = [*self._pending, session][-MAX_PENDING:]
        self._next_number = (welcome.session + 1) % SESSION_NUMBERS
        return session

    @property
    def unanswered(self) -> bytes:
        """The WELCOME or REKEY frame that something it asks for has not answered yet; empty if none is."""
        if self._pending:
            return self._pending[-1].welcome
        if self.rekey:
            return self.rekey
        current = self.current
        return current.welcome if current is not None and current.is_gate_due else b""

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
        place = self._pending.index(session)
        superseded = self._pending[:place] + ([] if self.current is None else [self.current])
        self._spent += [other.hello[-frames.MAC_BYTES :] for other in superseded]
        self._pending = self._pending[place + 1 :]
        self.current = session
        self.rekey = b""  # of the session before
        return True

    def is_restless(self, *, now: int) -> bool:
        """Whether the session that just began is one of too many: two devices may share one key."""
        self.began_us.append(now)
        is_full = len(self.began_us) == RESTLESS_SESSIONS
        if not is_full or now - self.began_us[0] > RESTLESS_US:
            return False
        self.began_us.clear()  # said once, then counted anew
        return True

    def _live(self) -> list[Session]:
        return self._pending if self.current is None else [self.current, *self._pending]
