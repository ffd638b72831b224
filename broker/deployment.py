"""Where a production broker listens, what it may use, and where its files are: what no roster says."""

import re
from dataclasses import dataclass
from pathlib import Path

MQTT_TLS_PORT = 8883  # as registered for MQTT over TLS
MAX_CONNECTIONS = 10_000  # memory and file descriptors of a small server; the largest fleet

_ADDRESS = re.compile(r"[A-Za-z0-9.:_-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One broker on one machine. Paths are absolute, as the broker sees them."""

    folder: Path
    """Of the broker's own files: configuration, accounts, what it keeps between starts."""
    certificate: Path
    """PEM: the server's, and behind it the authority's where members know that one by its pin."""
    key: Path
    """PEM: the private key to it."""
    account: str
    """Of the operating system: the owner of the files, to whom a broker started as root changes."""
    address: str = ""
    """To listen on; empty for every address of the machine."""
    port: int = MQTT_TLS_PORT
    max_connections: int = MAX_CONNECTIONS
    """Members, those who join and strangers together: what memory and descriptors allow."""

    def __post_init__(self) -> None:
        for path in (self.folder, self.certificate, self.key):
            # mosquitto ends every value at the end of its line, and has no quotes to put around it.
            if not path.is_absolute() or not str(path).isprintable():
                raise ValueError(f"{str(path)!r} must be an absolute path of printable characters")
        if not _ADDRESS.fullmatch(self.address):
            raise ValueError(f"address {self.address!r} must be an IP address or a name of this machine")
        if not self.account or not self.account.isprintable():
            raise ValueError(f"account {self.account!r} must be a user of this machine")
        if not 1 <= self.port <= 65_535:
            raise ValueError("port must be 1 to 65535")
        if self.max_connections < 1:
            raise ValueError("max_connections must be 1 or more")
