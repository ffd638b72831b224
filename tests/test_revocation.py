"""Revocation: from that moment a former member is a stranger, in open rounds too, and reads nothing."""

import copy
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from federation import (
    FEDERATION,
    MODEL,
    TASK,
    TENSOR,
    Federation,
    HandMember,
    code,
    constant,
    gateway_identity,
    identity,
    key_pair,
    labelling,
    lone_gateway,
    member,
    only_publish,
    outcome_of,
    published,
    roster_of,
    without,
)

from edge_fi.crypto import seal
from edge_fi.crypto.aead import open_sealed
from edge_fi.crypto.keys import derive, dh
from edge_fi.crypto.seal import SessionKeys
from edge_fi.device import Device
from edge_fi.effects import Deliver, Effect, Joined, Publish, Rejected
from edge_fi.errors import ProtocolError
from edge_fi.gateway import EPOCH_US, Gateway
from edge_fi.messages import VOTE_FORMS, Fate, Form, Member, Status
from edge_fi.roster import Roster
from edge_fi.round import RoundPolicy
from edge_fi.session import SESSION_US, Joiner
from edge_fi.wire import frames, payloads
from edge_fi.wire.frames import Type
from firmware_sim.stream import Stream

A, D, S = "fi1/acme/a/pi-1", "fi1/acme/d/pi-1", "fi1/acme/s/pi-1"
A2 = "fi1/acme/a/pi-2"
CA, CD = "fi1/acme/ca/laptop-1", "fi1/acme/cd/laptop-1"
ROSTER = "fi1/acme/gateway/roster"
SECOND = 1_000_000
CLEARED = Publish(S, b"", qos=1, retain=True)
EVERY_FORM = frozenset(VOTE_FORMS)


def joined(*names: str, policy: RoundPolicy | None = None) -> tuple[Gateway, list[HandMember]]:
    """A gateway and its devices, all with a session; and the client laptop-1, which has one too."""
    names = names or ("pi-1", "pi-2")
    gateway = lone_gateway(*names, clients=["laptop-1"], policy=policy)
    return gateway, [HandMember(name, index).join(gateway) for index, name in enumerate(names, 1)]


def revoke(gateway: Gateway, *names: str, now: int = 1) -> list[Effect]:
    """What the gateway wants done as these are revoked."""
    return gateway.update(without(gateway._roster, *names), now=now)


def ask(gateway: Gateway, *, now: int = 0, policy: RoundPolicy | None = None) -> bytes:
    """Ask, and return the QUERY frame."""
    return only_publish(gateway.ask(1, TENSOR, reference="me", now=now, policy=policy)).payload


# Devices


def test_a_revoked_device_is_a_stranger_from_that_moment() -> None:
    gateway, (device, _) = joined()
    query = ask(gateway)
    ready, answer = device.ready(), device.answer(query, code(0))
    revoke(gateway, "pi-1")
    assert gateway.online(1) == ("pi-2",)
    for frame in (ready, answer, device.hello(), HandMember(life=1).hello()):
        assert gateway.receive(A, frame, now=2) == [Rejected(reason="stranger")]
    assert gateway.receive(S, b"lost", now=2) == [Rejected(reason="stranger")]


def test_its_presence_is_cleared_and_the_others_are_given_a_new_epoch() -> None:
    gateway, (device, fellow) = joined()
    cleared, rekey = revoke(gateway, "pi-1")
    assert cleared == CLEARED
    assert isinstance(rekey, Publish) and rekey.topic == "fi1/acme/d/pi-2"
    former = device.epoch
    fellow.rekey(rekey.payload)
    assert former is not None and fellow.epoch is not None and fellow.epoch.number == former.number + 1
    # What the broker then says of the topic is nobody's presence.
    assert gateway.receive(S, b"", now=2) == []


def test_the_vote_of_a_device_that_is_revoked_in_mid_round_is_taken_back() -> None:
    gateway, (device, fellow) = joined()
    query = ask(gateway)
    gateway.receive(A, device.answer(query, code(3)), now=1)
    effects = revoke(gateway, "pi-1", now=2)
    assert not any(isinstance(effect, Deliver) for effect in effects)
    outcome = outcome_of(gateway.receive(A2, fellow.answer(query, code(1)), now=3))
    assert (outcome.status, outcome.label, outcome.agreement) == (Status.ANSWERED, 1, 1.0)
    assert outcome.fates == (("pi-1", Fate.REVOKED), ("pi-2", Fate.COUNTED))
    assert [vote.device for vote in outcome.votes] == ["pi-2"]


