"""The joining machine: how often it says JOIN, and when it stops."""

import pytest
from federation import FEDERATION, gateway_identity, key_pair, only_publish
from joining import JOIN, STEP, Door, applicant_of, invite_of, joined_topic, open_door

from edge_fi.applicant import FIRST_RETRY_US, LAST_RETRY_US, Applicant
from edge_fi.effects import Joined, Machine, Publish, Rejected
from edge_fi.gateway import Gateway
from edge_fi.messages import ROLES
from edge_fi.wire.payloads import Refusal
from firmware_sim.fleet import Fleet
from firmware_sim.keeper import Keeper
from firmware_sim.link import PERFECT, Link
from firmware_sim.stream import Stream

J = joined_topic()
SECOND = 1_000_000


def connected(applicant: Applicant, *, now: int = 0) -> bytes:
    """The JOIN that an applicant says as its link comes up."""
    message = only_publish(applicant.connected(now=now))
    assert message == Publish(JOIN, message.payload)
    return message.payload


def joined() -> tuple[Applicant, Door]:
    """An applicant that was accepted, and the gateway that did it."""
    door, its = open_door()
    applicant = applicant_of(its)
    applicant.receive(J, door.answer(connected(applicant)), now=1)
    return applicant, door


def said_at(applicant: Applicant, *, until: int) -> list[int]:
    """When it says its JOIN again, driven by its own deadlines."""
    times = []
    while (due := applicant.next_deadline()) is not None and due <= until:
        assert applicant.tick(now=due - 1) == []
        only_publish(applicant.tick(now=due))
        times.append(due)
    return times


# Asking


def test_an_applicant_is_a_machine_that_leaves_no_presence() -> None:
    applicant: Machine = applicant_of(open_door()[1])
    assert applicant.subscriptions == [J]
    assert applicant.will is None and applicant.farewell == []


def test_before_its_link_is_up_an_applicant_waits_for_nothing() -> None:
    applicant = applicant_of(open_door()[1])
    assert applicant.next_deadline() is None and applicant.tick(now=10**12) == []
    assert not applicant.is_over


def test_an_applicant_says_its_join_again_twice_as_rarely_each_time_up_to_8_s() -> None:
    applicant = applicant_of(open_door()[1])
    join = connected(applicant, now=100)
    assert said_at(applicant, until=40 * SECOND) == [
        100 + round(1e6 * seconds) for seconds in (0.5, 1.5, 3.5, 7.5, 15.5, 23.5, 31.5, 39.5)
    ]
    assert (FIRST_RETRY_US, LAST_RETRY_US) == (500_000, 8_000_000)
    due = applicant.next_deadline()
    assert due is not None and applicant.tick(now=due) == [Publish(JOIN, join)]


def test_a_link_that_is_down_is_asked_nothing_and_one_that_is_back_at_once() -> None:
    applicant = applicant_of(open_door()[1])
    join = connected(applicant)
    said_at(applicant, until=8 * SECOND)
    assert applicant.disconnected(now=9 * SECOND) == []
    assert applicant.next_deadline() is None and applicant.tick(now=60 * SECOND) == []
    assert connected(applicant, now=61 * SECOND) == join
    assert applicant.next_deadline() == 61 * SECOND + FIRST_RETRY_US


# Being answered


def test_an_applicant_that_is_accepted_is_over_and_says_no_more() -> None:
    applicant, _ = joined()
    assert applicant.is_over and applicant.refused is None
    assert applicant.accepted is not None and applicant.accepted.index == 2
    assert applicant.tick(now=10 * SECOND) == [] and applicant.next_deadline() is None
    assert applicant.disconnected(now=11 * SECOND) == []
    assert applicant.connected(now=12 * SECOND) == [] and applicant.next_deadline() is None


def test_an_accept_tells_that_the_gateway_is_there() -> None:
    door, its = open_door()
    applicant = applicant_of(its)
    assert applicant.receive(J, door.answer(connected(applicant)), now=1) == [Joined("gateway")]


def test_after_the_answer_every_other_is_unexpected() -> None:
    applicant, door = joined()
    accepted = applicant.accepted
    its = door.keeper.roster.invitations[0]
    for frame in (door.answer(applicant_of(its)._application.join, now=STEP), b"", bytes(60)):
        assert applicant.receive(J, frame, now=2) == [Rejected(reason="unexpected")]
    assert applicant.accepted is accepted


