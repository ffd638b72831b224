"""The pump: turns, batches that a slow model keeps short, and what a gateway does between turns."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from live import eventually, make_state, need

from broker.embedded import EmbeddedBroker, available
from edge_fi.adapters.mqtt import MqttLink, Received
from edge_fi.cli.run import gateway
from edge_fi.demo.members import ASSETS
from edge_fi.effects import Admit, Adopt, Effect, Halt, Infer, Joined, Publish, Ticket
from edge_fi.errors import AlreadyRunningError, ConfigError, TransportError
from edge_fi.messages import Array, Member, Tensor
from edge_fi.pump import WAITING_QUERIES, Pump
from edge_fi.roster import Roster
from edge_fi.wire.payloads import Refusal
from firmware_sim.keeper import Keeper

TENSOR = Tensor("uint8", (1,), b"\0")


class Asked:
    """A machine that wants an inference for each message, and remembers what it got."""

    subscriptions: list[str] = []  # noqa: RUF012 - as the protocol has it
    will: Publish | None = None
    farewell: list[Effect] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.came = 0
        self.scored: list[int] = []
        self.unscored: list[int] = []

    def next_deadline(self) -> int | None:
        return None

    def connected(self, *, now: int) -> list[Effect]:
        return []

    def disconnected(self, *, now: int) -> list[Effect]:
        return []

    def tick(self, *, now: int) -> list[Effect]:
        return []

    def receive(self, topic: str, payload: bytes, *, now: int) -> list[Effect]:
        self.came += 1
        return [Infer(Ticket(1, self.came), TENSOR)]

    def inferred(self, ticket: Ticket, scores: Array | None, *, now: int) -> list[Effect]:
        (self.unscored if scores is None else self.scored).append(ticket.seq)
        return []


class Model:
    """Remembers the size of each batch."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def infer(self, tensors: Sequence[Tensor]) -> list[Array | None]:
        self.batches.append(len(tensors))
        return [np.zeros(1)] * len(tensors)


class Bench:
    """A pump whose link was never started: messages come from the test."""

    def __init__(self) -> None:
        self.machine, self.model = Asked(), Model()
        self.link = MqttLink("x", host="127.0.0.1", port=1, subscriptions=["t"])
        self.pump = Pump(self.machine, self.link, model=self.model, watch=lambda _: None)

    def come(self, count: int) -> None:
        self.link.events.extend([Received("t", b"")] * count)


def test_a_fast_model_infers_what_came_in_one_turn_in_one_batch() -> None:
    bench = Bench()
    bench.come(1)
    bench.pump.turn(longest_s=0)
    bench.come(64)
    bench.pump.turn(longest_s=0)
    assert bench.model.batches == [1, 64]
    assert bench.machine.scored == list(range(1, 66))


def test_a_slow_model_takes_one_query_a_turn_and_no_turn_waits_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge_fi.pump.BATCH_S", 0.0)
    bench = Bench()
    bench.come(10)
    bench.pump.turn(longest_s=0)
    began = time.monotonic()
    for _ in range(9):
        bench.pump.turn()  # for seconds, were nothing pending
    assert time.monotonic() - began < 5
    assert bench.model.batches == [1] * 10
    assert bench.machine.scored == list(range(1, 11))


def test_a_model_that_recovers_gets_large_batches_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    with monkeypatch.context() as slow:
        slow.setattr("edge_fi.pump.BATCH_S", 0.0)
        bench.come(2)
        bench.pump.turn(longest_s=0)
    bench.come(40)
    for _ in range(2):
        bench.pump.turn(longest_s=0)
    assert bench.model.batches == [1, 1, 40]


def test_of_too_many_queries_the_oldest_are_given_back_without_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge_fi.pump.BATCH_S", 0.0)
    bench = Bench()
    bench.come(WAITING_QUERIES + 36)
    bench.pump.turn(longest_s=0)
    assert bench.machine.scored == [1]
    assert bench.machine.unscored == list(range(2, 37))
    bench.pump.turn(longest_s=0)
    assert bench.machine.scored == [1, 37]


def test_stop_before_run_ends_it_before_its_first_turn() -> None:
    bench = Bench()
    bench.come(1)
    bench.pump.stop()
    bench.pump.run()
    assert bench.machine.came == 0


def test_before_each_turn_of_run_its_caller_is_asked_how_long_it_may_wait() -> None:
    bench = Bench()
    asked: list[int] = []

    def before_turn() -> float:
        asked.append(1)
        if len(asked) == 3:
            bench.pump.stop()
        return 0.0

    began = time.monotonic()
    bench.pump.run(before_turn)
    assert len(asked) == 3
    assert time.monotonic() - began < 5


# What survives a gateway


class Admitting(Asked):
    """A machine with a roster, which remembers in what order things were said to it and published."""

    def __init__(self) -> None:
        super().__init__()
        self.happened: list[object] = []

    def update(self, roster: Roster, *, now: int) -> list[Effect]:
        self.happened.append(("update", roster.version))
        return []

    def admitted(self, admit: Admit, roster: Roster, *, now: int) -> list[Effect]:
        self.happened.append(("admitted", admit.member.id, roster.version))
        return [Joined("told")]

    def not_admitted(self, admit: Admit, refusal: Refusal, *, now: int) -> list[Effect]:
        self.happened.append(("not admitted", admit.member.id, refusal.name))
        return [Joined("told why")]


