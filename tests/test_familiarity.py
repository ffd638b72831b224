"""Gates over the wire: who says how familiar a device is with a query, and what follows for the outcome."""

from collections.abc import Sequence

import numpy as np
import pytest
from federation import (
    HandGateway,
    HandMember,
    code,
    identity,
    labelling,
    lone_device,
    lone_gateway,
    only_infer,
    only_publish,
    outcome_of,
    published,
    roster_of,
    without,
)
from gates import MAP, OTHER_MAP, PLACES, at, content, gate, weight

from edge_fi.client import Client
from edge_fi.device import Device, OwnGate
from edge_fi.effects import Deliver, Effect, Joined, Rejected
from edge_fi.gateway import AGAIN_US, Gateway
from edge_fi.messages import VOTE_FORMS, Fate, Form, Outcome, Status, Tensor, Trust
from edge_fi.round import RoundPolicy
from edge_fi.voting.gate import gate_digest
from edge_fi.wire import frames, payloads, votes
from edge_fi.wire.frames import Type
from edge_fi.wire.payloads import Feedback
from firmware_sim.stream import Stream

A, D = "fi1/acme/a/pi-1", "fi1/acme/d/pi-1"


def gateway_of(*names: str, policy: RoundPolicy | None = None, clients: Sequence[str] = ()) -> Gateway:
    """A gateway of the task that has a map."""
    return lone_gateway(*names, policy=policy, clients=clients, task=PLACES, features=MAP)


def own(x: float, *, is_registered: bool = True) -> OwnGate:
    """The gate of a device whose data lie there."""
    return OwnGate(gate=gate(x), features=MAP, is_registered=is_registered)


def device_at(x: float, *, is_registered: bool = True, life: int = 0) -> Device:
    """A device pi-1 whose data lie there, as the product makes it."""
    its = own(x, is_registered=is_registered)
    return lone_device(life=life, its=labelling(task=PLACES), gate=its)


def kinds(effects: Sequence[Effect]) -> list[Type]:
    """Of the frames among these effects."""
    return [Type(message.payload[0]) for message in published(effects) if not message.retain]


def meet(device: Device, gateway: Gateway, *, now: int = 0) -> list[Type]:
    """A session of the product's machines; what the device said behind its HELLO."""
    hello = next(its for its in published(device.connected(now=now)) if its.topic == A)
    welcome = only_publish(gateway.receive(A, hello.payload, now=now))
    said = device.receive(D, welcome.payload, now=now)
    for message in published(said):
        if message.topic == A:
            assert not any(isinstance(one, Rejected) for one in gateway.receive(A, message.payload, now=now))
    return kinds(said)


def hand(name: str = "pi-1", index: int = 1, *, trust: Trust = Trust.NOBODY, x: float = 0) -> HandMember:
    """A device by hand, that would register a gate at x."""
    member = HandMember(name, index)
    member.trust, member.gate = trust, content(x) if trust is Trust.GATE else b""
    return member


def joined(gateway: Gateway, member: HandMember, *, registers: bool = True) -> HandMember:
    """HELLO, WELCOME, READY, and GATE where that is wanted."""
    hello = member.hello(task=PLACES)
    member.welcome(only_publish(gateway.receive(member.topic, hello, now=0)).payload)
    gateway.receive(member.topic, member.ready(), now=0)
    assert member.welcomed is not None
    if member.welcomed.wants_gate and registers:
        assert gateway.receive(member.topic, member.registration(), now=0) == []
    return member


def ask(gateway: Gateway, tensor: Tensor, *, policy: RoundPolicy | None = None) -> bytes:
    """The QUERY frame of a question."""
    return only_publish(gateway.ask(1, tensor, reference="me", now=1, policy=policy)).payload


def outcome(gateway: Gateway, tensor: Tensor, *said: tuple[HandMember, bytes]) -> Outcome:
    """What comes of a query that these answer with these codes."""
    query = ask(gateway, tensor)
    effects: list[Effect] = []
    for member, its in said:
        effects += gateway.receive(member.topic, member.answer(query, its), now=2)
    return outcome_of(effects)


