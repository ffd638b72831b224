"""Joining, from both sides: an invite's token and a new member's key become a line of the roster.

JOIN and ACCEPT are the two messages of Noise IKpsk1: the joiner knows the gateway's static key from
its invite and shows its own, the token is the psk. A mac under a key from the token comes first, so
that strangers cost no Diffie-Hellman; refusals go only to whoever made that mac. An invite that was
burnt admits the same key again until it expires, so that a lost ACCEPT locks nobody out. Pure: `now`
in microseconds, randomness as an argument; that burning is durable is the caller's promise.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from edge_fi.crypto.keys import Entropy, KeyPair, is_equal
from edge_fi.crypto.noise import HandshakeIKpsk1
from edge_fi.crypto.seal import JoinKeys, check_join_mac, join_mac, join_prologue, refused_mac
from edge_fi.effects import Admit
from edge_fi.errors import DecodeError, ProtocolError, SealError
from edge_fi.messages import Member, Task
from edge_fi.roster import Invitation, Roster
from edge_fi.session import GatewayIdentity
from edge_fi.wire import frames, payloads
from edge_fi.wire.frames import TAG_BYTES, Type
from edge_fi.wire.invites import Invite
from edge_fi.wire.payloads import Accept, Refusal

JOIN_EVERY_US = 200_000  # new JOINs of one invite: whoever holds it could otherwise have a DH for each
ANSWERS_KEPT = 4  # frames of an invite that are known again, and answered without any DH
LONGEST_ACCEPT = frames.MAX_ACCEPT_BYTES - frames.JOINING_HEADER_BYTES - frames.KEY_BYTES - TAG_BYTES


@dataclass(slots=True)
class _Door:
    """What the gateway remembers of one invite in this run."""

    keys: JoinKeys
    answers: deque[tuple[bytes, bytes]] = field(
        default_factory=lambda: deque(maxlen=ANSWERS_KEPT), repr=False
    )
    """JOIN frames and what answered them."""
    next_us: int = -1 << 62
    asking: tuple[bytes, HandshakeIKpsk1] | None = field(default=None, repr=False)
    """The JOIN whose member is being written down."""


class Admissions:
    """The gateway's side."""

    def __init__(self, identity: GatewayIdentity, entropy: Entropy) -> None:
        self._identity = identity
        self._entropy = entropy
        self._roster = Roster()
        self._invitations: dict[int, Invitation] = {}
        self._doors: dict[int, _Door] = {}

    def update(self, roster: Roster) -> None:
        """These are the members and the invites there are."""
        before, invited_before = _by_id(self._roster), self._invitations
        self._roster = roster
        self._invitations = {its.number: its for its in roster.invitations}
        members = _by_id(roster)
        for number, door in list(self._doors.items()):
            its = self._invitations.get(number)
            if its is None:
                del self._doors[number]
            elif its != invited_before[number] or members.get(its.id) != before.get(its.id):
                door.answers.clear()  # what they say may no longer be true

    def receive(self, frame: bytes, *, now: int) -> Admit | tuple[int, bytes]:
        """What a JOIN leads to: a member to be written down, or the number of its invite and the frame to
        answer with. Raises ProtocolError.
        """
        parsed = frames.parse_joining(frame)
        invitation = self._invitations.get(parsed.invite)
        if invitation is None:
            raise ProtocolError("stranger")
        door = self._door(invitation)
        check_join_mac(door.keys.mac, parsed.maced, parsed.mac)
        for join, answer in door.answers:
            if join == frame:
                return parsed.invite, answer
        if door.asking is not None or now < door.next_us:
            raise ProtocolError("busy")
        door.next_us = now + JOIN_EVERY_US
        handshake = HandshakeIKpsk1(
            initiator=False,
            prologue=self._prologue(invitation),
            static=self._identity.static,
            ephemeral=KeyPair.from_private(self._entropy(32)),
            peer_static=None,
            psk=door.keys.psk,
        )
        if handshake.read_message_1(parsed.message):
            raise DecodeError("payload")
        door.asking = frame, handshake
        verdict = judge(invitation, handshake.peer_static, self._roster)
        if isinstance(verdict, Refusal):
            return parsed.invite, self.refuse(parsed.invite, verdict)
        member = Member(
            id=invitation.id,
            index=verdict,
            role=invitation.role,
            public=handshake.peer_static,
            task=invitation.task,
        )
        return Admit(parsed.invite, member)

    def accept(self, admit: Admit, tasks: Iterable[Task], features: Iterable[bytes]) -> bytes:
        """The ACCEPT that tells a member who was written down, and is in the roster. Once for each Admit.

        features: of each task its map, or nothing.
        """
        door = self._doors[admit.invite]
        assert door.asking is not None
        (join, handshake), door.asking = door.asking, None
        accept = Accept(
            index=admit.member.index,
            version=self._roster.version,
            task=admit.member.task,
            tasks=tuple(tasks),
            features=tuple(features),
        )
        payload = payloads.encode_accept(accept, longest=LONGEST_ACCEPT)
        header = frames.build_joining_header(Type.ACCEPT, admit.invite)
        answer = header + handshake.write_message_2(payload)
        door.answers.append((join, answer))
        return answer

    def refuse(self, number: int, refusal: Refusal) -> bytes:
        """The REFUSED that tells a joiner why not."""
        door = self._doors[number]
        assert door.asking is not None
        (join, _), door.asking = door.asking, None
        maced = frames.build_joining_header(Type.REFUSED, number) + bytes([refusal])
        answer = maced + refused_mac(door.keys.mac, maced, join[-frames.MAC_BYTES :])
        if refusal is not Refusal.BUSY:
            door.answers.append((join, answer))
        return answer

    def _door(self, invitation: Invitation) -> _Door:
        door = self._doors.get(invitation.number)
        if door is None:
            keys = JoinKeys.from_token(invitation.token, self._prologue(invitation))
            door = self._doors[invitation.number] = _Door(keys)
        return door

    def _prologue(self, invitation: Invitation) -> bytes:
        federation = self._identity.federation
        return join_prologue(federation, invitation.role, invitation.id, invitation.number)