def test_a_round_that_waited_for_the_revoked_device_alone_is_over_at_once() -> None:
    gateway, (_, fellow) = joined()
    query = ask(gateway)
    gateway.receive(A2, fellow.answer(query, code(1)), now=1)
    cleared, delivered, rekey = revoke(gateway, "pi-1", now=9)
    assert cleared == CLEARED and isinstance(rekey, Publish)
    assert isinstance(delivered, Deliver) and delivered.reference == "me"
    assert delivered.outcome.fates == (("pi-1", Fate.REVOKED), ("pi-2", Fate.COUNTED))
    assert (delivered.outcome.label, delivered.outcome.elapsed_us) == (1, 9)


def test_an_abstention_of_a_revoked_device_is_none() -> None:
    gateway, (device, fellow) = joined()
    query = ask(gateway)
    gateway.receive(A, device.answer(query, b"", form=Form.ABSTAIN), now=1)
    revoke(gateway, "pi-1", now=2)
    outcome = outcome_of(gateway.receive(A2, fellow.answer(query, code(1)), now=3))
    assert outcome.members(Fate.DECLINED) == () and outcome.members(Fate.REVOKED) == ("pi-1",)


def test_a_revoked_device_is_not_asked_again() -> None:
    gateway, _ = joined()
    gateway.tick(now=60 * SECOND)
    ask(gateway, now=60 * SECOND)
    revoke(gateway, "pi-1", now=60 * SECOND)
    again = published(gateway.tick(now=61 * SECOND))
    assert again and {its.topic for its in again} == {"fi1/acme/d/pi-2"}


def test_a_revoked_device_is_none_of_the_next_cohort() -> None:
    gateway, (_, fellow) = joined()
    revoke(gateway, "pi-1")
    query = ask(gateway, now=2)
    fellow.rekey(published(gateway.tick(now=SECOND))[0].payload)
    outcome = outcome_of(gateway.receive(A2, fellow.answer(query, code(1)), now=SECOND))
    assert outcome.fates == (("pi-2", Fate.COUNTED),)


def test_what_a_closed_round_said_of_a_device_stays_said() -> None:
    gateway, (device, fellow) = joined()
    query = ask(gateway)
    gateway.receive(A, device.answer(query, code(1)), now=1)
    before = outcome_of(gateway.receive(A2, fellow.answer(query, code(1)), now=1))
    assert not any(isinstance(effect, Deliver) for effect in revoke(gateway, "pi-1", now=2))
    assert before.members(Fate.COUNTED) == ("pi-1", "pi-2")


def test_without_its_only_device_a_federation_has_no_members_and_ends_its_rounds() -> None:
    gateway, _ = joined("pi-1")
    ask(gateway)
    cleared, delivered = revoke(gateway, "pi-1")
    assert cleared == CLEARED and isinstance(delivered, Deliver)
    assert delivered.outcome.status is Status.NO_QUORUM
    assert delivered.outcome.fates == (("pi-1", Fate.REVOKED),)
    assert outcome_of(gateway.ask(1, TENSOR, reference="me", now=2)).status is Status.NO_MEMBERS


def test_two_that_are_revoked_at_once_are_both_gone_and_one_epoch_begins() -> None:
    gateway, devices = joined("pi-1", "pi-2", "pi-3")
    query = ask(gateway)
    for device in devices[:2]:
        gateway.receive(device.topic, device.answer(query, code(0)), now=1)
    effects = revoke(gateway, "pi-1", "pi-2", now=2)
    assert Counter(type(effect) for effect in effects) == {Publish: 3}
    devices[2].rekey(published(effects)[-1].payload)
    first, last = devices[0].epoch, devices[2].epoch
    assert first is not None and last is not None and last.number == first.number + 1
    outcome = outcome_of(gateway.receive(devices[2].topic, devices[2].answer(query, code(2)), now=3))
    assert outcome.members(Fate.REVOKED) == ("pi-1", "pi-2") and outcome.label == 2


