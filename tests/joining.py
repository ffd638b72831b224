"""A gateway with invites, and those who hold them: for tests of joining."""

import copy
from collections.abc import Sequence

from federation import FEDERATION, TASK, gateway_identity, key_pair, member
from test_attacks import state_of

from edge_fi.admission import Application
from edge_fi.applicant import Applicant
from edge_fi.crypto.seal import JoinKeys, join_mac, join_prologue
from edge_fi.effects import Admit, Adopt, Effect, Publish
from edge_fi.gateway import Gateway
from edge_fi.messages import Member, Task
from edge_fi.roster import Invitation, NotAdmittedError, Roster
from edge_fi.wire import frames
from edge_fi.wire.frames import Type
from edge_fi.wire.invites import Invite
from firmware_sim.keeper import Keeper
from firmware_sim.stream import Stream

JOIN = f"fi1/{FEDERATION}/join"
STEP = 200_000  # µs between two new JOINs of one invite: a test that says several takes such steps


def token(name: str) -> bytes:
    """A token that depends on the name alone."""
    return Stream(f"token {name}")(16)


def joined_topic(number: int = 1) -> str:
    """Where the holder of this invite is answered."""
    return f"fi1/{FEDERATION}/j/{number}"


def invite_of(its: Invitation, *, gateway: str = "gateway", federation: str = FEDERATION) -> Invite:
    """What the holder of this invitation was given."""
    return Invite(
        federation=federation,
        role=its.role,
        id=its.id,
        number=its.number,
        expires=2_000_000_000,
        token=its.token,
        gateway=gateway_identity(gateway).static.public,
        host="broker.example",
        port=8883,
        tls=True,
    )


def application_of(its: Invitation | Invite, key: str = "pi-7", *, life: int = 0) -> Application:
    """A joiner's JOIN and what opens its answer. Each life has another ephemeral key."""
    invite = invite_of(its) if isinstance(its, Invitation) else its
    return Application(invite, key_pair(key), Stream(f"application {key} {life}"))


def applicant_of(its: Invitation, key: str = "pi-7", *, life: int = 0) -> Applicant:
    """A joiner that nobody drives."""
    return Applicant(invite_of(its), key_pair(key), Stream(f"application {key} {life}"))


def maced(its: Invitation, message: bytes, *, number: int | None = None) -> bytes:
    """A JOIN frame with this Noise message, under the mac that the holder of the token makes."""
    keys = JoinKeys.from_token(its.token, join_prologue(FEDERATION, its.role, its.id, its.number))
    content = frames.build_joining_header(Type.JOIN, number or its.number) + message
    return content + join_mac(keys.mac, content)


class Door:
    """A gateway that nobody drives, and what survives it; it performs what concerns members.

    Has the members given, invites made by `invite`, and remembers nothing else.
    """

    def __init__(
        self, *members: Member, tasks: Sequence[Task] = (TASK,), keeper: Keeper | None = None, life: int = 0
    ) -> None:
        self.keeper = keeper or Keeper(Roster(members=members))
        self.tasks = tasks
        self.start(life)

    def start(self, life: int) -> None:
        """A run of the gateway, which knows of the one before what survived it."""
        dice = Stream(f"door {life}")
        self.gateway = Gateway(gateway_identity(), self.keeper.roster, self.tasks, dice)

    def invite(self, name: str = "pi-7", role: str = "device", **terms: bool | int) -> Invitation:
        """A new invitation, which the gateway knows of."""
        made = self.keeper.invite(
            name,
            role,
            token=token(f"{name} {len(self.keeper.roster.invitations)}"),
            task=int(terms.get("task", 0)),
            replaces=bool(terms.get("replaces", False)),
        )
        self.update()
        return made

    def update(self, *, now: int = 0) -> list[Effect]:
        """The gateway is told what the roster is now."""
        return self.gateway.update(self.keeper.roster, now=now)

    def knock(self, its: Invitation) -> None:
        """A stranger comes: an invite's keys are derived once, whoever comes first, as members' are."""
        self.receive(frames.build_joining_header(Type.JOIN, its.number) + bytes(104))

    def receive(self, frame: bytes, *, topic: str = JOIN, now: int = 0) -> list[Effect]:
        """What a frame leads to, when the members it brings are written down, or cannot be."""
        effects: list[Effect] = []
        for effect in self.gateway.receive(topic, frame, now=now):
            match effect:
                case Admit():
                    effects += self._admit(effect, now=now)
                case Adopt():
                    effects += self.gateway.update(self.keeper.adopt(effect), now=now)
                case _:
                    effects.append(effect)
        return effects

    def answer(self, frame: bytes, *, number: int = 1, now: int = 0) -> bytes:
        """The frame that answers this JOIN: the one thing that is said to whoever holds the invite."""
        topic = joined_topic(number)
        effects = self.receive(frame, now=now)
        (answer,) = [it.payload for it in effects if isinstance(it, Publish) and it.topic == topic]
        return answer

    def join(self, its: Invitation, key: str = "pi-7", *, now: int = 0) -> Member:
        """Somebody joins by this invite, and is the member returned."""
        application = application_of(its, key)
        application.open(self.answer(application.join, number=its.number, now=now))
        return next(one for one in self.keeper.roster.members if one.id == its.id)

    def state(self) -> object:
        """All that the gateway remembers and all that survives it."""
        # A copy: state_of leaves queues as they are, and the live ones change.
        return state_of(copy.deepcopy(self.gateway)), self.keeper.roster

    def _admit(self, admit: Admit, *, now: int) -> list[Effect]:
        try:
            roster = self.keeper.admit(admit)
        except NotAdmittedError as error:
            return self.gateway.not_admitted(admit, error.refusal, now=now)
        return self.gateway.admitted(admit, roster, now=now)


def open_door(name: str = "pi-7", role: str = "device", **terms: bool | int) -> tuple[Door, Invitation]:
    """A gateway with the member pi-1, and an invite, whose keys it has derived already."""
    door = Door(member("pi-1", 1))
    its = door.invite(name, role, **terms)
    door.knock(its)
    return door, its
