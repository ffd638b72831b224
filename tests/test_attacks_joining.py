"""Attacks on joining that must fail: each through the real entry point, with its drop reason.

After each the machine is what it was (`state_of` compares all of it, in depth), nothing but a `Rejected`
came out, and whoever holds the invite can still join. What the holder of a token does wrong costs its
own invite a turn of 200 ms, and nothing else.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from federation import (
    FEDERATION,
    HandMember,
    gateway_identity,
    identity,
    key_pair,
    lone_gateway,
    only_publish,
)
from joining import (
    JOIN,
    STEP,
    Door,
    applicant_of,
    application_of,
    invite_of,
    joined_topic,
    maced,
    open_door,
    token,
)
from test_attacks import LOW_ORDER, ask, every_frame, flips, gateway_is_unharmed, state_of

from edge_fi.admission import ANSWERS_KEPT, JOIN_EVERY_US
from edge_fi.applicant import Applicant
from edge_fi.crypto.keys import KeyPair
from edge_fi.crypto.noise import HandshakeIKpsk1
from edge_fi.crypto.seal import JoinKeys, join_mac, join_prologue, refused_mac
from edge_fi.effects import Effect, Joined, Publish, Rejected
from edge_fi.gateway import Gateway
from edge_fi.messages import ROLES
from edge_fi.roster import Invitation
from edge_fi.session import Joiner
from edge_fi.wire import frames
from edge_fi.wire.frames import MAX_ACCEPT_BYTES, MAX_FRAME_BYTES, Type
from edge_fi.wire.payloads import Accept, Refusal
from firmware_sim.fleet import Fleet
from firmware_sim.keeper import Keeper
from firmware_sim.link import PERFECT, Link
from firmware_sim.stream import Stream

A, S, CA = "fi1/acme/a/pi-1", "fi1/acme/s/pi-1", "fi1/acme/ca/laptop-1"
J = joined_topic()
SECOND = 1_000_000
HEADED = {"type", "length", "direction"}
"""Under another type, a frame fails whatever that type's first check is."""


def but_its_turn(state: object) -> object:
    """The state, without the time until which an invite's holder must wait with another JOIN."""
    if isinstance(state, dict):
        return {name: but_its_turn(value) for name, value in state.items() if name != "next_us"}
    return [but_its_turn(value) for value in state] if isinstance(state, list | tuple) else state


def dropped(
    door: Door, frame: bytes, *reasons: str, topic: str = JOIN, peer: str = "", now: int = SECOND
) -> None:
    """The gateway drops this for one of these reasons, and is what it was."""
    before = door.state()
    (effect,) = door.receive(frame, topic=topic, now=now)
    assert isinstance(effect, Rejected) and effect.reason in reasons, (effect, reasons)
    assert effect.peer == peer
    assert door.state() == before


def dropped_of_holder(door: Door, frame: bytes, reason: str, *, now: int = SECOND) -> None:
    """As `dropped`, for a frame that only who has the token can make: it takes a turn."""
    before = but_its_turn(door.state())
    assert door.receive(frame, now=now) == [Rejected(reason=reason)]
    assert but_its_turn(door.state()) == before


def still_joins(door: Door, its: Invitation, *, now: int = SECOND + STEP) -> None:
    """Whoever was invited becomes a member."""
    before = door.keeper.roster.highest
    assert door.join(its, now=now).index == before + 1


def ignored(applicant: Applicant, frame: bytes, *reasons: str, topic: str = J) -> None:
    """The joiner drops this for one of these reasons, and is what it was."""
    before = state_of(copy.deepcopy(applicant))
    (effect,) = applicant.receive(topic, frame, now=1)
    assert isinstance(effect, Rejected) and effect.reason in reasons, (effect, reasons)
    assert state_of(copy.deepcopy(applicant)) == before


def asking(door: Door, its: Invitation, *, life: int = 0) -> tuple[Applicant, bytes]:
    """An applicant that has said its JOIN, and the ACCEPT that it has not got yet."""
    applicant = applicant_of(its, life=life)
    join = only_publish(applicant.connected(now=0)).payload
    return applicant, door.answer(join, number=its.number, now=life * STEP)


