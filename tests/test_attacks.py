"""Attacks that must fail: each through a machine's real entry point, with its drop reason.

After each attack the machine is what it was (`state_of` compares all of it, in depth), nothing but a
`Rejected` came out, and the next honest frame is unharmed.
"""

import math
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from federation import (
    TASK,
    TENSOR,
    Federation,
    HandGateway,
    HandMember,
    code,
    constant,
    gateway_identity,
    identity,
    key_pair,
    labelling,
    lone_client,
    lone_device,
    lone_gateway,
    member,
    only_infer,
    only_publish,
    published,
    rotated,
    without,
)

import edge_fi.session
from edge_fi.claim import Claim
from edge_fi.client import Client
from edge_fi.crypto import seal
from edge_fi.crypto.aead import seal as aead_seal
from edge_fi.crypto.keys import SigningKey
from edge_fi.crypto.seal import hello_mac
from edge_fi.device import Device
from edge_fi.effects import Adopt, Deliver, Effect, Halt, Joined, Publish, Rejected
from edge_fi.errors import SealError
from edge_fi.gateway import Gateway
from edge_fi.messages import VOTE_FORMS, Fate, Form, Member, Outcome, Status, Trust, Vote
from edge_fi.replay import ReplayWindow
from edge_fi.roster import Roster
from edge_fi.round import RoundPolicy
from edge_fi.session import FIRST_RETRY_US, MAX_SPENT, Identity
from edge_fi.wire import frames, votes
from edge_fi.wire.frames import Type
from firmware_sim.stream import Stream

Q, D, A = "fi1/acme/q/1", "fi1/acme/d/pi-1", "fi1/acme/a/pi-1"
S, G = "fi1/acme/s/pi-1", "fi1/acme/gateway/state"
ROSTER, CLAIM = "fi1/acme/gateway/roster", "fi1/acme/gateway/claim"
JOIN = "fi1/acme/join"
CA, CD = "fi1/acme/ca/laptop-1", "fi1/acme/cd/laptop-1"
SECOND = 1_000_000
LOGITS = np.array([5.0, 0.0, 0.0, 0.0])
ANSWERED = Outcome(status=Status.ANSWERED, label=0, probabilities=(1.0, 0.0, 0.0, 0.0), agreement=1.0)

EVERY_FORM = frozenset(VOTE_FORMS)

Machine = Device | Gateway | Client


# What a machine is, in depth

NOT_STATE = {"_decide", "_entropy", "entropy", "_mac_key", "_next_check_us"}
"""A function; the dice; a key that is computed once for each member, whoever comes first; and the time until
which queries of unknown epochs are not looked at, which exists to be moved by strangers."""


def state_of(thing: object) -> object:
    """Everything that a machine remembers, as plain values."""
    if isinstance(thing, dict):
        # An empty window is one that is not there yet.
        fresh = [key for key, value in thing.items() if isinstance(value, ReplayWindow) and not value._next]
        return {repr(key): state_of(value) for key, value in thing.items() if key not in fresh}
    if isinstance(thing, list | tuple | set | frozenset | deque):
        return [state_of(one) for one in thing]
    if isinstance(thing, np.ndarray):
        return state_of(thing.tolist())
    if isinstance(thing, float) and math.isnan(thing):
        return "nan"  # which is equal to itself
    names = getattr(thing, "__dict__", None) or getattr(thing, "__slots__", ())
    if callable(thing) or not names or isinstance(thing, int | bytes | str):
        return thing
    return {name: state_of(getattr(thing, name)) for name in names if name not in NOT_STATE}


def refused(
    machine: Machine, topic: str, payload: bytes, *reasons: str, peer: str = "", now: int = 1, seq: int = 0
) -> None:
    """The machine drops this for one of these reasons, and is what it was."""
    before = state_of(machine)
    effects = machine.receive(topic, payload, now=now)
    (effect,) = effects
    assert isinstance(effect, Rejected) and effect.reason in reasons, (effect, reasons)
    assert (effect.peer, effect.seq) == (peer, seq)
    assert state_of(machine) == before


# Machines in the middle of their work


def a_device(name: str = "pi-1", index: int = 1) -> tuple[Device, HandGateway]:
    """A device in session with a gateway made by hand."""
    device, gateway = lone_device(name, index), HandGateway(name, index)
    _, hello = device.connected(now=0)
    assert isinstance(hello, Publish)
    device.receive(f"fi1/acme/d/{name}", gateway.welcome(hello.payload), now=0)
    return device, gateway


def a_client() -> tuple[Client, HandGateway]:
    """A client in session with a gateway made by hand."""
    client, gateway = lone_client(), HandGateway("laptop-1", 101, "client")
    hello = only_publish(client.connected(now=0))
    client.receive(CD, gateway.welcome(hello.payload), now=0)
    return client, gateway


def a_gateway(policy: RoundPolicy | None = None) -> tuple[Gateway, HandMember, HandMember, HandMember]:
    """A gateway in session with two devices and a client made by hand."""
    gateway = lone_gateway("pi-1", "pi-2", clients=["laptop-1"], policy=policy)
    client = HandMember("laptop-1", 101, "client").join(gateway)
    return gateway, HandMember().join(gateway), HandMember("pi-2", 2).join(gateway), client


def ask(gateway: Gateway, *, now: int = 1, policy: RoundPolicy | None = None) -> bytes:
    """The QUERY frame of a new round."""
    return only_publish(gateway.ask(1, TENSOR, reference="me", now=now, policy=policy)).payload


def device_is_unharmed(device: Device, gateway: HandGateway, *, seq: int = 900, now: int = 2) -> None:
    """The next query is answered as it should be."""
    query = gateway.query(seq)
    ticket = only_infer(device.receive(Q, query, now=now)).ticket
    frame = only_publish(device.inferred(ticket, LOGITS, now=now)).payload
    form, content = gateway.open_answer(frame, query)
    assert form is Form.LABEL and content[0] == 0


def gateway_is_unharmed(gateway: Gateway, *devices: HandMember, now: int = 2) -> None:
    """The next round counts every device's vote."""
    query = ask(gateway, now=now)
    effects: list[Effect] = []
    for device in devices:
        effects = gateway.receive(device.topic, device.answer(query, code(1)), now=now)
    (outcome,) = [effect.outcome for effect in effects if isinstance(effect, Deliver)]
    assert outcome.label == 1 and {fate for _, fate in outcome.fates} == {Fate.COUNTED}


# Every byte of every frame type


@dataclass
class Case:
    """An honest frame on its way to the machine that waits for it."""

    machine: Machine
    topic: str
    frame: bytes
    peer: str
    regions: list[tuple[int, set[str]]]
    """Up to which byte a flipped bit is dropped for which reasons."""
    accept: Callable[[list[Effect]], bool]
    is_remembered: bool = True
    """Whether the machine is another one once it has accepted the frame."""


HEADED = {"type", "length", "direction", "flags", "form", "session", "signature", "seal", "unknown_query"}
"""Under another type, the frame fails whatever that type's first check is."""
SESSION_REGIONS = [(1, HEADED), (2, {"form", "session"}), (4, {"index"})]


def query_case() -> Case:
    device, gateway = a_device()
    frame = gateway.query(1)
    regions = [(1, HEADED), (2, {"flags"}), (6, {"signature", "epoch"}), (10, {"seal", "stale"})]
    regions += [(len(frame) - 64, {"seal"}), (len(frame), {"signature"})]
    return Case(device, Q, frame, "", regions, lambda effects: bool(only_infer(effects)))


def settled_case() -> Case:
    device, gateway = a_device()
    device.receive(Q, gateway.query(1), now=0)
    regions = [(1, HEADED), (2, {"flags"}), (10, {"unknown_query"}), (26, {"settled"})]
    return Case(device, Q, gateway.settled(1), "", regions, lambda effects: effects == [])


