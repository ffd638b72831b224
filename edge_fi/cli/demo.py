"""`edge-fi demo`: a whole federation on this machine, and what came of it."""

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_fi.errors import ConfigError
from edge_fi.messages import VOTE_FORMS, Form

if TYPE_CHECKING:
    from rich.console import Console

    from edge_fi.demo.run import DemoRun

PICTURE_SUFFIXES = (".png", ".svg", ".pdf")
_FORMS = {form.title: form for form in VOTE_FORMS}
_MOST_QUERIES = 300  # of each scenario


@click.command()
@click.option(
    "--scenario",
    "name",
    type=click.Choice(["digits", "watch"]),
    default="digits",
    show_default=True,
    help="What is asked: images of digits, or which exercise the wearer of a watch does.",
)
@click.option(
    "--queries",
    type=click.IntRange(1, _MOST_QUERIES),
    default=_MOST_QUERIES,
    show_default=True,
    help="How many to ask.",
)
@click.option(
    "--form",
    type=click.Choice(list(_FORMS)),
    default="label",
    show_default=True,
    help="Vote code of answers.",
)
@click.option("--broker", type=click.Choice(["mosquitto", "nats"]), help="Default: the first that is there.")
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("edge-fi-demo.png"),
    show_default=True,
    help="Where to draw one query with each member's vote.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the figures to a file.",
)
def demo(
    name: str, queries: int, form: str, broker: str | None, picture: Path, json_path: Path | None
) -> None:
    """Run a federation and a broker here, and ask about real data.

    Each device is a process of its own, with a small model of another kind that was trained on data which
    no other device has seen: a share of scikit-learn's digits, or the exercises in the plan of one wearer
    of a smartwatch. No network is needed.

    \b
    Examples:
      edge-fi demo
      edge-fi demo --scenario watch
      edge-fi demo --form probs-4 --broker nats --json figures.json
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from edge_fi.demo import picture as pictures
        from edge_fi.demo import run
        from edge_fi.demo.members import SCENARIOS
    except ImportError as error:
        package = (error.name or "more packages").split(".")[0]
        raise ConfigError(f"the demo needs {package}: pip install 'edge-fi[demo]'") from None
    if picture.suffix not in PICTURE_SUFFIXES:
        raise ConfigError(f"--picture {picture}: its name must end with {', '.join(PICTURE_SUFFIXES)}")
    for target in (picture, *([json_path] if json_path else [])):
        if not os.access(target.absolute().parent, os.W_OK):
            raise ConfigError(f"cannot write {target}: choose a folder that exists and is yours")
    for ending in (signal.SIGTERM, signal.SIGHUP):
        # As Ctrl-C: broker, devices and the folder of keys are cleared away on the way out.
        signal.signal(ending, signal.default_int_handler)
    scenario = SCENARIOS[name]
    console = Console()
    began = time.monotonic()
    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        joining = progress.add_task("devices join", total=None)
        asking = progress.add_task("queries answered", total=queries, start=False)

        def joined(there: int, expected: int) -> None:
            progress.update(joining, completed=there, total=expected)
            if there == expected:
                progress.start_task(asking)

        result = run.run_demo(
            scenario,
            queries=queries,
            form=Form(_FORMS[form]),
            broker=broker,
            joined=joined,
            asked=lambda done, total: progress.update(asking, completed=done, total=total),
        )
    _tables(console, result, form)
    figures = result.figures
    number = figures.most_telling()
    tensors, truth = scenario.asked()
    pictures.draw(
        picture,
        task=scenario.task(),
        tensor=tensors[number],
        truth=int(truth[number]),
        outcome=figures.outcomes[number],
        members=scenario.members(),
    )
    wrong = sum(vote.label != truth[number] for vote in figures.outcomes[number].votes)
    console.print(f"picture: {picture} (query {number}, which {wrong} members alone got wrong)")
    if json_path is not None:
        json_path.write_text(json.dumps(result.as_fields(), indent=2) + "\n", encoding="utf-8")
        console.print(f"figures: {json_path}")
    console.print(f"done in {time.monotonic() - began:.0f} s")


def _tables(console: "Console", result: "DemoRun", form: str) -> None:
    from rich.table import Table

    scenario, fields = result.scenario, result.as_fields()
    together = Table("strategy", title="together, from the same votes")
    for column in ("right", "NLL", "ECE"):
        together.add_column(column, justify="right")
    for place, (name, score) in enumerate(fields["strategies"].items()):
        row = (name, f"{score['accuracy']:.1f} %", f"{score['nll']:.2f}", f"{score['ece']:.1f} %")
        together.add_row(*row, style="bold" if place == 0 else None)
    alone = Table("device", "model", f"private {scenario.sample}s", "knows", title="each member alone")
    alone.add_column("right", justify="right")
    for member, device in zip(scenario.members(), fields["devices"], strict=True):
        known = (" " if scenario.is_short else ", ").join(member.labels)
        alone.add_row(member.id, member.kind, str(member.samples), known, f"{device['accuracy']:.1f} %")
    cost = Table("figure", title=f"cost of a query over {result.broker}, vote code {form}")
    cost.add_column("", justify="right")
    cost.add_row("query, MQTT packet, to all devices at once", f"{result.query_wire} bytes")
    cost.add_row("answer, MQTT packet, sealed", f"{result.answer_wire} bytes")
    latency = fields["latency_ms"]
    cost.add_row("publish to outcome, median", f"{latency['p50']:.2f} ms")
    cost.add_row("publish to outcome, 99th percentile", f"{latency['p99']:.2f} ms")
    cost.add_row("queries asked", str(fields["rounds"]))
    cost.add_row("answers lost", str(fields["lost"]))
    rejected = ", ".join(f"{reason} {count}" for reason, count in fields["rejected"].items())
    cost.add_row("frames rejected", rejected or "0")
    for table in (together, alone, cost):
        console.print(table)
