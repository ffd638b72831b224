"""`edge-fi gateway new`: a folder with everything that a gateway is: keys, state, configuration."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import click

from edge_fi.adapters import keyfile
from edge_fi.adapters.state import State
from edge_fi.config import load_features, load_tasks
from edge_fi.errors import ConfigError

PLAIN_PORT, TLS_PORT = 1883, 8883  # as registered for MQTT

_CONFIGURATION = """\
# The gateway of the federation {federation}: edge-fi gateway run --config gateway.toml
# Paths are relative to this file. EDGE_FI_BROKER__HOST=... in the environment overrides host, and so on.

key = "gateway.key"             # whoever has it is the gateway
state = "state.db"              # roster and invites: edge-fi gateway backup
tasks = {tasks}
# broker_files = "broker"       # where edge-fi broker config puts its files

[broker]
host = {host}
port = {port}
{security}
[round]
timeout_s = 2.0                 # longest wait for answers
reask_s = 0.5                   # silent devices are asked once more after this
quorum = 1                      # votes without which there is no outcome
stop_after = 0                  # votes that are enough; 0 waits for every device
strategy = "familiarity"        # or another: docs/familiarity.md
least_confidence = 0.0          # a less sure outcome is none: the round abstains
answer_forms = ["label"]        # label, probs-2, probs-3, probs-4, probs-6, probs-8, logits-8

# [canaries.digits]             # queries of a task whose answers are known, asked when a member is suspected
# file = "canaries.npz"         # arrays: queries, labels
# budget = 0.02                 # at most this share of all queries
"""
_TLS = """\
tls = true
ca = "broker/ca.pem"            # made by: edge-fi broker config
"""
_HOST = re.compile(r"[0-9A-Za-z._:-]{1,255}")  # what an invite can carry


@click.command("new")
@click.option("--federation", required=True, help="The federation's name: a-z, 0-9 and '-', 16 at most.")
@click.option(
    "--task",
    "tasks",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="A task file, which is copied; several if given several times.",
)
@click.option(
    "--host",
    help="Name or address by which members reach the broker, over TLS. Default: this machine, no TLS.",
)
@click.option(
    "--port", type=click.IntRange(1, 65535), help="The broker's port. Default: 8883, or 1883 without TLS."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="The folder to make. Default: the federation's name."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def new_gateway(
    federation: str,
    tasks: tuple[Path, ...],
    host: str | None,
    port: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Make a gateway, and so a federation.

    \b
    Examples:
      edge-fi gateway new --federation acme --task digits.toml --host 192.168.1.10
      edge-fi gateway new --federation home --task digits.toml
    """
    if host is not None and not _HOST.fullmatch(host):
        raise ConfigError(f"--host {host!r} must be a DNS name or an IP address of 1 to 255 characters")
    loaded = load_tasks(Path(), [str(path) for path in tasks])
    folder = out or Path(federation)
    configuration = folder / "gateway.toml"
    if configuration.exists():
        raise ConfigError(f"{configuration} exists and is not overwritten: choose another folder with --out")
    with _all_or_nothing() as made:
        identity = keyfile.make_gateway(folder / "gateway.key", federation, os.urandom)
        made.append(folder / "gateway.key")
        State.create(folder / "state.db", federation, identity.static.public).close()
        made.append(folder / "state.db")
        # By their own names: two files of one name can come from two folders.
        names = [f"tasks/{name}.toml" for name in loaded]
        contents = [path.read_bytes() for path in tasks]
        (folder / "tasks").mkdir(exist_ok=True)
        for name, content in zip(names, contents, strict=True):
            (folder / name).write_bytes(content)
        for (name, task), source in zip(loaded.items(), tasks, strict=True):
            shared = load_features(source, task)
            if shared is not None:
                # By the task's own name too, and its file then says so.
                (folder / "tasks" / f"{name}.features").write_bytes(shared.encoded)
                path = folder / "tasks" / f"{name}.toml"
                line = f'features = "{name}.features"'
                path.write_text(re.sub(r"(?m)^features *=.*$", line, path.read_text("utf-8")), "utf-8")
        made.append(configuration)
        configuration.write_text(
            _CONFIGURATION.format(
                federation=federation,
                tasks=json.dumps(names),
                host=json.dumps(host or "127.0.0.1"),
                port=port or (TLS_PORT if host else PLAIN_PORT),
                security=_TLS if host else "",
            ),
            encoding="utf-8",
        )
    if as_json:
        click.echo(
            json.dumps({"folder": str(folder), "config": str(configuration), "federation": federation})
        )
        return
    click.echo(f"{folder}  made: the gateway of federation {federation}; its key is in {folder}/gateway.key")
    if host:
        click.echo(f"next: edge-fi broker config mosquitto --config {configuration}")
    else:
        click.echo(f"next: edge-fi gateway run --config {configuration} --start-broker")


@contextlib.contextmanager
def _all_or_nothing() -> Iterator[list[Path]]:
    """What was made is taken away where the rest cannot be: the same command can be given again."""
    made: list[Path] = []
    try:
        yield made
    except BaseException as error:
        for path in made:
            with contextlib.suppress(OSError):
                path.unlink()
        if isinstance(error, OSError):
            where = os.path.normpath(error.filename) if error.filename else "the gateway's folder"
            raise ConfigError(f"cannot write {where}: {error.strerror}") from None
        raise
