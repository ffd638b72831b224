"""Epochs at the gateway: when a new one begins, who is given its key, and what becomes of open rounds."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from federation import (
    TASK,
    TENSOR,
    HandMember,
    code,
    gateway_identity,
    key_pair,
    lone_gateway,
    member,
    only_publish,
    outcome_of,
    published,
    roster_of,
    rotated,
    without,
)

from edge_fi import epoch as epoch_module
from edge_fi.crypto import seal
from edge_fi.crypto.keys import SigningKey
from edge_fi.effects import Effect, Joined, Publish, Rejected
from edge_fi.errors import SealError
from edge_fi.gateway import AGAIN_US, CATCH_UP_EVERY_US, EPOCH_US, Gateway
from edge_fi.messages import VOTE_FORMS, Fate, Member, Task
from edge_fi.roster import Roster
from edge_fi.round import RoundPolicy
from edge_fi.session import GatewayIdentity
from edge_fi.wire import frames, payloads
from edge_fi.wire.frames import Type
from edge_fi.wire.payloads import Ready, Rekey
from firmware_sim.stream import Stream

Q, A, D = "fi1/acme/q/1", "fi1/acme/a/pi-1", "fi1/acme/d/pi-1"
D2 = "fi1/acme/d/pi-2"
SECOND = 1_000_000
LATER = 60 * SECOND
OTHER_TASK = Task(name="cells", number=2, labels=("a", "b"), shape=(2,), dtype="uint8")
EVERY_FORM = frozenset(VOTE_FORMS)


def joined(*names: str, policy: RoundPolicy | None = None) -> tuple[Gateway, list[HandMember]]:
    """A gateway and its devices, all with a session."""
    names = names or ("pi-1",)
    gateway = lone_gateway(*names, policy=policy)
    return gateway, [HandMember(name, index).join(gateway) for index, name in enumerate(names, 1)]


def ask(gateway: Gateway, *, now: int = 0, policy: RoundPolicy | None = None) -> bytes:
    """Ask, and return the QUERY frame."""
    effects = gateway.ask(1, TENSOR, reference="me", now=now, policy=policy)
    return published(effects)[-1].payload


def rotate(gateway: Gateway, *, now: int = 0) -> list[Effect]:
    """Somebody asks for a new epoch."""
    return gateway.update(rotated(gateway._roster), now=now)


def rekeys(effects: Sequence[Effect]) -> dict[str, bytes]:
    """Each REKEY among these effects, by its topic; each topic has one at most."""
    found = {its.topic: its.payload for its in published(effects) if its.payload[:1] == bytes([Type.REKEY])}
    assert len(found) == sum(its.payload[:1] == bytes([Type.REKEY]) for its in published(effects))
    return found


def read(device: HandMember, rekey: bytes) -> Rekey:
    """What a REKEY says to this device. It may be read once."""
    assert device.session is not None
    return payloads.decode_rekey(device.session.open(Type.REKEY, frames.parse_session_frame(rekey)))


def number_of(device: HandMember) -> int:
    """The epoch that it holds."""
    assert device.epoch is not None
    return device.epoch.number


# When a new epoch begins


def test_a_new_epoch_on_demand_is_given_to_each_device_under_its_own_session() -> None:
    gateway, devices = joined("pi-1", "pi-2")
    before = number_of(devices[0])
    effects = rotate(gateway)
    assert rekeys(effects).keys() == {D, D2} and len(effects) == 2
    given = [read(device, rekeys(effects)[f"fi1/acme/d/{device.identity.id}"]) for device in devices]
    assert given[0] == given[1]
    assert (given[0].epoch, given[0].grace_ms) == (before + 1, 0)
    assert given[0].verify == gateway.identity.signing.public
    welcomed = devices[0].welcomed
    assert welcomed is not None and given[0].epoch_key != welcomed.epoch_key
    assert all(not (its.retain or its.qos) for its in published(effects))


def test_one_devices_rekey_says_nothing_to_another() -> None:
    gateway, (first, second) = joined("pi-1", "pi-2")
    found = rekeys(rotate(gateway))
    for device, topic in ((first, D2), (second, D)):
        with pytest.raises(SealError):
            read(device, found[topic])


def test_the_same_roster_again_begins_no_epoch() -> None:
    gateway, _ = joined()
    rotate(gateway)
    assert gateway.update(gateway._roster, now=1) == []
    assert gateway.update(replace(gateway._roster), now=1) == []


def test_a_client_is_given_no_epoch() -> None:
    gateway = lone_gateway("pi-1", clients=["laptop-1"])
    client = HandMember("laptop-1", 101, "client").join(gateway, ready=False)
    gateway.receive(client.topic, client.ask(), now=0)
    HandMember().join(gateway)
    assert rekeys(rotate(gateway)).keys() == {D}


def test_a_day_after_it_connected_a_gateway_begins_a_new_epoch_and_each_day_again() -> None:
    gateway, (device,) = joined()
    gateway.tick(now=LATER)
    gateway.connected(now=LATER)
    number = number_of(device)
    for day in (1, 2, 3):
        now = LATER + day * EPOCH_US
        assert gateway.next_deadline() == now
        assert gateway.tick(now=now - 1) == []
        device.rekey(rekeys(gateway.tick(now=now))[D])
        assert number_of(device) == number + day
        gateway.receive(A, device.ready(), now=now)
        gateway.tick(now=now + LATER)


def test_a_gateway_that_reconnects_begins_an_epoch_once_a_day_all_the_same() -> None:
    gateway, (device,) = joined()
    for now in (0, 1, EPOCH_US // 2):
        gateway.connected(now=now)
        gateway.disconnected(now=now)
    number = number_of(device)
    gateway.tick(now=EPOCH_US - 1)
    device.rekey(rekeys(gateway.tick(now=EPOCH_US))[D])
    assert number_of(device) == number + 1
    assert rekeys(gateway.tick(now=EPOCH_US + EPOCH_US // 2)).keys() <= {D}
    assert number_of(HandMember(life=1).join(gateway)) == number + 1


def test_each_task_has_epochs_of_its_own_and_both_change_daily() -> None:
    gateway = Gateway(gateway_identity(), roster_of("pi-1", "pi-2"), [TASK, OTHER_TASK], Stream("two"))
    first, second = HandMember().join(gateway), HandMember("pi-2", 2)
    second.welcome(only_publish(gateway.receive(second.topic, second.hello(task=OTHER_TASK), now=0)).payload)
    gateway.receive(second.topic, second.ready(), now=0)
    gateway.connected(now=0)
    numbers = number_of(first), number_of(second)
    found = rekeys(gateway.tick(now=EPOCH_US))
    assert (number_of(first.rekey(found[D])), number_of(second.rekey(found[D2]))) == (
        numbers[0] + 1,
        numbers[1] + 1,
    )
    assert first.epoch != second.epoch


def test_after_so_many_queries_the_next_one_is_of_a_new_epoch_that_is_given_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(epoch_module, "MAX_QUERIES", 2)
    gateway, (device,) = joined()
    first, second = (only_publish(gateway.ask(1, TENSOR, reference=n, now=0)).payload for n in (1, 2))
    rekey, third = published(gateway.ask(1, TENSOR, reference=3, now=0))
    assert (rekey.topic, third.topic) == (D, Q)
    number = number_of(device)
    assert [frames.parse_query(query).epoch for query in (first, second)] == [number, number]
    device.rekey(rekey.payload)
    assert frames.parse_query(third.payload).epoch == number_of(device) == number + 1
    assert [frames.parse_query(query).seq for query in (first, second, third.payload)] == [1, 2, 3]
    assert gateway.receive(A, device.answer(third.payload, code(0)), now=1) != []


def test_a_query_that_is_not_asked_begins_no_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch_module, "MAX_QUERIES", 0)
    gateway = lone_gateway()
    assert published(gateway.ask(1, TENSOR, reference="me", now=0)) == []
    monkeypatch.setattr(epoch_module, "MAX_AHEAD", 0)
    device = HandMember().join(gateway)
    assert published(gateway.ask(1, TENSOR, reference="me", now=0)) == []
    assert number_of(HandMember(life=1).join(gateway)) == number_of(device)


def a_federation_of_two_tasks() -> tuple[Gateway, Roster]:
    """`any` may join either task, `one` the first and `two` the second; all but `any` are in session."""
    members: list[Member] = [
        member("any", 1),
        replace(member("one", 2), task=1),
        replace(member("two", 3), task=2),
        member("laptop", 4, "client"),
        member("bank", 5, "helper"),
    ]
    roster = Roster(members=tuple(members), version=1)
    return Gateway(gateway_identity(), roster, [TASK, OTHER_TASK], Stream("two")), roster


@pytest.mark.parametrize(
    ("revoked", "tasks"),
    [("one", {1}), ("two", {2}), ("any", {1, 2}), ("laptop", set()), ("bank", set())],
)
def test_a_revocation_ends_the_epochs_of_the_tasks_that_the_device_could_read(
    revoked: str, tasks: set[int]
) -> None:
    gateway, roster = a_federation_of_two_tasks()
    before = {number: (epoch.number, epoch.key) for number, epoch in gateway._epochs.items()}
    gateway.update(without(roster, revoked), now=0)
    after = {number: (epoch.number, epoch.key) for number, epoch in gateway._epochs.items()}
    assert {number for number in after if after[number] != before[number]} == tasks
    assert all(after[number][0] == before[number][0] + 1 for number in tasks)


def test_a_new_member_begins_no_epoch() -> None:
    gateway, roster = a_federation_of_two_tasks()
    before = {number: epoch.number for number, epoch in gateway._epochs.items()}
    grown = replace(roster, members=(*roster.members, member("new", 6)), version=2)
    assert gateway.update(grown, now=0) == []
    assert {number: epoch.number for number, epoch in gateway._epochs.items()} == before


def test_a_new_signing_key_is_given_with_a_new_epoch_and_signs_from_then_on() -> None:
    gateway, (device,) = joined()
    old = gateway.identity
    new = GatewayIdentity(
        federation=old.federation, static=old.static, signing=SigningKey.from_seed(b"n" * 32)
    )
    number = number_of(device)
    effects = gateway.update(gateway._roster, now=0, identity=new)
    device.rekey(rekeys(effects)[D])
    assert number_of(device) == number + 1
    assert device.verify == new.signing.public != old.signing.public
    frame = frames.parse_query(ask(gateway))
    seal.verify_query(device.verify, "acme", frame.signed, frame.signature)
    with pytest.raises(SealError):
        seal.verify_query(old.signing.public, "acme", frame.signed, frame.signature)
    assert HandMember(life=1).join(gateway).verify == new.signing.public


def test_without_devices_in_session_a_new_epoch_is_told_by_the_next_welcome() -> None:
    gateway = lone_gateway()
    number = number_of(HandMember().join(gateway, ready=False))
    assert rotate(gateway) == []
    assert number_of(HandMember(life=1).join(gateway)) == number + 1


# Open rounds


def test_rounds_of_both_epochs_are_answered_side_by_side() -> None:
    gateway, (first, second) = joined("pi-1", "pi-2")
    former = ask(gateway)
    found = rekeys(rotate(gateway, now=1))
    first.rekey(found[D])
    second.rekey(found[D2])
    current = ask(gateway, now=1)
    assert frames.parse_query(current).epoch == frames.parse_query(former).epoch + 1
    assert frames.parse_query(current).seq == 2
    for query, label in ((current, 2), (former, 1)):
        gateway.receive(A, first.answer(query, code(label)), now=2)
        effects = gateway.receive(second.topic, second.answer(query, code(label)), now=2)
        outcome = outcome_of(effects)
        assert (outcome.label, outcome.members(Fate.COUNTED)) == (label, ("pi-1", "pi-2"))


def test_the_grace_lasts_until_the_last_open_deadline() -> None:
    gateway, (device,) = joined()
    ask(gateway, policy=RoundPolicy(timeout_s=0.5))
    ask(gateway, policy=RoundPolicy(timeout_s=2))
    for now, grace_ms in ((1, 2000), (1_500_001, 500), (1_999_999, 1), (2 * SECOND, 0), (3 * SECOND, 0)):
        assert read(device, rekeys(rotate(gateway, now=now))[D]).grace_ms == grace_ms


def test_a_silent_device_is_asked_again_in_the_old_bytes_after_the_new_key() -> None:
    gateway, _ = joined("pi-1", "pi-2")
    gateway.tick(now=LATER)
    query = ask(gateway, now=LATER)
    found = rekeys(rotate(gateway, now=LATER + 1))
    effects = gateway.tick(now=LATER + SECOND // 2)
    assert effects == [
        Publish(D, found[D]),
        Publish(D, query),
        Publish(D2, found[D2]),
        Publish(D2, query),
    ]


def test_a_device_that_has_the_new_key_is_asked_again_without_it() -> None:
    gateway, (first, _) = joined("pi-1", "pi-2")
    gateway.tick(now=LATER)
    query = ask(gateway, now=LATER)
    found = rekeys(rotate(gateway, now=LATER + 1))
    gateway.receive(A, first.rekey(found[D]).ready(), now=LATER + 2)
    effects = gateway.tick(now=LATER + SECOND // 2)
    assert effects == [Publish(D, query), Publish(D2, found[D2]), Publish(D2, query)]


def test_settled_is_of_the_epoch_of_its_query() -> None:
    gateway, (first, _) = joined("pi-1", "pi-2", policy=RoundPolicy(stop_after=1))
    query = ask(gateway)
    rotate(gateway, now=1)
    settled = published(gateway.receive(A, first.answer(query, code(0)), now=2))[-1]
    assert frames.parse_settled(settled.payload)[:2] == (frames.parse_query(query).epoch, 1)


def test_a_late_answer_of_the_former_epoch_is_late() -> None:
    gateway, (first, second) = joined("pi-1", "pi-2", policy=RoundPolicy(stop_after=1))
    query = ask(gateway)
    gateway.receive(A, first.answer(query, code(0)), now=1)
    rotate(gateway, now=2)
    late = second.answer(query, code(1))
    assert gateway.receive(second.topic, late, now=3) == [Rejected(reason="late", peer="pi-2", seq=1)]


# Until READY names it


def test_a_rekey_is_sent_again_after_1_5_and_21_seconds_and_then_no_more() -> None:
    gateway, _ = joined()
    gateway.tick(now=LATER)
    rekey = Publish(D, rekeys(rotate(gateway, now=LATER))[D])
    now = LATER
    for wait_us in AGAIN_US:
        now += wait_us
        assert gateway.next_deadline() == now
        assert gateway.tick(now=now) == [rekey]
    assert gateway.next_deadline() is None


def test_a_ready_that_names_the_epoch_ends_that() -> None:
    gateway, (device,) = joined()
    gateway.tick(now=LATER)
    rekey = rekeys(rotate(gateway, now=LATER))[D]
    assert gateway.receive(A, device.rekey(rekey).ready(), now=LATER + 1) == []
    assert gateway.tick(now=LATER + LATER) == []
    assert gateway.next_deadline() is None


def test_a_ready_of_the_former_epoch_brings_the_rekey_at_once_and_what_was_missed_after_it() -> None:
    gateway, (device,) = joined()
    gateway.tick(now=LATER)
    rekey = rekeys(rotate(gateway, now=LATER))[D]
    query = ask(gateway, now=LATER)
    assert gateway.receive(A, device.ready(), now=LATER + 1) == [Publish(D, rekey), Publish(D, query)]
    device.rekey(rekey)
    assert outcome_of(gateway.receive(A, device.answer(query, code(3)), now=LATER + 2)).label == 3


def test_an_answer_alone_does_not_say_that_the_new_key_came() -> None:
    gateway, (device,) = joined()
    gateway.tick(now=LATER)
    query = ask(gateway, now=LATER)
    rekey = Publish(D, rekeys(rotate(gateway, now=LATER))[D])
    gateway.receive(A, device.answer(query, code(0)), now=LATER + 1)
    assert gateway.tick(now=LATER + SECOND) == [rekey]


def test_of_two_new_epochs_the_later_key_is_sent_again() -> None:
    gateway, (device,) = joined()
    gateway.tick(now=LATER)
    rotate(gateway, now=LATER)
    gateway.tick(now=LATER + SECOND)
    last = rekeys(rotate(gateway, now=LATER + 2 * SECOND))[D]
    sent = []
    while (now := gateway.next_deadline()) is not None:
        sent += [(now - LATER, message) for message in published(gateway.tick(now=now))]
    assert sent == [(seconds * SECOND, Publish(D, last)) for seconds in (3, 7, 23)]
    first_number = number_of(device)
    assert number_of(device.rekey(last)) == first_number + 2


def test_an_older_ready_that_comes_late_brings_nothing() -> None:
    gateway, (device,) = joined()
    old = device.ready()
    device.rekey(rekeys(rotate(gateway, now=0))[D])
    assert gateway.receive(A, device.ready(), now=1) == []
    assert gateway.receive(A, old, now=2) == []


# Sessions that begin meanwhile


def test_a_device_whose_welcome_was_on_its_way_when_the_epoch_changed_is_given_the_new_one() -> None:
    gateway = lone_gateway()
    device = HandMember().join(gateway, ready=False)
    assert rotate(gateway, now=1) == []
    begun, rekey = gateway.receive(A, device.ready(), now=2)
    assert begun == Joined("pi-1", EVERY_FORM)
    assert isinstance(rekey, Publish) and rekey.topic == D
    number = number_of(device)
    assert number_of(device.rekey(rekey.payload)) == number + 1
    assert gateway.receive(A, device.ready(), now=3) == []
    query = ask(gateway, now=3)
    assert outcome_of(gateway.receive(A, device.answer(query, code(1)), now=4)).label == 1


def test_a_device_that_renewed_its_session_as_the_epoch_changed_is_given_the_new_one() -> None:
    """Both are a day's: the REKEY goes under the session that the device has just left."""
    gateway, (former,) = joined()
    device = HandMember(life=1)
    welcome = only_publish(gateway.receive(A, device.hello(), now=0)).payload
    lost = rekeys(rotate(gateway, now=1))[D]
    assert frames.parse_session_frame(lost).session == 0
    begun, rekey = gateway.receive(A, device.welcome(welcome).ready(), now=2)
    assert begun == Joined("pi-1", EVERY_FORM)
    assert isinstance(rekey, Publish) and frames.parse_session_frame(rekey.payload).session == 1
    assert number_of(device.rekey(rekey.payload)) == number_of(former) + 1


