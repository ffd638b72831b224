"""What a gateway learns of its members: across restarts, as their worth, and by canaries."""

import io
import json
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from federation import TASK, Federation, gateway_identity
from stated import join

from edge_fi import canaries as birds
from edge_fi import clerk as clerks
from edge_fi.adapters.state import State
from edge_fi.canaries import Canaries, CanaryAsk, is_canary
from edge_fi.clerk import Clerk
from edge_fi.effects import Deliver, Joined
from edge_fi.errors import StateError
from edge_fi.log import Log
from edge_fi.messages import Array, Outcome, Status, Tensor
from edge_fi.voting.panel import Panel

MEMBERS = 5


def honest(tensor: Tensor) -> Array:
    """A model that knows: the class is the first byte's last two bits, wrong one time in eight."""
    first, second = tensor.content
    wrong = second % 8 == first % 8
    return np.asarray(4 * np.eye(4)[(first + wrong) % 4])


def liar(tensor: Tensor) -> Array:
    """A model that always says the next class."""
    return np.asarray(9 * np.eye(4)[(tensor.content[0] + 1) % 4])


def tensor_of(number: int) -> Tensor:
    return Tensor("uint8", (2,), bytes(random.Random(number).randbytes(2)))


def some_canaries(count: int = 200, *, budget: float = 0.1) -> Canaries:
    dice = np.random.default_rng(3)
    queries = dice.integers(0, 256, (count, 2)).astype(np.float64)
    labels = queries[:, 0].astype(np.int64) % 4
    return Canaries(queries, labels, TASK, budget=budget, dice=random.Random(5))