def test_frames_that_wait_to_be_sent_again_to_a_revoked_device_are_not() -> None:
    gateway = lone_gateway("pi-1", "pi-2")
    gateway.receive(A, HandMember().hello(), now=0)
    revoke(gateway, "pi-1")
    assert gateway.tick(now=60 * SECOND) == []
    assert gateway.next_deadline() is None and gateway._again == {}


def test_open_queries_that_a_revoked_device_waits_for_are_not_sent_to_it() -> None:
    gateway, (device, _) = joined(policy=RoundPolicy(timeout_s=30, reask_s=30))
    ask(gateway)
    assert gateway.receive(A, device.ready(), now=1) != []
    assert gateway.receive(A, device.ready(), now=2) == []  # a second later
    revoke(gateway, "pi-1", now=3)
    assert {its.topic for its in published(gateway.tick(now=5 * SECOND))} == {"fi1/acme/d/pi-2"}


# Clients and helpers


def test_a_revoked_clients_question_is_answered_to_nobody() -> None:
    gateway, devices = joined()
    client = HandMember("laptop-1", 101, "client").join(gateway, ready=False)
    query = published(gateway.receive(CA, client.ask(), now=0))[-1].payload
    assert revoke(gateway, "laptop-1") == []
    effects: list[Effect] = []
    for device in devices:
        effects = gateway.receive(device.topic, device.answer(query, code(2)), now=2)
    assert published(effects) == [] and outcome_of(effects).label == 2
    for frame in (client.ask(), client.hello()):
        assert gateway.receive(CA, frame, now=3) == [Rejected(reason="stranger")]


def test_a_helper_comes_and_goes_and_changes_nothing() -> None:
    roster = roster_of("pi-1")
    grown = replace(roster, members=(*roster.members, member("bank", 7, "helper")), version=1)
    gateway, (device,) = joined("pi-1")
    gateway.update(roster, now=0)
    assert gateway.update(grown, now=0) == []
    assert gateway.receive("fi1/acme/a/bank", device.ready(), now=0) == [Rejected(reason="stranger")]
    assert revoke(gateway, "bank") == []
    assert gateway.online(1) == ("pi-1",)


# Changes of the roster


def test_the_same_roster_again_changes_nothing() -> None:
    gateway, (device, _) = joined()
    revoke(gateway, "pi-2")
    before = dict(gateway._peers), gateway._epochs[1].number
    assert gateway.update(gateway._roster, now=2) == []
    assert gateway.update(replace(gateway._roster), now=2) == []
    assert (dict(gateway._peers), gateway._epochs[1].number) == before
    assert gateway.receive(A, device.ready(), now=3) != [Rejected(reason="stranger")]


def test_a_new_member_can_join_and_is_asked_from_then_on() -> None:
    gateway, (device,) = joined("pi-1")
    new = HandMember("pi-9", 9)
    assert gateway.receive(new.topic, new.hello(), now=0) == [Rejected(reason="stranger")]
    early = ask(gateway)
    roster = gateway._roster
    gateway.update(replace(roster, members=(*roster.members, member("pi-9", 9))), now=1)
    new.join(gateway, now=1)
    assert gateway.online(1) == ("pi-1", "pi-9")
    assert gateway.receive(new.topic, new.answer(early, code(0)), now=2) == [
        Rejected(reason="not_asked", peer="pi-9", seq=1)
    ]
    query = ask(gateway, now=2)
    gateway.receive(A, device.answer(query, code(0)), now=3)
    outcome = outcome_of(gateway.receive(new.topic, new.answer(query, code(0)), now=3))
    assert outcome.members(Fate.COUNTED) == ("pi-1", "pi-9")


class Replacement(HandMember):
    """pi-1, after its keys were lost: another key, and another index."""

    def __init__(self) -> None:
        super().__init__("pi-1", 3)
        self.identity = replace(self.identity, static=key_pair("pi-1, again"))
        self.joiner = Joiner(self.identity, b"", Stream("again"))