# A registered gate


def test_a_hello_names_the_gate_and_the_device_registers_it_behind_its_ready() -> None:
    gateway, device = gateway_of(), device_at(3)
    assert meet(device, gateway) == [Type.READY, Type.GATE]
    assert gateway.panels[1].familiarity(at(3)) == {1: pytest.approx(weight(3, at(3)), rel=1e-6)}
    covered = gateway.panels[1].coverage(1)
    assert covered is not None and covered.tolist() == [10, 0, 0, 0]


def test_a_gate_that_the_gateway_has_is_not_asked_for_again() -> None:
    gateway = gateway_of()
    meet(device_at(3), gateway)
    assert meet(device_at(3, life=1), gateway) == [Type.READY]
    assert gateway.panels[1].familiarity(at(3))[1] > -10


def test_a_changed_gate_is_asked_for_and_takes_the_place_of_the_one_before() -> None:
    gateway = gateway_of()
    meet(device_at(3), gateway)
    assert meet(device_at(90, life=1), gateway) == [Type.READY, Type.GATE]
    assert gateway.panels[1].familiarity(at(3)) == {1: -np.inf}


def test_another_run_of_the_gateway_knows_no_gate_and_asks_for_it() -> None:
    meet(device_at(3), gateway_of())
    assert meet(device_at(3, life=1), gateway_of()) == [Type.READY, Type.GATE]


def test_a_registered_gate_weighs_a_vote_and_its_claim_does_not() -> None:
    gateway = gateway_of("pi-1", "pi-2")
    near = joined(gateway, hand(trust=Trust.GATE, x=20))
    far = joined(gateway, hand("pi-2", 2, trust=Trust.GATE, x=32))
    its = outcome(gateway, at(20), (near, code(0, weight=-40)), (far, code(1, weight=10)))
    assert [vote.log_weight for vote in its.votes] == pytest.approx([weight(20, at(20)), weight(32, at(20))])
    assert (its.status, its.label) == (Status.ANSWERED, 0)
    other = outcome(gateway, at(32), (near, code(0, weight=10)), (far, code(1, weight=-40)))
    assert other.label == 1


def test_a_device_whose_gate_was_refused_or_is_lost_has_no_known_weight() -> None:
    gateway = gateway_of("pi-1", "pi-2")
    near = joined(gateway, hand(trust=Trust.GATE, x=20))
    silent = joined(gateway, hand("pi-2", 2, trust=Trust.GATE, x=20), registers=False)
    its = outcome(gateway, at(20), (near, code(0)), (silent, code(1)))
    assert np.isnan(its.votes[1].log_weight) and its.votes[1].coverage is None
    assert np.isfinite(its.votes[0].log_weight) and its.votes[0].coverage is not None


def test_a_lost_gate_comes_again_with_the_resent_welcome() -> None:
    gateway, device = gateway_of(), device_at(3)
    hello = next(its for its in published(device.connected(now=0)) if its.topic == A).payload
    welcome = only_publish(gateway.receive(A, hello, now=0)).payload
    ready, _, *_ = published(device.receive(D, welcome, now=0))
    gateway.receive(A, ready.payload, now=0)
    again = only_publish(gateway.tick(now=AGAIN_US[0]))
    assert again.payload == welcome
    said = device.receive(D, again.payload, now=AGAIN_US[0])
    assert kinds(said) == [Type.READY, Type.GATE]
    for message in published(said):
        assert gateway.receive(A, message.payload, now=AGAIN_US[0]) == []
    assert list(gateway.panels[1].familiarity(at(3))) == [1]
    assert gateway.tick(now=sum(AGAIN_US)) == []


def test_a_device_that_never_sends_its_gate_is_asked_three_times_and_then_left_alone() -> None:
    gateway = gateway_of()
    joined(gateway, hand(trust=Trust.GATE, x=3), registers=False)
    due, sent = 0, 0
    for wait in AGAIN_US:
        due += wait
        sent += len(published(gateway.tick(now=due)))
    assert sent == 3
    assert gateway.tick(now=due + 60_000_000) == []