class AdmittingBench:
    """A pump around it, with a keeper that remembers."""

    def __init__(self) -> None:
        self.machine, self.keeper = Admitting(), Keeper()
        self.link = MqttLink("x", host="127.0.0.1", port=1, subscriptions=["t"])
        self.pump = Pump(self.machine, self.link, keeper=self.keeper, watch=self.machine.happened.append)
        self.invite = self.keeper.invite("pi-07", token=bytes(16))

    def admit(self) -> Admit:
        member = Member(id="pi-07", index=1, role="device", public=b"p" * 32)
        return Admit(self.invite.number, member)


def test_a_member_is_written_down_then_noted_then_told() -> None:
    bench = AdmittingBench()
    admit = bench.admit()
    bench.pump.perform([admit, Joined("after")])
    assert [member.id for member in bench.keeper.roster.members] == ["pi-07"]
    assert bench.machine.happened == [admit, ("admitted", "pi-07", 1), Joined("told"), Joined("after")]


def test_a_member_that_is_not_written_down_is_told_why_and_not_noted() -> None:
    bench = AdmittingBench()
    bench.keeper.is_full = True
    bench.pump.perform([bench.admit()])
    assert bench.machine.happened == [("not admitted", "pi-07", "BUSY"), Joined("told why")]
    assert bench.keeper.roster.members == ()


def test_what_a_former_run_knew_is_written_down_and_then_given_to_the_machine() -> None:
    bench = AdmittingBench()
    adopt = Adopt(version=7, highest=9, revoked=frozenset({4}))
    bench.pump.perform([adopt])
    assert bench.machine.happened == [adopt, ("update", 8)]
    assert (bench.keeper.roster.highest, bench.keeper.roster.revoked) == (9, adopt.revoked)


def test_a_machine_that_must_not_go_on_ends_the_process_before_anything_else_is_done() -> None:
    bench = AdmittingBench()
    with pytest.raises(AlreadyRunningError, match="stop it first"):
        bench.pump.perform([Halt("another process runs as this gateway: stop it first"), bench.admit()])
    assert bench.machine.happened == [] and bench.keeper.roster.members == ()


def test_without_a_keeper_nobody_is_admitted() -> None:
    bench = AdmittingBench()
    pump = Pump(bench.machine, bench.link, watch=bench.machine.happened.append)
    pump.perform([bench.admit(), Adopt(version=7, highest=9, revoked=frozenset())])
    assert bench.machine.happened == []


# What `edge-fi gateway run --start-broker` refuses, and how it ends


@pytest.fixture
def gateway_toml(tmp_path: Path) -> Path:
    make_state(tmp_path, "acme", ["pi-01"], [])
    path = tmp_path / "gateway.toml"
    task = json.dumps(str(ASSETS / "digits.toml"))
    path.write_text(f'key = "gateway.key"\nstate = "state.db"\ntasks = [{task}]\n')
    return path


def start_broker(path: Path) -> None:
    gateway.main(["run", "--config", str(path), "--start-broker"], standalone_mode=False)


@pytest.mark.parametrize("host", ["broker.example", "192.0.2.1", "::1"])
def test_a_broker_cannot_be_started_on_another_host(
    gateway_toml: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("EDGE_FI_BROKER__HOST", host)
    with pytest.raises(ConfigError, match=r'set broker\.host = "127\.0\.0\.1", or start a broker there'):
        start_broker(gateway_toml)


def test_a_broker_that_does_not_speak_the_configured_version_is_not_started(
    gateway_toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_FI_BROKER__MQTT", "5")
    monkeypatch.setattr(EmbeddedBroker, "kind", "nats")
    with pytest.raises(ConfigError, match=r'speaks 3\.1\.1: set broker.mqtt = "3\.1\.1"'):
        start_broker(gateway_toml)


def test_a_gateway_whose_own_broker_dies_ends_with_a_word(gateway_toml: Path) -> None:
    need(available()[0] if available() else "mosquitto")
    with EmbeddedBroker() as free:  # a port that is free once it has stopped
        port = free.port
    running = subprocess.Popen(
        [sys.executable, "-m", "edge_fi", "gateway", "run", "--config", str(gateway_toml), "--start-broker"],
        env={**os.environ, "EDGE_FI_BROKER__PORT": str(port)},
        stderr=subprocess.PIPE,
        text=True,
    )
    with running:
        try:
            assert running.stderr is not None
            while "connected" not in running.stderr.readline():
                assert running.poll() is None
            (broker,) = brokers_under(running.pid)
            os.kill(broker, signal.SIGKILL)
            assert running.wait(20) == TransportError.exit_code
            assert f"the broker that --start-broker started on port {port} has ended" in running.stderr.read()
        finally:
            running.kill()


def brokers_under(pid: int) -> list[int]:
    """The grandchildren of a process: its supervisor's broker."""
    eventually(lambda: bool(children(pid)))
    return [broker for supervisor in children(pid) for broker in children(supervisor)]


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]