def judge(invitation: Invitation, public: bytes, roster: Roster) -> int | Refusal:
    """The index that this key joins under by this invite, or why it may not."""
    holder = _by_id(roster).get(invitation.id)
    if invitation.redeemed_by:
        if holder is None or public != invitation.redeemed_by or invitation.is_expired:
            return Refusal.USED
        # A later invite may have made the same key a member in another role.
        granted = (invitation.role, public, invitation.task)
        return holder.index if (holder.role, holder.public, holder.task) == granted else Refusal.USED
    if invitation.is_withdrawn:
        return Refusal.WITHDRAWN
    if invitation.is_expired:
        return Refusal.EXPIRED
    if holder is not None and not invitation.replaces:
        return Refusal.NAME_TAKEN
    return roster.next_index or Refusal.FULL


def _by_id(roster: Roster) -> dict[str, Member]:
    return {member.id: member for member in roster.members}


class Application:
    """The joiner's side: one JOIN, sent again as it is until it is answered."""

    def __init__(self, invite: Invite, static: KeyPair, entropy: Entropy) -> None:
        prologue = join_prologue(invite.federation, invite.role, invite.id, invite.number)
        self._invite = invite
        self._keys = JoinKeys.from_token(invite.token, prologue)
        self._handshake = HandshakeIKpsk1(
            initiator=True,
            prologue=prologue,
            static=static,
            ephemeral=KeyPair.from_private(entropy(32)),
            peer_static=invite.gateway,
            psk=self._keys.psk,
        )
        header = frames.build_joining_header(Type.JOIN, invite.number)
        maced = header + self._handshake.write_message_1(b"")
        self._mac = join_mac(self._keys.mac, maced)
        self.join = maced + self._mac
        """The JOIN frame."""

    def open(self, frame: bytes) -> Accept | Refusal:
        """What an ACCEPT or a REFUSED says. Raises ProtocolError, and then goes on waiting."""
        kind = frames.parse_type(frame)
        if kind not in (Type.ACCEPT, Type.REFUSED):
            raise ProtocolError("direction")
        parsed = frames.parse_joining(frame)
        if parsed.invite != self._invite.number:
            raise ProtocolError("invite")
        if kind is Type.ACCEPT:
            return payloads.decode_accept(self._handshake.read_message_2(parsed.message))
        if not is_equal(refused_mac(self._keys.mac, parsed.maced, self._mac), parsed.mac):
            raise SealError("mac")
        try:
            return Refusal(parsed.message[0])
        except ValueError:
            raise DecodeError("payload") from None
