"""No key and nonce ever seal two plaintexts, whatever a federation lives through: R1, R2, R5 and R6 at once.

Every use of the cipher is recorded where it is imported. Restarts of either side, model swaps, lossy links
and replays are drawn by Hypothesis; and, in a second machine, who is a member at all.
"""

import ast
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from federation import Federation, constant
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from joining import JOIN
from lives import born

import edge_fi.claim
import edge_fi.crypto.noise
import edge_fi.crypto.seal
import edge_fi.device
import edge_fi.session
from edge_fi.crypto import aead
from edge_fi.crypto.keys import Entropy
from edge_fi.effects import Publish
from edge_fi.gateway import Gateway
from edge_fi.messages import Fate, Form, Tensor
from edge_fi.round import RoundPolicy
from edge_fi.session import Session
from edge_fi.wire.frames import Type
from firmware_sim.keeper import Keeper
from firmware_sim.link import PERFECT, Link
from firmware_sim.stream import Stream

PLACES: dict[str, tuple[Any, str]] = {
    "claim": (edge_fi.claim, "seal"),
    "noise": (edge_fi.crypto.noise, "seal"),
    "query": (edge_fi.crypto.seal, "seal"),
    "answer": (edge_fi.device, "aead_seal"),
    "session": (edge_fi.session, "seal"),
}
"""Every module that imports the cipher, and the name it has there."""
LINKS = [
    PERFECT,
    Link(delay_us=30_000, jitter_us=400_000, duplication=0.4),
    Link(loss=0.3),
    Link(loss=1.0),
]
DEVICES = ["pi-1", "pi-2"]
NODES = ["gateway", *DEVICES, "laptop-1"]
FORMS = [frozenset({Form.LABEL}), frozenset({Form.LABEL, Form.PROBS_4, Form.LOGITS_8})]


class Recorder:
    """Stands in for `aead.seal`, and remembers what every pair sealed."""

    def __init__(self) -> None:
        self.sealed: dict[tuple[bytes, int], tuple[bytes, bytes]] = {}
        self.twice: list[tuple[bytes, int]] = []
        self.uses: Counter[str] = Counter()

    def at(self, place: str) -> Callable[..., bytes]:
        """The stand-in for one place."""

        def seal(plaintext: bytes, *, key: bytes, nonce: int, header: bytes) -> bytes:
            content = plaintext, header
            if self.sealed.setdefault((key, nonce), content) != content:
                self.twice.append((key, nonce))
            self.uses[place] += 1
            return aead.seal(plaintext, key=key, nonce=nonce, header=header)

        return seal

    def install(self, patch: pytest.MonkeyPatch) -> "Recorder":
        """Record from now on."""
        for place, (module, name) in PLACES.items():
            patch.setattr(module, name, self.at(place))
        return self


