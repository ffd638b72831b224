"""The brokers that can be embedded: where their programs are, what they speak, how they are configured.

Configurations for one machine and loopback only: no TLS, no accounts, nothing kept between starts.
Production configurations are elsewhere, this module refuses to grow into them.
"""

import os
import shutil
import sysconfig
from dataclasses import dataclass
from string import Template

from edge_fi.errors import TransportError

PACKET_BYTES = 1_001_000  # the largest frame and its topic; more than this is a mistake or an attack
QUEUED_MESSAGES = 10_000  # for one slow subscriber: a burst of the largest fleet, no memory hole
QUEUED_BYTES = 16_000_000  # the same queue, counted in bytes: 1.6 kB a message
INFLIGHT_MESSAGES = 1_000  # QoS 1 on the way to one subscriber; mosquitto's own 20 throttles

# Debian keeps mosquitto in sbin, which ordinary users do not have on their PATH; a virtual environment that
# is used without being activated has its own programs (the NATS wheel's one) not on the PATH either.
MORE_DIRECTORIES = (
    sysconfig.get_path("scripts"),
    sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user")),
    "/usr/local/sbin",
    "/usr/sbin",
    "/opt/homebrew/sbin",
)

# max_packet_size, not message_size_limit: the latter reads up to 256 MB into memory before it says no.
# Without connection_messages the log of a long run stays short: nobody rotates it.
_MOSQUITTO = f"""\
listener $port 127.0.0.1
allow_anonymous true
persistence false
set_tcp_nodelay true
max_connections -1
max_packet_size {PACKET_BYTES}
max_inflight_messages {INFLIGHT_MESSAGES}
max_queued_messages {QUEUED_MESSAGES}
max_queued_bytes {QUEUED_BYTES}
log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages false
"""

# MQTT needs JetStream, which needs the server's name and a place for its files (relative: the broker's
# working directory is private and vanishes with it). The NATS protocol's own port cannot be switched off:
# -1 puts it on any free one. The limits on storage keep it from claiming most of the disk and memory.
_NATS = f"""\
server_name: edge_fi
host: "127.0.0.1"
port: -1
max_payload: {PACKET_BYTES}
jetstream {{
  store_dir: "."
  max_memory_store: 256MB
  max_file_store: 1GB
}}
mqtt {{
  host: "127.0.0.1"
  port: $port
  max_ack_pending: {INFLIGHT_MESSAGES}
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One broker software."""

    name: str
    program: str
    configuration: Template
    """What its `-c` file says, for one `port`."""
    versions: tuple[str, ...]
    """Of MQTT."""
    install: str
    """What a user does to get it."""

    def path(self) -> str | None:
        """Of the program; None when it is not installed."""
        directories = [*os.environ.get("PATH", "").split(os.pathsep), *MORE_DIRECTORIES]
        # An empty entry would mean the working directory, and run whatever lies there.
        return shutil.which(self.program, path=os.pathsep.join(filter(None, directories)))


# In order of preference: mosquitto costs half of NATS per message and speaks MQTT 5.
_KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            name="mosquitto",
            program="mosquitto",
            configuration=Template(_MOSQUITTO),
            versions=("3.1.1", "5"),
            install="install mosquitto",
        ),
        Kind(
            name="nats",
            program="nats-server",
            configuration=Template(_NATS),
            versions=("3.1.1",),
            install="pip install 'edge-fi[broker]'",
        ),
    )
}
BROKERS = tuple(_KINDS)


def find(name: str) -> Kind:
    """Raises TransportError for a name that is not in `BROKERS`."""
    if name not in _KINDS:
        raise TransportError(f"no broker is called {name!r}: choose {' or '.join(BROKERS)}")
    return _KINDS[name]


def versions(name: str) -> tuple[str, ...]:
    """Of MQTT, that a broker speaks: "3.1.1", "5". Raises TransportError for an unknown name."""
    return find(name).versions


def available() -> list[str]:
    """The brokers that can be started here, preferred first."""
    return [kind.name for kind in _KINDS.values() if kind.path()]


def preferred() -> str:
    """The broker to start when nobody chose one. Raises TransportError when there is none."""
    for name in available():
        return name
    steps = ", or ".join(kind.install for kind in _KINDS.values())
    raise TransportError(f"no broker found: {steps}")