def test_a_gate_makes_a_session_current_where_the_ready_was_lost() -> None:
    gateway, member = gateway_of(), hand(trust=Trust.GATE, x=3)
    member.welcome(only_publish(gateway.receive(A, member.hello(task=PLACES), now=0)).payload)
    assert gateway.receive(A, member.registration(), now=0) == [Joined("pi-1", frozenset())]
    assert gateway.online(1) == ("pi-1",)


REFUSED = Rejected(reason="gate", peer="pi-1")


@pytest.mark.parametrize(
    "spoilt",
    [
        b"G",
        content(3)[:-1],
        content(3) + b"\0",
        gate(3, classes=3).encode(MAP),
        content(3)[:3] + OTHER_MAP.digest + content(3)[11:],
    ],
    ids=["nothing", "cut", "long", "classes", "map"],
)
def test_a_gate_that_is_none_is_refused_and_the_one_before_stays(spoilt: bytes) -> None:
    gateway, member = gateway_of(), hand(trust=Trust.GATE, x=3)
    joined(gateway, member)
    before = gateway.panels[1].familiarity(at(3))
    assert gateway.receive(A, member.registration(spoilt), now=1) == [REFUSED]
    assert gateway.panels[1].familiarity(at(3)) == before


@pytest.mark.parametrize("trust", [Trust.NOBODY, Trust.DEVICE])
def test_a_gate_of_a_device_that_said_it_registers_none_is_refused(trust: Trust) -> None:
    gateway, member = gateway_of(), hand(trust=trust)
    joined(gateway, member)
    assert gateway.receive(A, member.registration(content(3)), now=1) == [REFUSED]
    assert gateway.panels[1].familiarity(at(3)) == {}


def test_a_gateway_whose_task_has_no_map_refuses_every_gate() -> None:
    gateway, member = lone_gateway(task=PLACES), hand(trust=Trust.GATE, x=3)
    member.welcome(only_publish(gateway.receive(A, member.hello(task=PLACES), now=0)).payload)
    gateway.receive(A, member.ready(), now=0)
    assert gateway.receive(A, member.registration(), now=1) == [REFUSED]


def test_a_refused_gate_is_not_asked_for_again_in_that_session() -> None:
    gateway, member = gateway_of(), hand(trust=Trust.GATE, x=3)
    joined(gateway, member, registers=False)
    assert gateway.receive(A, member.registration(b"no gate"), now=1) == [REFUSED]
    assert gateway.tick(now=AGAIN_US[0]) == []


def test_a_session_without_a_gate_takes_away_the_one_of_the_session_before() -> None:
    gateway = gateway_of()
    meet(device_at(3), gateway)
    assert meet(device_at(3, is_registered=False, life=1), gateway) == [Type.READY]
    assert gateway.panels[1].familiarity(at(3)) == {}
    assert meet(device_at(3, life=2), gateway) == [Type.READY, Type.GATE]


def test_the_gate_of_a_revoked_member_is_gone() -> None:
    gateway = gateway_of("pi-1", "pi-2")
    joined(gateway, hand(trust=Trust.GATE, x=3))
    joined(gateway, hand("pi-2", 2, trust=Trust.GATE, x=90))
    gateway.update(without(roster_of("pi-1", "pi-2"), "pi-1"), now=1)
    assert list(gateway.panels[1].familiarity(at(3))) == [2]


def test_a_client_registers_nothing() -> None:
    gateway = gateway_of(clients=["laptop-1"])
    client = HandMember("laptop-1", 101, "client").join(gateway, ready=False)
    effects = gateway.receive(client.topic, client.registration(content(3)), now=1)
    assert effects == [Rejected(reason="direction", peer="laptop-1")]


# GATE frames of strangers


