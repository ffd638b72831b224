"""Presence: the short retained texts that say who is there. Advisory, never trusted.

A broker can hold an old one, and anybody who may write the topic can forge one: the most that a
presence may cause is a HELLO or a line in a log.
"""

import re

INIT = b"init"
READY = b"ready"
DISCONNECTED = b"disconnected"
LOST = b"lost"
STATES = (INIT, READY, DISCONNECTED, LOST)
"""The states of a device, in the order of its life; LOST is what the broker says for it."""

_GATEWAY_STATE = re.compile(rb"ready ([0-9a-f]{8})")


def build_gateway_state(boot: int) -> bytes:
    """`ready`, and which run of the gateway this is, so that a member can tell that it restarted."""
    return READY + b" %08x" % boot


def parse_gateway_state(payload: bytes) -> int | None:
    """The boot number of a gateway that says it is ready; None for anything else."""
    # Not int() alone: it also takes a sign, spaces, `0x` and underscores.
    match = _GATEWAY_STATE.fullmatch(payload)
    return int(match[1], 16) if match else None
