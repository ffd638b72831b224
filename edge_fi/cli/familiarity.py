"""`edge-fi task features` and `edge-fi device familiarize`: where votes are weighed, and by what gate."""

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from edge_fi import config
from edge_fi.adapters.samples import read_labelled, read_queries
from edge_fi.cli.joinfiles import write, write_bytes
from edge_fi.device import OwnGate
from edge_fi.errors import ConfigError, DecodeError, ModelError
from edge_fi.messages import Array, Task
from edge_fi.voting import features as maps
from edge_fi.voting import gate as gates
from edge_fi.voting.features import FeatureMap
from edge_fi.voting.gate import Gate

MOST_PUBLIC = 1500  # queries kept in a map; more make it larger and hardly better
MOST_BYTES = 190_000  # that still travel in ACCEPT


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Public queries: .npy, or .npz with `queries`.",
)
@click.option(
    "--kind", type=click.Choice(maps.KINDS), help="Default: pixels for images, columns for everything else."
)
@click.option(
    "--network",
    type=click.Path(path_type=Path),
    help="Of kind onnx: a frozen model whose output is the features.",
)
@click.option("--axes", type=click.IntRange(1, maps.MAX_AXES), default=maps.MAX_AXES, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Default: the task's name.features beside it.")
@click.option("--replace", "is_replacing", is_flag=True, help="Take the place of the map that the task has.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def features(
    file: Path,
    data: Path,
    kind: str | None,
    network: Path | None,
    axes: int,
    out: Path | None,
    is_replacing: bool,
    as_json: bool,
) -> None:
    """Make a task's feature map from public queries without labels, and name it in the task file.

    All devices say in it how familiar a query is to them. Do this before devices join: a task with
    another map is another task, and gates that were made in the old one no longer count.

    \b
    Examples:
      edge-fi task features acme/tasks/digits.toml --data public.npy
      edge-fi task features acme/tasks/photos.toml --data public.npz --kind hog
    """
    text = _read(file)
    has_map = re.search(r"(?m)^features *=.*\n?", text)
    if has_map and not is_replacing:
        raise ConfigError(f"{file} names a feature map already: --replace makes another, and all gates anew")
    if (kind == "onnx") != (network is not None):
        raise click.UsageError("--kind onnx and --network go together")
    # Without the line: the map that it names may be gone.
    text = re.sub(r"(?m)^features *=.*\n?", "", text)
    task = config.parse_task(file, text)
    queries = read_queries(data, task)
    if len(queries) > MOST_PUBLIC:
        queries = queries[np.linspace(0, len(queries) - 1, MOST_PUBLIC).astype(np.intp)]
    chosen = kind or ("pixels" if _is_image(task) else "columns")
    content, embedding = b"", None
    if network is not None:
        from edge_fi.adapters.onnx import load_embedding

        content, embedding = load_embedding(network)
    try:
        made = maps.fit(queries, kind=chosen, axes=axes, network=content, embedding=embedding)
        made = gates.anchored(made)
    except ValueError as error:
        raise ConfigError(f"{data}: {error}") from None
    target = out or file.with_name(f"{task.name}.features")
    write_bytes(target, made.encoded)
    write(file, f"{text.rstrip()}\nfeatures = {_named(target, file)}\n")
    fields = {
        "file": str(target),
        "kind": chosen,
        "axes": len(made.steps),
        "dimension": round(made.dimension, 2),
        "public": len(queries),
        "bytes": len(made.encoded),
        "travels": len(made.encoded) <= MOST_BYTES,
    }
    if as_json:
        click.echo(json.dumps(fields))
        return
    click.echo(
        f"{fields['file']}: {chosen}, {fields['axes']} axes, intrinsic dimension {fields['dimension']}, "
        f"{len(queries)} public queries, {fields['bytes']} bytes"
    )
    if not fields["travels"]:
        click.echo(
            "It is too large to come with an invite: copy it to each device, beside its task file.", err=True
        )
    click.echo(
        f"{file} names it now. Next, on each device that has joined: edge-fi device familiarize --data ..."
    )


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path), required=True, help="The device's own samples: .npz, .npy."
)
@click.option("--labels", type=click.Path(path_type=Path), help="Where --data is a .npy: their labels, .npy.")
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=Path("device.toml"),
    show_default=True,
    help="The device's configuration file.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Default: the id.gate beside the configuration.")