def test_where_an_answer_says_that_the_welcome_came_it_is_given_the_new_one_too() -> None:
    gateway, (_, fellow) = joined("pi-1", "pi-2")
    query = ask(gateway)
    device = HandMember(life=1).join(gateway, ready=False)
    rotate(gateway, now=1)
    begun, rekey = gateway.receive(A, device.answer(query, code(2)), now=2)
    assert begun == Joined("pi-1")
    assert isinstance(rekey, Publish) and rekey.topic == D and rekey.payload[0] == Type.REKEY
    assert outcome_of(gateway.receive(fellow.topic, fellow.answer(query, code(2)), now=3)).label == 2
    # It is sent again like any other.
    assert [its.payload for its in published(gateway.tick(now=2 + SECOND)) if its.topic == D] == [
        rekey.payload
    ]


def test_a_query_of_an_epoch_that_a_new_session_never_had_is_not_sent_to_it() -> None:
    """It would take it for a sign that the gateway had begun anew, and rejoin again and again."""
    gateway, (_, fellow) = joined("pi-1", "pi-2", policy=RoundPolicy(timeout_s=30, reask_s=1))
    unreadable = ask(gateway)
    rekey = rekeys(rotate(gateway, now=1))[D2]
    device = HandMember(life=1).join(gateway, ready=False, now=1)
    readable = ask(gateway, now=2)
    assert published(gateway.receive(A, device.ready(), now=3)) == [Publish(D, readable)]
    assert gateway.receive(A, device.ready(), now=4) == []
    again = [its for its in published(gateway.tick(now=CATCH_UP_EVERY_US + 3)) if its.topic == D]
    assert Publish(D, readable) in again and Publish(D, unreadable) not in again
    gateway.receive(fellow.topic, fellow.rekey(rekey).ready(), now=2 * SECOND)
    for query in (unreadable, readable):
        gateway.receive(fellow.topic, fellow.answer(query, code(0)), now=2 * SECOND)
    gateway.receive(A, device.answer(readable, code(0)), now=2 * SECOND)
    outcome = outcome_of(gateway.tick(now=30 * SECOND))
    assert outcome.fates == (("pi-1", Fate.MISSING), ("pi-2", Fate.COUNTED))


