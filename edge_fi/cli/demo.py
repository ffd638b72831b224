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


@click.command()
@click.option(
    "--queries", type=click.IntRange(1, 400), default=400, show_default=True, help="Images to ask about."
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
def demo(queries: int, form: str, broker: str | None, picture: Path, json_path: Path | None) -> None:
    """Run five devices, a gateway and a broker here, and ask about real images.

    Each device is a process of its own, with a small model of another kind that was trained on a
    share of scikit-learn's digits which no other device has seen. No network is needed.

    \b
    Examples:
      edge-fi demo
      edge-fi demo --form probs-4 --broker nats --json figures.json
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from edge_fi.demo import members, run
        from edge_fi.demo import picture as pictures
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
            queries=queries,
            form=Form(_FORMS[form]),
            broker=broker,
            joined=joined,
            asked=lambda done, total: progress.update(asking, completed=done, total=total),
        )
    _tables(console, result, form)
    figures = result.figures
    number = figures.most_telling()
    tensors, truth = members.heldout()
    pictures.draw(
        picture,
        task=members.task(),
        tensor=tensors[number],
        truth=int(truth[number]),
        outcome=figures.outcomes[number],
        members=members.members(),
    )
    wrong = sum(vote.label != truth[number] for vote in figures.outcomes[number].votes)
    console.print(f"picture: {picture} (query {number}, which {wrong} members alone got wrong)")
    if json_path is not None:
        json_path.write_text(json.dumps(result.as_fields(), indent=2) + "\n", encoding="utf-8")
        console.print(f"figures: {json_path}")
    console.print(f"done in {time.monotonic() - began:.0f} s")


def _tables(console: "Console", result: "DemoRun", form: str) -> None:
    from rich.table import Table

    from edge_fi.demo.members import members

    fields = result.as_fields()
    alone = Table("device", "model", "private images", "knows", title="each member alone")
    alone.add_column("right", justify="right")
    for member, device in zip(members(), fields["devices"], strict=True):
        known = " ".join(member.labels)
        alone.add_row(member.id, member.kind, str(member.samples), known, f"{device['accuracy']:.1f} %")
    together = Table("strategy", title="together, by strategy")
    together.add_column("right", justify="right")
    for name, accuracy in sorted(fields["strategies"].items(), key=lambda item: -item[1]):
        together.add_row(name, f"{accuracy:.1f} %")
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
    for table in (alone, together, cost):
        console.print(table)
