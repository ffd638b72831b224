"""How long a sealed round takes, beside what it is made of, in one run over one broker.

    python benchmarks/round_trip.py [--broker mosquitto|nats] [--json FILE]

In turns, so that a machine whose speed drifts treats all alike: a bare `session.run`; a bare MQTT
publish and echo through the same broker, pump and client library; the same round of 3 devices
without any protection (plain.py); the sealed round with 3, 10 and 100 devices. Up to 10 devices each
is a process of its own; 100 are two processes of 50 threads. Medians of one run.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fleet import load_model
from machine import describe
from plain import Caller, PlainGateway

from broker.embedded import EmbeddedBroker
from edge_fi.adapters import keyfile
from edge_fi.adapters.mqtt import MqttLink
from edge_fi.demo.members import heldout, task
from edge_fi.effects import Deliver, Effect, Machine
from edge_fi.gateway import Gateway
from edge_fi.messages import Outcome, Status
from edge_fi.pump import Notice, Pump, monotonic_us
from edge_fi.roster import Roster
from edge_fi.round import RoundPolicy

SIZES = (3, 10, 100)
PROCESSES_UP_TO = 10
TURNS = 6  # the first warms up and is not counted
JOIN_S = 120.0
ROUND_S = 20.0

Step = Callable[[], float]
"""Does one thing and returns how long it took, in microseconds."""


class Driver:
    """A machine of this process that the benchmark asks, one question at a time."""

    def __init__(self, machine: Machine, client_id: str, port: int) -> None:
        self.machine = machine
        self.outcomes: list[Outcome] = []
        link = MqttLink(
            client_id, host="127.0.0.1", port=port, subscriptions=machine.subscriptions, will=machine.will
        )
        self.link = link
        self.pump = Pump(machine, link, watch=self._watch)
        self.pump.start()

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until everybody is there."""
        if not self.pump.run_until(condition, timeout_s=JOIN_S):
            raise SystemExit("the devices did not all join; is this machine busy?")

    def timed(self, ask: Callable[[], list[Effect]]) -> float:
        """Microseconds from the question to its outcome."""
        self.outcomes.clear()
        began = time.perf_counter_ns()
        self.pump.perform(ask())
        if not self.pump.run_until(lambda: bool(self.outcomes), timeout_s=ROUND_S):
            raise SystemExit("a round got no outcome")
        if self.outcomes[0].status is not Status.ANSWERED or self.missing():
            raise SystemExit(f"a round was not whole: {self.outcomes[0]}")
        return (time.perf_counter_ns() - began) / 1000

    def missing(self) -> bool:
        """Whether anybody did not answer."""
        return any(fate.name != "COUNTED" for _, fate in self.outcomes[0].fates)

    def _watch(self, notice: Notice) -> None:
        if isinstance(notice, Deliver):
            self.outcomes.append(notice.outcome)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--broker", choices=("mosquitto", "nats"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-fi-bench-")))
        broker = stack.enter_context(EmbeddedBroker(arguments.broker))
        steps = _set_up(stack, folder, broker.port)
        figures = _measure(steps)
    result = _report(figures, broker.kind)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def _set_up(stack: contextlib.ExitStack, folder: Path, port: int) -> dict[str, tuple[Step, int]]:
    """Each thing to time, by its name, and how often in a turn."""
    tensors, _ = heldout()
    tensor = tensors[0]
    model = load_model()
    _start(stack, folder, port, ["echo"])
    caller = Caller("bench")
    echo = Driver(caller, "bench-caller", port)
    plain = PlainGateway(task(), "plain")
    plain_driver = Driver(plain, "bench-plain", port)
    plain_driver.wait(lambda: plain_driver.link.is_up)
    for name in ("plain-1", "plain-2", "plain-3"):
        _start(stack, folder, port, [name])
    # A query of the sealed round is this large, so the echo carries as much.
    payload = bytes(182)
    steps: dict[str, tuple[Step, int]] = {
        "inference": (lambda: _timed(lambda: model.infer([tensor])), 300),
        "echo": (lambda: echo.timed(lambda: caller.call(payload)), 200),
        "plain round of 3": (
            lambda: plain_driver.timed(lambda: plain.ask(tensor, now=monotonic_us())),
            100,
        ),
    }
    echo.wait(lambda: echo.link.is_up)
    plain_driver.wait(lambda: len(plain.online) == 3)
    for size in SIZES:
        driver, gateway = _sealed(stack, folder / str(size), port, size)

        def step(driver: Driver = driver, gateway: Gateway = gateway) -> float:
            return driver.timed(lambda: gateway.ask(task().number, tensor, reference=0, now=monotonic_us()))

        steps[f"sealed round of {size}"] = (step, max(10, 300 // size))
    return steps


def _sealed(stack: contextlib.ExitStack, folder: Path, port: int, size: int) -> tuple[Driver, Gateway]:
    identity = keyfile.make_gateway(folder / "gateway.key", f"bench-{size}", os.urandom)
    names = [f"pi-{number:02}" for number in range(1, size + 1)]
    lines = keyfile.introduce(folder, [("device", name) for name in names], identity, os.urandom)
    policy = RoundPolicy(timeout_s=ROUND_S, reask_s=ROUND_S)
    gateway = Gateway(identity, Roster(members=tuple(lines)), [task()], os.urandom, policy=policy)
    driver = Driver(gateway, identity.mqtt_client_id(gateway.boot), port)
    driver.wait(lambda: driver.link.is_up)
    half = len(names) // 2
    groups = [[name] for name in names] if size <= PROCESSES_UP_TO else [names[:half], names[half:]]
    for group in groups:
        _start(stack, folder, port, group)
    driver.wait(lambda: len(gateway.online(task().number)) == size)
    return driver, gateway


def _start(stack: contextlib.ExitStack, folder: Path, port: int, names: list[str]) -> None:
    settings = json.dumps({"port": port, "folder": str(folder), "names": names})
    command = [sys.executable, str(Path(__file__).with_name("fleet.py")), settings]
    process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE))
    assert process.stdin is not None
    stack.callback(process.stdin.close)


def _measure(steps: dict[str, tuple[Step, int]]) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(TURNS):
        for name, (step, times) in steps.items():
            taken = [step() for _ in range(times)]
            if turn:
                figures[name] += taken
        print(f"turn {turn + 1} of {TURNS}", file=sys.stderr, flush=True)
    return figures


def _report(figures: dict[str, list[float]], broker: str) -> dict[str, Any]:
    medians = {name: statistics.median(taken) for name, taken in figures.items()}
    p99 = {name: statistics.quantiles(taken, n=100)[98] for name, taken in figures.items()}
    sealed = medians["sealed round of 3"]
    ratios = {
        "sealed round of 3 / plain round of 3": sealed / medians["plain round of 3"],
        "sealed round of 3 / (echo + inference)": sealed / (medians["echo"] + medians["inference"]),
    }
    machine = describe()
    print(f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, over {broker}")
    print(f"{'':<24}{'median, us':>12}{'p99, us':>12}{'times':>8}")
    for name, taken in figures.items():
        print(f"{name:<24}{medians[name]:>12.0f}{p99[name]:>12.0f}{len(taken):>8}")
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    return {
        "machine": machine,
        "broker": broker,
        "median_us": {name: round(value, 1) for name, value in medians.items()},
        "p99_us": {name: round(value, 1) for name, value in p99.items()},
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
    }


def _timed(action: Callable[[], object]) -> float:
    began = time.perf_counter_ns()
    action()
    return (time.perf_counter_ns() - began) / 1000


if __name__ == "__main__":
    main()