def welcome_case() -> Case:
    device, gateway = lone_device(), HandGateway()
    _, hello = device.connected(now=0)
    assert isinstance(hello, Publish)
    frame = gateway.welcome(hello.payload)
    # A QUERY that comes before any WELCOME is of an unknown epoch.
    regions = [(1, HEADED | {"epoch"}), (2, {"flags"}), (4, {"index"}), (len(frame), {"seal"})]
    return Case(device, D, frame, "", regions, lambda effects: effects[0] == Joined("gateway"))


def client_welcome_case() -> Case:
    client, gateway = lone_client(), HandGateway("laptop-1", 101, "client")
    frame = gateway.welcome(only_publish(client.connected(now=0)).payload)
    regions = [(1, HEADED), (2, {"flags"}), (4, {"index"}), (len(frame), {"seal"})]
    return Case(client, CD, frame, "", regions, lambda effects: effects == [Joined("gateway")])


def rekey_case() -> Case:
    device, gateway = a_device()
    # With a HELLO that is due: a WELCOME, which the type becomes by one bit, would else be a hint.
    device.receive(G, b"ready 00000001", now=0)
    frame = gateway.rekey()
    regions = [
        (1, HEADED | {"unexpected"}),
        (2, {"form", "session"}),
        (4, {"session"}),
        (len(frame), {"seal"}),
    ]
    return Case(device, D, frame, "", regions, lambda effects: only_publish(effects).topic == A)


def outcome_case() -> Case:
    client, gateway = a_client()
    client.ask(TASK, TENSOR, deadline_ms=5000, reference="me", now=0)
    frame = gateway.outcome(0, ANSWERED)
    regions = [(1, HEADED), (2, {"form", "session"}), (4, {"session"}), (len(frame), {"seal"})]
    return Case(client, CD, frame, "", regions, lambda effects: effects == [Deliver("me", ANSWERED)])


def hello_case() -> Case:
    gateway = lone_gateway()
    frame = HandMember().hello()
    regions = [(1, HEADED), (2, {"flags"}), (4, {"index"}), (len(frame), {"mac"})]
    return Case(gateway, A, frame, "pi-1", regions, lambda effects: only_publish(effects).topic == D)


def ready_case() -> Case:
    gateway = lone_gateway()
    frame = HandMember().join(gateway, ready=False).ready()
    regions = [*SESSION_REGIONS, (len(frame), {"seal"})]
    return Case(gateway, A, frame, "pi-1", regions, lambda effects: effects == [Joined("pi-1", EVERY_FORM)])


def answer_case() -> Case:
    gateway, device, _, _ = a_gateway()
    frame = device.answer(ask(gateway), code(2))
    regions = [(1, HEADED), (2, {"form", "session", "seal"}), (4, {"index"}), (8, {"unknown_query"})]
    regions += [(len(frame), {"seal"})]
    return Case(gateway, A, frame, "pi-1", regions, lambda effects: effects == [])


def ask_case() -> Case:
    gateway, _, _, client = a_gateway()
    frame = client.ask()
    regions = [*SESSION_REGIONS, (len(frame), {"seal"})]
    return Case(gateway, CA, frame, "laptop-1", regions, lambda effects: effects[0] is not None)


def claim_case() -> Case:
    gateway = lone_gateway()
    frame = another_run().begin()
    regions = [(1, HEADED), (2, {"flags"}), (len(frame), {"mac"})]
    return Case(
        gateway,
        CLAIM,
        frame,
        "",
        regions,
        lambda effects: only_publish(effects).payload[0] == Type.HELD,
        is_remembered=False,
    )


def held_case() -> Case:
    gateway = lone_gateway(is_claiming=True)
    claim = only_publish(gateway.connected(now=0)).payload
    frame = another_run().answer(claim, is_open=True)
    regions = [(1, HEADED), (2, {"flags"}), (len(frame), {"mac"})]
    return Case(gateway, CLAIM, frame, "", regions, lambda effects: isinstance(effects[0], Halt))


def roster_case() -> Case:
    gateway = lone_gateway()
    frame = another_run().seal_roster(Roster(revoked=frozenset({1}), given=9, version=3))
    regions = [(1, HEADED), (2, {"flags"}), (len(frame), {"seal"})]
    adopt = Adopt(3, 9, frozenset({1}))
    return Case(gateway, ROSTER, frame, "", regions, lambda effects: effects == [adopt], is_remembered=False)


def another_run() -> Claim:
    """The words of another run of this gateway."""
    return Claim(gateway_identity().static.private, Stream("another run"))


CASES: list[Callable[[], Case]] = [
    query_case,
    settled_case,
    welcome_case,
    client_welcome_case,
    rekey_case,
    outcome_case,
    hello_case,
    ready_case,
    answer_case,
    ask_case,
    claim_case,
    held_case,
    roster_case,
]


@pytest.fixture(params=CASES, ids=[make.__name__.removesuffix("_case") for make in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    """Each type of frame in turn."""
    make: Callable[[], Case] = request.param
    return make()


def flips(frame: bytes) -> Iterator[tuple[int, bytes]]:
    """The frame with each of its bits flipped."""
    for place in range(len(frame)):
        for bit in range(8):
            yield place, frame[:place] + bytes([frame[place] ^ 1 << bit]) + frame[place + 1 :]


def test_a_frame_with_any_one_bit_flipped_is_dropped(case: Case) -> None:
    for place, flipped in flips(case.frame):
        reasons = next(reasons for end, reasons in case.regions if place < end)
        refused(case.machine, case.topic, flipped, *reasons, peer=case.peer)
    before = state_of(case.machine)
    assert case.accept(case.machine.receive(case.topic, case.frame, now=2))
    assert (state_of(case.machine) != before) is case.is_remembered


def test_a_frame_cut_short_anywhere_is_dropped(case: Case) -> None:
    for size in range(len(case.frame)):
        refused(
            case.machine, case.topic, case.frame[:size], "length", "seal", "signature", "mac", peer=case.peer
        )
    assert case.accept(case.machine.receive(case.topic, case.frame, now=2))


@pytest.mark.parametrize("more", [b"\0", bytes(17), bytes(1_000_001)], ids=len)
def test_a_frame_that_goes_on_is_dropped(case: Case, more: bytes) -> None:
    refused(case.machine, case.topic, case.frame + more, "length", "seal", "signature", "mac", peer=case.peer)
    assert case.accept(case.machine.receive(case.topic, case.frame, now=2))


def test_a_byte_alone_is_no_frame(case: Case) -> None:
    for byte in range(256):
        known = byte in list(Type)
        refused(case.machine, case.topic, bytes([byte]), "length" if known else "type", peer=case.peer)
    assert case.accept(case.machine.receive(case.topic, case.frame, now=2))


def test_noise_of_any_size_is_dropped(case: Case) -> None:
    stream = Stream("noise")
    for _ in range(300):
        kind = bytes([list(Type)[stream(1)[0] % len(Type)]])
        payload = kind + stream(stream(1)[0])
        (effect,) = case.machine.receive(case.topic, payload, now=1)
        assert isinstance(effect, Rejected)
    assert case.accept(case.machine.receive(case.topic, case.frame, now=2))


# Directions


def every_frame() -> dict[str, bytes]:
    """An honest frame of each type."""
    return {make.__name__.removesuffix("_case"): make().frame for make in CASES}


ACCEPTED = {
    Q: {"query", "settled"},
    D: {"query", "welcome", "client_welcome", "rekey"},
    A: {"answer", "hello", "ready"},
    CA: {"hello", "ready", "ask"},
    CD: {"welcome", "client_welcome", "outcome"},
    CLAIM: {"claim", "held"},
    ROSTER: {"roster"},
    JOIN: set(),
}
"""Types that a topic carries to the machine that reads it; all others are refused as misdirected."""


@pytest.mark.parametrize("topic", ACCEPTED)
def test_a_frame_of_each_type_on_a_topic_of_another_direction_is_dropped(topic: str) -> None:
    peer = {A: "pi-1", CA: "laptop-1"}.get(topic, "")
    for name, frame in every_frame().items():
        if name not in ACCEPTED[topic]:
            machine: Machine = a_gateway()[0]
            if topic in (Q, D):
                machine = a_device()[0]
            elif topic == CD:
                machine = a_client()[0]
            refused(machine, topic, frame, "direction", peer=peer)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "/",
        A,
        "fi1/acme/q/2",
        "fi1/acme/d/pi-2",
        "fi1/other/q/1",
        "fi2/acme/q/1",
        "fi1/acme/q/1/",
        "fi1/acme/q/\u0661",
    ],
)
def test_a_device_takes_no_frame_from_a_topic_that_is_not_its_own(topic: str) -> None:
    device, gateway = a_device()
    refused(device, topic, gateway.query(1), "direction")
    device_is_unharmed(device, gateway)