def handshake_of(
    its: Invitation, *, static: KeyPair | None = None, claiming: Invitation | None = None
) -> HandshakeIKpsk1:
    """The joiner's side by hand: by whoever has the token, and claims that it is another invite's."""
    genuine = join_prologue(FEDERATION, its.role, its.id, its.number)
    other = claiming or its
    claimed = join_prologue(FEDERATION, other.role, other.id, other.number)
    return HandshakeIKpsk1(
        initiator=True,
        prologue=claimed,
        static=static or key_pair("pi-7"),
        ephemeral=KeyPair.from_private(Stream("by hand")(32)),
        peer_static=gateway_identity().static.public,
        psk=JoinKeys.from_token(its.token, genuine).psk,
    )


# Every byte


JOIN_REGIONS = [(1, HEADED), (2, {"flags"}), (6, {"stranger"}), (110, {"mac"})]


def test_a_join_with_any_one_bit_flipped_is_dropped_and_costs_no_dh(dh_calls: list[bytes]) -> None:
    door, its = open_door()
    join = application_of(its).join
    before = door.state()
    dh_calls.clear()
    for place, flipped in flips(join):
        (effect,) = door.gateway.receive(JOIN, flipped, now=SECOND)
        reasons = next(reasons for end, reasons in JOIN_REGIONS if place < end)
        assert isinstance(effect, Rejected) and effect.reason in reasons
    assert dh_calls == [] and door.state() == before
    still_joins(door, its)


def test_a_join_of_another_size_is_dropped() -> None:
    door, its = open_door()
    join = application_of(its).join
    cut = [join[:size] for size in range(len(join))]
    for frame in [*cut, join + b"\0", join + bytes(200), join * 2, join + bytes(MAX_FRAME_BYTES)]:
        dropped(door, frame, "length")
    still_joins(door, its)


@pytest.mark.parametrize("more", [b"\0", b"more", bytes(16)], ids=len)
def test_a_join_that_says_more_than_a_join_is_dropped_though_its_mac_is_true(more: bytes) -> None:
    door, its = open_door()
    dropped(door, maced(its, handshake_of(its).write_message_1(more)), "length")
    still_joins(door, its)


def test_an_accept_with_any_one_bit_flipped_is_dropped() -> None:
    door, its = open_door()
    applicant, accept = asking(door, its)
    regions = [(1, HEADED), (2, {"flags"}), (6, {"invite"}), (len(accept), {"seal"})]
    before = state_of(copy.deepcopy(applicant))
    for place, flipped in flips(accept):
        (effect,) = applicant.receive(J, flipped, now=1)
        reasons = next(reasons for end, reasons in regions if place < end)
        assert isinstance(effect, Rejected) and effect.reason in reasons
    assert state_of(copy.deepcopy(applicant)) == before
    assert applicant.receive(J, accept, now=2) == [Joined("gateway")]


def test_an_accept_of_another_size_is_dropped() -> None:
    door, its = open_door()
    applicant, accept = asking(door, its)
    for size in range(len(accept)):
        ignored(applicant, accept[:size], "length" if size < 54 else "seal")
    ignored(applicant, accept + b"\0", "seal")
    ignored(applicant, accept.ljust(MAX_ACCEPT_BYTES + 1, b"\0"), "length")
    assert applicant.receive(J, accept, now=2) == [Joined("gateway")]


def test_a_refusal_with_any_one_bit_flipped_or_of_another_size_is_dropped() -> None:
    door, its = open_door("pi-1")
    applicant, refused = asking(door, its)
    regions = [(1, HEADED), (2, {"flags"}), (6, {"invite"}), (15, {"mac"})]
    for place, flipped in flips(refused):
        ignored(applicant, flipped, *next(reasons for end, reasons in regions if place < end))
    for frame in [*(refused[:size] for size in range(15)), refused + b"\0"]:
        ignored(applicant, frame, "length")
    assert applicant.receive(J, refused, now=2) == []
    assert applicant.refused is Refusal.NAME_TAKEN


