"""A federation that lives: members join by invites, are revoked and come back, and either side dies.

Beside it the truth: what a gateway may forget, and what no run of it may contradict.
"""

from dataclasses import dataclass, field, replace

from federation import FEDERATION, TASK, constant, gateway_identity, identity, key_pair, labelling
from joining import applicant_of, token

from edge_fi.applicant import Applicant
from edge_fi.claim import Claim
from edge_fi.client import Client
from edge_fi.crypto.keys import Entropy, SigningKey
from edge_fi.device import Device
from edge_fi.effects import Admit, Effect, Machine
from edge_fi.gateway import CLAIM_US, Gateway
from edge_fi.messages import Fate, Member, Tensor
from edge_fi.roster import Invitation, Roster
from edge_fi.round import Round, RoundPolicy
from edge_fi.session import GatewayIdentity
from firmware_sim.fleet import Fleet, Node
from firmware_sim.keeper import Keeper
from firmware_sim.link import PERFECT
from firmware_sim.stream import Stream

ROSTER = f"fi1/{FEDERATION}/gateway/roster"
SECOND = 1_000_000
RECOVERY_S = 120  # the longest back-off, rejoin window and doubt, one after the other


@dataclass
class Truth:
    """What has happened, whatever a gateway knows of it."""

    members: dict[int, Member] = field(default_factory=dict)
    """Whom each index was given to."""
    burnt: dict[bytes, bytes] = field(default_factory=dict)
    """The key that each token made a member."""
    revoked: set[int] = field(default_factory=set)
    rounds: list[tuple[Round, frozenset[int]]] = field(default_factory=list)
    """Each, and who had been revoked when it was opened."""
    faults: list[str] = field(default_factory=list)
    """Promises that were broken."""

    def written(self, member: Member, its: Invitation) -> None:
        """This member was accepted by this invite."""
        if self.members.setdefault(member.index, member) != member:
            self.faults.append(f"index {member.index} was given twice")
        if self.burnt.setdefault(its.token, member.public) != member.public:
            self.faults.append(f"invite {its.number} made two keys a member")

    def is_known(self, highest: int, revoked: frozenset[int]) -> bool:
        """Whether all that was given and revoked is among this."""
        return revoked >= self.revoked and highest >= max(self.members, default=0)


class TrueKeeper(Keeper):
    """A keeper that cannot hide from the truth what it has written, when its roster is put back."""

    def __init__(self, truth: Truth) -> None:
        super().__init__()
        self._truth = truth

    def admit(self, admit: Admit) -> Roster:
        """As any keeper's."""
        roster = super().admit(admit)
        (its,) = [its for its in roster.invitations if its.number == admit.invite]
        self._truth.written(admit.member, its)
        self._truth.revoked |= roster.revoked
        return roster


class TrueGateway(Gateway):
    """A gateway whose rounds are the truth's."""

    def __init__(
        self,
        identity: GatewayIdentity,
        roster: Roster,
        entropy: Entropy,
        policy: RoundPolicy,
        truth: Truth,
    ) -> None:
        super().__init__(identity, roster, [TASK], entropy, policy=policy, is_claiming=True)
        self._truth = truth

    def ask(
        self,
        task: int,
        tensor: Tensor,
        *,
        reference: object,
        now: int,
        policy: RoundPolicy | None = None,
    ) -> list[Effect]:
        """As any gateway's."""
        before = set(self._epochs[task].open)
        effects = super().ask(task, tensor, reference=reference, now=now, policy=policy)
        for seq in self._epochs[task].open.keys() - before:
            asked = self._epochs[task].open[seq]
            self._truth.rounds.append((asked.round, frozenset(self._truth.revoked)))
        return effects


@dataclass(frozen=True)
class Holder:
    """Somebody with an invite and a key: an applicant, and then a member."""

    its: Invitation
    key: str

    @property
    def node(self) -> str:
        """Its name in the fleet. One key is in one place."""
        return f"{self.its.id} {self.key}"