@pytest.mark.parametrize("topic", ["", CA, "fi1/acme/cd/laptop-2", "fi1/acme/d/laptop-1", Q])
def test_a_client_takes_no_frame_from_a_topic_that_is_not_its_own(topic: str) -> None:
    client, gateway = a_client()
    client.ask(TASK, TENSOR, deadline_ms=5000, reference="me", now=0)
    frame = gateway.outcome(0, ANSWERED)
    refused(client, topic, frame, "direction")
    assert client.receive(CD, frame, now=2) == [Deliver("me", ANSWERED)]


def test_frames_on_presence_topics_are_no_frames() -> None:
    gateway, _, _, _ = a_gateway()
    device, _ = a_device()
    client, _ = a_client()
    for frame in every_frame().values():
        refused(gateway, S, frame, "presence")
        before = state_of(device), state_of(client)
        assert device.receive(G, frame, now=1) == [] and client.receive(G, frame, now=1) == []
        assert (state_of(device), state_of(client)) == before


def test_a_frame_that_is_sent_back_to_its_sender_is_dropped() -> None:
    device, by_hand = a_device()
    query = by_hand.query(1)
    answer = only_publish(device.inferred(only_infer(device.receive(Q, query, now=0)).ticket, LOGITS, now=0))
    refused(device, D, answer.payload, "direction")
    gateway, peer, other, _ = a_gateway()
    for frame in (ask(gateway), only_publish(gateway.receive(A, HandMember(life=1).hello(), now=0)).payload):
        refused(gateway, A, frame, "direction", peer="pi-1")
    gateway_is_unharmed(gateway, peer, other)


def test_a_rekey_is_taken_from_the_devices_own_topic_alone() -> None:
    device, gateway = a_device()
    frame = gateway.rekey()
    for topic in (Q, A, "fi1/acme/d/pi-2", "fi1/acme/cd/pi-1", "fi1/other/d/pi-1"):
        refused(device, topic, frame, "direction")
    assert only_publish(device.receive(D, frame, now=1)).topic == A
    device_is_unharmed(device, gateway)


def test_the_frames_of_a_new_epoch_that_are_sent_back_to_their_senders_are_dropped() -> None:
    device, by_hand = a_device()
    ready = only_publish(device.receive(D, by_hand.rekey(), now=0)).payload
    refused(device, D, ready, "direction")
    gateway, peer, other, _ = a_gateway()
    for its in published(gateway.update(rotated(gateway._roster), now=1)):
        refused(gateway, A, its.payload, "direction", peer="pi-1")
        refused(gateway, CA, its.payload, "direction", peer="laptop-1")
    for its_member in (peer, other):
        its_member.rekey(peers_rekey(gateway, its_member))
    gateway_is_unharmed(gateway, peer, other)


def peers_rekey(gateway: Gateway, device: HandMember) -> bytes:
    """The REKEY that this device has not answered."""
    return gateway._peers[device.identity.index].rekey


def test_a_rekey_is_nothing_to_a_client_not_even_under_its_own_session() -> None:
    client, gateway = a_client()
    client.ask(TASK, TENSOR, deadline_ms=5000, reference="me", now=0)
    refused(client, CD, gateway.rekey(), "direction")
    assert client.receive(CD, gateway.outcome(1, ANSWERED), now=2) == [Rejected(reason="unknown_query")]
    assert client.receive(CD, gateway.outcome(0, ANSWERED), now=2) == [Deliver("me", ANSWERED)]


def test_a_gateways_claim_that_is_sent_back_to_it_is_nothing() -> None:
    gateway = lone_gateway(is_claiming=True)
    claim = only_publish(gateway.connected(now=0)).payload
    for now in (1, 2):
        before = state_of(gateway)
        assert gateway.receive(CLAIM, claim, now=now) == []
        assert state_of(gateway) == before
    # Dressed up as an answer to itself, it is a forgery.
    refused(gateway, CLAIM, bytes([Type.HELD]) + claim[1:], "mac")
    gateway.tick(now=SECOND)
    assert gateway.is_open


# Who says it


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "fi1/acme/a",
        "fi1/acme/a/",
        "fi1/acme/a/pi-1/",
        "fi1/acme/a/+",
        "fi1/acme/a/#",
        "fi1/acme/a/$SYS",
        "fi1/acme/a/PI-1",
        "fi1/acme/a/pi-1\0",
        "fi1/acme/a/pi-1\n",
        "fi1/acme/a/p\u0456-1",
        "fi1/acme/a/pi-\uff11",
        "fi1/acme/a/" + "p" * 25,
        "fi1/acme/d/pi-1",
        "fi1/acme/q/1",
        "fi1/acm\xe9/a/pi-1",
        "fi2/acme/a/pi-1",
        "$share/x/fi1/acme/a/pi-1",
        "\ud800",
    ],
)
def test_a_topic_that_is_not_a_members_is_dropped(topic: str) -> None:
    gateway, device, other, _ = a_gateway()
    refused(gateway, topic, device.ready(), "topic")
    gateway_is_unharmed(gateway, device, other)


@pytest.mark.parametrize("topic", ["a/pi-3", "s/pi-3", "ca/laptop-2", "a/laptop-1", "ca/pi-1", "a/gateway"])
def test_a_stranger_is_dropped(topic: str) -> None:
    gateway, device, other, client = a_gateway()
    for frame in (device.ready(), client.ask(), HandMember("pi-3", 3).hello(), b"ready"):
        refused(gateway, f"fi1/acme/{topic}", frame, "stranger")
    gateway_is_unharmed(gateway, device, other)


def test_a_member_cannot_speak_as_the_gateway_to_itself() -> None:
    """Whoever may publish there, without ACL: it has a key of its own, but not the gateway's."""
    gateway, device, fellow, _ = a_gateway()
    gateway.connected(now=0)
    for private in (key_pair("pi-1").private, gateway.identity.static.public, bytes(32)):
        words = Claim(private, Stream("member"))
        claim = words.begin()
        refused(gateway, CLAIM, claim, "mac")
        refused(gateway, CLAIM, words.answer(claim[:2] + bytes(16) + mac_of(private), is_open=True), "mac")
        refused(gateway, ROSTER, words.seal_roster(Roster(revoked=frozenset({1, 2}), version=9)), "seal")
    gateway_is_unharmed(gateway, device, fellow)


def mac_of(private: bytes) -> bytes:
    """The mac of a CLAIM whose nonce is zeros, by this key."""
    return seal.claim_mac(private, b"fi1 claim", bytes([Type.CLAIM, 0]) + bytes(16))


@pytest.mark.parametrize("word", [b"", b"\0", b"ready", b'{"revoked": []}', b"\x40" * 38, bytes(100_000)])
def test_a_poisoned_roster_word_is_dropped(word: bytes) -> None:
    gateway, device, fellow, _ = a_gateway()
    refused(gateway, ROSTER, word, "length", "type", "flags")
    gateway_is_unharmed(gateway, device, fellow)