def test_noise_of_any_size_is_dropped_by_both() -> None:
    door, its = open_door()
    applicant, accept = asking(door, its)
    stream, before = Stream("noise"), door.state()
    for _ in range(500):
        kind = [Type.JOIN, Type.ACCEPT, Type.REFUSED, *Type][stream(1)[0] % (3 + len(Type))]
        noise = bytes([kind]) + stream(stream(1)[0])
        for effects in (door.gateway.receive(JOIN, noise, now=1), applicant.receive(J, noise, now=1)):
            (effect,) = effects
            assert isinstance(effect, Rejected)
    assert door.state() == before
    assert applicant.receive(J, accept, now=2) == [Joined("gateway")]


# Who says it


def test_a_stranger_without_a_token_is_dropped_before_any_dh(dh_calls: list[bytes]) -> None:
    door, its = open_door()
    stranger = handshake_of(replace(its, token=bytes(16)))
    content = frames.build_joining_header(Type.JOIN, its.number) + stranger.write_message_1(b"")
    dh_calls.clear()
    for mac in (bytes(8), b"\xff" * 8, Stream("mac")(8)):
        dropped(door, content + mac, "mac")
    assert dh_calls == []
    still_joins(door, its)


def test_whoever_guesses_tokens_is_dropped_each_time_before_any_dh(dh_calls: list[bytes]) -> None:
    door, its = open_door()
    near = [its.token[:place] + bytes([its.token[place] ^ 1]) + its.token[place + 1 :] for place in range(16)]
    guesses = [bytes(16), b"\xff" * 16, token("pi-8 0"), *near, *(Stream(f"{n}")(16) for n in range(200))]
    joins = [application_of(replace(its, token=guess)).join for guess in guesses]
    dh_calls.clear()
    for join in joins:
        dropped(door, join, "mac")
    assert dh_calls == []
    still_joins(door, its)


def test_the_token_of_one_invite_is_none_of_another() -> None:
    door, its = open_door()
    other = door.invite("pi-8")
    door.knock(other)
    join = application_of(its).join
    renumbered = frames.build_joining_header(Type.JOIN, 2) + join[6:]
    dropped(door, renumbered, "mac")
    dropped(door, application_of(replace(its, number=2)).join, "mac")
    dropped(door, application_of(replace(other, token=its.token)).join, "mac")
    # Under a true mac, as the holder of both invites can make it, the handshake still tells.
    dropped_of_holder(door, maced(its, handshake_of(its, claiming=other).write_message_1(b"")), "seal")
    dropped_of_holder(door, maced(other, frames.parse_joining(join).message), "seal")
    still_joins(door, its)


def test_the_number_of_an_invite_tells_it_from_another_of_the_same_id_and_token() -> None:
    door, its = open_door()
    twin = door.keeper.invite("pi-7", token=its.token)
    door.update()
    door.knock(twin)
    dropped_of_holder(door, maced(twin, frames.parse_joining(application_of(its).join).message), "seal")
    still_joins(door, its)


@pytest.mark.parametrize("number", [0, 2, 0x01000000, 0xFFFFFFFF])
def test_an_invite_that_there_is_not_is_a_strangers(number: int, dh_calls: list[bytes]) -> None:
    door, its = open_door()
    join = application_of(its).join
    dh_calls.clear()
    dropped(door, frames.build_joining_header(Type.JOIN, number) + join[6:], "stranger")
    dropped(door, maced(its, join[6:-8], number=number or 3), "stranger")
    assert dh_calls == []
    still_joins(door, its)


@pytest.mark.parametrize(
    ("role", "name"), [("client", "pi-7"), ("helper", "pi-7"), ("device", "pi-8"), ("device", "pi-1")]
)
def test_an_invite_is_good_for_no_other_role_and_no_other_id(role: str, name: str) -> None:
    door, its = open_door()
    # As a joiner that takes an invite of which somebody has changed the text.
    other = replace(its, role=role, id=name)
    dropped(door, application_of(other).join, "mac")
    # As the holder of the token, who can make every mac.
    claimed = handshake_of(its, claiming=other).write_message_1(b"")
    dropped_of_holder(door, maced(its, claimed), "seal")
    still_joins(door, its)