class Kept:
    """A simulated federation whose gateway has a clerk and a state on the disk."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state.db"
        self.gateway_key = gateway_identity().static.public
        self.state = State.create(self.path, "acme", self.gateway_key)
        for index in range(1, MEMBERS + 1):
            join(self.state, f"pi-{index}")
        self.federation = Federation([honest] * (MEMBERS - 1) + [liar]).join()
        self.asked = 0
        self.heard = 0
        self.start(some_canaries())

    def start(self, canaries: Canaries | None) -> None:
        """A clerk for the gateway that runs now."""
        self.stream = io.StringIO()
        self.troubles: list[tuple[str, str]] = []
        self.clerk = Clerk(
            self.state.panels,
            self.federation.gateway,
            {} if canaries is None else {1: canaries},
            log=Log(is_json=True, stream=self.stream),
            trouble=lambda event, reason: self.troubles.append((event, reason)),
            clock=lambda: self.federation.fleet.clock.now,
        )
        self.heard = len(self.federation.gateway_node.effects)
        self.clerk.begin(self.state.roster())

    def restart(self, canaries: Canaries | None = None) -> None:
        self.federation.restart_gateway(boot=1 + self.asked)
        self.federation.fleet.run(10)
        self.start(canaries)

    @property
    def panel(self) -> Panel:
        return self.federation.gateway.panels[1]

    def look(self) -> float:
        node = self.federation.gateway_node
        wait_s = self.clerk.look(lambda effects: self.federation.fleet.perform(node, effects))
        for effect in node.effects[self.heard :]:
            if isinstance(effect, Deliver):
                self.clerk.watch(effect)
        self.heard = len(node.effects)
        return wait_s

    def ask(self, rounds: int, seconds: float = 5.0) -> None:
        for _ in range(rounds):
            self.asked += 1
            self.federation.ask(tensor_of(self.asked), seconds=seconds)
            self.look()

    def events(self, name: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [line for line in lines if line["event"] == name]

    def canaries(self) -> list[CanaryAsk]:
        """Those that were answered."""
        return [its for its in self.federation.gateway_node.outcomes if isinstance(its, CanaryAsk)]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path)
    yield made
    made.state.close()


def test_a_liar_is_expelled_asked_canaries_and_stays_expelled_after_a_restart(kept: Kept) -> None:
    kept.ask(120)
    assert kept.panel.jury.expelled == {5}
    assert kept.events("canary") and all(its["learnt"] for its in kept.events("canary"))
    spent = kept.state.panels.spent(1)
    assert 0 < len(spent) <= 0.1 * kept.panel.rounds
    kept.clerk.close()
    assert kept.state.panels.expelled() == {1: frozenset({5})}
    worths = {its.member: its.contribution for its in kept.state.panels.worths()}
    assert sorted(worths) == [1, 2, 3, 4, 5] and worths[5].value <= 0 < worths[1].value
    kept.restart(some_canaries())
    assert kept.panel.jury.expelled == {5} and kept.events("panel_forgotten") == []
    kept.ask(120)
    later = kept.state.panels.spent(1)
    assert spent <= later
    assert kept.panel.jury.expelled == {5}
    asked = sum(
        effect.topic.endswith("/q/1")
        for effect in kept.federation.gateway_node.effects
        if hasattr(effect, "topic")
    )
    assert asked >= kept.panel.rounds


def test_a_canary_is_a_query_like_any_other_on_the_wire(kept: Kept) -> None:
    kept.ask(150)
    queries = [(t, p) for t, p in kept.federation.fleet.published if t.split("/")[2] == "q"]
    assert kept.events("canary")
    assert len({(topic, len(payload), payload[0]) for topic, payload in queries}) == 1
    assert kept.federation.gateway.latest_policy(1) == kept.federation.gateway.policy


def test_canary_rounds_count_for_nobodys_worth(kept: Kept) -> None:
    kept.ask(150)
    rounds, worths = kept.panel.contributions()
    assert rounds == kept.panel.rounds - len(kept.events("canary")) and worths


def test_worth_is_computed_after_a_while_and_enough_rounds(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clerks, "WORTH_EVERY_S", 0.0)
    kept.restart()
    kept.ask(39)
    assert kept.state.panels.worths() == []
    assert kept.panel.contributions() == (39, {})
    kept.ask(2)
    (rounds,) = {its.rounds for its in kept.state.panels.worths()}
    assert rounds == 40
    kept.ask(10)
    assert {its.rounds for its in kept.state.panels.worths()} == {40}, "too few are new"
    kept.clerk.close()
    assert {its.rounds for its in kept.state.panels.worths()} == {51}


def test_what_is_not_changed_is_not_written_and_what_cannot_be_is_tried_again(kept: Kept) -> None:
    kept.ask(50, seconds=0.5)
    connection = kept.state._tables.connection
    connection.execute("PRAGMA query_only=ON")
    kept.clerk.close()
    assert [event for event, _ in kept.troubles] == ["state_unwritable"] * 2
    assert kept.state.panels.snapshots() == {} and kept.state.panels.worths() == []
    connection.execute("PRAGMA query_only=OFF")
    kept.clerk.close()
    assert kept.state.panels.snapshots() == {1: kept.panel.snapshot()} and kept.state.panels.worths()
    before = connection.total_changes
    kept.clerk.close()
    assert connection.total_changes == before


def test_a_canary_that_cannot_be_written_down_is_not_asked(kept: Kept) -> None:
    kept.ask(40)
    kept.state._tables.connection.execute("PRAGMA query_only=ON")
    spent = len(kept.events("canary"))
    kept.ask(60)
    assert len(kept.events("canary")) <= spent + 1, "one was on its way"
    assert "state_unwritable" in {event for event, _ in kept.troubles}
    kept.state._tables.connection.execute("PRAGMA query_only=OFF")


def test_that_canaries_are_spent_is_said_once(kept: Kept) -> None:
    kept.restart(some_canaries(2, budget=0.5))
    kept.ask(100)
    assert len(kept.state.panels.spent(1)) == 2 and len(kept.events("canaries_spent")) == 1
    kept.restart(some_canaries(2))
    kept.ask(40)
    assert kept.events("canary") == []


@pytest.mark.parametrize("damage", [b"", b"PA0", b"PA1\0\0", b"PA1" + bytes(12), "cut", "long", "classes"])
def test_a_snapshot_that_does_not_fit_is_named_and_begun_anew(kept: Kept, damage: bytes | str) -> None:
    kept.ask(30, seconds=0.5)
    snapshot = kept.panel.snapshot()
    if damage == "cut":
        damage = snapshot[:-3]
    elif damage == "long":
        damage = snapshot + b"x"
    elif damage == "classes":
        damage = snapshot[:8] + b"\x09" + snapshot[9:]
    assert isinstance(damage, bytes)
    kept.state.panels.keep(1, damage, frozenset())
    kept.restart()
    (told,) = kept.events("panel_forgotten")
    assert told["task"] == "sorts" and told["reason"]
    kept.ask(1)
    kept.clerk.close()
    assert kept.state.panels.snapshots()[1] == kept.panel.snapshot()


def test_a_member_that_was_revoked_meanwhile_and_a_task_that_is_gone_are_forgotten(kept: Kept) -> None:
    kept.ask(120, seconds=1)
    kept.clerk.close()
    kept.state.panels.keep(9, b"of another task", frozenset())
    kept.state.revoke("pi-5")
    kept.restart()
    assert kept.panel.jury.expelled == frozenset() and kept.events("panel_forgotten") == []


def test_many_members_and_classes_are_counted_over_fewer_rounds(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.ask(60, seconds=0.5)
    monkeypatch.setattr("edge_fi.voting.panel._COUNTED_VALUES", 45 * MEMBERS * 4)
    rounds, worths = kept.panel.contributions()
    assert rounds == 45 and len(worths) == MEMBERS
    monkeypatch.setattr("edge_fi.voting.panel._COUNTED_VALUES", 1)
    assert kept.panel.contributions() == (0, {})


# Canaries by themselves


def test_no_canary_is_due_without_suspects_budget_or_inputs() -> None:
    canaries = some_canaries(3, budget=0.02)
    assert canaries.wait_s(0.0, is_wanted=True) == float("inf")
    canaries.earn(50)
    assert canaries.is_affordable and canaries.wait_s(0.0, is_wanted=False) == float("inf")
    wait_s = canaries.wait_s(0.0, is_wanted=True)
    assert 0 < wait_s < 20 * birds.MEAN_WAIT_S
    assert canaries.wait_s(wait_s, is_wanted=True) == 0
    canaries.draw({7: 1})
    assert not canaries.is_affordable
    canaries.earn(10_000)
    for _ in range(int(birds.MOST_SAVED)):
        assert canaries.is_affordable
        canaries.draw({7: 1})
    assert not canaries.is_affordable
    canaries.earn(50)
    canaries.spend([canaries.draw({7: 1}).digest for _ in range(60)])
    assert canaries.left == 0


def test_half_of_the_canaries_are_of_the_class_that_a_suspect_says() -> None:
    canaries = some_canaries(250)
    drawn = [canaries.draw({7: 2}).label for _ in range(2000)]
    assert 0.55 < drawn.count(2) / 2000 < 0.7


def test_waits_follow_no_pattern() -> None:
    canaries = some_canaries()
    waits = []
    for _ in range(500):
        canaries.earn(10)
        waits.append(canaries.wait_s(0.0, is_wanted=True))
        canaries.draw({7: 2})
    assert 0.8 < np.mean(waits) / birds.MEAN_WAIT_S < 1.2 and 0.8 < np.std(waits) / np.mean(waits) < 1.2


def test_a_canarys_outcome_is_told_from_others() -> None:
    outcome = Outcome(status=Status.NO_MEMBERS)
    assert is_canary(Deliver(CanaryAsk(1, 0), outcome))
    assert not is_canary(Deliver("somebody", outcome)) and not is_canary(Joined("pi-1"))


def test_the_state_refuses_to_answer_where_its_file_is_gone(kept: Kept) -> None:
    kept.state._tables.connection.execute("DROP TABLE panels")
    with pytest.raises(StateError, match="cannot read"):
        kept.state.panels.snapshots()


def test_a_state_of_the_first_schema_is_brought_up_and_its_backup_too(tmp_path: Path) -> None:
    key = gateway_identity().static.public
    path = tmp_path / "state.db"
    with State.create(path, "acme", key) as state:
        join(state, "pi-1")
    connection = sqlite3.connect(path)
    for table in ("panels", "contributions", "canaries"):
        connection.execute(f"DROP TABLE {table}")
    connection.execute("PRAGMA user_version=1")
    connection.close()
    with State.open(path, "acme", key) as state:
        assert [member.id for member in state.roster().members] == ["pi-1"]
        state.panels.keep(1, b"snapshot", frozenset({1, 7}))
        state.panels.spend(1, b"digest")
        state.panels.spend(1, b"digest")
        state.backup(tmp_path / "backup.db")
    with State.open(tmp_path / "backup.db", "acme", key) as state:
        assert state.panels.snapshots() == {1: b"snapshot"} and state.panels.spent(1) == {b"digest"}
        assert state.panels.expelled() == {1: {1, 7}} and state.panels.spent(2) == frozenset()
