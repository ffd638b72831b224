"""One run of the demo: broker, gateway and members up, queries asked, everything down again."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_fi.adapters.mqtt import MqttLink, packet_bytes
from edge_fi.demo.measure import Figures, MeasuredGateway
from edge_fi.demo.members import MemberProcesses, Scenario
from edge_fi.effects import Publish
from edge_fi.errors import TransportError
from edge_fi.messages import Form
from edge_fi.pump import Pump, monotonic_us
from edge_fi.roster import Roster
from edge_fi.round import RoundPolicy
from edge_fi.session import GatewayIdentity

FEDERATION = "demo"
JOIN_TIMEOUT_S = 60.0  # five interpreters importing ONNX Runtime on a small board take a while
ROUND_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRun:
    """What a run gave."""

    scenario: Scenario
    broker: str
    figures: Figures
    query_wire: int
    answer_wire: int
    """Largest MQTT packet of an answer, in bytes."""

    def as_fields(self) -> dict[str, Any]:
        """As JSON. Accuracies and calibration errors in percent, bytes of whole MQTT packets."""
        figures = self.figures
        return {
            "scenario": self.scenario.name,
            "broker": self.broker,
            "rounds": len(figures.outcomes),
            "lost": figures.lost,
            "devices": [
                {"id": member.id, "accuracy": round(figures.member_accuracy(member.id), 2)}
                for member in self.scenario.members()
            ],
            "answered": round(figures.answered_accuracy(), 2),
            "strategies": {
                name: {
                    "accuracy": round(score.accuracy, 2),
                    "nll": round(score.nll, 3),
                    "ece": round(score.ece, 2),
                }
                for name, score in figures.strategy_scores().items()
            },
            "bytes": {"query_wire": self.query_wire, "answer_wire": self.answer_wire},
            "latency_ms": figures.latency_ms(),
            "rejected": dict(sorted(figures.rejected.items())),
        }


def run_demo(
    scenario: Scenario,
    *,
    queries: int,
    form: Form,
    broker: str | None,
    joined: Callable[[int, int], None],
    asked: Callable[[int, int], None],
) -> DemoRun:
    """Run the whole federation and ask it. joined and asked are told the progress: done, of how many.

    Raises TransportError if a broker or a member does not come up.
    """
    from broker.embedded import EmbeddedBroker

    tensors, truth = scenario.asked()
    task = scenario.task()
    figures = Figures(truth[:queries])
    with tempfile.TemporaryDirectory(prefix="edge-fi-demo-") as name, EmbeddedBroker(broker) as started:
        folder = Path(name)
        processes = MemberProcesses(scenario, folder, port=started.port)
        identity, roster = processes.make_keys(FEDERATION)
        gateway, link = _make_gateway(scenario, identity, roster, form, started.host, started.port)
        pump = Pump(gateway, link, watch=figures.watch)
        pump.start()
        with processes:
            try:
                _await_members(scenario, pump, gateway, processes, joined)
                processes.forget_keys()
                for number, tensor in enumerate(tensors[:queries]):
                    effects = gateway.ask(task.number, tensor, reference=number, now=monotonic_us())
                    gateway.query_bytes += [
                        packet_bytes(effect) for effect in effects if isinstance(effect, Publish)
                    ]
                    pump.perform(effects)
                    pump.run_until(
                        lambda number=number: number in figures.outcomes,  # type: ignore[misc]
                        timeout_s=ROUND_TIMEOUT_S * 2,
                    )
                    processes.check()
                    if not figures.outcomes[number].votes:
                        raise TransportError(f"no device answered query {number}; is the broker still there?")
                    asked(number + 1, queries)
            finally:
                pump.close()
        return DemoRun(
            scenario=scenario,
            broker=started.kind,
            figures=figures,
            query_wire=max(gateway.query_bytes),
            answer_wire=max(gateway.answer_bytes),
        )


def _make_gateway(
    scenario: Scenario, identity: GatewayIdentity, roster: Roster, form: Form, host: str, port: int
) -> tuple[MeasuredGateway, MqttLink]:
    policy = RoundPolicy(timeout_s=ROUND_TIMEOUT_S, forms=frozenset({form}))
    task = scenario.task()
    gateway = MeasuredGateway(
        identity, roster, [task], os.urandom, policy=policy, features={task.number: scenario.features()}
    )
    link = MqttLink(
        identity.mqtt_client_id(gateway.boot),
        host=host,
        port=port,
        subscriptions=gateway.subscriptions,
        will=gateway.will,
    )
    return gateway, link


def _await_members(
    scenario: Scenario,
    pump: Pump,
    gateway: MeasuredGateway,
    processes: MemberProcesses,
    joined: Callable[[int, int], None],
) -> None:
    task, expected = scenario.task().number, len(scenario.members())

    def everybody_is_there() -> bool:
        processes.check()
        there = len(gateway.familiar(task))
        joined(there, expected)
        return there == expected

    if not pump.run_until(everybody_is_there, timeout_s=JOIN_TIMEOUT_S):
        there = set(gateway.familiar(task))
        late = ", ".join(member.id for member in scenario.members() if member.id not in there)
        raise TransportError(f"no word from {late} within {JOIN_TIMEOUT_S:.0f} s; is this machine very busy?")
