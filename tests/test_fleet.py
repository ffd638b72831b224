"""The simulator's pump: it does for a gateway and what survives it what production's does."""

from dataclasses import replace

from federation import Federation, constant, gateway_identity, key_pair, roster_of, without
from joining import applicant_of, token

from edge_fi.applicant import Applicant
from edge_fi.effects import Halt, Publish
from edge_fi.gateway import CLAIM_US, Gateway
from edge_fi.messages import Member
from edge_fi.roster import Invitation, Roster
from edge_fi.wire.payloads import Refusal
from firmware_sim.fleet import Fleet
from firmware_sim.keeper import Keeper
from firmware_sim.stream import Stream

SECOND = 1_000_000


def fleet_of(
    keeper: Keeper | None, roster: Roster, *, name: str = "gateway", fleet: Fleet | None = None
) -> Fleet:
    """A gateway that claims, and serves."""
    fleet = fleet or Fleet()
    dice = Stream(f"fleet {name}")
    fleet.add(name, Gateway(gateway_identity(), roster, [], dice, is_claiming=True), keeper=keeper)
    fleet.connect(name)
    fleet.run(CLAIM_US / SECOND)
    return fleet


def applying(fleet: Fleet, its: Invitation, key: str = "pi-7") -> Applicant:
    """An applicant that has been connected for a second."""
    applicant = applicant_of(its, key)
    fleet.add(key, applicant)
    fleet.connect(key)
    fleet.run(1)
    return applicant


# What a gateway wants done


def test_a_member_is_written_down_before_it_is_told_so() -> None:
    keeper = Keeper()
    its = keeper.invite("pi-7", token=token("fleet"))
    fleet = fleet_of(keeper, keeper.roster)
    applicant = applying(fleet, its)
    assert applicant.accepted is not None
    assert keeper.roster.members == (
        Member(id="pi-7", index=1, role="device", public=key_pair("pi-7").public),
    )
    assert fleet.nodes["gateway"].rejected == {}


def test_whoever_comes_while_the_disk_is_full_joins_when_it_is_not() -> None:
    keeper = Keeper()
    its = keeper.invite("pi-7", token=token("fleet"))
    fleet = fleet_of(keeper, keeper.roster)
    keeper.is_full = True
    applicant = applying(fleet, its)
    assert applicant.refused is Refusal.BUSY and not applicant.is_over
    keeper.is_full = False
    fleet.run(8)
    assert applicant.accepted is not None


def test_nobody_joins_a_gateway_that_nothing_survives() -> None:
    keeper = Keeper()
    its = keeper.invite("pi-7", token=token("fleet"))
    fleet = fleet_of(None, keeper.roster)
    assert not applying(fleet, its).is_over
    fleet.publish(Publish("fi1/acme/gateway/roster", word(without(roster_of("pi-1"), "pi-1"))))
    fleet.run(1)
    assert keeper.roster.revoked == frozenset()


def word(roster: Roster) -> bytes:
    """What a gateway of this roster tells its later runs."""
    gateway = Gateway(gateway_identity(), replace(roster, version=9), [], Stream("a former run"))
    (_, message) = gateway.connected(now=0)
    assert isinstance(message, Publish)
    return message.payload


def test_a_gateway_that_was_restored_revokes_again_whom_its_former_run_had_revoked() -> None:
    before = roster_of("pi-1", "pi-2")
    keeper = Keeper(before)
    fleet = Fleet()
    fleet.publish(Publish("fi1/acme/gateway/roster", word(without(before, "pi-2")), retain=True))
    fleet.run(1)
    fleet_of(keeper, keeper.roster, fleet=fleet)
    assert [member.id for member in keeper.roster.members] == ["pi-1"]
    assert keeper.roster.revoked == {2}
    machine = fleet.nodes["gateway"].machine
    assert isinstance(machine, Gateway) and machine._roster is keeper.roster


def test_a_second_run_of_a_gateway_ends_itself_and_the_first_goes_on() -> None:
    fleet = fleet_of(None, roster_of("pi-1"))
    fleet_of(None, roster_of("pi-1"), name="second", fleet=fleet)
    second = fleet.nodes["second"]
    assert not second.is_connected and second.halted.startswith("another process runs as this gateway")
    (halt,) = [effect for effect in second.effects if isinstance(effect, Halt)]
    assert halt.reason == second.halted
    assert fleet.nodes["gateway"].halted == "" and fleet.nodes["gateway"].is_connected


def test_a_node_that_ended_itself_says_nothing_more_and_its_will_is_not_said() -> None:
    fleet = fleet_of(None, roster_of("pi-1"))
    fleet_of(None, roster_of("pi-1"), name="second", fleet=fleet)
    said = list(fleet.published)
    effects = list(fleet.nodes["second"].effects)
    fleet.run(100_000)  # more than a day: a gateway that goes on begins a new epoch
    assert fleet.published == said and fleet.nodes["second"].effects == effects
    assert ("fi1/acme/gateway/state", b"lost") not in said


def test_a_federation_without_a_keeper_is_what_it_was() -> None:
    federation = Federation([constant(5, 0, 0, 0)]).join()
    assert federation.ask().label == 0
    assert federation.gateway_node.keeper is None
