"""Joining, from both sides: who becomes a member, who is told why not, and what the same words cost again."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from federation import (
    FEDERATION,
    TASK,
    TENSOR,
    HandMember,
    code,
    gateway_identity,
    key_pair,
    member,
    only_publish,
    outcome_of,
    published,
)
from joining import JOIN, STEP, Door, application_of, joined_topic, maced, open_door, token

from edge_fi.admission import ANSWERS_KEPT, JOIN_EVERY_US, LONGEST_ACCEPT, Admissions, Application
from edge_fi.crypto.keys import KeyPair
from edge_fi.crypto.noise import HandshakeIKpsk1
from edge_fi.crypto.seal import JoinKeys, join_prologue, refused_mac
from edge_fi.effects import Admit, Publish, Rejected
from edge_fi.errors import ProtocolError
from edge_fi.messages import MAX_INDEX, ROLES, Fate, Member, Task
from edge_fi.roster import Invitation, Roster
from edge_fi.wire import frames, payloads
from edge_fi.wire.frames import MAX_ACCEPT_BYTES, Type
from edge_fi.wire.payloads import Accept, Refusal
from firmware_sim.keeper import Keeper
from firmware_sim.stream import Stream

BIRDS = Task(name="birds", number=2, labels=("owl", "jay"), shape=(3,), dtype="float32")


def told(door: Door, application: Application, *, number: int = 1, now: int = 0) -> Accept | Refusal:
    """What this joiner learns when it says its JOIN."""
    return application.open(door.answer(application.join, number=number, now=now))


def accepted(door: Door, application: Application, *, number: int = 1, now: int = 0) -> Accept:
    """As `told`, of one that is accepted."""
    accept = told(door, application, number=number, now=now)
    assert isinstance(accept, Accept)
    return accept


# Who becomes a member


@pytest.mark.parametrize("role", ROLES)
def test_whoever_holds_an_invite_becomes_a_member_in_its_role(role: str) -> None:
    door, its = open_door("pi-7", role)
    accept = accepted(door, application_of(its))
    assert accept == Accept(index=2, version=1, task=0, tasks=(TASK,), features=(b"",))
    joined = Member(id="pi-7", index=2, role=role, public=key_pair("pi-7").public)
    assert door.keeper.roster.members == (member("pi-1", 1), joined)
    assert door.keeper.roster.invitations == (replace(its, redeemed_by=joined.public),)


def test_a_new_device_is_in_session_and_counted_at_once() -> None:
    door, its = open_door()
    door.join(its)
    device = HandMember("pi-7", 2).join(door.gateway)
    query = only_publish(door.gateway.ask(1, TENSOR, reference="me", now=0)).payload
    outcome = outcome_of(door.gateway.receive(device.topic, device.answer(query, code(3)), now=1))
    assert (outcome.label, outcome.fates) == (3, (("pi-7", Fate.COUNTED),))


def test_a_new_client_is_in_session_at_once_and_a_new_helper_has_none() -> None:
    door, its = open_door("laptop-7", "client")
    door.join(its, "laptop-7")
    helping = door.invite("second", "helper")
    door.join(helping, "second")
    client = HandMember("laptop-7", 2, "client").join(door.gateway, ready=False)
    assert client.session is not None
    for level in ("a", "ca", "ha"):
        (effect,) = door.gateway.receive(f"fi1/acme/{level}/second", b"\x10" * 60, now=0)
        assert effect in (Rejected(reason="stranger"), Rejected(reason="topic"))


def test_the_accept_is_the_last_thing_said_after_the_new_roster() -> None:
    door, its = open_door()
    door.gateway.connected(now=0)
    effects = door.receive(application_of(its).join)
    assert [message.topic for message in published(effects)] == ["fi1/acme/gateway/roster", joined_topic()]


def test_nothing_is_said_before_the_member_is_written_down() -> None:
    door, its = open_door()
    (admit,) = door.gateway.receive(JOIN, application_of(its).join, now=0)
    joined = Member(id="pi-7", index=2, role="device", public=key_pair("pi-7").public)
    assert admit == Admit(1, joined)
    assert door.gateway.receive("fi1/acme/a/pi-7", HandMember("pi-7", 2).hello(), now=0) == [
        Rejected(reason="stranger")
    ]


def test_each_new_member_has_the_next_index_also_after_those_that_were_revoked() -> None:
    door = Door(*(member(f"pi-{number}", number) for number in (1, 2)))
    door.keeper.revoke("pi-2")
    indices = [door.join(door.invite(name), name).index for name in ("pi-3", "pi-4")]
    assert indices == [3, 4]


@pytest.mark.parametrize(
    ("role", "only", "named"),
    [
        ("device", 0, (TASK, BIRDS)),
        ("device", 2, (BIRDS,)),
        ("device", 9, ()),
        ("client", 0, (TASK, BIRDS)),
        ("helper", 0, (TASK, BIRDS)),
    ],
)
def test_a_new_member_is_told_the_tasks_that_it_may_join(
    role: str, only: int, named: tuple[Task, ...]
) -> None:
    door = Door(tasks=(TASK, BIRDS))
    accept = accepted(door, application_of(door.invite("pi-7", role, task=only)))
    assert (accept.task, accept.tasks) == (only, named)
    assert [task.digest() for task in accept.tasks] == [task.digest() for task in named]


def test_a_device_that_was_invited_for_one_task_can_join_no_other() -> None:
    door = Door(tasks=(TASK, BIRDS))
    door.join(door.invite(task=2))
    device = HandMember("pi-7", 1)
    reply = door.gateway.receive(device.topic, device.hello(task=TASK), now=0)
    assert reply == [Rejected(reason="task_mismatch", peer="pi-7")]
    (welcome,) = published(door.gateway.receive(device.topic, device.hello(task=BIRDS), now=0))
    device.welcome(welcome.payload)


def long_task(number: int, size: int) -> Task:
    """A task whose name and definition take this many bytes in an ACCEPT."""
    name = f"task-{number}"
    left = size - 1 - len(name) - len(replace(TASK, labels=("a", "b")).definition()) + 2 * 2
    left -= 4  # the length of its map
    lengths = [249] * (left // 250 - 1)  # and a byte that says so
    left -= 250 * len(lengths)
    lengths += [left // 2 - 1, left - left // 2 - 1]
    labels = tuple(f"{place:04d}".ljust(length, "x") for place, length in enumerate(lengths))
    return replace(TASK, name=name, number=number, labels=labels)


def test_tasks_that_fit_exactly_are_told() -> None:
    door = Door(tasks=(long_task(1, LONGEST_ACCEPT - 8),))
    application = application_of(door.invite())
    answer = door.answer(application.join)
    assert len(answer) == MAX_ACCEPT_BYTES and frames.parse_type(answer) is Type.ACCEPT
    accept = application.open(answer)
    assert isinstance(accept, Accept) and accept.tasks == tuple(door.tasks)


def test_a_task_that_is_one_byte_too_long_is_left_out_and_those_after_it_are_not() -> None:
    door = Door(tasks=(long_task(1, LONGEST_ACCEPT - 7), BIRDS))
    assert accepted(door, application_of(door.invite())).tasks == (BIRDS,)


# The same words again


def test_the_same_join_has_the_same_accept_and_costs_no_dh(dh_calls: list[bytes]) -> None:
    door, its = open_door()
    application = application_of(its)
    accept = door.answer(application.join)
    before = door.state()
    assert len(dh_calls) == 6  # two to say JOIN, four to answer it
    for now in (0, 1, STEP, 10**12):
        assert door.gateway.receive(JOIN, application.join, now=now) == [Publish(joined_topic(), accept)]
    assert len(dh_calls) == 6 and door.state() == before


@pytest.mark.parametrize("refusal", [its for its in Refusal if its is not Refusal.BUSY])
def test_the_same_join_has_the_same_refusal_and_costs_no_dh(refusal: Refusal, dh_calls: list[bytes]) -> None:
    door = REFUSING[refusal]()
    application = application_of(door.keeper.roster.invitations[0])
    refused = door.answer(application.join, now=STEP)
    spent = len(dh_calls)
    assert {door.answer(application.join, now=now) for now in (STEP, STEP + 1, 10**12)} == {refused}
    assert len(dh_calls) == spent


def test_an_accept_that_was_lost_is_sent_again() -> None:
    door, its = open_door()
    application = application_of(its)
    door.receive(application.join)  # and what it leads to is lost
    assert accepted(door, application, now=STEP).index == 2
    assert door.keeper.roster.version == 1


def test_a_gateway_that_dies_before_its_accept_accepts_the_same_join_in_its_next_run() -> None:
    door, its = open_door()
    application = application_of(its)
    (admit,) = door.gateway.receive(JOIN, application.join, now=0)
    assert isinstance(admit, Admit)
    door.keeper.admit(admit)
    written = door.keeper.roster
    door.start(life=1)
    assert accepted(door, application).index == 2
    assert door.keeper.roster == written


def test_a_gateway_that_dies_before_it_has_written_begins_anew_with_the_same_join() -> None:
    door, its = open_door()
    application = application_of(its)
    door.gateway.receive(JOIN, application.join, now=0)
    door.start(life=1)
    assert accepted(door, application).index == 2


def test_two_runs_of_a_gateway_answer_one_join_under_different_keys() -> None:
    door, its = open_door()
    application = application_of(its)
    first = door.answer(application.join)
    door.start(life=1)
    second = door.answer(application.join)
    assert first[:6] == second[:6] and first[6:38] != second[6:38] and first[38:] != second[38:]


def test_a_joiner_that_starts_again_with_the_same_key_has_the_same_index() -> None:
    door, its = open_door()
    indices = [accepted(door, application_of(its, life=life), now=life * STEP).index for life in range(6)]
    assert indices == [2] * 6
    assert door.keeper.roster.version == 1 and len(door.keeper.roster.members) == 2


def test_of_the_answers_to_an_invite_the_oldest_is_forgotten_and_made_anew(dh_calls: list[bytes]) -> None:
    door, its = open_door()
    applications = [application_of(its, life=life) for life in range(ANSWERS_KEPT + 1)]
    answers = [door.answer(one.join, now=life * STEP) for life, one in enumerate(applications)]
    dh_calls.clear()
    now = len(applications) * STEP
    for application, answer in list(zip(applications, answers, strict=True))[1:]:
        assert door.answer(application.join, now=now) == answer
    assert dh_calls == []
    anew = door.answer(applications[0].join, now=now)
    assert anew != answers[0] and len(dh_calls) == 4
    accept = applications[0].open(anew)
    assert isinstance(accept, Accept) and accept.index == 2


# Why not


def withdrawn() -> Door:
    door, its = open_door()
    door.keeper.withdraw(its.number)
    door.update()
    return door


def expired() -> Door:
    door, its = open_door()
    door.keeper.expire(its.number)
    door.update()
    return door


def used() -> Door:
    door, its = open_door()
    door.join(its, "somebody else")
    return door


def name_taken() -> Door:
    door, _ = open_door("pi-1")
    return door


def full() -> Door:
    door = Door(keeper=Keeper(Roster(given=MAX_INDEX)))
    door.invite()
    return door


def busy() -> Door:
    door, _ = open_door()
    door.keeper.is_full = True
    return door


REFUSING: dict[Refusal, Callable[[], Door]] = {
    Refusal.USED: used,
    Refusal.EXPIRED: expired,
    Refusal.WITHDRAWN: withdrawn,
    Refusal.NAME_TAKEN: name_taken,
    Refusal.FULL: full,
    Refusal.BUSY: busy,
}


@pytest.mark.parametrize("refusal", Refusal)
def test_whoever_cannot_join_is_told_why_and_nothing_is_written(refusal: Refusal) -> None:
    door = REFUSING[refusal]()
    written = door.keeper.roster
    its = written.invitations[0]
    assert told(door, application_of(its), now=STEP) is refusal
    assert door.keeper.roster == written


def test_the_last_index_is_given_and_none_after_it() -> None:
    door = Door(keeper=Keeper(Roster(given=MAX_INDEX - 1)))
    first, second = door.invite("pi-7"), door.invite("pi-8")
    assert door.join(first).index == MAX_INDEX
    assert told(door, application_of(second, "pi-8"), number=2) is Refusal.FULL
    assert accepted(door, application_of(first, life=1), now=STEP).index == MAX_INDEX


def test_of_two_keys_with_one_invite_the_first_joins_and_the_other_is_told() -> None:
    door, its = open_door()
    first, second = application_of(its, "first"), application_of(its, "second")
    accept = door.answer(first.join)
    assert told(door, second, now=STEP) is Refusal.USED
    assert door.answer(first.join, now=STEP) == accept
    assert isinstance(first.open(accept), Accept)


def test_a_burnt_invite_accepts_its_key_until_it_expires() -> None:
    door, its = open_door()
    application = application_of(its)
    door.answer(application.join)
    door.keeper.expire(its.number)
    door.update()
    assert told(door, application, now=STEP) is Refusal.USED
    assert told(door, application_of(its, life=1), now=2 * STEP) is Refusal.USED


def test_a_burnt_invite_accepts_its_key_no_longer_than_its_member_is_one() -> None:
    door, its = open_door()
    application = application_of(its)
    door.answer(application.join)
    door.keeper.revoke("pi-7")
    door.update()
    assert told(door, application, now=STEP) is Refusal.USED
    assert told(door, application_of(its, life=1), now=2 * STEP) is Refusal.USED


def test_a_burnt_invite_does_not_speak_for_the_member_that_took_its_members_place() -> None:
    door, its = open_door()
    first = application_of(its)
    door.answer(first.join)
    again = door.invite(replaces=True)
    assert door.join(again, "new card").index == 3
    assert told(door, first, now=STEP) is Refusal.USED
    assert told(door, application_of(its, "new card"), now=2 * STEP) is Refusal.USED
    assert accepted(door, application_of(again, "new card", life=1), number=2, now=STEP).index == 3


def test_a_burnt_invite_does_not_accept_its_key_in_another_role_than_it_has_now() -> None:
    door, its = open_door()
    door.join(its)
    door.keeper.revoke("pi-7")
    door.update()
    assert door.join(door.invite("pi-7", "client")).index == 3
    assert told(door, application_of(its, life=1), now=STEP) is Refusal.USED


def test_an_invite_that_was_withdrawn_accepts_nobody_even_when_it_has_expired_too() -> None:
    door = withdrawn()
    door.keeper.expire(1)
    door.update()
    assert told(door, application_of(door.keeper.roster.invitations[0])) is Refusal.WITHDRAWN


# In the place of another


def test_an_invite_that_replaces_makes_the_former_member_a_stranger() -> None:
    door, its = open_door("pi-1", replaces=True)
    former = HandMember().join(door.gateway)
    ready = former.ready()
    assert door.join(its, "new card").index == 2
    assert door.keeper.roster.revoked == {1}
    assert door.gateway.receive(former.topic, ready, now=0) == [Rejected(reason="index", peer="pi-1")]
    fresh = HandMember(life=1)
    assert door.gateway.receive(former.topic, fresh.hello(), now=0) == [Rejected(reason="index", peer="pi-1")]
    assert door.gateway.online(1) == ()


def test_an_invite_that_may_replace_a_member_makes_one_too_where_there_is_none() -> None:
    door, its = open_door(replaces=True)
    assert door.join(its).index == 2
    assert door.keeper.roster.revoked == frozenset()


def test_a_member_that_replaces_itself_with_the_same_key_has_a_new_index() -> None:
    door, its = open_door("pi-1", replaces=True)
    assert door.join(its, "pi-1").index == 2
    assert accepted(door, application_of(its, "pi-1", life=1), now=STEP).index == 2
    assert HandMember("pi-1", 2).join(door.gateway).session is not None


# A gateway that cannot write, or knows less than its state


def test_a_joiner_that_came_while_the_disk_was_full_is_accepted_when_it_is_not() -> None:
    door = busy()
    application = application_of(door.keeper.roster.invitations[0])
    for now in (STEP, 2 * STEP, 3 * STEP):
        assert told(door, application, now=now) is Refusal.BUSY
    door.keeper.is_full = False
    assert accepted(door, application, now=4 * STEP).index == 2


def test_a_refusal_by_the_state_is_counted_with_the_name_of_whom_it_would_have_been() -> None:
    door = busy()
    (rejected, refused) = door.receive(application_of(door.keeper.roster.invitations[0]).join)
    assert rejected == Rejected(reason="busy", peer="pi-7")
    assert isinstance(refused, Publish) and refused.topic == joined_topic()


def test_the_state_judges_by_what_the_gateway_does_not_know_yet() -> None:
    door, its = open_door()
    door.keeper.withdraw(its.number)
    application = application_of(its)
    assert told(door, application) is Refusal.WITHDRAWN
    door.keeper.roster = Roster(members=(member("pi-1", 1),), version=1)
    assert told(door, application_of(its, life=1), now=STEP) is Refusal.WITHDRAWN


def test_an_index_that_was_given_meanwhile_is_not_given_again() -> None:
    door, its = open_door()
    door.keeper.roster = replace(door.keeper.roster, given=5)
    application = application_of(its)
    assert told(door, application) is Refusal.BUSY
    door.update()
    assert accepted(door, application, now=STEP).index == 6


def test_while_a_member_is_being_written_down_its_invite_is_busy(dh_calls: list[bytes]) -> None:
    door, its = open_door()
    first, second = application_of(its, "first"), application_of(its, "second")
    (admit,) = door.gateway.receive(JOIN, first.join, now=0)
    assert isinstance(admit, Admit)
    dh_calls.clear()
    for join in (first.join, second.join):
        assert door.gateway.receive(JOIN, join, now=10 * STEP) == [Rejected(reason="busy")]
    assert dh_calls == []
    roster = door.keeper.admit(admit)
    answer = only_publish(door.gateway.admitted(admit, roster, now=10 * STEP)).payload
    assert isinstance(first.open(answer), Accept)


# How often


def test_new_joins_of_one_invite_are_heard_at_their_distance(dh_calls: list[bytes]) -> None:
    door, its = open_door()
    door.receive(application_of(its).join, now=7)
    late = application_of(its, life=1)
    dh_calls.clear()
    assert door.receive(late.join, now=7 + JOIN_EVERY_US - 1) == [Rejected(reason="busy")]
    assert dh_calls == []
    assert accepted(door, late, now=7 + JOIN_EVERY_US).index == 2


def test_the_holder_of_one_invite_does_not_keep_out_that_of_another() -> None:
    door, its = open_door()
    other = door.invite("pi-8")
    door.receive(application_of(its).join)
    assert accepted(door, application_of(other, "pi-8"), number=2).index == 3


def test_a_join_that_does_not_open_takes_its_turn_all_the_same() -> None:
    """Whoever has the token alone could otherwise have a Diffie-Hellman for each frame."""
    door, its = open_door()
    forged = maced(its, Stream("not a message")(96))
    assert door.receive(forged, now=5) == [Rejected(reason="seal")]
    assert door.receive(application_of(its).join, now=5 + STEP - 1) == [Rejected(reason="busy")]
    assert accepted(door, application_of(its), now=5 + STEP).index == 2


# Invites that change


def test_answers_that_may_no_longer_be_true_are_forgotten() -> None:
    door, its = open_door("pi-1")
    application = application_of(its)
    assert told(door, application) is Refusal.NAME_TAKEN
    door.keeper.roster = replace(door.keeper.roster, members=(), revoked=frozenset({1}))
    door.update()
    assert accepted(door, application, now=STEP).index == 2


def test_an_invite_that_is_withdrawn_is_so_for_a_joiner_that_was_told_otherwise() -> None:
    door = name_taken()
    application = application_of(door.keeper.roster.invitations[0])
    assert told(door, application) is Refusal.NAME_TAKEN
    door.keeper.withdraw(1)
    door.update()
    assert told(door, application, now=STEP) is Refusal.WITHDRAWN


def test_answers_outlive_every_change_that_does_not_concern_them(dh_calls: list[bytes]) -> None:
    door, its = open_door()
    application = application_of(its)
    accept = door.answer(application.join)
    other = door.invite("pi-8")
    door.join(other, "pi-8")
    door.keeper.revoke("pi-1")
    door.keeper.rotate()
    door.update()
    dh_calls.clear()
    assert door.answer(application.join) == accept
    assert dh_calls == []


def test_an_invite_that_is_gone_is_a_strangers_and_so_it_stays_when_its_number_comes_back() -> None:
    door, its = open_door()
    application = application_of(its)
    door.answer(application.join)
    door.keeper.roster = replace(door.keeper.roster, invitations=())
    door.update()
    assert door.receive(application.join, now=STEP) == [Rejected(reason="stranger")]
    other = Invitation(number=1, role="device", id="pi-9", token=token("another"))
    door.keeper.roster = replace(door.keeper.roster, invitations=(other,))
    door.update()
    assert door.receive(application.join, now=STEP) == [Rejected(reason="mac")]
    assert accepted(door, application_of(other, "pi-9"), now=STEP).index == 3


def test_a_refusal_is_counted_in_the_name_of_the_invite() -> None:
    """A stolen invite, tried after its holder used it, must leave a trace."""
    door, its = open_door()
    door.join(its)
    effects = door.receive(application_of(its, "thief").join, now=STEP)
    assert effects[0] == Rejected(reason="used", peer="pi-7") and len(published(effects)) == 1


def test_invites_that_nobody_used_cost_the_gateway_no_keys() -> None:
    admissions = Admissions(gateway_identity(), Stream("dice"))
    invitations = tuple(
        Invitation(number=number, role="device", id=f"pi-{number}", token=token(str(number)))
        for number in range(1, 1001)
    )
    admissions.update(Roster(invitations=invitations))
    admissions.update(Roster(invitations=invitations[1:]))
    assert admissions._doors == {}


# What a joiner believes


def refused(its: Invitation, application: Application, reason: int) -> bytes:
    """A REFUSED that the gateway could have made for this JOIN."""
    keys = JoinKeys.from_token(its.token, join_prologue(FEDERATION, its.role, its.id, its.number))
    content = frames.build_joining_header(Type.REFUSED, its.number) + bytes([reason])
    return content + refused_mac(keys.mac, content, application.join[-8:])


def reason_of(application: Application, frame: bytes) -> str:
    """For which reason a joiner drops this."""
    with pytest.raises(ProtocolError) as caught:
        application.open(frame)
    return caught.value.reason


def test_a_joiner_tells_by_the_mac_that_a_refusal_is_of_its_own_join() -> None:
    door, its = open_door()
    application, other = application_of(its), application_of(its, life=1)
    genuine = refused(its, application, Refusal.FULL)
    assert reason_of(application, refused(its, other, Refusal.FULL)) == "mac"
    assert reason_of(application, genuine[:6] + b"\x06" + genuine[7:]) == "mac"
    assert application.open(genuine) is Refusal.FULL
    assert isinstance(told(door, application), Accept)


@pytest.mark.parametrize("reason", [0, 7, 255])
def test_a_refusal_of_a_later_version_is_none(reason: int) -> None:
    its = open_door()[1]
    application = application_of(its)
    assert reason_of(application, refused(its, application, reason)) == "payload"


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "length"),
        (b"\x99", "type"),
        (b"\x31" + bytes(52), "length"),
        (b"\x31" + bytes(MAX_ACCEPT_BYTES), "length"),
        (b"\x32" + bytes(13), "length"),
        (b"\x32" + bytes(15), "length"),
        (b"\x30" + bytes(109), "direction"),
        (b"\x11" + bytes(98), "direction"),
        (b"\x31\x01" + bytes(52), "flags"),
        (b"\x32\x80" + bytes(13), "flags"),
        (b"\x31\x00\x00\x00\x00\x02" + bytes(48), "invite"),
        (b"\x32\x00\x00\x00\x00\x02" + bytes(9), "invite"),
        (b"\x31\x00\x00\x00\x00\x01\x09" + bytes(47), "seal"),
        (b"\x31\x00\x00\x00\x00\x01" + bytes(48), "key"),
        (b"\x32\x00\x00\x00\x00\x01" + bytes(9), "mac"),
    ],
    ids=lambda part: part if isinstance(part, str) else f"{part[:1].hex()} {len(part)}",
)
def test_a_joiner_drops_what_is_no_answer_and_opens_the_one_that_is(frame: bytes, reason: str) -> None:
    door, its = open_door()
    application = application_of(its)
    assert reason_of(application, frame) == reason
    assert accepted(door, application).index == 2


def test_an_accept_whose_content_is_none_is_dropped() -> None:
    its = open_door()[1]
    application = application_of(its)
    keys = JoinKeys.from_token(its.token, join_prologue(FEDERATION, its.role, its.id, its.number))
    handshake = HandshakeIKpsk1(
        initiator=False,
        prologue=join_prologue(FEDERATION, its.role, its.id, its.number),
        static=gateway_identity().static,
        ephemeral=KeyPair.from_private(Stream("gateway's")(32)),
        peer_static=None,
        psk=keys.psk,
    )
    handshake.read_message_1(frames.parse_joining(application.join).message)
    nobody = payloads.encode_accept(Accept(index=0, version=1, task=0, tasks=(), features=()), longest=100)
    answer = frames.build_joining_header(Type.ACCEPT, 1) + handshake.write_message_2(nobody)
    assert reason_of(application, answer) == "payload"


def test_a_join_says_nothing_but_whom_it_is_from() -> None:
    """No frame of the wire's size has room for more; the handshake alone would carry it."""
    its = open_door()[1]
    admissions = Admissions(gateway_identity(), Stream("dice"))
    admissions.update(Roster(invitations=(its,)))
    prologue = join_prologue(FEDERATION, its.role, its.id, its.number)
    handshake = HandshakeIKpsk1(
        initiator=True,
        prologue=prologue,
        static=key_pair("pi-7"),
        ephemeral=KeyPair.from_private(Stream("joiner's")(32)),
        peer_static=gateway_identity().static.public,
        psk=JoinKeys.from_token(its.token, prologue).psk,
    )
    with pytest.raises(ProtocolError, match=r"^payload$"):
        admissions.receive(maced(its, handshake.write_message_1(b"more")), now=0)


# Secrets


def test_no_secret_of_an_invite_shows_in_a_repr() -> None:
    door, its = open_door()
    application = application_of(its)
    door.answer(application.join)
    (admit,) = door.gateway.receive(JOIN, application_of(its, life=1).join, now=STEP)
    keys = JoinKeys.from_token(its.token, join_prologue(FEDERATION, its.role, its.id, its.number))
    admissions = vars(door.gateway._admissions)
    shown = repr([its, admit, keys, admissions, vars(application), door.keeper.roster])
    for secret in (its.token, keys.psk, keys.mac, key_pair("pi-7").private):
        assert repr(secret)[2:-1] not in shown and secret.hex() not in shown