def test_a_replayed_or_altered_gate_is_refused_and_changes_nothing() -> None:
    gateway, member = gateway_of(), hand(trust=Trust.GATE, x=3)
    joined(gateway, member, registers=False)
    frame = member.registration()
    altered = [frame[:n] + bytes([frame[n] ^ 1]) + frame[n + 1 :] for n in range(len(frame))]
    for n, its in enumerate(altered):
        (effect,) = gateway.receive(A, its, now=1)
        assert isinstance(effect, Rejected), n
    assert gateway.panels[1].familiarity(at(3)) == {}
    assert gateway.receive(A, frame, now=1) == []
    member.gate = content(90)
    assert gateway.receive(A, member.registration(), now=1) == []
    assert gateway.receive(A, frame, now=2) == [Rejected(reason="replay", peer="pi-1")]
    assert gateway.panels[1].familiarity(at(3)) == {1: -np.inf}


def test_a_gate_of_a_session_before_is_refused() -> None:
    gateway, member = gateway_of(), hand(trust=Trust.GATE, x=3)
    joined(gateway, member)
    old = member.registration(content(90))
    joined(gateway, member)
    assert gateway.receive(A, old, now=1) == [Rejected(reason="session", peer="pi-1")]


def test_a_gate_is_under_the_key_of_frames_to_the_gateway_and_no_device_takes_one() -> None:
    gateway, device = HandGateway(), lone_device()
    hello = next(its for its in published(device.connected(now=0)) if its.topic == A).payload
    device.receive(D, gateway.welcome(hello), now=0)
    assert gateway.session is not None
    frame = gateway.session.seal(Type.GATE, content(3))
    assert device.receive(D, frame, now=0) == [Rejected(reason="direction")]


def test_a_flood_of_gates_leaves_one_gate_and_no_more_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway, member = gateway_of(), hand(trust=Trust.GATE, x=3)
    joined(gateway, member)
    made = []
    monkeypatch.setattr("edge_fi.voting.panel.Gates", lambda *of: made.append(of))
    for x in range(100):
        assert gateway.receive(A, member.registration(content(x)), now=1) == []
    assert made == []  # they are put together when a query needs them, not with each frame
    assert len(gateway.panels[1]._registered) == 1
    assert gateway.next_deadline() is not None and len(gateway._wakes) < 5


# A private gate


def test_a_device_with_a_private_gate_says_so_and_claims_its_familiarity() -> None:
    its = device_at(20, is_registered=False)
    gateway = HandGateway()
    hello = next(one for one in published(its.connected(now=0)) if one.topic == A).payload
    body, _ = gateway.peer.read_hello(hello, entropy=Stream("dice"))
    assert payloads.decode_hello(body).trust is Trust.DEVICE
    assert payloads.decode_hello(body).gate == bytes(4)


def answered_code(device: Device, tensor: Tensor) -> bytes:
    """The code of the label vote that it gives."""
    gateway = HandGateway()
    hello = next(one for one in published(device.connected(now=0)) if one.topic == A).payload
    device.receive(D, gateway.welcome(hello), now=0)
    query = gateway.query(1, tensor=tensor)
    infer = only_infer(device.receive("fi1/acme/q/1", query, now=1))
    (answer,) = published(device.inferred(infer.ticket, np.array([9.0, 0, 0, 0]), now=2))
    return gateway.open_answer(answer.payload, query)[1]


def test_a_claim_is_what_the_gate_says_in_the_tasks_scale() -> None:
    low, high = PLACES.log_weight
    for tensor in (at(20), at(26), at(28)):
        step = round((weight(20, tensor) - low) / (high - low) * 31)
        assert 0 < step < 31
        assert answered_code(device_at(20, is_registered=False), tensor)[1] & 31 == step


def test_an_unfamiliar_query_is_claimed_by_the_lowest_code() -> None:
    assert answered_code(device_at(20, is_registered=False), at(200))[1] & 31 == 0


def test_a_device_whose_gate_is_registered_claims_nothing() -> None:
    codes = {answered_code(device_at(20), tensor)[1] & 31 for tensor in (at(20), at(200))}
    assert len(codes) == 1