def test_a_ready_of_an_epoch_that_never_was_brings_the_rekey_that_is_out_and_no_other() -> None:
    gateway, (device,) = joined()
    strange = payloads.encode_ready(Ready(EVERY_FORM, 12345))
    assert gateway.receive(A, device.ready(strange), now=0) == []
    rekey = rekeys(rotate(gateway, now=1))[D]
    assert gateway.receive(A, device.ready(strange), now=2) == [Publish(D, rekey)]


def test_a_rotation_while_the_link_is_down_is_told_by_the_ready_that_follows() -> None:
    gateway, (device,) = joined()
    gateway.connected(now=0)
    gateway.disconnected(now=1)
    rekey = rekeys(rotate(gateway, now=2))[D]
    gateway.connected(now=LATER)
    assert published(gateway.receive(A, device.ready(), now=LATER)) == [Publish(D, rekey)]


def test_no_key_of_an_epoch_shows_in_a_repr_of_the_gateway() -> None:
    gateway, (device,) = joined()
    rekey = read(device, rekeys(rotate(gateway))[D])
    shown = repr(vars(gateway)) + repr([vars(peer) for peer in gateway._peers.values()]) + repr(rekey)
    for secret in (rekey.epoch_key, key_pair("gateway").private):
        assert repr(secret)[2:-1] not in shown and secret.hex() not in shown