def test_a_holder_cannot_take_the_name_of_a_member_nor_its_session() -> None:
    door, its = open_door("pi-1")
    device = HandMember().join(door.gateway)
    assert application_of(its).open(door.answer(application_of(its).join)) is Refusal.NAME_TAKEN
    gateway_is_unharmed(door.gateway, device)


def test_an_invite_of_another_federation_joins_nothing() -> None:
    door, its = open_door()
    dropped(door, application_of(invite_of(its, federation="other")).join, "mac")
    still_joins(door, its)


def test_a_joiner_whose_invite_names_another_gateway_does_not_join_this_one() -> None:
    door, its = open_door()
    fooled = application_of(invite_of(its, gateway="false gateway")).join
    dropped_of_holder(door, fooled, "seal")
    still_joins(door, its)


def test_another_gateway_can_accept_nobody_though_it_has_the_token() -> None:
    door, its = open_door()
    applicant, accept = asking(door, its)
    join = applicant._application.join
    false = Gateway(gateway_identity("false gateway"), door.keeper.roster, [], Stream("false"))
    assert false.receive(JOIN, join, now=0) == [Rejected(reason="seal")]
    # What it says by itself, under the psk but without the key that the invite names.
    prologue = join_prologue(FEDERATION, its.role, its.id, its.number)
    forger = HandshakeIKpsk1(
        initiator=False,
        prologue=prologue,
        static=gateway_identity("false gateway").static,
        ephemeral=KeyPair.from_private(Stream("forger")(32)),
        peer_static=None,
        psk=JoinKeys.from_token(its.token, prologue).psk,
    )
    theirs = HandshakeIKpsk1(
        initiator=True,
        prologue=prologue,
        static=key_pair("pi-7"),
        ephemeral=KeyPair.from_private(Stream("other")(32)),
        peer_static=gateway_identity("false gateway").static.public,
        psk=JoinKeys.from_token(its.token, prologue).psk,
    )
    forger.read_message_1(theirs.write_message_1(b""))
    forged = frames.build_joining_header(Type.ACCEPT, 1) + forger.write_message_2(bytes(8))
    ignored(applicant, forged, "seal")
    assert applicant.receive(J, accept, now=2) == [Joined("gateway")]


# Low-order keys


@pytest.mark.parametrize("public", LOW_ORDER, ids=["0", "1", "order 8", "order 8'", "p-1", "p", "p+1"])
def test_a_key_of_low_order_joins_nobody(public: bytes) -> None:
    door, its = open_door()
    honest = application_of(its).join
    # As the ephemeral key.
    dropped_of_holder(door, maced(its, public + frames.parse_joining(honest).message[32:]), "key")
    # As the static key, well sealed.
    weak = handshake_of(its, static=KeyPair(key_pair("weak").private, public))
    dropped_of_holder(door, maced(its, weak.write_message_1(b"")), "key", now=SECOND + STEP)
    # As the gateway's ephemeral key.
    applicant = applicant_of(its)
    join = only_publish(applicant.connected(now=0)).payload
    ignored(applicant, frames.build_joining_header(Type.ACCEPT, 1) + public + bytes(40), "key")
    accept = door.answer(join, now=SECOND + 2 * STEP)
    assert applicant.receive(J, accept, now=2) == [Joined("gateway")]


# Where it is said


@pytest.mark.parametrize(
    ("topic", "reason", "peer"),
    [
        (A, "direction", "pi-1"),
        (S, "presence", ""),
        ("fi1/acme/a/pi-7", "stranger", ""),
        ("fi1/acme/ca/pi-7", "stranger", ""),
        ("fi1/acme/s/pi-7", "stranger", ""),
        ("fi1/acme/ha/pi-7", "topic", ""),
        ("fi1/acme/gateway/claim", "direction", ""),
        ("fi1/acme/gateway/roster", "direction", ""),
        (J, "topic", ""),
        ("fi1/acme/join/1", "topic", ""),
        ("fi1/acme/join/", "topic", ""),
        ("fi1/other/join", "topic", ""),
        ("fi2/acme/join", "topic", ""),
        ("", "topic", ""),
    ],
)
def test_a_join_on_another_topic_is_none(topic: str, reason: str, peer: str) -> None:
    door, its = open_door()
    dropped(door, application_of(its).join, reason, topic=topic, peer=peer)
    still_joins(door, its)


