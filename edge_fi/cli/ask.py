"""`edge-fi ask`: put one query to a federation."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from edge_fi import config
from edge_fi.adapters.mqtt import Down, MqttLink
from edge_fi.cli.run import make_client
from edge_fi.client import Client
from edge_fi.effects import Deliver
from edge_fi.errors import ConfigError, TransportError
from edge_fi.messages import Fate, Outcome, Status, Task, Tensor
from edge_fi.pump import Notice, Pump, monotonic_us

NO_OUTCOME = 7
PATIENCE_S = 5.0  # beyond the deadline, for the client itself to give up
ASK_AGAIN_S = 0.25

_ADVICE = {
    Status.NO_QUORUM: "fewer devices answered than the gateway's quorum asks for",
    Status.NO_MEMBERS: "no device has joined for this task: is any running?",
    Status.OVERLOADED: "the gateway has too many open queries: ask again later",
    Status.REFUSED: "the gateway does not have this task, or has another version of it",
    Status.UNREACHABLE: "no outcome came: is the gateway running, and this client in its roster?",
}


_ABSTAINED = {
    "declined": "every device that answered abstained",
    "unfamiliar": "the query is unlike anything that a device has learnt from",
    "unsure": "the votes do not say enough for the gateway's least confidence",
}


@click.command()
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    required=True,
    help="The client's configuration file; EDGE_FI_BROKER__HOST=... and the like override it.",
)
@click.option("--task", "name", help="The task's name; needed where the configuration has several.")
@click.option(
    "--input",
    "source",
    required=True,
    help="The query: a .npy file, a .json file of nested lists, or - for JSON on stdin.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.05, 3600),
    default=10.0,
    show_default=True,
    help="Longest wait for the broker, for devices and for the outcome, in seconds each.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def ask(path: Path, name: str | None, source: str, timeout_s: float, as_json: bool) -> int:
    """Ask the federation about one input and print its outcome.

    \b
    Examples:
      edge-fi ask --config configs/client.toml --input image.npy
      echo '[[0, 3, ...], ...]' | edge-fi ask --config configs/client.toml --input - --json
    """
    client, link, settings = make_client(path)
    tasks = config.load_tasks(path.parent, settings.tasks)
    task = _choose(tasks, name, path)
    tensor = read_tensor(source, task)
    with connected(client, link, path, timeout_s) as (pump, outcomes):
        outcome = _ask(pump, client, task, tensor, outcomes, timeout_s)
    click.echo(json.dumps(as_fields(outcome, task)) if as_json else _as_text(outcome, task))
    return 0 if outcome.status is Status.ANSWERED else NO_OUTCOME


@contextlib.contextmanager
def connected(
    client: Client, link: MqttLink, path: Path, timeout_s: float
) -> Iterator[tuple[Pump, list[Outcome]]]:
    """A client's pump, its link up, and the outcomes as they come. Raises TransportError."""
    outcomes: list[Outcome] = []
    unreachable = "no connection"

    def watch(notice: Notice) -> None:
        nonlocal unreachable
        if isinstance(notice, Deliver):
            outcomes.append(notice.outcome)
        elif isinstance(notice, Down):
            unreachable = notice.reason

    pump = Pump(client, link, watch=watch)
    pump.start()
    try:
        if not pump.run_until(lambda: link.is_up, timeout_s=timeout_s):
            raise TransportError(
                f"broker {link.host}:{link.port} cannot be reached: {unreachable}; check [broker] in {path}"
            )
        yield pump, outcomes
    finally:
        pump.close()


def _ask(
    pump: Pump, client: Client, task: Task, tensor: Tensor, outcomes: list[Outcome], timeout_s: float
) -> Outcome:
    """The outcome. Asks again while no device has joined: one may be about to."""
    patience_end = time.monotonic() + timeout_s
    deadline_ms = math.ceil(timeout_s * 1000)
    while True:
        outcomes.clear()
        pump.perform(client.ask(task, tensor, deadline_ms=deadline_ms, reference="ask", now=monotonic_us()))
        pump.run_until(lambda: bool(outcomes), timeout_s=timeout_s + PATIENCE_S)
        outcome = outcomes[0] if outcomes else Outcome(status=Status.UNREACHABLE)
        if outcome.status is not Status.NO_MEMBERS or time.monotonic() > patience_end:
            return outcome
        pump.run_until(lambda: False, timeout_s=ASK_AGAIN_S)


