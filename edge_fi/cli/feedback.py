"""`edge-fi feedback`: tell a federation what an earlier query showed."""

import json
import math
import re
from pathlib import Path

import click

from edge_fi import config
from edge_fi.cli.ask import NO_OUTCOME, PATIENCE_S, connected
from edge_fi.cli.run import make_client
from edge_fi.errors import ConfigError
from edge_fi.messages import Status
from edge_fi.pump import monotonic_us
from edge_fi.wire.payloads import Feedback

_ADVICE = {
    Status.REFUSED: "the gateway does not know this query: it keeps the latest, for one answer each",
    Status.OVERLOADED: "the gateway has too many open questions: try again later",
    Status.UNREACHABLE: "no word came: is the gateway running, and this client in its roster?",
}


@click.command()
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    required=True,
    help="The client's configuration file; EDGE_FI_BROKER__HOST=... and the like override it.",
)
@click.option("--query", required=True, metavar="EPOCH-SEQ", help="As `edge-fi ask --json` names it.")
@click.option("--label", required=True, help="What it showed: one of the task's labels, or its number.")
@click.option("--task", "name", help="The task's name; needed where the configuration has several.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0.05, 3600), default=10.0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def feedback(path: Path, query: str, label: str, name: str | None, timeout_s: float, as_json: bool) -> int:
    """Tell the gateway what an earlier query showed: its outcomes then say better how sure they are.

    It changes no outcome's label, and tells the gateway which members were right.

    \b
    Example:
      edge-fi feedback --config laptop/client.toml --query 1836152-7 --label 4
    """
    found = re.fullmatch(r"(\d{1,10})-(\d{1,10})", query)
    if found is None or max(map(int, found.groups())) > 0xFFFFFFFF:
        raise click.UsageError("--query is two numbers, as in 1836152-7: `edge-fi ask --json` prints it")
    client, link, settings = make_client(path)
    tasks = config.load_tasks(path.parent, settings.tasks)
    if name is None and len(tasks) == 1:
        (name,) = tasks
    if name not in tasks:
        raise ConfigError(f"name the task with --task: {', '.join(tasks)}")
    labels = tasks[name].labels
    if label not in labels and re.fullmatch(r"\d{1,4}", label) and int(label) < len(labels):
        label = labels[int(label)]
    if label not in labels:
        raise ConfigError(f"label {label!r} is none of task {name}: {', '.join(labels[:20])}")
    told = Feedback(int(found[1]), int(found[2]), labels.index(label))
    with connected(client, link, path, timeout_s) as (pump, outcomes):
        deadline_ms = math.ceil(timeout_s * 1000)
        effects = client.feedback(told, deadline_ms=deadline_ms, reference="feedback", now=monotonic_us())
        pump.perform(effects)
        pump.run_until(lambda: bool(outcomes), timeout_s=timeout_s + PATIENCE_S)
    status = outcomes[0].status if outcomes else Status.UNREACHABLE
    is_noted = status is Status.ANSWERED
    if as_json:
        click.echo(
            json.dumps({"query": query, "label": label, "status": status.name.lower(), "noted": is_noted})
        )
    else:
        click.echo("noted" if is_noted else f"not noted: {_ADVICE.get(status, status.name.lower())}")
    return 0 if is_noted else NO_OUTCOME
