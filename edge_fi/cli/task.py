"""`edge-fi task show`."""

import json
from pathlib import Path

import click

from edge_fi.config import load_task
from edge_fi.messages import VOTE_FORMS
from edge_fi.wire import votes


@click.group()
def task() -> None:
    """Look at tasks: what a federation agrees on."""


@task.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(file: Path, as_json: bool) -> None:
    """Check a task file and show what it means on the wire.

    \b
    Example:
      edge-fi task show configs/tasks/digits.toml
    """
    shown = load_task(file)
    sizes = {form.title: votes.size(form, shown.classes) for form in VOTE_FORMS}
    if as_json:
        fields = {
            "name": shown.name,
            "number": shown.number,
            "description": shown.description,
            "labels": shown.labels,
            "dtype": shown.dtype,
            "shape": shown.shape,
            "tensor_bytes": shown.tensor_bytes,
            "log_weight": shown.log_weight,
            "digest": shown.digest().hex(),
            "vote_bytes": sizes,
        }
        click.echo(json.dumps(fields))
        return
    click.echo(f"task {shown.number}, {shown.name}: {shown.description or 'no description'}")
    click.echo(f"  labels        {shown.classes}: {', '.join(shown.labels)}")
    shape = " x ".join(map(str, shown.shape))
    click.echo(f"  query         {shown.dtype}, {shape}: {shown.tensor_bytes} bytes")
    click.echo(f"  vote, bytes   {', '.join(f'{name} {size}' for name, size in sizes.items())}")
    click.echo(f"  weight scale  {shown.log_weight[0]} to {shown.log_weight[1]} nats")
    click.echo(f"  digest        {shown.digest().hex()} (members with another are refused)")