def replaced(roster: Roster) -> Roster:
    """The roster, with pi-1 under its new key."""
    again = Member(id="pi-1", index=3, role="device", public=key_pair("pi-1, again").public)
    gone = without(roster, "pi-1")
    return replace(gone, members=(*gone.members, again))


def test_a_member_under_a_new_key_joins_and_the_old_key_is_good_for_nothing() -> None:
    gateway, (device, fellow) = joined()
    query = ask(gateway)
    gateway.receive(A, device.answer(query, code(3)), now=1)
    gateway.update(replaced(gateway._roster), now=2)
    for frame in (device.ready(), device.answer(query, code(0)), HandMember(life=1).hello()):
        assert gateway.receive(A, frame, now=3) == [Rejected(reason="index", peer="pi-1")]
    again = Replacement().join(gateway, now=3)
    assert gateway.online(1) == ("pi-2", "pi-1")
    outcome = outcome_of(gateway.receive(A2, fellow.answer(query, code(1)), now=4))
    assert outcome.fates == (("pi-1", Fate.REVOKED), ("pi-2", Fate.COUNTED))
    later = ask(gateway, now=5)
    fellow.rekey(published(gateway.tick(now=2 * SECOND))[0].payload)
    for its in (fellow, again):
        effects = gateway.receive(its.topic, its.answer(later, code(1)), now=2 * SECOND)
    assert outcome_of(effects).fates == (("pi-2", Fate.COUNTED), ("pi-1", Fate.COUNTED))


def with_task(roster: Roster, task: int) -> Roster:
    """The roster, with pi-1 bound to this task."""
    first, *others = roster.members
    return replace(roster, members=(replace(first, task=task), *others), version=roster.version + 1)


def test_a_member_that_is_given_another_task_begins_anew_and_may_be_revoked_in_the_same_round() -> None:
    gateway, (device, fellow) = joined()
    query = ask(gateway)
    gateway.receive(A, device.ready(), now=1)
    gateway.receive(A, device.ready(), now=1)  # is due open queries a second later
    gateway.update(with_task(gateway._roster, 1), now=2)
    assert gateway.receive(A, device.ready(), now=3) == [Rejected(reason="session", peer="pi-1")]
    again = HandMember(life=1).join(gateway, now=3)
    again.epochs |= device.epochs
    assert {its.topic for its in published(gateway.tick(now=SECOND + 2))} <= {"fi1/acme/d/pi-2"}
    assert gateway.receive(A, again.answer(query, code(0)), now=4) == [
        Rejected(reason="duplicate", peer="pi-1", seq=1)
    ]
    revoke(gateway, "pi-1", now=5)
    outcome = outcome_of(gateway.receive(A2, fellow.answer(query, code(1)), now=6))
    assert outcome.fates == (("pi-1", Fate.REVOKED), ("pi-2", Fate.COUNTED))


def test_a_device_bound_to_a_task_joins_no_other() -> None:
    gateway, _ = joined("pi-1")
    gateway.update(with_task(gateway._roster, 2), now=1)
    device = HandMember(life=1)
    assert gateway.receive(A, device.hello(), now=2) == [Rejected(reason="task_mismatch", peer="pi-1")]
    gateway.update(with_task(gateway._roster, 1), now=3)
    device.join(gateway, now=4)
    assert gateway.online(1) == ("pi-1",)


# The word to its later runs


def test_each_new_version_of_the_roster_is_told_to_the_gateways_later_runs() -> None:
    gateway, _ = joined()
    gateway.connected(now=0)
    word = published(revoke(gateway, "pi-1"))[-1]
    assert (word.topic, word.qos, word.retain) == (ROSTER, 1, True)
    assert word.payload[0] == Type.ROSTER
    adopt = gateway._claim.open_roster(word.payload)
    assert (adopt.version, adopt.highest, adopt.revoked) == (1, 101, frozenset({1}))


def test_a_roster_that_is_no_new_version_is_not_told() -> None:
    gateway, _ = joined()
    gateway.connected(now=0)
    effects = gateway.update(replace(gateway._roster, rotations=1), now=1)
    assert [its.topic for its in published(effects)] == [D, "fi1/acme/d/pi-2"]