def test_a_gateway_that_waits_for_its_claim_drops_its_members_frames_and_remembers_none() -> None:
    gateway = lone_gateway("pi-1", clients=["laptop-1"], is_claiming=True)
    gateway.connected(now=0)
    device, client = HandMember(), HandMember("laptop-1", 101, "client")
    for _ in range(3):
        refused(gateway, A, device.hello(), "closed", peer="pi-1")
        refused(gateway, CA, client.hello(), "closed", peer="laptop-1")
        refused(gateway, JOIN, b"\x30" + bytes(109), "closed")
        for topic, remembered in ((S, b"ready"), (G, b"lost")):
            before = state_of(gateway)
            assert gateway.receive(topic, remembered, now=1) == []
            assert state_of(gateway) == before
    gateway.tick(now=SECOND)
    device.join(gateway, now=SECOND)
    gateway_is_unharmed(gateway, device, now=SECOND)


def test_a_strangers_hello_in_a_members_name_is_dropped() -> None:
    gateway, device, other, _ = a_gateway()
    stranger = HandMember("pi-1", 1)
    stranger.joiner = edge_fi.session.Joiner(with_keys_of("mallory"), b"", Stream("mallory"))
    refused(gateway, A, stranger.hello(), "mac", peer="pi-1")
    gateway_is_unharmed(gateway, device, other)


def with_keys_of(thief: str) -> Identity:
    """pi-1, as somebody pretends who does not have its keys."""
    true = identity("pi-1", 1)
    return Identity(
        federation=true.federation,
        role="device",
        id="pi-1",
        index=1,
        static=key_pair(thief),
        gateway_static=true.gateway_static,
    )


def test_a_fellows_frames_on_a_devices_topic_are_dropped() -> None:
    gateway, device, fellow, _ = a_gateway()
    query = ask(gateway)
    refused(gateway, A, fellow.answer(query, code(3)), "index", peer="pi-1")
    refused(gateway, A, fellow.ready(), "index", peer="pi-1")
    refused(gateway, A, HandMember("pi-2", 2, life=1).hello(), "index", peer="pi-1")
    gateway_is_unharmed(gateway, device, fellow)


def test_a_device_that_claims_anothers_index_is_dropped() -> None:
    gateway, device, fellow, _ = a_gateway()
    query = ask(gateway)
    assert device.session is not None
    device.session.index = 2
    refused(gateway, A, device.answer(query, code(3)), "index", peer="pi-1")
    # With the other's topic too, the seal is still one that only the other can make.
    refused(gateway, fellow.topic, device.answer(query, code(3)), "seal", peer="pi-2")
    device.session.index = 1
    gateway_is_unharmed(gateway, device, fellow)


def test_a_client_does_not_speak_as_a_device() -> None:
    gateway, device, fellow, client = a_gateway()
    refused(gateway, A, client.ready(), "index", peer="pi-1")
    refused(gateway, A, HandMember("laptop-1", 101, "client", life=1).hello(), "index", peer="pi-1")
    assert client.session is not None
    header = frames.build_session_header(Type.ANSWER, client.session.number, 101, 1, Form.LABEL)
    refused(gateway, CA, header + bytes(18), "direction", peer="laptop-1")
    gateway_is_unharmed(gateway, device, fellow)


def test_a_clients_handshake_makes_no_device_even_with_the_devices_name_index_and_key() -> None:
    gateway = lone_gateway("laptop-1")
    hello = HandMember("laptop-1", 1, "client").hello()
    refused(gateway, "fi1/acme/a/laptop-1", hello, "mac", peer="laptop-1")


def test_a_device_does_not_ask() -> None:
    gateway, device, fellow, _ = a_gateway()
    refused(gateway, A, device.ask(), "direction", peer="pi-1")
    refused(gateway, CA, device.ask(), "index", peer="laptop-1")
    gateway_is_unharmed(gateway, device, fellow)


def test_another_clients_outcome_is_dropped() -> None:
    client, gateway = a_client()
    client.ask(TASK, TENSOR, deadline_ms=5000, reference="me", now=0)
    other = HandGateway("laptop-2", 102, "client")
    other.welcome(HandMember("laptop-2", 102, "client").hello())
    refused(client, CD, other.outcome(0, ANSWERED), "session")
    assert other.session is not None
    other.session.index = 101
    refused(client, CD, other.outcome(0, ANSWERED), "seal")
    assert client.receive(CD, gateway.outcome(0, ANSWERED), now=2) == [Deliver("me", ANSWERED)]


# What a fellow member can forge, who has the epoch key


def test_a_query_that_a_fellow_member_forged_is_dropped() -> None:
    device, gateway = a_device()
    fellow = SigningKey.from_seed(Stream("fellow")(32))
    refused(device, Q, gateway.query(1, signing=fellow), "signature")
    refused(device, D, gateway.query(1, signing=fellow), "signature")
    device_is_unharmed(device, gateway, seq=1)


def test_a_query_that_a_fellow_sealed_around_the_gateways_signature_is_dropped() -> None:
    device, gateway = a_device()
    genuine, forged = gateway.query(1), gateway.query(1, deadline_ms=9)
    refused(device, Q, forged[:-64] + genuine[-64:], "signature")
    device_is_unharmed(device, gateway, seq=1)


def test_a_settled_that_a_fellow_member_forged_silences_nobody() -> None:
    device, gateway = a_device()
    ticket = only_infer(device.receive(Q, gateway.query(1), now=0)).ticket
    for preimage in (bytes(16), gateway.key[:16], gateway.settled(2)[-16:]):
        forged = frames.build_settled(gateway.epoch.number, 1, preimage)
        refused(device, Q, forged, "settled")
    refused(device, Q, gateway.settled(2), "unknown_query")
    refused(device, D, gateway.settled(1), "direction")
    assert only_publish(device.inferred(ticket, LOGITS, now=2)).topic == A


def test_a_settled_of_another_epoch_is_dropped() -> None:
    device, gateway = a_device()
    ticket = only_infer(device.receive(Q, gateway.query(1), now=0)).ticket
    refused(device, Q, HandGateway(life=1).settled(1), "unknown_query")
    assert only_publish(device.inferred(ticket, LOGITS, now=2)).topic == A
    refused(lone_device(), Q, gateway.settled(1), "unknown_query")


def test_a_query_with_other_content_under_a_known_seq_is_a_conflict() -> None:
    device, gateway = a_device()
    first, second = gateway.query(1), gateway.query(1, deadline_ms=9)
    ticket = only_infer(device.receive(Q, first, now=0)).ticket
    refused(device, Q, second, "conflict")
    answer = device.inferred(ticket, LOGITS, now=2)
    refused(device, D, second, "conflict")
    assert device.receive(D, first, now=3) == answer


def test_a_fellow_member_cannot_rekey_another() -> None:
    """It has the epoch's keys, and a session of its own."""
    device, gateway = a_device()
    fellow = HandGateway("pi-2", 2)
    fellow.welcome(HandMember("pi-2", 2).hello())
    refused(device, D, fellow.rekey(), "session")
    assert fellow.session is not None and gateway.session is not None
    fellow.session.index = 1
    refused(device, D, fellow.rekey(), "seal")
    for key in (gateway.key, gateway.epoch.seal_key, gateway.epoch.digest_key):
        header = frames.build_session_header(Type.REKEY, gateway.session.number, 1, 0)
        forged = header + aead_seal(bytes(72), key=key, nonce=0, header=header)
        refused(device, D, forged, "seal")
    device_is_unharmed(device, gateway)


def test_a_devices_own_ready_is_no_rekey_under_whatever_type() -> None:
    device, gateway = a_device()
    assert gateway.session is not None
    ready = only_publish(device.receive(D, gateway.session.welcome, now=0)).payload
    refused(device, D, bytes([Type.REKEY]) + ready[1:], "seal")
    device_is_unharmed(device, gateway)


def test_a_former_member_with_the_former_epochs_key_can_ask_nothing_within_its_grace() -> None:
    device, gateway = a_device()
    former = gateway.epoch
    device.receive(D, gateway.rekey(grace_ms=60_000), now=0)
    mallory = SigningKey.from_seed(Stream("mallory")(32))
    refused(device, Q, gateway.query(1, epoch=former, signing=mallory), "signature")
    genuine, other = gateway.query(1), gateway.query(2, epoch=former)
    refused(device, Q, gateway.query(1, epoch=former)[:-64] + genuine[-64:], "signature")
    refused(device, Q, genuine[:-64] + other[-64:], "signature")
    device_is_unharmed(device, gateway)