def test_a_join_in_the_place_of_the_gateways_presence_is_corrected_and_nothing_else() -> None:
    door, its = open_door()
    (state,) = door.receive(application_of(its).join, topic="fi1/acme/gateway/state")
    assert isinstance(state, Publish) and state.payload == b"ready %08x" % door.gateway.boot
    still_joins(door, its)


@pytest.mark.parametrize("topic", ["", JOIN, joined_topic(2), "fi1/acme/d/pi-7", "fi1/other/j/1"])
def test_an_accept_on_another_topic_is_none(topic: str) -> None:
    door, its = open_door()
    applicant, accept = asking(door, its)
    ignored(applicant, accept, "direction", topic=topic)
    assert applicant.receive(J, accept, now=2) == [Joined("gateway")]


def test_what_is_sent_back_to_its_sender_is_dropped() -> None:
    door, its = open_door()
    applicant, accept = asking(door, its)
    ignored(applicant, applicant._application.join, "direction")
    dropped(door, accept, "direction")
    refused = asking(*open_door("pi-1"))[1]
    dropped(door, refused, "direction")
    assert applicant.receive(J, accept, now=2) == [Joined("gateway")]


def test_members_frames_are_none_of_a_joiners() -> None:
    door, its = open_door()
    applicant, accept = asking(door, its)
    device = HandMember().join(door.gateway)
    answer = device.answer(ask(door.gateway), b"\0\0")
    for frame in [device.hello(), device.ready(), answer, *every_frame().values()]:
        dropped(door, frame, "direction")
        ignored(applicant, frame, "direction")
    assert applicant.receive(J, accept, now=2) == [Joined("gateway")]


def test_a_gateway_that_does_not_serve_yet_admits_nobody(dh_calls: list[bytes]) -> None:
    its = open_door()[1]
    gateway = lone_gateway(is_claiming=True)
    gateway.update(replace(gateway._roster, invitations=(its,)), now=0)
    join = application_of(its).join
    dh_calls.clear()
    assert gateway.receive(JOIN, join, now=0) == [Rejected(reason="closed")]
    assert dh_calls == []


# Whose answer it is


def test_the_accept_of_another_joiner_is_not_mine() -> None:
    door, its = open_door()
    mine, accept = asking(door, its)
    other, _ = asking(door, its, life=1)
    for foreign in (accept, frames.build_joining_header(Type.ACCEPT, 1) + accept[6:]):
        ignored(other, foreign, "seal")
    elsewhere = door.invite("pi-8")
    third = applicant_of(elsewhere, "pi-8")
    third.connected(now=0)
    ignored(third, accept, "invite", topic=joined_topic(2))
    renumbered = frames.build_joining_header(Type.ACCEPT, 2) + accept[6:]
    ignored(third, renumbered, "seal", topic=joined_topic(2))
    assert mine.receive(J, accept, now=2) == [Joined("gateway")]


def test_the_accept_of_my_own_earlier_life_is_not_mine() -> None:
    door, its = open_door()
    _, accept = asking(door, its)
    again, renewed = asking(door, its, life=1)
    ignored(again, accept, "seal")
    assert again.receive(J, renewed, now=2) == [Joined("gateway")]
    assert again.accepted is not None and again.accepted.index == 2


@pytest.mark.parametrize("reason", [*Refusal, 0, 7, 255])
def test_a_broker_cannot_refuse_a_joiner_in_the_gateways_name(reason: int) -> None:
    door, its = open_door()
    applicant, accept = asking(door, its)
    content = frames.build_joining_header(Type.REFUSED, 1) + bytes([reason])
    join = applicant._application.join
    macs = [bytes(8), join[-8:], refused_mac(bytes(32), content, join[-8:])]
    # The mac of the JOIN is of another purpose, and what it is over is known.
    for mac in [*macs, join_mac(bytes(32), content)]:
        ignored(applicant, content + mac, "mac")
    assert applicant.receive(J, accept, now=2) == [Joined("gateway")]


