"""What the verbs of a gateway's owner share: which gateway is meant, and its state, opened."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from edge_fi import config
from edge_fi.adapters import keyfile
from edge_fi.adapters.state import State
from edge_fi.cli import brokerfiles
from edge_fi.session import GatewayIdentity

config_option = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=Path("gateway.toml"),
    show_default=True,
    help="The gateway's configuration file.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@dataclass(frozen=True, slots=True)
class Opened:
    """A gateway's state, and what its configuration says."""

    path: Path
    settings: config.GatewayConfig
    identity: GatewayIdentity
    state: State

    @property
    def state_path(self) -> Path:
        """Where the state is."""
        return self.path.parent / self.settings.state

    def follow(self) -> bool:
        """Bring the broker's files in step. Whether there are any."""
        return brokerfiles.follow(self.path, self.settings, self.identity, self.state.roster)


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """The gateway of this configuration file. Raises ConfigError, KeyFileError, StateError."""
    settings = config.load(path, config.GatewayConfig)
    identity = keyfile.read_gateway(path.parent / settings.key)
    with State.open(path.parent / settings.state, identity.federation, identity.static.public) as state:
        yield Opened(path, settings, identity, state)