class Lives(RuleBasedStateMachine):
    """Anything that may happen to a federation, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.recorder = Recorder().install(self.patch)
        models = [constant(5, 0, 0, 0), constant(0, 1, 0, 0)]
        self.federation = Federation(models, clients=1, policy=RoundPolicy(stop_after=2, quorum=2)).join(2)
        self.lives = 0

    def teardown(self) -> None:
        self.patch.undo()

    @rule(content=st.binary(min_size=2, max_size=2), forms=st.sampled_from(FORMS))
    def ask(self, content: bytes, forms: frozenset[Form]) -> None:
        policy = RoundPolicy(forms=forms, quorum=2)
        self.federation.start(Tensor("uint8", (2,), content), policy)

    @rule(content=st.binary(min_size=2, max_size=2))
    def client_asks(self, content: bytes) -> None:
        self.federation.client_asks(content, tensor=Tensor("uint8", (2,), content))

    @rule(milliseconds=st.sampled_from([1, 20, 300, 1100, 5000]))
    def wait(self, milliseconds: int) -> None:
        self.federation.fleet.run(milliseconds / 1000)

    @rule(name=st.sampled_from(DEVICES), model=st.sampled_from([b"model-01", b"model-02"]))
    def reboot(self, name: str, model: bytes) -> None:
        self.lives += 1
        self.federation.reboot(name, boot=self.lives, model=model)

    @rule()
    def restart_gateway(self) -> None:
        self.lives += 1
        self.federation.restart_gateway(self.lives)

    @rule(name=st.sampled_from(NODES))
    def reconnect(self, name: str) -> None:
        self.federation.fleet.disconnect(name)
        self.federation.fleet.connect(name)

    @rule()
    def restart_broker(self) -> None:
        self.federation.fleet.restart_broker()
        for name in NODES:
            self.federation.fleet.connect(name)

    @rule(name=st.sampled_from(NODES), link=st.sampled_from(LINKS), infer_us=st.sampled_from([0, 250_000]))
    def change_link(self, name: str, link: Link, infer_us: int) -> None:
        self.federation.fleet.nodes[name].link = link
        self.federation.fleet.nodes[name].infer_us = infer_us

    @precondition(lambda self: self.federation.fleet.published)
    @rule(share=st.floats(0, 1, exclude_max=True))
    def replay(self, share: float) -> None:
        published = self.federation.fleet.published
        topic, payload = published[int(share * len(published))]
        self.federation.fleet.publish(Publish(topic, payload))

    @rule(boot=st.integers(0, 0xFFFFFFFF))
    def forge_gateway_state(self, boot: int) -> None:
        self.federation.inject("gateway/state", b"ready %08x" % boot)

    @rule(name=st.sampled_from(DEVICES))
    def re_ask(self, name: str) -> None:
        for query in self.federation.frames("q", Type.QUERY)[-3:]:
            self.federation.inject(f"d/{name}", query)

    @invariant()
    def nothing_was_sealed_twice(self) -> None:
        assert self.recorder.twice == []


INVITED = [
    ("pi-1", "device"),
    ("pi-2", "device"),
    ("pi-2", "client"),
    ("laptop-1", "client"),
    ("hal", "helper"),
]
SHARES = st.floats(0, 1, exclude_max=True)
"""Which one, of a list whose length is not known yet."""


class Memberships(RuleBasedStateMachine):
    """Anything that may happen to who is a member, while members do what they are for."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.recorder = Recorder().install(self.patch)
        self.world = born(RoundPolicy(quorum=1))

    def teardown(self) -> None:
        self.patch.undo()

    def node(self, share: float) -> str:
        """One of the nodes, the gateway among them."""
        names = list(self.world.fleet.nodes)
        return names[int(share * len(names))]

    @rule(invited=st.sampled_from(INVITED), replaces=st.booleans())
    def invite(self, invited: tuple[str, str], replaces: bool) -> None:
        self.world.invite(*invited, replaces=replaces)

    @rule(share=SHARES, key=st.sampled_from("ab"), again=st.booleans())
    def apply(self, share: float, key: str, again: bool) -> None:
        """By any invite there ever was, or by the latest one."""
        its = self.world.invitations[int(share * len(self.world.invitations)) if again else -1]
        self.world.apply(its, key)

    @rule()
    def two_race(self) -> None:
        for key in "ab":
            self.world.apply(self.world.invitations[-1], key)

    @rule(share=SHARES, how=st.sampled_from(["withdraw", "expire"]))
    def close_an_invite(self, share: float, how: str) -> None:
        its = self.world.invitations[int(share * len(self.world.invitations))]
        (self.world.withdraw if how == "withdraw" else self.world.expire)(its)

    @precondition(lambda self: self.world.keeper.roster.members)
    @rule(share=SHARES)
    def revoke(self, share: float) -> None:
        members = self.world.keeper.roster.members
        self.world.revoke(members[int(share * len(members))])

    @precondition(lambda self: self.world.keeper.roster.members)
    @rule(share=SHARES, key=st.sampled_from("ab"))
    def replace(self, share: float, key: str) -> None:
        """Its card was lost: a member is made anew, perhaps with the key that it had."""
        members = self.world.keeper.roster.members
        lost = members[int(share * len(members))]
        self.world.apply(self.world.invite(lost.id, lost.role, replaces=True), key)

    @rule(is_signing_new=st.booleans())
    def rotate(self, is_signing_new: bool) -> None:
        self.world.rotate(is_signing_new=is_signing_new)

    @rule(content=st.binary(min_size=2, max_size=2), forms=st.sampled_from(FORMS))
    def ask(self, content: bytes, forms: frozenset[Form]) -> None:
        self.world.ask(Tensor("uint8", (2,), content), RoundPolicy(forms=forms))

    @rule(content=st.binary(min_size=2, max_size=2))
    def clients_ask(self, content: bytes) -> None:
        self.world.client_asks(Tensor("uint8", (2,), content))

    @rule(milliseconds=st.sampled_from([1, 20, 300, 1100, 5000]))
    def wait(self, milliseconds: int) -> None:
        self.world.fleet.run(milliseconds / 1000)
        self.world.settle()

    @rule(share=SHARES)
    def restart(self, share: float) -> None:
        name = self.node(share)
        self.world.restart_gateway() if name == "gateway" else self.world.restart(name)

    @rule()
    def restart_gateway(self) -> None:
        self.world.restart_gateway()

    @precondition(lambda self: self.world.is_word_current)
    @rule(share=SHARES)
    def restore_gateway(self, share: float) -> None:
        """From an earlier copy of its disk. What that has forgotten, the broker still retains."""
        self.world.restart_gateway(self.world.snapshots[int(share * len(self.world.snapshots))])

    @rule(share=SHARES)
    def reconnect(self, share: float) -> None:
        name = self.node(share)
        self.world.fleet.disconnect(name)
        self.world.fleet.connect(name)

    @precondition(lambda self: self.world.is_state_current)
    @rule()
    def restart_broker(self) -> None:
        """Not between the restoring of a state and its reading what the broker retained: nobody knew then."""
        names = [name for name, node in self.world.fleet.nodes.items() if node.is_connected]
        self.world.fleet.restart_broker()
        for name in names:
            self.world.fleet.connect(name)

    @rule(share=SHARES, link=st.sampled_from(LINKS), infer_us=st.sampled_from([0, 250_000]))
    def change_link(self, share: float, link: Link, infer_us: int) -> None:
        node = self.world.fleet.nodes[self.node(share)]
        node.link, node.infer_us = link, infer_us

    @rule(is_full=st.booleans())
    def fill_the_disk(self, is_full: bool) -> None:
        self.world.keeper.is_full = is_full

    @rule(share=SHARES, place=SHARES, is_elsewhere=st.booleans())
    def replay(self, share: float, place: float, is_elsewhere: bool) -> None:
        """Anything that the broker ever saw, where it saw it or where it saw something else."""
        published = self.world.fleet.published
        topic, payload = published[int(share * len(published))]
        elsewhere = published[int(place * len(published))][0]
        self.world.fleet.publish(Publish(elsewhere if is_elsewhere else topic, payload))

    @rule(share=SHARES)
    def replay_a_join(self, share: float) -> None:
        """What is answered anew by each run of the gateway, as far as it remembers nothing of it."""
        joins = [payload for topic, payload in self.world.fleet.published if topic == JOIN]
        self.world.fleet.publish(Publish(JOIN, joins[int(share * len(joins))]))

    @rule()
    def recover(self) -> None:
        """When all is well again, whoever applies is told, and whoever is a member is counted."""
        self.world.recover()
        assert self.world.undecided == []
        devices = list(self.world.devices)
        for _ in range(2):  # whoever was not awaited is again, once it was heard
            reference = self.world.ask(Tensor("uint8", (2,), b"ok"))
            self.world.fleet.run(5)
        if devices:
            fates = self.world.fates(reference)
            assert {name: fates.get(name) for name in devices} == dict.fromkeys(devices, Fate.COUNTED)

    @invariant()
    def nothing_was_sealed_twice(self) -> None:
        assert self.recorder.twice == []

    @invariant()
    def an_index_and_an_invite_make_one_key_a_member(self) -> None:
        assert self.world.truth.faults == []

    @invariant()
    def former_members_are_never_counted(self) -> None:
        assert self.world.counted_though_revoked == []

    @invariant()
    def sessions_are_members(self) -> None:
        assert self.world.strangers_in_session == set()

    @invariant()
    def the_gateway_goes_on(self) -> None:
        assert self.world.gateway_node.halted == ""