def test_without_a_link_a_roster_is_told_on_the_next_connect() -> None:
    gateway, _ = joined()
    gateway.connected(now=0)
    gateway.disconnected(now=1)
    assert ROSTER not in {its.topic for its in published(revoke(gateway, "pi-1", now=2))}
    assert [its.topic for its in published(gateway.connected(now=3))] == ["fi1/acme/gateway/state", ROSTER]


# In a whole federation


def test_a_device_is_revoked_in_mid_round_and_the_others_answer() -> None:
    federation = Federation([constant(5, 0, 0, 0), constant(0, 0, 0, 9), constant(5, 0, 0, 0)]).join()
    for name, infer_us in (("pi-1", 100_000), ("pi-2", 50_000), ("pi-3", 150_000)):
        federation.fleet.nodes[name].infer_us = infer_us
    reference = federation.start()
    federation.fleet.run(0.07)
    federation.update(without(federation.roster, "pi-2"))
    federation.fleet.run(5)
    outcome = federation.gateway_node.outcomes[reference]
    assert outcome.fates == (("pi-1", Fate.COUNTED), ("pi-2", Fate.REVOKED), ("pi-3", Fate.COUNTED))
    assert (outcome.label, outcome.agreement, outcome.elapsed_us) == (0, 1.0, 150_000)
    outcome = federation.ask()
    assert outcome.fates == (("pi-1", Fate.COUNTED), ("pi-3", Fate.COUNTED))
    assert ("fi1/acme/s/pi-2", b"") in federation.fleet.published
    hellos = Counter(topic for topic, payload in federation.fleet.published if payload[:1] == b"\x10")
    assert (hellos[A], hellos["fi1/acme/a/pi-3"]) == (1, 1)


# What a former member can read


class Thief(Device):
    """A device that forgets no key, not even one that the protocol erases."""

    def __init__(self, name: str, index: int, seed: str) -> None:
        super().__init__(identity(name, index), labelling(), Stream(seed))
        self.handshakes: list[Joiner] = []
        self.sessions: list[SessionKeys] = []
        self.epochs: list[tuple[seal.Epoch, bytes]] = []

    def receive(self, topic: str, payload: bytes, *, now: int) -> list[Effect]:
        if self._joiner.is_waiting:
            self.handshakes.append(copy.deepcopy(self._joiner))
        session = copy.deepcopy(self._session)
        effects = super().receive(topic, payload, now=now)
        if self._session is not None and Joined("gateway") in effects:
            self.sessions.append(self._session.keys)
            _, welcome = copy.deepcopy(self.handshakes[-1]).finish(payload, now=now)
            self.epochs.append((seal.Epoch.from_key(welcome.epoch, welcome.epoch_key), welcome.epoch_key))
        elif payload[:1] == bytes([Type.REKEY]) and not isinstance(effects[0], Rejected):
            assert session is not None
            rekey = payloads.decode_rekey(session.open(Type.REKEY, frames.parse_session_frame(payload)))
            self.epochs.append((seal.Epoch.from_key(rekey.epoch, rekey.epoch_key), rekey.epoch_key))
        return effects

    def secrets(self) -> list[bytes]:
        """Every key that it ever held, and every one that follows from the two static keys."""
        static = self.identity.static
        shared = dh(static.private, self.identity.gateway_static)
        held = [static.private, shared]
        for keys in self.sessions:
            held += [keys.answer, keys.up, keys.ask, keys.down]
        for epoch, key in self.epochs:
            held += [epoch.seal_key, epoch.digest_key, key]
        for handshake in self.handshakes:
            assert handshake._handshake is not None
            held.append(handshake._handshake._mine["e"].private)
        return list(dict.fromkeys(held))


PURPOSES = (
    b"fi1 answer",
    b"fi1 answer key",
    b"fi1 ask",
    b"fi1 broker",
    b"fi1 claim key",
    b"fi1 frame",
    b"fi1 hello key",
    b"fi1 hello mac",
    b"fi1 query hash",
    b"fi1 query seal",
    b"fi1 roster",
    b"fi1 settle",
)
"""What keys are derived for."""