def test_what_comes_on_another_topic_is_no_answer() -> None:
    door, its = open_door()
    applicant = applicant_of(its)
    answer = door.answer(connected(applicant))
    for topic in ("", JOIN, joined_topic(2), f"fi1/{FEDERATION}/j/01", f"fi2/{FEDERATION}/j/1"):
        assert applicant.receive(topic, answer, now=1) == [Rejected(reason="direction")]
    assert applicant.receive(J, answer, now=1) == [Joined("gateway")]
    assert applicant.receive(JOIN, answer, now=1) == [Rejected(reason="direction")]


@pytest.mark.parametrize("refusal", [its for its in Refusal if its is not Refusal.BUSY])
def test_an_applicant_that_is_refused_is_over(refusal: Refusal) -> None:
    door, its = open_door()
    applicant = applicant_of(its)
    (admit,) = door.gateway.receive(JOIN, connected(applicant), now=0)
    (_, refused) = door.gateway.not_admitted(admit, refusal, now=0)  # type: ignore[arg-type]
    assert isinstance(refused, Publish) and applicant.receive(J, refused.payload, now=1) == []
    assert applicant.is_over and applicant.refused is refusal and applicant.accepted is None
    assert applicant.tick(now=SECOND) == [] and applicant.next_deadline() is None


def test_a_busy_gateway_is_asked_again_until_it_has_decided() -> None:
    door, its = open_door()
    door.keeper.is_full = True
    applicant = applicant_of(its)
    join = connected(applicant)
    assert applicant.receive(J, door.answer(join), now=1) == []
    assert applicant.refused is Refusal.BUSY and not applicant.is_over
    assert said_at(applicant, until=4 * SECOND) == [500_000, 1_500_000, 3_500_000]
    door.keeper.is_full = False
    assert applicant.receive(J, door.answer(join, now=4 * SECOND), now=4 * SECOND) == [Joined("gateway")]
    assert applicant.is_over and applicant.accepted is not None


def test_what_is_dropped_changes_neither_the_applicant_nor_its_pace() -> None:
    door, its = open_door()
    applicant = applicant_of(its)
    join = connected(applicant)
    for frame in (b"", join, bytes(54), b"\x31\0\0\0\0\1" + bytes(48)):
        (effect,) = applicant.receive(J, frame, now=1)
        assert isinstance(effect, Rejected)
    assert not applicant.is_over and applicant.next_deadline() == FIRST_RETRY_US
    assert applicant.receive(J, door.answer(join), now=2) == [Joined("gateway")]


def test_an_applicant_shows_no_secret_in_a_repr() -> None:
    applicant, door = joined()
    its = door.keeper.roster.invitations[0]
    shown = repr([vars(applicant), vars(applicant._application), applicant.accepted, invite_of(its)])
    for secret in (its.token, key_pair("pi-7").private):
        assert repr(secret)[2:-1] not in shown and secret.hex() not in shown


# Over a broker


@pytest.mark.parametrize(
    "link",
    [
        PERFECT,
        Link(delay_us=30_000, jitter_us=300_000, duplication=0.4),
        Link(loss=0.5),
        Link(delay_us=2_000_000),
    ],
    ids=["perfect", "jitter", "loss", "slower than the first resends"],
)
@pytest.mark.parametrize("role", ROLES)
def test_an_applicant_joins_once_over_any_link(role: str, link: Link) -> None:
    keeper = Keeper()
    its = keeper.invite("pi-7", role, token=bytes(16))
    gateway = Gateway(gateway_identity(), keeper.roster, [], Stream("gateway"))
    fleet, applicant = Fleet(), applicant_of(its)
    fleet.add("gateway", gateway, keeper=keeper, link=link)
    fleet.add("pi-7", applicant, link=link)
    fleet.connect("gateway")
    fleet.connect("pi-7")
    fleet.run(120)
    assert applicant.accepted is not None and applicant.accepted.index == 1
    assert keeper.roster.version == 1
    said = len(fleet.published)
    fleet.run(60)
    assert len(fleet.published) == said
