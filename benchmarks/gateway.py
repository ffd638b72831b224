"""What an answer costs the gateway: CPU microseconds for transport, open, decode and vote.

    python benchmarks/gateway.py [--devices 100] [--rounds 60] [--broker mosquitto|nats] [--json FILE]

Real answers of so many real sessions. Each stage is timed alone over the same answers, in turns, on
the CPU clock of this process; the median of the turns is printed. `whole` is Gateway.receive as the
pump calls it: its parts are open, decode and vote, and the checks between them. Transport is what
paho and the link take to hand over the same bytes from a real broker.
"""

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

from broker.embedded import EmbeddedBroker
from edge_fi.adapters.mqtt import MqttLink
from edge_fi.crypto import seal
from edge_fi.crypto.aead import open_sealed
from edge_fi.crypto.keys import KeyPair, SigningKey
from edge_fi.demo.members import heldout, task
from edge_fi.device import Device, Labelling
from edge_fi.effects import Infer, Publish
from edge_fi.gateway import Gateway
from edge_fi.messages import Array, Form, Member, Tensor, Vote
from edge_fi.roster import Roster
from edge_fi.round import Round, RoundPolicy
from edge_fi.session import GatewayIdentity, Identity
from edge_fi.voting.panel import Panel
from edge_fi.voting.strategy import DEFAULT, STRATEGIES
from edge_fi.wire import frames, votes
from firmware_sim.fleet import Fleet

FEDERATION = "acme"
WARM_UP = 3  # rounds that are not counted


class Answers:
    """A federation of real sessions, and the answers of one round after another."""

    def __init__(self, devices: int, form: Form) -> None:
        self.form = form
        names = [f"pi-{number:02}" for number in range(1, devices + 1)]
        pairs = [KeyPair.from_private(os.urandom(32)) for _ in names]
        gateway = GatewayIdentity(
            federation=FEDERATION,
            static=KeyPair.from_private(os.urandom(32)),
            signing=SigningKey.from_seed(os.urandom(32)),
        )
        roster = [
            Member(id=name, index=index, role="device", public=pair.public)
            for index, (name, pair) in enumerate(zip(names, pairs, strict=True), 1)
        ]
        policy = RoundPolicy(forms=frozenset({form}), timeout_s=60)
        self.gateway = Gateway(gateway, Roster(members=tuple(roster)), [task()], os.urandom, policy=policy)
        self.fleet = Fleet()
        self.fleet.add("gateway", self.gateway)
        self.devices: list[Device] = []
        for member, pair in zip(roster, pairs, strict=True):
            identity = Identity(
                federation=FEDERATION,
                role="device",
                id=member.id,
                index=member.index,
                static=pair,
                gateway_static=gateway.static.public,
            )
            labelling = Labelling(task=task(), model=bytes(8), classes=tuple(range(10)))
            self.devices.append(Device(identity, labelling, os.urandom))
            self.fleet.add(member.id, self.devices[-1])
        for name in self.fleet.nodes:
            self.fleet.connect(name)
        self.fleet.run(5)
        assert len(self.gateway.online(task().number)) == devices

    def next_round(self, tensor: Tensor, logits: Array) -> tuple[bytes, list[Publish]]:
        """The query's frame, and every device's answer to it, not yet received."""
        now = self.fleet.clock.now
        (query,) = self.gateway.ask(task().number, tensor, reference=0, now=now)
        assert isinstance(query, Publish)
        answers = []
        for device in self.devices:
            (infer,) = device.receive(query.topic, query.payload, now=now)
            assert isinstance(infer, Infer)
            (answer,) = device.inferred(infer.ticket, logits, now=now)
            assert isinstance(answer, Publish)
            answers.append(answer)
        return query.payload, answers


def cpu_us(action: Callable[[], object], times: int) -> float:
    """CPU microseconds of this process for each of so many parts of an action."""
    began = time.process_time_ns()
    action()
    return (time.process_time_ns() - began) / 1000 / times


def measure(devices: int, rounds: int, form: Form) -> dict[str, float]:
    """Medians over the rounds, in CPU microseconds an answer."""
    federation = Answers(devices, form)
    tensors, _ = heldout()
    logits = np.random.default_rng(1).normal(size=10) * 3
    turns = []
    for turn in range(rounds + WARM_UP):
        query, answers = federation.next_round(tensors[turn % len(tensors)], logits)
        gc.freeze()  # the devices' memory is not the gateway's to look through
        turns.append(measure_round(federation, query, answers))
    counted = turns[WARM_UP:]
    costs = {name: statistics.median(turn[name] for turn in counted) for name in counted[0]}
    # On a shared machine the least of many turns is the nearest to what the code itself takes.
    costs["least sum"] = min(turn["open"] + turn["decode"] + turn["vote"] for turn in counted)
    return costs


