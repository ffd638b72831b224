"""No key and nonce ever seal two plaintexts, whatever a federation lives through: R1, R2, R5 and R6 at once.

Every use of the cipher is recorded where it is imported. Restarts of either side, model swaps, lossy links
and replays are drawn by Hypothesis.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from federation import Federation, constant
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import edge_fi.crypto.noise
import edge_fi.crypto.seal
import edge_fi.device
import edge_fi.session
from edge_fi.crypto import aead
from edge_fi.effects import Publish
from edge_fi.messages import Form, Tensor
from edge_fi.round import RoundPolicy
from edge_fi.session import Session
from edge_fi.wire.frames import Type
from firmware_sim.link import PERFECT, Link

PLACES: dict[str, tuple[Any, str]] = {
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


def test_no_key_and_nonce_ever_seal_two_plaintexts() -> None:
    Lives.TestCase.settings = settings(
        max_examples=40,
        stateful_step_count=30,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    Lives.TestCase().runTest()


def test_the_recorder_sees_every_place_that_seals(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder().install(monkeypatch)
    federation = Federation([constant(5, 0, 0, 0)], clients=1).join(2)
    federation.client_asks("q")
    federation.fleet.run(5)
    assert federation.fleet.nodes["laptop-1"].outcomes["q"].label == 0
    # HELLO and WELCOME of two members; a query; its answer; READY, ASK and OUTCOME.
    assert recorder.uses == {"noise": 4, "query": 1, "answer": 1, "session": 3}
    assert recorder.twice == [] and len(recorder.sealed) == 9


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