def read_tensor(source: str, task: Task) -> Tensor:
    """The query of a file, checked against the task. Raises ConfigError."""
    try:
        if source == "-":
            values = np.asarray(json.load(sys.stdin))
        elif source.endswith(".npy"):
            values = _load_array(source)
        else:
            values = np.asarray(json.loads(Path(source).read_text(encoding="utf-8")))
    except Exception as error:  # numpy's reader alone raises six unrelated types for a damaged file
        reason = getattr(error, "strerror", None) or "it is neither .npy nor JSON of nested lists"
        raise ConfigError(f"cannot read input {source}: {reason}") from None
    wanted = f"task {task.name} takes {task.dtype} {list(task.shape)}"
    if values.shape != task.shape:
        raise ConfigError(f"input {source} has shape {list(values.shape)}, but {wanted}")
    if values.dtype.kind not in "buif":
        raise ConfigError(f"input {source} holds {values.dtype}, but {wanted}")
    with np.errstate(all="ignore"):
        cast = values.astype(np.dtype(task.dtype).newbyteorder("<"))
    if cast.dtype.kind in "ui" and not np.array_equal(cast, values):
        raise ConfigError(f"input {source} has values that {task.dtype} cannot hold; {wanted}")
    return Tensor(task.dtype, task.shape, cast.tobytes())


def _load_array(source: str) -> NDArray[Any]:
    with open(source, "rb") as file:  # np.load leaves it open when it fails
        values = np.load(file, allow_pickle=False)
    if not isinstance(values, np.ndarray):
        raise ValueError("an archive of arrays")
    return values


def as_fields(outcome: Outcome, task: Task) -> dict[str, Any]:
    """An outcome as JSON."""
    answered = outcome.label is not None
    return {
        "status": outcome.status.name.lower(),
        "label": task.labels[outcome.label] if outcome.label is not None else None,
        "probabilities": (
            {name: round(p, 4) for name, p in zip(task.labels, outcome.probabilities, strict=True)}
            if answered
            else {}
        ),
        "agreement": round(outcome.agreement, 4),
        "strategy": outcome.strategy,
        "reason": outcome.reason,
        "label_set": [task.labels[label] for label in outcome.label_set],
        "query": f"{outcome.epoch}-{outcome.seq}" if outcome.seq else None,
        "members": {device: fate.name.lower() for device, fate in outcome.fates},
        "elapsed_ms": round(outcome.elapsed_us / 1000, 3),
    }


def _as_text(outcome: Outcome, task: Task) -> str:
    counted, missing = outcome.members(Fate.COUNTED), outcome.members(Fate.MISSING)
    if outcome.label is None:
        advice = _ABSTAINED.get(outcome.reason, "it abstained")
        lines = [f"no outcome: {_ADVICE.get(outcome.status, advice)}"]
    else:
        share = outcome.probabilities[outcome.label]
        lines = [f"{task.labels[outcome.label]}   {share:.0%} of the pooled probability"]
    others = [task.labels[its] for its in outcome.label_set if its != outcome.label]
    if others:
        lines.append(f"{'perhaps' if outcome.label is None else 'or'} {', '.join(others)}")
    if outcome.fates:
        took = f"{outcome.elapsed_us / 1000:.1f} ms at the gateway"
        lines.append(f"{len(counted)} of {len(outcome.fates)} devices counted, {took}")
    if counted and outcome.strategy:
        lines.append(f"{outcome.agreement:.0%} of them agree; strategy {outcome.strategy}")
    if missing:
        lines.append(f"missing: {', '.join(missing)}")
    return "\n".join(lines)


def _choose(tasks: dict[str, Task], name: str | None, path: Path) -> Task:
    if name is None and len(tasks) == 1:
        return next(iter(tasks.values()))
    if name not in tasks:
        wanted = "name one with --task" if name is None else f"no task {name!r} in {path}"
        raise ConfigError(f"{wanted}: {', '.join(tasks)}")
    return tasks[name]