def test_a_query_of_one_epoch_is_none_of_another_that_is_held_too() -> None:
    device, gateway = a_device()
    former = gateway.query(1)
    device.receive(D, gateway.rekey(grace_ms=60_000), now=0)
    current = gateway.query(2)
    for frame, other in ((former, current), (current, former)):
        refused(device, Q, frame[:2] + other[2:6] + frame[6:], "seal")
    device_is_unharmed(device, gateway)


# Replays


def test_a_rekey_replayed_after_the_next_one_is_stale_and_brings_no_old_key_back() -> None:
    device, gateway = a_device()
    first, second = gateway.rekey(), gateway.rekey()
    for frame in (first, second):
        assert only_publish(device.receive(D, frame, now=0)).topic == A
    refused(device, D, first, "stale")
    device_is_unharmed(device, gateway)


def test_a_rekey_that_was_held_back_until_after_the_next_one_is_stale() -> None:
    """Else a broker could put a device back into an epoch whose key a former member knows."""
    device, gateway = a_device()
    held_back = gateway.rekey(grace_ms=60_000)
    assert only_publish(device.receive(D, gateway.rekey(), now=0)).topic == A
    refused(device, D, held_back, "stale")
    device_is_unharmed(device, gateway)


def test_a_rekey_copied_to_the_device_costs_a_ready_each_and_changes_no_key() -> None:
    device, gateway = a_device()
    frame = gateway.rekey(grace_ms=100)
    device.receive(D, frame, now=0)
    before = state_of(device)
    for now in range(1, 200):
        assert only_publish(device.receive(D, frame, now=now)).payload[0] == Type.READY
    device._session._sent -= 199  # type: ignore[union-attr]
    assert state_of(device) == before
    device._session._sent += 199  # type: ignore[union-attr]
    device_is_unharmed(device, gateway, now=200)


def test_a_rekey_of_a_former_session_is_dropped_even_under_the_same_number() -> None:
    device, gateway = a_device()
    old = gateway.rekey()
    device.receive(G, b"ready 00000001", now=0)
    hello = only_publish(device.tick(now=SECOND))
    device.receive(D, gateway.welcome(hello.payload), now=SECOND)
    refused(device, D, old, "session", now=SECOND)
    assert gateway.session is not None
    disguised = old[:1] + bytes([gateway.session.number << 4]) + old[2:]
    refused(device, D, disguised, "seal", now=SECOND)
    device_is_unharmed(device, gateway, now=SECOND)


def test_a_rekey_before_any_session_is_dropped() -> None:
    gateway = HandGateway()
    gateway.welcome(HandMember().hello())
    device = lone_device()
    refused(device, D, gateway.rekey(), "session")
    device.connected(now=0)
    refused(device, D, gateway.rekey(), "session")


def test_a_claim_of_a_run_long_gone_is_answered_and_changes_nothing() -> None:
    gateway, device, fellow, _ = a_gateway()
    gateway.connected(now=0)
    old = another_run().begin()
    before = state_of(gateway)
    answers = {only_publish(gateway.receive(CLAIM, old, now=now)).payload for now in range(100)}
    assert len(answers) == 1 and state_of(gateway) == before
    gateway_is_unharmed(gateway, device, fellow)


def test_a_held_of_a_run_long_gone_changes_nothing() -> None:
    gateway = lone_gateway(is_claiming=True)
    gateway.connected(now=0)
    old = lone_gateway(life=1, is_claiming=True)
    held = another_run().answer(only_publish(old.connected(now=0)).payload, is_open=True)
    before = state_of(gateway)
    assert gateway.receive(CLAIM, held, now=1) == []
    assert state_of(gateway) == before
    gateway.tick(now=SECOND)
    assert gateway.is_open


def test_an_older_roster_word_replayed_makes_nobody_a_member_again() -> None:
    gateway, device, fellow, _ = a_gateway()
    old = another_run().seal_roster(gateway._roster)
    gateway.update(without(gateway._roster, "pi-2"), now=1)
    before = state_of(gateway)
    assert gateway.receive(ROSTER, old, now=2) == []
    assert state_of(gateway) == before
    refused(gateway, fellow.topic, fellow.ready(), "stranger")
    device.rekey(peers_rekey(gateway, device))
    gateway_is_unharmed(gateway, device)


def test_a_replayed_query_is_inferred_once_and_answered_with_the_same_bytes() -> None:
    device, gateway = a_device()
    query = gateway.query(1)
    ticket = only_infer(device.receive(Q, query, now=0)).ticket
    assert [device.receive(topic, query, now=1) for topic in (Q, D)] == [[], []]
    answer = device.inferred(ticket, LOGITS, now=2)
    assert [device.receive(topic, query, now=3) for topic in (Q, D)] == [answer, answer]
    device_is_unharmed(device, gateway)


def test_a_query_replayed_to_a_device_that_rebooted_is_stale() -> None:
    device, gateway = lone_device(life=1), HandGateway()
    _, hello = device.connected(now=0)
    assert isinstance(hello, Publish)
    device.receive(D, gateway.welcome(hello.payload, floor=2), now=0)
    refused(device, Q, gateway.query(1), "stale")
    device_is_unharmed(device, gateway)


def test_old_epochs_queries_replayed_cost_ever_fewer_hellos_and_no_answer() -> None:
    device, gateway = a_device()
    old = [HandGateway(life=life).query(1) for life in range(1, 4)]
    hellos = 0
    for second in range(1, 121):
        now = second * SECOND
        device.receive(Q, old[second % 3], now=now)
        for message in published(device.tick(now=now)):
            hellos += 1
            device.receive(D, gateway.welcome(message.payload), now=now)
    assert 3 <= hellos <= 9
    device_is_unharmed(device, gateway, now=121 * SECOND)


def test_a_replayed_hello_of_the_current_session_is_dropped() -> None:
    gateway, fellow = lone_gateway("pi-1", "pi-2"), HandMember("pi-2", 2)
    device = HandMember()
    hello = device.hello()
    device.welcome(only_publish(gateway.receive(A, hello, now=0)).payload)
    gateway.receive(A, device.ready(), now=0)
    fellow.join(gateway)
    refused(gateway, A, hello, "replay", peer="pi-1")
    gateway_is_unharmed(gateway, device, fellow)


def test_the_hellos_of_superseded_sessions_are_replays_and_cost_no_dh(dh_calls: list[bytes]) -> None:
    gateway, hellos = lone_gateway("pi-1", "pi-2"), []
    for life in range(5):
        device = HandMember(life=life)
        hellos.append(device.hello())
        device.welcome(only_publish(gateway.receive(A, hellos[-1], now=0)).payload)
        gateway.receive(A, device.ready(), now=0)
    fellow = HandMember("pi-2", 2).join(gateway)
    dh_calls.clear()
    for _ in range(20):
        for hello in hellos:
            refused(gateway, A, hello, "replay", peer="pi-1")
    assert dh_calls == []
    gateway_is_unharmed(gateway, device, fellow)


def test_an_older_hello_replayed_leaves_the_current_session_as_it_is() -> None:
    """Older than the HELLOs that the gateway remembers."""
    gateway, fellow = lone_gateway("pi-1", "pi-2"), HandMember("pi-2", 2)
    former = HandMember()
    hello = former.hello()
    former.welcome(only_publish(gateway.receive(A, hello, now=0)).payload)
    gateway.receive(A, former.ready(), now=0)
    for life in range(1, MAX_SPENT + 2):
        device = HandMember(life=life).join(gateway)
    fellow.join(gateway)
    for now in range(20):
        (effect,) = gateway.receive(A, hello, now=now)
        assert isinstance(effect, Publish) and effect.topic == D
    # Whoever replayed it cannot go on: the keys of that WELCOME are not those of the former one.
    refused(gateway, A, former.ready(), "session", "seal", peer="pi-1")
    gateway_is_unharmed(gateway, device, fellow)