class Safecracker:
    """Tries every key that a thief holds, and every one that it could make of them, on every frame."""

    def __init__(self, thief: Thief, seen: list[tuple[str, bytes]]) -> None:
        self._thief = thief
        held = thief.secrets()
        context = seal.prologue(FEDERATION, "device", thief.identity.index)
        derived = [
            derive(key, purpose, its) for key in held for purpose in PURPOSES for its in (b"", context)
        ]
        self._keys = [*held, *derived]
        queries = {payload for _, payload in seen if payload[:1] == bytes([Type.QUERY])}
        numbers = {frames.parse_query(query).epoch for query in queries}
        self._bound = [
            number.to_bytes(4, "big") + epoch.query_hash(query) + MODEL
            for (epoch, _), query in itertools.product(thief.epochs, queries)
            for number in numbers
        ]

    def opens(self, frame: bytes) -> bool:
        """Whether any key opens it."""
        kind = Type(frame[0])
        if kind is Type.WELCOME:
            return any(self._finishes(joiner, frame) for joiner in self._thief.handshakes)
        return any(self._fits(*attempt) for attempt in self._attempts(kind, frame))

    def _attempts(self, kind: Type, frame: bytes) -> Iterator[tuple[bytes, bytes, bytes, int]]:
        match kind:
            case Type.QUERY:
                query = frames.parse_query(frame)
                header, sealed, number = query.header, query.sealed, query.seq
            case Type.ROSTER:
                _, header, sealed = frames.parse_roster(frame)
                number = 0
                for key in self._keys:
                    yield seal.roster_key(key, header), header, sealed, 0
            case Type.ANSWER | Type.READY | Type.REKEY | Type.ASK | Type.OUTCOME:
                parsed = frames.parse_session_frame(frame)
                header, sealed, number = parsed.header, parsed.sealed, parsed.number
            case _:
                return
        for key in self._keys:
            yield key, header, sealed, number
            yield key, header, sealed, 0
        if kind is Type.ANSWER:
            for keys, bound in itertools.product(self._thief.sessions, self._bound):
                yield derive(keys.answer, b"fi1 answer key", header + bound), header, sealed, 0

    def _fits(self, key: bytes, header: bytes, sealed: bytes, number: int) -> bool:
        try:
            open_sealed(sealed, key=key, nonce=number, header=header)
        except ProtocolError:
            return False
        return True

    def _finishes(self, joiner: Joiner, frame: bytes) -> bool:
        attempt = copy.deepcopy(joiner)
        attempt._is_sent = True
        index = frames.parse_handshake(frame).index
        attempt._identity = replace(attempt._identity, index=index)
        try:
            attempt.finish(frame, now=0)
        except ProtocolError:
            return False
        return True


SEALED = {
    Type.QUERY,
    Type.ANSWER,
    Type.WELCOME,
    Type.READY,
    Type.REKEY,
    Type.ASK,
    Type.OUTCOME,
    Type.ROSTER,
}