@pytest.mark.parametrize(("machine", "examples", "steps"), [(Lives, 40, 30), (Memberships, 80, 40)])
def test_no_key_and_nonce_ever_seal_two_plaintexts(
    machine: type[RuleBasedStateMachine], examples: int, steps: int
) -> None:
    machine.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    machine.TestCase().runTest()


def test_every_module_that_seals_is_a_place() -> None:
    root = Path(edge_fi.claim.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        module = ".".join(("edge_fi", *path.relative_to(root).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "edge_fi.crypto.aead":
                found |= {(module, its.asname or its.name) for its in node.names if its.name == "seal"}
            elif isinstance(node, ast.Import | ast.ImportFrom):
                assert not [its for its in node.names if its.name in ("aead", "edge_fi.crypto.aead")]
    assert found == {(module.__name__, name) for module, name in PLACES.values()}


def test_the_recorder_sees_every_place_that_seals(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder().install(monkeypatch)
    world = born(RoundPolicy(quorum=1))
    world.client_asks(Tensor("uint8", (2,), b"ab"))
    world.fleet.run(5)
    (outcome,) = world.fleet.nodes["laptop-1 a"].outcomes.values()
    assert outcome.label == 0
    # Of two members: a key, an empty payload and an ACCEPT; HELLO and WELCOME; the roster's word.
    # Then a query and its answer; READY, ASK and OUTCOME.
    assert recorder.uses == {"noise": 2 * (3 + 2), "claim": 2, "query": 1, "answer": 1, "session": 3}
    assert recorder.twice == [] and len(recorder.sealed) == 17


def test_the_recorder_notices_a_counter_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder().install(monkeypatch)
    federation = Federation([constant(5, 0, 0, 0)], clients=1).join(2)
    genuine = Session.seal

    def forgetful(session: Session, kind: Type, payload: bytes) -> bytes:
        session._sent = 0
        return genuine(session, kind, payload)

    monkeypatch.setattr(Session, "seal", forgetful)
    for content in (b"ab", b"cd"):
        federation.client_asks(content, tensor=Tensor("uint8", (2,), content))
    assert len(recorder.twice) == 1


def test_the_recorder_notices_a_gateway_that_begins_with_its_former_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = Recorder().install(monkeypatch)
    federation = Federation([constant(5, 0, 0, 0)]).join(2)
    federation.ask(Tensor("uint8", (2,), b"ab"))
    federation.restart_gateway(boot=0)
    federation.reboot("pi-1")
    federation.fleet.run(5)
    federation.ask(Tensor("uint8", (2,), b"cd"))
    assert len(recorder.twice) == 1


@pytest.mark.parametrize("dice", [Stream("accepting"), lambda size: b"\1" * size], ids=["dice", "no dice"])
def test_the_recorder_notices_two_runs_that_accept_one_join_under_one_ephemeral_key(
    monkeypatch: pytest.MonkeyPatch, dice: Entropy
) -> None:
    recorder = Recorder().install(monkeypatch)
    world = born(RoundPolicy(quorum=1))
    (join, *_) = [payload for topic, payload in world.fleet.published if topic == JOIN]
    for _ in range(2):
        world.restart_gateway()
        world.gateway._admissions._entropy = dice
        world.fleet.run(2)
        world.fleet.publish(Publish(JOIN, join))
        world.fleet.run(1)
        world.revoke(world.keeper.roster.members[-1])  # another version of the roster, in the next ACCEPT
    assert len(recorder.twice) == (0 if isinstance(dice, Stream) else 1)


def test_a_state_that_forgets_its_former_run_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keeper, "adopt", lambda keeper, adopt: keeper.roster)
    world = born(RoundPolicy(quorum=1))
    world.restart_gateway(world.snapshots[0])
    world.fleet.run(2)
    world.apply(world.invite("pi-9", "device"), "a")
    world.fleet.run(1)
    assert world.truth.faults == ["index 1 was given twice"]


def test_an_invite_that_is_never_burnt_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("edge_fi.admission.judge", "firmware_sim.keeper.judge"):
        monkeypatch.setattr(place, lambda its, public, roster: roster.next_index)
    world = born(RoundPolicy(quorum=1))
    for key in "ab":
        world.apply(world.invitations[-1], key)
        world.fleet.run(1)
    assert world.truth.faults == ["invite 3 made two keys a member"]


def test_a_gateway_that_keeps_a_former_member_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gateway, "_drop", lambda gateway, peer, *, now: [])
    world = born(RoundPolicy(quorum=1))
    world.revoke(world.keeper.roster.members[0])
    assert world.strangers_in_session == {1}
    world.ask(Tensor("uint8", (2,), b"ab"))
    assert world.counted_though_revoked == [(1, 1)]