def test_hellos_that_cross_do_not_keep_a_device_out() -> None:
    gateway = lone_gateway("pi-1")
    early, late = HandMember(), HandMember(life=1)
    early_hello, late_hello = early.hello(), late.hello()
    welcome = only_publish(gateway.receive(A, late_hello, now=0))
    stray = only_publish(gateway.receive(A, early_hello, now=0))
    with pytest.raises(SealError):
        late.welcome(stray.payload)
    late.welcome(welcome.payload)
    assert gateway.receive(A, late.ready(), now=1) == [Joined("pi-1", EVERY_FORM)]
    gateway_is_unharmed(gateway, late)


def test_the_welcome_of_a_hello_that_was_overtaken_is_dropped_and_the_right_one_opens() -> None:
    device, gateway = lone_device(), HandGateway()
    _, hello = device.connected(now=0)
    assert isinstance(hello, Publish)
    refused(device, D, HandGateway().welcome(HandMember().hello()), "seal")
    assert device.receive(D, gateway.welcome(hello.payload), now=1)[0] == Joined("gateway")
    device_is_unharmed(device, gateway)


def test_replayed_frames_of_a_session_are_dropped() -> None:
    gateway, device, fellow, client = a_gateway()
    ready, question = device.ready(), client.ask()
    gateway.receive(A, ready, now=0)
    refused(gateway, A, ready, "replay", peer="pi-1")
    (query,) = published(gateway.receive(CA, question, now=0))
    before = state_of(gateway)
    assert gateway.receive(CA, question, now=1) == []
    assert state_of(gateway) == before
    for peer in (device, fellow):
        gateway.receive(peer.topic, peer.answer(query.payload, code(0)), now=1)
    gateway_is_unharmed(gateway, device, fellow)


def test_frames_of_a_former_session_are_dropped() -> None:
    gateway, former, fellow, _ = a_gateway()
    query = ask(gateway)
    old_answer, old_ready = former.answer(query, code(3)), former.ready()
    device = HandMember(life=1).join(gateway)
    refused(gateway, A, old_answer, "session", peer="pi-1")
    refused(gateway, A, old_ready, "session", peer="pi-1")
    gateway_is_unharmed(gateway, device, fellow)


def test_a_stranger_cannot_have_an_outcome_sent_again() -> None:
    gateway, device, fellow, client = a_gateway()
    question = client.ask()
    (query,) = published(gateway.receive(CA, question, now=0))
    for peer in (device, fellow):
        gateway.receive(peer.topic, peer.answer(query.payload, code(0)), now=0)
    # All of the header is known to whoever listens; the rest is guessed.
    refused(gateway, CA, question[:8] + bytes(17), "replay", peer="laptop-1")
    assert only_publish(gateway.receive(CA, question, now=1)).topic == CD


# Answers


def test_an_answer_to_a_query_that_was_never_asked_is_dropped() -> None:
    gateway, device, fellow, _ = a_gateway()
    query = ask(gateway)
    refused(gateway, A, device.answer(query, code(0), seq=2), "unknown_query", peer="pi-1")
    refused(gateway, A, device.answer(query, code(0), seq=0xFFFFFFFF), "unknown_query", peer="pi-1")
    gateway_is_unharmed(gateway, device, fellow)


def test_an_answer_to_another_query_than_its_header_says_does_not_open() -> None:
    gateway, device, fellow, _ = a_gateway()
    first, _ = ask(gateway), ask(gateway)
    refused(gateway, A, device.answer(first, code(0), seq=2), "seal", peer="pi-1")
    gateway_is_unharmed(gateway, device, fellow)


def test_a_second_answer_changes_nothing_whatever_it_says() -> None:
    policy = RoundPolicy(forms=frozenset({Form.LABEL, Form.PROBS_4}))
    gateway, device, fellow, _ = a_gateway(policy)
    query = ask(gateway)
    first = device.answer(query, code(0))
    gateway.receive(A, first, now=1)
    probabilities = votes.quantize(Form.PROBS_4, np.eye(4)[3], 0.0, scale=TASK.log_weight)
    for again in (
        first,
        device.answer(query, code(3)),
        device.answer(query, probabilities, form=Form.PROBS_4),
        device.answer(query, b"", form=Form.ABSTAIN),
    ):
        refused(gateway, A, again, "duplicate", peer="pi-1", seq=1)
    gateway.receive(fellow.topic, fellow.answer(query, code(0)), now=1)
    gateway_is_unharmed(gateway, device, fellow)


def test_an_answer_to_a_closed_query_is_late_and_then_a_duplicate() -> None:
    gateway, device, fellow, _ = a_gateway()
    query = ask(gateway)
    gateway.receive(A, device.answer(query, code(0)), now=1)
    gateway.tick(now=60 * SECOND)
    refused(gateway, A, device.answer(query, code(3)), "duplicate", peer="pi-1", seq=1)
    late = fellow.answer(query, code(3))
    assert gateway.receive(fellow.topic, late, now=60 * SECOND) == [
        Rejected(reason="late", peer="pi-2", seq=1)
    ]
    refused(gateway, fellow.topic, late, "duplicate", peer="pi-2", seq=1)
    gateway_is_unharmed(gateway, device, fellow, now=60 * SECOND)


def test_a_form_that_the_query_does_not_allow_is_dropped() -> None:
    gateway, device, fellow, _ = a_gateway()
    query = ask(gateway)
    rich = votes.quantize(Form.LOGITS_8, np.eye(4)[3], 0.0, scale=TASK.log_weight)
    refused(gateway, A, device.answer(query, rich, form=Form.LOGITS_8), "form", peer="pi-1")
    gateway_is_unharmed(gateway, device, fellow)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", bytes(3), b"\x04\0", b"\xff\xff"],
    ids=["empty", "short", "long", "class 4 of 4", "class 255"],
)
def test_a_vote_that_names_no_class_of_the_task_is_dropped(content: bytes) -> None:
    gateway, device, fellow, _ = a_gateway()
    query = ask(gateway)
    refused(gateway, A, device.answer(query, content), "vote", peer="pi-1", seq=1)
    gateway_is_unharmed(gateway, device, fellow)


def test_a_vote_over_another_number_of_classes_is_dropped() -> None:
    gateway, device, fellow, _ = a_gateway(RoundPolicy(forms=frozenset({Form.LOGITS_8})))
    query = ask(gateway)
    for classes in (3, 5, 4096):
        content = b"\xff" + bytes(classes)
        refused(gateway, A, device.answer(query, content, form=Form.LOGITS_8), "vote", peer="pi-1", seq=1)
    honest = votes.quantize(Form.LOGITS_8, np.eye(4)[1], 0.0, scale=TASK.log_weight)
    assert gateway.receive(A, device.answer(query, honest, form=Form.LOGITS_8), now=2) == []
    assert fellow.session is not None


def test_a_weight_cannot_exceed_the_tasks_scale() -> None:
    gateway, device, fellow, _ = a_gateway()
    for its in (device, fellow):
        its.trust = Trust.DEVICE
        its.join(gateway)
    query = ask(gateway)
    gateway.receive(A, device.answer(query, b"\x03\xff"), now=1)
    effects = gateway.receive(fellow.topic, fellow.answer(query, code(1)), now=1)
    (outcome,) = [effect.outcome for effect in effects if isinstance(effect, Deliver)]
    highest = TASK.log_weight[1]
    assert [vote.log_weight for vote in outcome.votes] == [highest, highest]
    assert outcome.probabilities[3] == pytest.approx(outcome.probabilities[1])
    assert all(isinstance(vote, Vote) for vote in outcome.votes)


# Sizes


def huge(rank: int, size: int = 0xFFFFFFFF) -> bytes:
    """A tensor that claims to be enormous, in a few bytes."""
    return bytes([2, rank]) + struct.pack(f">{rank}I", *[size] * rank) + b"\x01\x02"