def sealed_frames(messages: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Those that carry anything that is hidden from whoever holds no key."""
    found = [(topic, payload) for topic, payload in messages if payload[:1] and payload[0] in SEALED]
    return list(dict.fromkeys(found))


def test_a_revoked_device_opens_nothing_that_was_sealed_after_its_revocation() -> None:
    """It holds its static key, every session's and every epoch's key that it ever had, the private keys of
    its handshakes, and all that the broker ever saw; it stays connected, and may subscribe to everything.
    """
    federation = Federation([constant(5, 0, 0, 0)] * 3, clients=1, policy=RoundPolicy(timeout_s=5))
    federation.roster = replace(federation.roster, version=1)
    federation.start_gateway()
    thief = Thief("pi-2", 2, "thief")
    federation.fleet.add("pi-2", thief, model=constant(0, 5, 0, 0))
    federation.join()
    broker = federation.fleet.published

    # Until its revocation: it reads every query, two epochs, and what is said to it.
    federation.ask()
    federation.client_asks("early")
    federation.fleet.run(SESSION_US / SECOND)  # a new epoch, then a new session
    assert federation.ask().members(Fate.COUNTED) == ("pi-1", "pi-2", "pi-3")
    federation.fleet.nodes["pi-2"].rejected.clear()
    for name in federation.names:
        federation.fleet.nodes[name].infer_us = 300_000
    reference = federation.start()
    federation.fleet.run(0.1)
    before, mark = sealed_frames(broker), len(broker)

    # Its revocation, while a round is open, and two more days.
    federation.update(without(federation.roster, "pi-2"))
    federation.fleet.run(10)
    outcome = federation.gateway_node.outcomes[reference]
    assert outcome.members(Fate.REVOKED) == ("pi-2",)
    assert outcome.members(Fate.COUNTED) == ("pi-1", "pi-3")
    for step in range(3):
        assert federation.ask().members(Fate.COUNTED) == ("pi-1", "pi-3")
        federation.client_asks(step)
        federation.fleet.run(10)
        federation.fleet.run(EPOCH_US / SECOND)
        federation.fleet.run(60)
    federation.reboot("pi-1")
    federation.restart_gateway()
    federation.fleet.run(60)
    assert federation.ask().members(Fate.COUNTED) == ("pi-1", "pi-3")
    assert federation.ask().members(Fate.COUNTED) == ("pi-1", "pi-3")
    # A query that is asked again is the bytes that were sealed, and read, before; and the thief goes on
    # sealing words of its own.
    known = {frame for _, frame in before}
    after = [
        (topic, frame) for topic, frame in sealed_frames(broker[mark:]) if frame not in known and topic != A2
    ]

    # All that it said since was a stranger's, and nothing that it heard meant anything to it.
    assert federation.gateway_node.rejected["stranger"] > 0
    assert federation.fleet.nodes["pi-2"].rejected["epoch"] > 0
    assert len(thief.epochs) == 3 and len(thief.sessions) >= 2

    cracker = Safecracker(thief, broker)
    opened = [(topic, frame) for topic, frame in before if cracker.opens(frame)]
    # The safecracker is good at its trade: all that was ever the thief's to read opens, and no more.
    mine = [(topic, frame) for topic, frame in before if topic[9:] in ("q/1", "a/pi-2", "d/pi-2")]
    assert opened == mine
    assert {frame[0] for _, frame in opened} == {
        Type.QUERY,
        Type.ANSWER,
        Type.WELCOME,
        Type.READY,
        Type.REKEY,
    }
    # What came after does not.
    assert {frame[0] for _, frame in after} == SEALED
    assert len(after) >= 50
    assert [(topic, frame) for topic, frame in after if cracker.opens(frame)] == []


def test_what_a_revoked_device_still_says_is_a_strangers_whoever_it_says_it_as() -> None:
    gateway, (former, fellow) = joined()
    query = ask(gateway)
    before = gateway._epochs[1].number
    revoke(gateway, "pi-1")
    former.topic, fellows = A2, fellow.topic
    for frame in (former.ready(), former.answer(query, code(3)), former.hello()):
        assert gateway.receive(fellows, frame, now=2) == [Rejected(reason="index", peer="pi-2")]
    assert former.session is not None
    former.session.index = 2
    for frame in (former.ready(), former.answer(query, code(3))):
        assert gateway.receive(fellows, frame, now=2) == [Rejected(reason="seal", peer="pi-2")]
    liar = HandMember("pi-2", 2)
    liar.joiner = Joiner(replace(liar.identity, static=key_pair("pi-1")), b"", Stream("liar"))
    assert gateway.receive(fellows, liar.hello(), now=2) == [Rejected(reason="mac", peer="pi-2")]
    assert gateway._epochs[1].number == before + 1
    assert outcome_of(gateway.receive(fellows, fellow.answer(query, code(1)), now=3)).label == 1


@pytest.mark.parametrize("role", ["device", "client"])
def test_the_broker_password_of_a_former_index_is_not_that_of_the_next(role: str) -> None:
    """Else a replaced member's lost card would still open the broker's door."""
    gateway = gateway_identity()
    old, new = member("pi-1", 1, role), replace(member("pi-1", 3, role), public=key_pair("again").public)
    assert gateway.member_password(old) != gateway.member_password(new)
    same_key = replace(old, index=3)
    assert gateway.member_password(old) != gateway.member_password(same_key)
    assert TASK.number == 1 and identity("pi-1", 1, role).mqtt_password == gateway.member_password(old)
