"""Presence: the short retained texts that say who is there. Advisory, never trusted.

A broker can hold an old one, and anybody who may write the topic can forge one: the most that a
presence may cause is a HELLO or a line in a log.
"""

INIT = b"init"
READY = b"ready"
DISCONNECTED = b"disconnected"
LOST = b"lost"
"""The states of a device, in the order of its life; LOST is what the broker says for it."""

_BOOT_DIGITS = 8


def build_gateway_state(boot: int) -> bytes:
    """`ready`, and which run of the gateway this is, so that a member can tell that it restarted."""
    return READY + b" %0*x" % (_BOOT_DIGITS, boot)


def parse_gateway_state(payload: bytes) -> int | None:
    """The boot number of a gateway that says it is ready; None for anything else."""
    state, _, boot = payload.partition(b" ")
    if state != READY or len(boot) != _BOOT_DIGITS:
        return None
    try:
        return int(boot, 16)
    except ValueError:
        return None
