"""`edge-fi`: the verbs, and what an error looks like.

Every error is a message on stderr and an exit code of docs/exit-codes.md; with --json it is an object
on stdout as well. A traceback means a bug.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import click

from edge_fi import __version__
from edge_fi.cli.ask import ask
from edge_fi.cli.broker import broker
from edge_fi.cli.demo import demo
from edge_fi.cli.familiarity import familiarize, features
from edge_fi.cli.feedback import feedback
from edge_fi.cli.invite import invite
from edge_fi.cli.join import join_command
from edge_fi.cli.new import new_gateway
from edge_fi.cli.roster import roster
from edge_fi.cli.run import device, gateway
from edge_fi.cli.service import install_service
from edge_fi.cli.task import task
from edge_fi.cli.upkeep import backup, restore, rotate
from edge_fi.errors import EdgeFiError

FAILED = 1
INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="edge-fi")
def edge_fi() -> None:
    """Federated inference at the edge: private models answer together, sealed end to end.

    \b
    See it work on this machine:     edge-fi demo
    Make a federation:               edge-fi gateway new --federation acme --task digits.toml
    Run its gateway:                 edge-fi gateway run --config acme/gateway.toml
    Invite a device, and on it join: edge-fi gateway invite pi-01 --config acme/gateway.toml
                                     edge-fi device join --model model.onnx
    Ask:                             edge-fi ask --config client.toml --input image.npy
    """


@click.group()
def client() -> None:
    """Make this machine a client: it asks a federation."""


@click.group()
def helper() -> None:
    """Make this machine a helper: a second party, which a later version gives its work."""


for verb in (demo, gateway, device, client, helper, ask, feedback, roster, broker, task):
    edge_fi.add_command(verb)
for its_verb in (new_gateway, invite, rotate, backup, restore, install_service("gateway")):
    gateway.add_command(its_verb)
for role, group in (("device", device), ("client", client), ("helper", helper)):
    group.add_command(join_command(role))
device.add_command(install_service("device"))
device.add_command(familiarize)
task.add_command(features)


def main() -> None:
    """Run the command line, with errors as sentences and exit codes."""
    try:
        code = edge_fi.main(standalone_mode=False)
        if sys.stdout is not None:  # closed by the shell: >&-
            sys.stdout.flush()
    except click.ClickException as error:
        _end(error.exit_code, error.format_message(), show=error.show)
    except EdgeFiError as error:
        _end(error.exit_code, str(error))
    except (click.Abort, KeyboardInterrupt):
        _end(INTERRUPTED, "interrupted")
    except BrokenPipeError:
        _end(FAILED, "", show=lambda: None)  # whoever read our output has had enough
    except OSError as error:
        reason = error.strerror or type(error).__name__
        where = "input or output" if error.filename is None else os.path.normpath(error.filename)
        _end(FAILED, f"{where} failed: {reason}")
    sys.exit(code if isinstance(code, int) else 0)


def _end(code: int, message: str, *, show: Callable[[], None] | None = None) -> NoReturn:
    """Say it on stderr, and with --json on stdout; neither may be there any more."""
    with contextlib.suppress(OSError):
        if show is None:
            click.echo(f"edge-fi: {message}", err=True)
        else:
            show()
    try:
        if message and any(word == "--json" or word.startswith("--json=") for word in sys.argv[1:]):
            click.echo(json.dumps({"error": message, "exit_code": code}))
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        # What is still buffered would fail once more when the interpreter ends, and change the code.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