def test_a_refusal_of_an_earlier_join_refuses_no_later_one() -> None:
    door, its = open_door()
    door.keeper.is_full = True
    first, busy = asking(door, its)
    assert first.receive(J, busy, now=1) == []
    door.keeper.is_full = False
    door.keeper.expire(its.number)
    door.update()
    _, expired = asking(door, its, life=1)
    later, _ = asking(door, its, life=2)
    for refused in (busy, expired):
        ignored(later, refused, "mac")
    assert first.receive(J, expired, now=1) == [Rejected(reason="mac")]
    assert not first.is_over and not later.is_over


# Once


def test_a_token_that_was_used_makes_no_other_key_a_member() -> None:
    door, its = open_door()
    thief = application_of(its, "thief")
    device = HandMember().join(door.gateway)
    joined = door.join(its, now=SECOND)
    written = door.keeper.roster
    for now in (2 * SECOND, 3 * SECOND):
        assert thief.open(door.answer(thief.join, now=now)) is Refusal.USED
    assert door.keeper.roster == written and joined in written.members
    # Nor does the name of the member that it made serve the thief.
    false = HandMember("pi-7", joined.index)
    stolen = replace(identity("pi-7", joined.index), static=key_pair("thief"))
    false.joiner = Joiner(stolen, b"", Stream("thief"))
    dropped(door, false.hello(), "mac", topic=false.topic, peer="pi-7")
    gateway_is_unharmed(door.gateway, device)


@pytest.mark.parametrize("gap_us", [0, 1, JOIN_EVERY_US - 1, JOIN_EVERY_US, SECOND])
@pytest.mark.parametrize("link", [PERFECT, Link(delay_us=20_000, jitter_us=300_000, duplication=0.5)])
def test_of_two_that_race_with_one_invite_exactly_one_joins_and_the_other_is_told(
    gap_us: int, link: Link
) -> None:
    keeper, fleet = Keeper(), Fleet()
    its = keeper.invite("pi-7", token=token("race"))
    fleet.add(
        "gateway", Gateway(gateway_identity(), keeper.roster, [], Stream("race")), keeper=keeper, link=link
    )
    racers = {key: applicant_of(its, key) for key in ("first", "second")}
    for key, applicant in racers.items():
        fleet.add(key, applicant, link=link)
    fleet.connect("gateway")
    fleet.connect("first")
    fleet.run(gap_us / SECOND)
    fleet.connect("second")
    fleet.run(30)
    assert all(applicant.is_over for applicant in racers.values())
    (winner,) = [key for key, applicant in racers.items() if applicant.accepted is not None]
    (loser,) = racers.keys() - {winner}
    assert racers[loser].refused is Refusal.USED and racers[loser].accepted is None
    (joined,) = keeper.roster.members
    assert joined.public == key_pair(winner).public and keeper.roster.version == 1


@pytest.mark.parametrize("role", ROLES)
def test_a_recorded_join_that_is_replayed_after_a_restart_is_answered_once_at_the_cost_of_one(
    role: str, dh_calls: list[bytes]
) -> None:
    door, its = open_door("pi-7", role)
    application = application_of(its)
    door.answer(application.join)
    written = door.keeper.roster
    door.start(life=1)
    dh_calls.clear()
    answers = {door.answer(application.join, now=now) for now in range(100)}
    assert len(answers) == 1 and len(dh_calls) == 4
    assert door.keeper.roster == written
    accept = application.open(answers.pop())
    assert isinstance(accept, Accept) and accept.index == 2