def test_the_claim_of_a_private_gate_weighs_its_vote_and_the_lowest_is_none() -> None:
    gateway = gateway_of("pi-1", "pi-2", "pi-3")
    devices = [joined(gateway, hand(f"pi-{n}", n, trust=Trust.DEVICE)) for n in (1, 2, 3)]
    weights = (-2, 8, -40)
    said = [(its, votes_for(n, weight=w)) for n, (its, w) in enumerate(zip(devices, weights, strict=True))]
    its = outcome(gateway, at(0), *said)
    assert its.label == 1
    assert [vote.log_weight for vote in its.votes][2] == -np.inf
    assert its.votes[0].log_weight < its.votes[1].log_weight < 10
    assert all(vote.coverage is None for vote in its.votes)


def votes_for(label: int, *, weight: float) -> bytes:
    """A label vote, with this claim on the scale of the task."""

    return votes.quantize(Form.LABEL, np.eye(4)[label], weight, scale=PLACES.log_weight)


def test_the_claim_of_a_device_without_a_gate_is_ignored() -> None:
    gateway = gateway_of()
    its = outcome(gateway, at(0), (joined(gateway, hand()), votes_for(2, weight=10)))
    assert np.isnan(its.votes[0].log_weight) and its.label == 2


def test_a_gate_must_be_of_the_map() -> None:
    with pytest.raises(ValueError, match="another feature map"):
        OwnGate(gate=gate(3), features=OTHER_MAP, is_registered=True)


def test_what_is_registered_is_named_by_its_digest() -> None:
    assert own(3).name == gate_digest(content(3))[:4]
    assert own(3, is_registered=False).name == bytes(4)
    assert (own(3).trust, own(3, is_registered=False).trust) == (Trust.GATE, Trust.DEVICE)


# Rounds without a label


def test_where_nobody_is_familiar_with_a_query_the_round_abstains() -> None:
    gateway = gateway_of("pi-1", "pi-2")
    registered = joined(gateway, hand(trust=Trust.GATE, x=3))
    private = joined(gateway, hand("pi-2", 2, trust=Trust.DEVICE))
    its = outcome(gateway, at(200), (registered, code(0)), (private, votes_for(1, weight=-40)))
    assert (its.status, its.label, its.reason) == (Status.ABSTAINED, None, "unfamiliar")
    assert (its.probabilities, its.strategy, its.label_set) == ((), "", ())
    assert its.members(Fate.COUNTED) == ("pi-1", "pi-2") and len(its.votes) == 2


def test_one_that_is_familiar_suffices() -> None:
    gateway = gateway_of("pi-1", "pi-2")
    near = joined(gateway, hand(trust=Trust.GATE, x=100))
    far = joined(gateway, hand("pi-2", 2, trust=Trust.GATE, x=3))
    its = outcome(gateway, at(100), (near, code(3)), (far, code(0)))
    assert (its.status, its.label, its.reason) == (Status.ANSWERED, 3, "")


def test_where_all_abstained_they_declined() -> None:
    gateway = gateway_of()
    member = joined(gateway, hand())
    query = ask(gateway, at(0))
    its = outcome_of(gateway.receive(A, member.answer(query, b"", form=Form.ABSTAIN), now=2))
    assert (its.status, its.reason) == (Status.ABSTAINED, "declined")


def test_below_the_least_confidence_the_round_is_unsure_and_tells_what_it_has() -> None:
    gateway = gateway_of("pi-1", "pi-2", policy=RoundPolicy(least_confidence=0.9, strategy="linear"))
    one, other = joined(gateway, hand()), joined(gateway, hand("pi-2", 2))
    its = outcome(gateway, at(0), (one, code(0)), (other, code(1)))
    assert (its.status, its.label, its.reason) == (Status.ABSTAINED, None, "unsure")
    assert its.strategy == "linear" and sum(its.probabilities) == pytest.approx(1)
    agreed = outcome(gateway, at(0), (one, code(0)), (other, code(0)))
    assert (agreed.status, agreed.label) == (Status.ANSWERED, 0)


@pytest.mark.parametrize("least", [-0.1, 1.0, float("nan")])
def test_a_least_confidence_that_is_none_is_refused(least: float) -> None:
    with pytest.raises(ValueError, match="least_confidence"):
        RoundPolicy(least_confidence=least)


# Feedback