@pytest.mark.parametrize(
    "tensor",
    [
        huge(8),
        huge(1),
        huge(2, 0x10000),
        huge(9, 1),
        huge(0),
        huge(1, 0),
        huge(255, 1),
        b"\x09" + huge(1)[1:],
    ],
    ids=["2^256", "2^32", "2^32 squared", "rank 9", "rank 0", "nothing", "rank 255", "no such dtype"],
)
def test_huge_dimensions_are_refused_by_arithmetic(tensor: bytes) -> None:
    device, by_hand = a_device()
    query = struct.pack(">BHI8s", 1, 2, 2000, bytes(8))
    refused(device, Q, by_hand.query(1, plaintext=query + tensor), "payload")
    refused(device, Q, by_hand.query(1, plaintext=query[:9]), "payload")
    device_is_unharmed(device, by_hand)
    gateway, peer, fellow, client = a_gateway()
    assert client.session is not None
    question = client.session.seal(Type.ASK, struct.pack(">BI", 1, 2000) + tensor)
    reply = only_publish(gateway.receive(CA, question, now=1))
    assert client.open(reply.payload)[1].status is Status.REFUSED
    gateway_is_unharmed(gateway, peer, fellow)


def test_a_query_whose_deadline_is_beyond_a_day_is_refused() -> None:
    device, gateway = a_device()
    refused(device, Q, gateway.query(1, deadline_ms=86_400_001), "payload")
    device_is_unharmed(device, gateway)


# Presence


def test_a_flood_of_forged_gateway_states_keeps_hellos_at_their_distance() -> None:
    device, _ = a_device()
    hellos = 0
    for step in range(20_000):
        now = step * 1000
        assert device.receive(G, b"ready %08x" % step, now=now) == []
        hellos += len(published(device.tick(now=now)))
    assert hellos <= 1 + 20 * SECOND // FIRST_RETRY_US


