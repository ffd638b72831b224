"""What a flood of forged HELLOs and JOINs leaves of a federation's rounds, in one run, in turns.

    python benchmarks/flood.py [--rate 10000] [--seconds 4] [--json FILE]

Twice the same federation, as its users run it: gateway, three devices and mosquitto, each a process; a
client asks one question after another. Once with a broker that lets anybody do anything, where a stranger
floods; once with the production broker of `edge-fi broker config`, where strangers do not get in, so that
it is a member who floods topics that are not its own. Rounds a second without the flood and with it.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import describe

from broker.embedded import EmbeddedBroker
from broker.production import command
from edge_fi.adapters import keyfile
from edge_fi.cli.run import make_client
from edge_fi.demo.members import ASSETS, heldout, members, task
from edge_fi.effects import Deliver
from edge_fi.messages import Fate, Outcome
from edge_fi.pump import Notice, Pump, monotonic_us

TURNS = 3
DEVICES = 3
PATIENCE_S = 60.0
FEDERATION = "flood"
EDGE_FI = [sys.executable, "-m", "edge_fi"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One federation that runs."""

    folder: Path
    port: int
    has_accounts: bool
    ask: Callable[[], Outcome]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rate", type=int, default=10_000, help="forged frames a second")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": describe(), "rate": arguments.rate}
    for name in ("anybody", "accounts"):
        with contextlib.ExitStack() as stack:
            site = _set_up(stack, has_accounts=name == "accounts")
            results[name] = _measure(site, arguments.rate, arguments.seconds)
    _print(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def _set_up(stack: contextlib.ExitStack, *, has_accounts: bool) -> Site:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-fi-bench-")))
    free = EmbeddedBroker("mosquitto")
    free.start()  # for its free port, and where anybody may connect for itself
    host = ["--host", "127.0.0.1"] if has_accounts else []
    digits = str(ASSETS / "digits.toml")
    _run("gateway", "new", "--federation", FEDERATION, "--task", digits, *host, "--port", str(free.port),
         "--out", str(folder / "gateway"))  # fmt: skip
    config = str(folder / "gateway" / "gateway.toml")
    if has_accounts:
        free.stop()
        _run("broker", "config", "mosquitto", "--config", config)
        _start(stack, command(folder / "gateway" / "broker", "mosquitto"))
    else:
        stack.callback(free.stop)
    _start(stack, [*EDGE_FI, "gateway", "run", "--config", config])
    member = members()[1]
    for number in range(1, DEVICES + 1):
        invite = _run("gateway", "invite", f"pi-{number:02}", "--config", config)
        out = folder / f"pi-{number:02}"
        _run("device", "join", "--out", str(out), "--model", str(ASSETS / member.model), "--labels",
             ",".join(member.labels), "--scores", member.scores, stdin=invite)  # fmt: skip
        _start(stack, [*EDGE_FI, "device", "run", "--config", str(out / "device.toml")])
    invite = _run("gateway", "invite", "laptop", "--role", "client", "--config", config)
    _run("client", "join", "--out", str(folder / "laptop"), stdin=invite)
    ask = _client(stack, folder / "laptop" / "client.toml")
    deadline = time.monotonic() + PATIENCE_S
    while len(ask().members(Fate.COUNTED)) < DEVICES:
        if time.monotonic() > deadline:
            raise SystemExit("the devices did not all join; is this machine busy?")
    return Site(folder=folder, port=free.port, has_accounts=has_accounts, ask=ask)


def _client(stack: contextlib.ExitStack, path: Path) -> Callable[[], Outcome]:
    """One question, until it has its outcome."""
    outcomes: list[Outcome] = []
    client, link, _ = make_client(path)

    def watch(notice: Notice) -> None:
        if isinstance(notice, Deliver):
            outcomes.append(notice.outcome)

    pump = Pump(client, link, watch=watch)
    pump.start()
    stack.callback(pump.close)
    tensor = heldout()[0][0]

    def ask() -> Outcome:
        outcomes.clear()
        pump.perform(client.ask(task(), tensor, deadline_ms=5000, reference=0, now=monotonic_us()))
        if not pump.run_until(lambda: bool(outcomes), timeout_s=PATIENCE_S):
            raise SystemExit("a question got no outcome")
        return outcomes[0]

    return ask


def _measure(site: Site, rate: int, seconds: float) -> dict[str, Any]:
    quiet, flooded, sent = [], [], []
    for _ in range(TURNS):
        quiet.append(_rounds(site, seconds))
        with contextlib.ExitStack() as stack:
            flooder = _flood(stack, site, rate)
            time.sleep(0.5)
            flooded.append(_rounds(site, seconds))
            said, _ = flooder.communicate("\n")
        told = json.loads(said)
        sent.append(told["sent"] / told["seconds"])
    without, under = (statistics.median(rates for rates, _ in each) for each in (quiet, flooded))
    return {
        "rounds_per_s": round(without, 1),
        "rounds_per_s_flooded": round(under, 1),
        "ratio": round(under / without, 3),
        "whole": min(share for _, share in flooded),
        "forged_per_s": round(statistics.median(sent)),
    }


def _rounds(site: Site, seconds: float) -> tuple[float, float]:
    """Rounds a second, and the share of them in which every device counted."""
    began, done, whole = time.monotonic(), 0, 0
    while time.monotonic() - began < seconds:
        whole += len(site.ask().members(Fate.COUNTED)) == DEVICES
        done += 1
    return done / (time.monotonic() - began), whole / done


def _flood(stack: contextlib.ExitStack, site: Site, rate: int) -> "subprocess.Popen[str]":
    settings: dict[str, Any] = {"port": site.port, "federation": FEDERATION, "victim": "pi-01", "rate": rate}
    if site.has_accounts:
        member = keyfile.read_member(site.folder / "pi-03" / "pi-03.key", "device")
        ca = str(site.folder / "gateway" / "broker" / "ca.pem")
        settings |= {"user": "pi-03", "password": member.mqtt_password, "ca": ca}
    path = str(Path(__file__).with_name("flooder.py"))
    return stack.enter_context(
        subprocess.Popen(
            [sys.executable, path, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    )


def _run(*arguments: str, stdin: str | None = None) -> str:
    done = subprocess.run(
        [*EDGE_FI, *arguments], input=stdin, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    if done.returncode:
        raise SystemExit(f"edge-fi {' '.join(arguments)}: {done.stderr}")
    return done.stdout


def _start(stack: contextlib.ExitStack, command: list[str]) -> None:
    process = stack.enter_context(
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    )
    stack.callback(process.terminate)


def _print(results: dict[str, Any]) -> None:
    machine = results["machine"]
    print(f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, over mosquitto")
    print(f"{'broker':<12}{'rounds/s':>10}{'flooded':>10}{'ratio':>8}{'whole':>8}{'forged/s':>10}")
    for name in ("anybody", "accounts"):
        row = results[name]
        print(
            f"{name:<12}{row['rounds_per_s']:>10}{row['rounds_per_s_flooded']:>10}{row['ratio']:>8}"
            f"{row['whole']:>8.0%}{row['forged_per_s']:>10}"
        )


if __name__ == "__main__":
    main()