def test_many_recorded_joins_of_one_invite_cost_a_restarted_gateway_five_handshakes_a_second(
    dh_calls: list[bytes],
) -> None:
    door, its = open_door()
    joins = [application_of(its, life=life).join for life in range(3 * ANSWERS_KEPT)]
    for life, join in enumerate(joins):
        door.answer(join, now=life * STEP)
    written = door.keeper.roster
    door.start(life=1)
    dh_calls.clear()
    for now in range(0, 10 * SECOND, 10_000):
        door.receive(joins[now // 10_000 % len(joins)], now=now)
    assert len(dh_calls) <= 4 * 10 * SECOND // JOIN_EVERY_US
    assert door.keeper.roster == written
    assert len(door.gateway._admissions._doors[1].answers) == ANSWERS_KEPT


def test_a_join_that_is_replayed_after_its_member_was_revoked_brings_nobody_back() -> None:
    door, its = open_door()
    application = application_of(its)
    accept = door.answer(application.join)
    former = HandMember("pi-7", 2).join(door.gateway)
    door.keeper.revoke("pi-7")
    door.update(now=SECOND)
    written = door.keeper.roster
    for life in (0, 1):
        refused = door.answer(application.join, now=(2 + life) * SECOND)
        assert refused != accept and refused[0] == Type.REFUSED
        assert application.open(refused) is Refusal.USED
        for frame in (former.ready(), former.hello()):
            assert door.receive(frame, topic=former.topic) == [Rejected(reason="stranger")]
        door.start(life=life + 1)
    assert door.keeper.roster == written


def test_a_former_members_key_joins_again_by_a_new_invite_alone_and_as_another() -> None:
    door, its = open_door()
    door.join(its)
    door.keeper.revoke("pi-7")
    door.update()
    again = door.invite()
    assert door.join(again).index == 3
    former = HandMember("pi-7", 2)
    dropped(door, former.hello(), "index", topic=former.topic, peer="pi-7")
    HandMember("pi-7", 3).join(door.gateway)


# What it costs to refuse


def forgeries(its: Invitation, count: int) -> Iterator[bytes]:
    """JOINs of strangers, for this invite and for such as there are not."""
    stream = Stream("flood")
    for place in range(count):
        number = its.number if place % 2 else 2 + place
        yield frames.build_joining_header(Type.JOIN, number) + stream(104)


def test_a_flood_of_forged_joins_costs_no_dh_and_no_memory(dh_calls: list[bytes]) -> None:
    door, its = open_door()
    device = HandMember().join(door.gateway)
    before = door.state()
    dh_calls.clear()
    rejected: list[Effect] = []
    for place, forged in enumerate(forgeries(its, 10_000)):
        rejected += door.gateway.receive(JOIN, forged, now=place)
    assert rejected == [Rejected(reason="stranger"), Rejected(reason="mac")] * 5_000
    assert dh_calls == [] and door.state() == before
    gateway_is_unharmed(door.gateway, device)
    still_joins(door, its)


def test_a_flood_of_one_recorded_join_costs_no_dh_and_keeps_nobody_out(dh_calls: list[bytes]) -> None:
    door, its = open_door()
    recorded = application_of(its, "first").join
    door.answer(recorded)
    again = application_of(its, "first", life=1)
    dh_calls.clear()
    for now in range(10_000):
        assert len(door.gateway.receive(JOIN, recorded, now=now)) == 1
    assert dh_calls == []
    accept = again.open(door.answer(again.join, now=STEP))
    assert isinstance(accept, Accept) and accept.index == 2


def test_a_flood_of_forged_answers_costs_a_joiner_no_more_than_reading_them() -> None:
    door, its = open_door()
    applicant, accept = asking(door, its)
    stream, before = Stream("answers"), state_of(copy.deepcopy(applicant))
    kinds: list[Callable[[], bytes]] = [
        lambda: frames.build_joining_header(Type.ACCEPT, 1) + stream(90),
        lambda: frames.build_joining_header(Type.REFUSED, 1) + stream(9),
        lambda: frames.build_joining_header(Type.ACCEPT, 2) + stream(90),
    ]
    for now in range(300):
        (effect,) = applicant.receive(J, kinds[now % 3](), now=now)
        assert effect == Rejected(reason=("seal", "mac", "invite")[now % 3])
    assert state_of(copy.deepcopy(applicant)) == before
    assert applicant.receive(J, accept, now=SECOND) == [Joined("gateway")]