def test_a_flood_of_forged_gateway_states_costs_a_client_ever_fewer_hellos() -> None:
    client, gateway = a_client()
    hellos = []
    for now in range(0, 300 * SECOND, SECOND // 20):
        assert client.receive(G, b"ready %08x" % now, now=now) == []
        for message in published(client.tick(now=now)):
            hellos.append(now)
            gateway.entropy = Stream(f"at {now}")
            client.receive(CD, gateway.welcome(message.payload), now=now)
    # 1, 2, 4, 8, 16 s of doubt, then 30 s each, and no sooner than the window allows.
    assert 5 <= len(hellos) <= 7 + 300 // 30
    gaps = [later - sooner for sooner, later in pairwise(hellos[5:])]
    assert gaps and min(gaps) >= 16 * SECOND
    question = only_publish(client.ask(TASK, TENSOR, deadline_ms=5000, reference="me", now=300 * SECOND))
    assert gateway.open(question.payload)
    outcome = gateway.outcome(0, ANSWERED)
    assert client.receive(CD, outcome, now=300 * SECOND) == [Deliver("me", ANSWERED)]


def test_a_flood_of_forged_gateway_states_costs_a_client_no_question() -> None:
    federation = Federation([constant(5, 0, 0, 0)] * 2, clients=1).join()
    federation.fleet.nodes["pi-1"].infer_us = 1_000_000

    def flood(boot: int = 1) -> None:
        federation.inject("gateway/state", b"ready %08x" % boot)
        federation.fleet.clock.at(federation.fleet.clock.now + 50_000, lambda: flood(boot + 1))

    flood()
    for number in range(20):
        federation.client_asks(number)
        federation.fleet.run(6)
    outcomes = federation.fleet.nodes["laptop-1"].outcomes
    assert [outcomes[number].status for number in range(20)] == [Status.ANSWERED] * 20
    # Its first, five while doubt grows to half a minute, then one each half minute.
    assert len(federation.frames("ca", Type.HELLO)) <= 1 + 6 + 120 // 30


def test_a_flood_of_forged_gateway_states_does_not_stop_slow_models_from_answering() -> None:
    federation = Federation([constant(5, 0, 0, 0)] * 2).join()
    for name in federation.names:
        federation.fleet.nodes[name].infer_us = 1_000_000

    def flood(boot: int = 1) -> None:
        federation.inject("gateway/state", b"ready %08x" % boot)
        federation.fleet.clock.at(federation.fleet.clock.now + 50_000, lambda: flood(boot + 1))

    flood()
    counted = [len(federation.ask().members(Fate.COUNTED)) for _ in range(10)]
    assert sum(counted) >= 18
    assert len(federation.frames("a", Type.HELLO)) <= 2 * (1 + 18)


def test_a_poisoned_gateway_state_that_is_retained_costs_a_hello_and_no_round() -> None:
    federation = Federation([constant(5, 0, 0, 0)] * 2, clients=1).join()
    federation.inject("gateway/state", b"ready 0badb007", retain=True)
    federation.fleet.run(5)
    for name in (*federation.names, "laptop-1"):
        federation.fleet.disconnect(name)
        federation.fleet.connect(name)
    federation.fleet.run(60)
    assert federation.ask().members(Fate.COUNTED) == ("pi-1", "pi-2")
    # Each device's first, and one for the poison as it came; by then the gateway has corrected it.
    assert len(federation.frames("a", Type.HELLO)) == 2 * 2
    assert federation.fleet.published.count((G, b"ready 0badb007")) == 1


def test_a_gateway_state_overwritten_after_a_restart_does_not_keep_the_fleet_out() -> None:
    federation = Federation([constant(5, 0, 0, 0)] * 2).join()
    for name in federation.names:
        federation.fleet.disconnect(name)
    federation.restart_gateway()
    federation.fleet.run(1)
    federation.inject("gateway/state", b"lost", retain=True)
    federation.fleet.run(1)
    for name in federation.names:
        federation.fleet.connect(name)
    federation.fleet.run(5)
    assert federation.ask().members(Fate.COUNTED) == ("pi-1", "pi-2")


def test_a_gateway_state_poisoned_again_and_again_is_true_in_the_end() -> None:
    federation = Federation([]).join()
    for boot in range(20):
        federation.inject("gateway/state", b"ready %08x" % boot, retain=True)
        federation.fleet.run(0.1)
    federation.fleet.run(2)
    true = federation.gateway.connected(now=0)[0]
    assert isinstance(true, Publish) and federation.fleet.published[-1] == (G, true.payload)
    assert federation.fleet.published.count((G, true.payload)) <= 1 + 4


def test_a_poisoned_presence_is_corrected_and_not_believed() -> None:
    federation = Federation([constant(5, 0, 0, 0)]).join()
    for word in (b"lost", b"disconnected", b"init", b"\xff" * 1000, b'{"state": "ready"}'):
        federation.inject("s/pi-1", word, retain=True)
        federation.fleet.run(2)
        assert federation.fleet.published[-1] == (S, b"ready")
        assert federation.ask().members(Fate.COUNTED) == ("pi-1",)


def test_a_flood_of_forged_presences_is_corrected_once_a_second() -> None:
    device, gateway = a_device()
    corrections = 0
    for now in range(0, 10 * SECOND, 1000):
        corrections += len(device.receive(S, b"lost", now=now)) + len(device.tick(now=now))
    assert corrections == 10
    device_is_unharmed(device, gateway)


@pytest.mark.parametrize(
    "state", [b"ready", b"ready ", b"ready zzzzzzzz", b"ready 1234567\xff", b"READY 12345678"]
)
def test_a_gateway_state_that_is_none_causes_nothing(state: bytes) -> None:
    device, gateway = a_device()
    before = state_of(device)
    assert device.receive(G, state, now=1) == []
    assert state_of(device) == before
    device_is_unharmed(device, gateway)


def test_a_presence_of_a_member_in_unknown_words_is_dropped() -> None:
    gateway, device, fellow, _ = a_gateway()
    for word in (b"ready ", b"\xff", b"ready\nlost", b"x" * 100_000):
        refused(gateway, S, word, "presence")
    gateway_is_unharmed(gateway, device, fellow)


@pytest.mark.parametrize("name", ["pi-1", "pi-2", "stranger", "laptop-1"])
def test_a_presence_that_was_removed_is_no_presence_and_changes_nothing(name: str) -> None:
    gateway, device, fellow, _ = a_gateway()
    before = state_of(gateway)
    assert gateway.receive(f"fi1/acme/s/{name}", b"", now=1) == []
    assert state_of(gateway) == before
    gateway_is_unharmed(gateway, device, fellow)


# What it costs to refuse


def test_a_flood_of_hellos_from_a_stranger_costs_one_dh_a_member_and_no_memory(dh_calls: list[bytes]) -> None:
    gateway, stream = lone_gateway("pi-1", "pi-2"), Stream("flood")
    honest = HandMember().hello()
    dh_calls.clear()
    for _ in range(500):
        for topic, index in ((A, 1), ("fi1/acme/a/pi-2", 2)):
            forged = frames.build_handshake_header(Type.HELLO, index) + stream(32 + 17 + 16 + 8)
            refused(gateway, topic, forged, "mac", peer=topic[-4:])
    assert dh_calls == [key_pair("pi-1").public, key_pair("pi-2").public]
    assert only_publish(gateway.receive(A, honest, now=1)).topic == D


def test_a_flood_of_other_forged_frames_costs_no_dh_at_all(dh_calls: list[bytes]) -> None:
    gateway, device, fellow, client = a_gateway()
    query = ask(gateway)
    frames_ = [device.answer(query, code(0)), device.ready(), client.ask()]
    dh_calls.clear()
    for frame, topic in zip(frames_, (A, A, CA), strict=True):
        for _, flipped in flips(frame):
            gateway.receive(topic, flipped, now=1)
    assert dh_calls == []
    gateway_is_unharmed(gateway, device, fellow)


def test_a_welcome_that_comes_before_the_hello_was_sent_costs_no_dh(dh_calls: list[bytes]) -> None:
    device, gateway = a_device()
    client, clients_gateway = a_client()
    assert gateway.session is not None and clients_gateway.session is not None
    device.receive(G, b"ready 00000001", now=1)
    client.receive(G, b"ready 00000001", now=1)
    strays = HandGateway().welcome(HandMember(life=1).hello()), clients_gateway.session.welcome
    dh_calls.clear()
    for _ in range(50):
        refused(device, D, strays[0], "unexpected")
        refused(client, CD, strays[1], "unexpected")
    assert dh_calls == []
    device_is_unharmed(device, gateway)


def test_a_flood_of_replayed_hellos_of_a_waiting_device_costs_no_more_dh(dh_calls: list[bytes]) -> None:
    gateway, hello = lone_gateway(), HandMember().hello()
    gateway.receive(A, hello, now=0)
    dh_calls.clear()
    welcomes = {only_publish(gateway.receive(A, hello, now=now)).payload for now in range(100)}
    assert dh_calls == [] and len(welcomes) == 1


# Low-order keys (https://cr.yp.to/ecdh.html#validate)

P = 2**255 - 19
LOW_ORDER = [
    n.to_bytes(32, "little")
    for n in (
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        P - 1,
        P,
        P + 1,
    )
]


@pytest.mark.parametrize("public", LOW_ORDER, ids=["0", "1", "order 8", "order 8'", "p-1", "p", "p+1"])
def test_a_key_of_low_order_is_refused_wherever_it_comes(public: bytes) -> None:
    weak = Member(id="pi-2", index=2, role="device", public=public)
    gateway = Gateway(
        gateway_identity(),
        Roster(members=(member("pi-1", 1), weak)),
        [TASK],
        Stream("gateway"),
    )
    # As a member's ephemeral key, with a true mac.
    insider = HandMember()
    maced = frames.build_handshake_header(Type.HELLO, 1) + public + bytes(17 + 16)
    refused(gateway, A, maced + hello_mac(insider.joiner._mac_key, maced), "key", peer="pi-1")
    # As a member's static key in the roster.
    refused(gateway, "fi1/acme/a/pi-2", HandMember("pi-2", 2).hello(), "key", peer="pi-2")
    insider.join(gateway)
    gateway_is_unharmed(gateway, insider)
    # As the gateway's ephemeral key, in a forged WELCOME.
    device, by_hand = lone_device(), HandGateway()
    _, hello = device.connected(now=0)
    assert isinstance(hello, Publish)
    forged = frames.build_handshake_header(Type.WELCOME, 1) + public + bytes(51 + 16)
    refused(device, D, forged, "key")
    device.receive(D, by_hand.welcome(hello.payload), now=1)
    device_is_unharmed(device, by_hand)
    # As the gateway's static key: no device is even made.
    true = identity("pi-1", 1)
    fooled = Identity(
        federation=true.federation,
        role="device",
        id="pi-1",
        index=1,
        static=true.static,
        gateway_static=public,
    )
    with pytest.raises(SealError, match="key"):
        Device(fooled, labelling(), Stream("fooled"))


# Another gateway


def test_a_device_believes_no_gateway_but_its_own() -> None:
    device, true = lone_device(), HandGateway()
    _, hello = device.connected(now=0)
    assert isinstance(hello, Publish)
    false = HandGateway(life=1)
    false.identity = gateway_identity("false gateway")
    false.peer = edge_fi.session.Peer(member("pi-1", 1), false.identity)
    with pytest.raises(SealError, match="mac"):
        false.welcome(hello.payload)
    refused(device, Q, false.query(1), "epoch")  # whose signature to expect, the WELCOME says
    stranger = HandMember()
    stranger.joiner = edge_fi.session.Joiner(to_gateway(false), b"", Stream("x"))
    refused(device, D, false.welcome(stranger.hello()), "seal")
    device.receive(D, true.welcome(hello.payload), now=1)
    refused(device, Q, false.query(1), "signature")
    refused(device, Q, false.query(1, epoch=true.epoch), "signature")
    refused(device, D, false.rekey(), "seal")
    device_is_unharmed(device, true)


def to_gateway(gateway: HandGateway) -> Identity:
    """pi-1, as it would be had it been invited by this gateway."""
    true = identity("pi-1", 1)
    return Identity(
        federation=true.federation,
        role="device",
        id="pi-1",
        index=1,
        static=true.static,
        gateway_static=gateway.identity.static.public,
    )


def test_a_query_of_another_federation_does_not_verify() -> None:
    device, gateway = a_device()
    genuine = gateway.query(1)
    signed = genuine[:-64]
    elsewhere = signed + seal.sign_query(gateway.identity.signing, "other", signed)
    refused(device, Q, elsewhere, "signature")
    device_is_unharmed(device, gateway, seq=1)


def test_a_device_of_another_federation_is_a_stranger() -> None:
    gateway, device, fellow, _ = a_gateway()
    true = identity("pi-1", 1)
    elsewhere = HandMember()
    elsewhere.joiner = edge_fi.session.Joiner(
        Identity(
            federation="other",
            role="device",
            id="pi-1",
            index=1,
            static=true.static,
            gateway_static=true.gateway_static,
        ),
        b"",
        Stream("elsewhere"),
    )
    refused(gateway, A, elsewhere.hello(), "mac", peer="pi-1")
    gateway_is_unharmed(gateway, device, fellow)


# Secrets


def test_no_secret_shows_in_a_repr() -> None:
    device, gateway = a_device()
    assert gateway.session is not None
    secrets = [
        gateway.key,
        gateway.session.keys.answer,
        gateway.session.keys.up,
        gateway.identity.static.private,
        gateway.identity.signing.seed,
        device.identity.static.private,
    ]
    things: list[Any] = [
        device.identity,
        gateway.identity,
        gateway.session,
        gateway.epoch,
        gateway.session.keys,
    ]
    shown = repr(things) + repr(vars(device)) + repr(vars(lone_gateway())["_epochs"])
    for secret in secrets:
        assert repr(secret)[2:-1] not in shown and secret.hex() not in shown


def test_an_epoch_key_shows_in_no_repr() -> None:
    gateway = lone_gateway()
    welcomed = HandMember().join(gateway).welcomed
    assert welcomed is not None
    assert repr(welcomed.epoch_key)[2:-1] not in repr(welcomed) + repr(gateway._epochs)