def told(gateway: Gateway) -> Outcome:
    """A round that was pooled."""
    return outcome(gateway, at(0), (joined(gateway, hand()), code(2)))


def test_feedback_on_a_query_that_was_pooled_is_taken_once() -> None:
    gateway = gateway_of()
    its = told(gateway)
    assert gateway.learn(its.epoch, its.seq, 2).status is Status.ANSWERED
    assert gateway.learn(its.epoch, its.seq, 2).status is Status.REFUSED


def test_feedback_with_a_label_that_is_none_is_refused_and_a_right_one_is_still_taken() -> None:
    gateway = gateway_of()
    its = told(gateway)
    assert gateway.learn(its.epoch, its.seq, 4).status is Status.REFUSED
    assert gateway.learn(its.epoch, its.seq, 3).status is Status.ANSWERED


def test_feedback_on_a_query_that_nobody_knows_is_refused() -> None:
    gateway = gateway_of()
    its = told(gateway)
    for epoch, seq in ((its.epoch ^ 1, its.seq), (its.epoch, its.seq + 1), (0, 0)):
        assert gateway.learn(epoch, seq, 2) == Outcome(status=Status.REFUSED, epoch=epoch, seq=seq)


def test_a_clients_feedback_gets_an_outcome_and_its_copy_the_same() -> None:
    gateway = gateway_of(clients=["laptop-1"])
    its = told(gateway)
    client = HandMember("laptop-1", 101, "client").join(gateway, ready=False)
    frame = client.feedback(its.epoch, its.seq, 2)
    effects = gateway.receive(client.topic, frame, now=3)
    reply = only_publish(effects)
    expected = Outcome(status=Status.ANSWERED, epoch=its.epoch, seq=its.seq)
    assert client.open(reply.payload) == (0, expected)
    assert gateway.receive(client.topic, frame, now=4) == [reply]
    again = only_publish(gateway.receive(client.topic, client.feedback(its.epoch, its.seq, 2), now=5))
    assert client.open(again.payload)[1].status is Status.REFUSED


def client_in_session() -> tuple[Client, HandGateway]:
    """The product's client, and its gateway by hand."""
    hand_gateway = HandGateway("laptop-1", 101, "client")
    client = Client(identity("laptop-1", 101, "client"), Stream("client"))
    hello = only_publish(client.connected(now=0)).payload
    client.receive("fi1/acme/cd/laptop-1", hand_gateway.welcome(hello), now=0)
    return client, hand_gateway


def test_a_client_sends_feedback_as_an_ask_and_delivers_what_became_of_it() -> None:
    client, gateway = client_in_session()
    message = only_publish(client.feedback(Feedback(5, 6, 1), deadline_ms=1000, reference="it", now=1))
    assert payloads.decode_ask(gateway.open(message.payload)) == Feedback(5, 6, 1)
    counter = frames.parse_session_frame(message.payload).number
    its = Outcome(status=Status.ANSWERED, epoch=5, seq=6)
    effects = client.receive("fi1/acme/cd/laptop-1", gateway.outcome(counter, its), now=2)
    assert effects == [Deliver("it", its)]


@pytest.mark.parametrize("deadline_ms", [0, 86_400_001])
def test_feedback_has_a_deadline_of_a_day_at_the_most(deadline_ms: int) -> None:
    client, _ = client_in_session()
    with pytest.raises(ValueError, match="deadline_ms"):
        client.feedback(Feedback(5, 6, 1), deadline_ms=deadline_ms, reference="it", now=1)


# Forms


def test_the_forms_of_a_vote_do_not_change_who_weighs_it() -> None:
    gateway = gateway_of(policy=RoundPolicy(forms=frozenset(VOTE_FORMS)))
    member = joined(gateway, hand(trust=Trust.GATE, x=20))

    its = votes.quantize(Form.PROBS_8, np.eye(4)[1], 10, scale=PLACES.log_weight)
    query = ask(gateway, at(20))
    (vote,) = outcome_of(gateway.receive(A, member.answer(query, its, form=Form.PROBS_8), now=2)).votes
    assert vote.log_weight == pytest.approx(weight(20, at(20)))
