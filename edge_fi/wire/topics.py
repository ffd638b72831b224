"""The one place that builds and parses MQTT topics of `fi1`.

Ids are checked here because MQTT clients are not strict: paho publishes a topic with `$`, a space
or NUL unchecked, and a broker may treat it as another level, a wildcard or a system topic.
"""

import re

from edge_fi.errors import DecodeError

VERSION = "fi1"
GATEWAY_USER = "gateway"  # of MQTT; a reserved id, so that no member is called so
RESERVED_IDS = frozenset({"gateway", "helper", "client", "join"})

_FEDERATION = re.compile(r"[a-z0-9-]{1,16}")
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,23}")


def check_federation(federation: str) -> str:
    """Returns the name, or raises ValueError saying which names are allowed."""
    if not _FEDERATION.fullmatch(federation):
        raise ValueError(f"federation {federation!r} must be 1 to 16 of the characters a-z, 0-9 and '-'")
    return federation


def check_id(member: str) -> str:
    """Returns the id, or raises ValueError saying which ids are allowed."""
    if not _ID.fullmatch(member) or member in RESERVED_IDS:
        raise ValueError(
            f"id {member!r} must be 1 to 24 of the characters a-z, 0-9 and '-', "
            f"begin with a letter or digit, and be none of {', '.join(sorted(RESERVED_IDS))}"
        )
    return member


def query(federation: str, task: int | str) -> str:
    """Queries of one task, to all its devices. `+` for the task gives the gateway's filter."""
    return f"{VERSION}/{federation}/q/{task}"


def to_device(federation: str, device: str) -> str:
    """Everything to one device alone."""
    return f"{VERSION}/{federation}/d/{device}"


def from_device(federation: str, device: str) -> str:
    """Everything from one device. `+` for the device gives the gateway's filter."""
    return f"{VERSION}/{federation}/a/{device}"


def presence(federation: str, device: str) -> str:
    """A device's retained state and its Will."""
    return f"{VERSION}/{federation}/s/{device}"


def to_client(federation: str, client: str) -> str:
    """Everything to one client."""
    return f"{VERSION}/{federation}/cd/{client}"


def from_client(federation: str, client: str) -> str:
    """Everything from one client."""
    return f"{VERSION}/{federation}/ca/{client}"


def to_helper(federation: str, helper: str) -> str:
    """Everything to one helper."""
    return f"{VERSION}/{federation}/hd/{helper}"


def from_helper(federation: str, helper: str) -> str:
    """Everything from one helper."""
    return f"{VERSION}/{federation}/ha/{helper}"


def join(federation: str) -> str:
    """Everything from those who join."""
    return f"{VERSION}/{federation}/join"


def joined(federation: str, number: int | str) -> str:
    """Everything to the one who joins with the invite of this number."""
    return f"{VERSION}/{federation}/j/{number}"


def gateway_state(federation: str) -> str:
    """The gateway's retained state and its Will."""
    return f"{VERSION}/{federation}/gateway/state"


def gateway_roster(federation: str) -> str:
    """The retained roster that the gateway last had, for itself."""
    return f"{VERSION}/{federation}/gateway/roster"


def gateway_claim(federation: str) -> str:
    """Where a gateway asks whether another one has its identity."""
    return f"{VERSION}/{federation}/gateway/claim"


def joiner_user(number: int) -> str:
    """The MQTT user of whoever holds the invite of this number. No id has an underscore."""
    return f"join_{number}"


def matches(topic_filter: str, topic: str) -> bool:
    """MQTT 3.1.1 section 4.7, without `#`: nobody here subscribes to it."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    return len(wanted) == len(levels) and all(
        one in ("+", other) for one, other in zip(wanted, levels, strict=True)
    )


def parse_member(topic: str, federation: str) -> tuple[str, str]:
    """The level (`a`, `s` or `ca`) and the member of a topic that a gateway receives.

    Raises DecodeError("topic") for any other topic.
    """
    levels = topic.split("/")
    if len(levels) != 4 or levels[0] != VERSION or levels[1] != federation:
        raise DecodeError("topic")
    if levels[2] not in ("a", "s", "ca") or not _ID.fullmatch(levels[3]):
        raise DecodeError("topic")
    return levels[2], levels[3]
