"""`edge-fi`: the verbs, and what an error looks like.

Every error is one sentence on stderr and an exit code of docs/exit-codes.md; with --json it is an
object on stdout as well. A traceback means a bug.
"""

import json
import sys

import click

from edge_fi import __version__
from edge_fi.cli.ask import ask
from edge_fi.cli.demo import demo
from edge_fi.cli.keys import keys
from edge_fi.cli.run import device, gateway
from edge_fi.cli.task import task
from edge_fi.errors import EdgeFiError

INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="edge-fi")
def edge_fi() -> None:
    """Federated inference at the edge: private models answer together, sealed end to end.

    \b
    See it work on this machine:     edge-fi demo
    Make keys for a federation:      edge-fi keys new gateway --federation acme
    Run the gateway, then a device:  edge-fi gateway run --config gateway.toml
                                     edge-fi device run --config device.toml
    Ask:                             edge-fi ask --config client.toml --input image.npy
    """


for verb in (demo, gateway, device, ask, keys, task):
    edge_fi.add_command(verb)


def main() -> None:
    """Run the command line, with errors as sentences and exit codes."""
    try:
        code = edge_fi.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except EdgeFiError as error:
        click.echo(f"edge-fi: {error}", err=True)
        if "--json" in sys.argv[1:]:
            click.echo(json.dumps({"error": str(error), "exit_code": error.exit_code}))
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("edge-fi: interrupted", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)