@click.option(
    "--private", "is_private", is_flag=True, help="Keep the gate: claim a weight in each answer instead."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def familiarize(
    data: Path, labels: Path | None, path: Path, out: Path | None, is_private: bool, as_json: bool
) -> None:
    """Fit the gate by which this device's votes are weighed, from the samples that its model learnt from.

    The gate is a few kilobytes: clusters of five samples at least, how they differ from public queries,
    and how many samples there are of each class. By default the gateway is given it.

    \b
    Examples:
      edge-fi device familiarize --data own.npz --config pi-01/device.toml
      edge-fi device familiarize --data x.npy --labels y.npy --private
    """
    settings = config.load(path, config.DeviceConfig)
    task_path = path.parent / settings.task
    task = config.load_task(task_path)
    shared = load_map(task_path, task)
    if shared is None:
        raise ConfigError(
            f"task {task.name} has no feature map: the gateway's owner makes it with "
            "'edge-fi task features', and it comes with the next invite"
        )
    queries, classes = read_labelled(data, labels, task)
    try:
        gate = gates.fit(shared.rows(queries), classes, shared, classes=task.classes)
    except ValueError as error:
        raise ConfigError(f"{data}: {error}") from None
    content = gate.encode(shared)
    target = out or path.with_name(f"{Path(settings.key).stem}.gate")
    write_bytes(target, content, mode=0o600)
    section = f"[familiarity]\ngate = {_named(target, path)}\nshare = {json.dumps(not is_private)}\n"
    text = re.sub(r"(?m)^\[familiarity\].*\n?(?:(?!\[).*\n?)*", "", _read(path)).rstrip()
    write(path, f"{text}\n\n{section}")
    unseen = [label for label, count in zip(task.labels, gate.coverage, strict=True) if not count]
    clusters = len(gate.own.counts)
    fields = {
        "file": str(target),
        "bytes": len(content),
        "clusters": clusters,
        "samples": len(queries),
        "unseen": unseen,
        "ms_a_query": _ms_a_query(queries, gate, shared),
        "share": not is_private,
    }
    if as_json:
        click.echo(json.dumps(fields))
        return
    click.echo(
        f"{target}: {clusters} clusters of {len(queries)} samples, {len(content)} bytes, "
        f"{fields['ms_a_query']} ms a query"
    )
    if unseen:
        click.echo(f"never seen: {', '.join(unseen)}")
    click.echo(f"{path} names it now: start the device again.")


def _ms_a_query(queries: Array, gate: Gate, shared: FeatureMap) -> float:
    """Median of some, each by itself, as a device with a private gate weighs them."""
    took = []
    for query in queries[:20]:
        began = time.perf_counter()
        gate.weigh(shared.rows(query[None])[0], shared)
        took.append(time.perf_counter() - began)
    return round(float(np.median(took)) * 1000, 3)


def load_map(task_path: Path, task: Task) -> FeatureMap | None:
    """The task's map, able to run its network where it has one. Raises ConfigError, ModelError."""
    shared = config.load_features(task_path, task)
    if shared is None or shared.kind != "onnx":
        return shared
    from edge_fi.adapters.onnx import embedding

    run = embedding(shared.network, f"the feature map of {task.name}")
    given = run(np.zeros((1, *task.shape))).shape[1]
    if given != len(shared.mean):
        raise ModelError(
            f"the feature map of {task.name} has a network that gives {given} features, not the "
            f"{len(shared.mean)} it was made of: make it anew with 'edge-fi task features'"
        )
    return replace(shared, embedding=run)


def load_gate(path: Path, settings: config.DeviceConfig, task: Task) -> OwnGate | None:
    """What a device's configuration says of its familiarity. Raises ConfigError, ModelError."""
    if settings.familiarity is None:
        return None
    shared = load_map(path.parent / settings.task, task)
    if shared is None:
        raise ConfigError(f"{path} has [familiarity], but task {task.name} has no feature map: take it out")
    name = path.parent / settings.familiarity.gate
    try:
        content = name.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {name}: {error.strerror}; run 'edge-fi device familiarize'") from None
    if gates.map_of(content) not in (b"", shared.digest):
        raise ConfigError(
            f"{name} was made in another feature map than task {task.name} has now: run 'edge-fi device "
            "familiarize' again"
        )
    try:
        gate = Gate.decode(content, shared)
    except DecodeError:
        raise ConfigError(f"{name} is damaged: run 'edge-fi device familiarize' again") from None
    if len(gate.coverage) != task.classes:
        raise ConfigError(f"{name} is of another task: run 'edge-fi device familiarize' again")
    return OwnGate(gate=gate, features=shared, is_registered=settings.familiarity.share)


def _named(target: Path, file: Path) -> str:
    """A file's name as it stands in another: relative to it."""
    return json.dumps(os.path.relpath(target, file.parent))


def _is_image(task: Task) -> bool:
    sides = [size for size in task.shape if size > 4]
    return len(sides) == 2 and len(task.shape) in (2, 3) and min(sides) >= 8


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