class World:
    """A gateway and what survives it, invites, and whoever holds them, around a simulated broker."""

    def __init__(self, policy: RoundPolicy) -> None:
        self.fleet = Fleet("world")
        self.truth = Truth()
        self.keeper = TrueKeeper(self.truth)
        self.identity = gateway_identity()
        self.policy = policy
        self.lives = 0
        self.asked = 0
        self.invitations: list[Invitation] = []
        """Every one that was ever made."""
        self.holders: dict[str, Holder] = {}
        """By the name of their node."""
        self.snapshots: list[Roster] = []
        """The roster as it was after each change by its owner, oldest first."""
        self._start_gateway()
        self.fleet.connect("gateway")

    # The gateway and its owner

    @property
    def gateway(self) -> Gateway:
        """The run that is there."""
        machine = self.gateway_node.machine
        assert isinstance(machine, Gateway)
        return machine

    @property
    def gateway_node(self) -> Node:
        """Its node."""
        return self.fleet.nodes["gateway"]

    @property
    def is_word_current(self) -> bool:
        """Whether the broker retains the gateway's word, and that tells all of the truth."""
        word = self.fleet._retained.get(ROSTER)
        if word is None:
            return False
        said = Claim(self.identity.static.private, Stream("reader")).open_roster(word)
        return self.truth.is_known(said.highest, said.revoked)

    @property
    def is_state_current(self) -> bool:
        """Whether what survived the gateway tells all of the truth: not after it was put back."""
        return self.truth.is_known(self.keeper.roster.highest, self.keeper.roster.revoked)

    def invite(self, name: str, role: str, *, replaces: bool = False) -> Invitation:
        """The owner makes an invite."""
        secret = token(f"world {len(self.invitations)}")
        its = self.keeper.invite(name, role, token=secret, replaces=replaces)
        self.invitations.append(its)
        self._tell()
        return its

    def withdraw(self, its: Invitation) -> None:
        """The owner takes an invite back."""
        self.keeper.withdraw(its.number)
        self._tell()

    def expire(self, its: Invitation) -> None:
        """An invite's time is over."""
        self.keeper.expire(its.number)
        self._tell()

    def revoke(self, member: Member) -> None:
        """The owner revokes a member."""
        self.truth.revoked.add(self.keeper.revoke(member.id).index)
        self._tell()

    def rotate(self, *, is_signing_new: bool) -> None:
        """The owner wants a new epoch, perhaps with a new signing key."""
        self.keeper.rotate()
        if is_signing_new:
            self.lives += 1
            signing = SigningKey.from_seed(Stream(f"signing {self.lives}")(32))
            self.identity = replace(self.identity, signing=signing)
        self._tell(self.identity if is_signing_new else None)

    def restart_gateway(self, roster: Roster | None = None) -> None:
        """The gateway dies and begins anew, with what survived it, or with this older roster."""
        self.fleet.disconnect("gateway")
        if roster is not None:
            self.keeper.roster = roster
        self._start_gateway()
        self.fleet.connect("gateway")

    def ask(self, tensor: Tensor, policy: RoundPolicy | None = None) -> int:
        """The owner puts a query, without waiting. Its reference."""
        self.asked += 1
        effects = self.gateway.ask(1, tensor, reference=self.asked, now=self.fleet.clock.now, policy=policy)
        self.fleet.perform(self.gateway_node, effects)
        return self.asked

    # Whoever was invited

    def apply(self, its: Invitation, key: str) -> None:
        """Somebody with this key uses an invite, in the place of whatever had that key and name."""
        holder = Holder(its, key)
        if holder.node in self.fleet.nodes:
            self.fleet.disconnect(holder.node)
        self.holders[holder.node] = holder
        self._start(holder, self._applicant(holder))

    def restart(self, name: str) -> None:
        """A node dies and begins anew, with its key and, if it had been told one, its index."""
        self.fleet.disconnect(name)
        holder, machine = self.holders[name], self.fleet.nodes[name].machine
        if isinstance(machine, Device | Client):
            index, role = machine.identity.index, machine.identity.role
            self._start(holder, self._member(holder, index, role))
        else:
            self._start(holder, self._applicant(holder))

    def settle(self) -> None:
        """Whoever was accepted goes on as a member."""
        for name, holder in self.holders.items():
            machine = self.fleet.nodes[name].machine
            if isinstance(machine, Applicant) and machine.accepted is not None:
                self.fleet.disconnect(name)
                accept, role = machine.accepted, holder.its.role
                told = self.truth.members.get(accept.index)
                if told is None or (told.id, told.public) != (holder.its.id, key_pair(name).public):
                    self.truth.faults.append(f"{name} was told index {accept.index}, which is another's")
                if role != "helper":
                    self._start(holder, self._member(holder, accept.index, role))

    def client_asks(self, tensor: Tensor) -> None:
        """Every client puts a query, without waiting."""
        for node in list(self.fleet.nodes.values()):
            if isinstance(node.machine, Client):
                self.asked += 1
                effects = node.machine.ask(
                    TASK, tensor, deadline_ms=5000, reference=self.asked, now=self.fleet.clock.now
                )
                self.fleet.perform(node, effects)

    def recover(self) -> None:
        """All links are good and the disk has room, for long enough."""
        self.keeper.is_full = False
        for name, node in self.fleet.nodes.items():
            node.link, node.infer_us = PERFECT, 0
            self.fleet.disconnect(name)
            self.fleet.connect(name)
        for _ in range(2):  # applicants join, and then members do
            self.fleet.run(RECOVERY_S)
            self.settle()

    # What must be

    @property
    def devices(self) -> dict[str, Node]:
        """The nodes of devices that are members, by their ids."""
        return {
            node.machine.identity.id: node
            for node in self.fleet.nodes.values()
            if isinstance(node.machine, Device)
            for member in self.keeper.roster.members
            if member.index == node.machine.identity.index
        }

    @property
    def undecided(self) -> list[str]:
        """Applicants that were told nothing, though their invite is one that the gateway has."""
        known = {its.token for its in self.keeper.roster.invitations}
        return [
            name
            for name, holder in self.holders.items()
            for machine in [self.fleet.nodes[name].machine]
            if isinstance(machine, Applicant) and not machine.is_over and holder.its.token in known
        ]

    @property
    def counted_though_revoked(self) -> list[tuple[int, int]]:
        """Seq and index, where a round took a vote of a former member, or asked one for it."""
        late = [
            (its_round.seq, index)
            for its_round, revoked in self.truth.rounds
            for index in its_round.fates.keys() & revoked
        ]
        taken = [
            (asked.round.seq, index)
            for asked in self.gateway._epochs[1].open.values()
            for index in asked.round.votes.keys() & self.truth.revoked
        ]
        return late + taken

    @property
    def strangers_in_session(self) -> set[int]:
        """Whoever has a session with the gateway and is no member."""
        return self.gateway._peers.keys() - {member.index for member in self.keeper.roster.members}

    def fates(self, reference: int) -> dict[str, Fate]:
        """What became of each member in a round of the owner's."""
        return dict(self.gateway_node.outcomes[reference].fates)

    def _start_gateway(self) -> None:
        self.lives += 1
        dice = Stream(f"world gateway {self.lives}")
        machine = TrueGateway(self.identity, self.keeper.roster, dice, self.policy, self.truth)
        link = self.fleet.nodes["gateway"].link if "gateway" in self.fleet.nodes else PERFECT
        self.fleet.add("gateway", machine, link=link, keeper=self.keeper)

    def _tell(self, identity: GatewayIdentity | None = None) -> None:
        """The gateway is told what its owner did."""
        self.snapshots.append(self.keeper.roster)
        effects = self.gateway.update(self.keeper.roster, now=self.fleet.clock.now, identity=identity)
        self.fleet.perform(self.gateway_node, effects)

    def _applicant(self, holder: Holder) -> Applicant:
        self.lives += 1
        return applicant_of(holder.its, holder.node, life=self.lives)

    def _member(self, holder: Holder, index: int, role: str) -> Device | Client:
        self.lives += 1
        dice = Stream(f"world {holder.node} {self.lives}")
        its = replace(identity(holder.its.id, index, role), static=key_pair(holder.node))
        return Device(its, labelling(), dice) if role == "device" else Client(its, dice)

    def _start(self, holder: Holder, machine: Machine) -> None:
        before = self.fleet.nodes.get(holder.node)
        link = PERFECT if before is None else before.link
        self.fleet.add(holder.node, machine, link=link, model=constant(5, 0, 0, 0))
        self.fleet.connect(holder.node)


def born(policy: RoundPolicy) -> World:
    """A world with the members pi-1 and laptop-1, and an invite for pi-2 that nobody has used yet."""
    world = World(policy)
    world.fleet.run(CLAIM_US / SECOND)
    for name, role in (("pi-1", "device"), ("laptop-1", "client")):
        world.apply(world.invite(name, role), "a")
    world.invite("pi-2", "device")
    for _ in range(2):
        world.fleet.run(1)
        world.settle()
    return world