def measure_round(federation: Answers, query: bytes, answers: list[Publish]) -> dict[str, float]:
    """One round's answers through each stage alone, and then as a whole."""
    gateway, devices, digits, form = federation.gateway, federation.devices, task(), federation.form
    names = {device.identity.index: device.identity.id for device in devices}
    sessions = [gateway._peers[index].current for index in names]
    epoch = gateway._epochs[digits.number].keys
    query_hash = epoch.query_hash(query)
    codes: list[bytes] = []
    opened: list[Vote] = []

    decide = partial(Panel(digits).decide, strategy=STRATEGIES[DEFAULT])

    def open_all() -> None:
        for answer, session in zip(answers, sessions, strict=True):
            assert session is not None
            frame = frames.parse_session_frame(answer.payload)
            key = seal.answer_key(
                session.keys.answer,
                frame.header,
                epoch=epoch.number,
                query_hash=query_hash,
                model=session.model,
            )
            codes.append(open_sealed(frame.sealed, key=key, nonce=0, header=frame.header))

    def decode_all() -> None:
        for name, code in zip(names.values(), codes, strict=True):
            probabilities, weight = votes.dequantize(form, code, 10, scale=digits.log_weight)
            opened.append(Vote(device=name, probabilities=probabilities, log_weight=weight, form=form))

    def vote_all() -> None:
        made = Round(seq=1, policy=RoundPolicy(), asked=names, awaited=names, opened_us=0, decide=decide)
        for index, vote in zip(names, opened, strict=True):
            made.add(index, vote)
        made.close(names, now=0)

    def receive_all() -> None:
        now = federation.fleet.clock.now
        for answer in answers:
            gateway.receive(answer.topic, answer.payload, now=now)

    stages = {"open": open_all, "decode": decode_all, "vote": vote_all, "whole": receive_all}
    return {name: cpu_us(stage, len(devices)) for name, stage in stages.items()}


def measure_transport(kind: str | None, messages: int = 20_000) -> tuple[str, float]:
    """The broker, and CPU microseconds of paho and the link for each message of an answer's size."""
    with EmbeddedBroker(kind) as broker:
        speaker, listener = (
            MqttLink(name, host=broker.host, port=broker.port, subscriptions=[topic])
            for name, topic in (("speaker", "none"), ("listener", f"fi1/{FEDERATION}/a/+"))
        )
        for link in (speaker, listener):
            link.start()
            while not link.is_up:
                link.service()
                time.sleep(0.001)
        listener.events.clear()
        received, cost = 0, 0.0
        message = Publish(f"fi1/{FEDERATION}/a/pi-07", bytes(26))
        for _ in range(messages // 100):
            for _ in range(100):
                speaker.publish(message)
            time.sleep(0.005)  # all of them are there, so that no idle turn is counted
            waiting = 100
            while waiting > 0:
                began = time.process_time_ns()
                listener.service()
                cost += (time.process_time_ns() - began) / 1000
                waiting -= len(listener.events)
                received += len(listener.events)
                listener.events.clear()
            speaker.service()
        speaker.close()
        listener.close()
    return broker.kind, cost / received


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--broker", choices=("mosquitto", "nats"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    kind, transport = measure_transport(arguments.broker)
    result: dict[str, Any] = {
        "machine": describe(),
        "broker": kind,
        "devices": arguments.devices,
        "cpu_us_per_answer": {},
    }
    machine = result["machine"]
    print(f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, over {kind}")
    print(f"CPU microseconds an answer, {arguments.devices} devices; transport {transport:.1f}")
    columns = ("open", "decode", "vote", "sum", "least sum", "whole")
    print(f"{'form':<10}" + "".join(f"{name:>10}" for name in columns))
    for form in (Form.LABEL, Form.PROBS_4, Form.LOGITS_8):
        costs = measure(arguments.devices, arguments.rounds, form)
        costs["sum"] = costs["open"] + costs["decode"] + costs["vote"]
        costs["transport"] = transport
        result["cpu_us_per_answer"][form.title] = {name: round(cost, 2) for name, cost in costs.items()}
        print(f"{form.title:<10}" + "".join(f"{costs[name]:>10.1f}" for name in columns))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
