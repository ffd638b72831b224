"""Every error of edge_fi, and the exit code the command line gives for it.

Pure functions raise these. Machines never raise for hostile input: they return a `Rejected`
effect with the error's `reason`, a short word that is counted at the edge.
"""


class EdgeFiError(Exception):
    """Base of all errors that edge_fi raises on purpose. The message is one sentence for a user."""

    exit_code = 1


class ConfigError(EdgeFiError):
    """A configuration or task file is wrong. The message names file, key and the next step."""

    exit_code = 3


class KeyFileError(EdgeFiError):
    """A key file is missing, malformed or readable by others."""

    exit_code = 4


class ModelError(EdgeFiError):
    """A model cannot be loaded, or does not fit its task."""

    exit_code = 5


class TransportError(EdgeFiError):
    """The broker cannot be started or reached."""

    exit_code = 6


class AlreadyRunningError(EdgeFiError):
    """Another process runs as this gateway."""

    exit_code = 8


class JoinError(EdgeFiError):
    """The gateway refuses an invite, or does not answer it."""

    exit_code = 9


class StateError(EdgeFiError):
    """The gateway's state cannot be read or written, or what is asked of it does not fit the roster."""

    exit_code = 11


class ProtocolError(EdgeFiError):
    """A frame is not acceptable. `reason` is a fixed word, safe to count and to show."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DecodeError(ProtocolError):
    """Bytes that are not a frame, a payload or a topic of this protocol."""


class SealError(ProtocolError):
    """A seal, mac or signature that does not verify."""
