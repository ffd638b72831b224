"""Who may do what on a federation's broker: one user a member, a joiner or the gateway, by role.

The one source of it, for the configuration of every broker and for what checks a running one. Filters are
exact and never `#`: NATS refuses a subscription that is wider than what is allowed by a single topic.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from edge_fi.wire import topics

SHORTEST_PASSWORD = 22  # characters: 16 random bytes in base64, the least that needs no slow hash
LONGEST_PASSWORD = 72  # characters: bcrypt reads no further

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_PASSWORD = re.compile(r"[!-~]+")  # ASCII without a space: the same bytes for every client and broker


@dataclass(frozen=True, slots=True)
class User:
    """One MQTT user and the topic filters that it may publish to and subscribe to."""

    name: str
    password: str = field(repr=False)
    """Random, of at least 128 bits; never one that a person chose: it is hashed in a hurry."""
    write: tuple[str, ...] = field(kw_only=True)
    read: tuple[str, ...] = field(kw_only=True)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"user {self.name!r} must be 1 to 32 of the characters a-z, 0-9, '_' and '-'")
        if not SHORTEST_PASSWORD <= len(self.password) <= LONGEST_PASSWORD:
            raise ValueError(
                f"the password of {self.name} must be {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters"
            )
        if not _PASSWORD.fullmatch(self.password):
            raise ValueError(f"the password of {self.name} must be printable ASCII without spaces")

    def salt(self, size_bytes: int) -> bytes:
        """For the hash of the password: the same for the same user, so that a file changes where users do.

        A random one would change every line of every rewrite, and NATS cuts whoever's line changed. That it
        tells of the password what a fast hash does is no loss where a guess has 128 bits to find.
        """
        secret = f"{self.name}\0{self.password}".encode()
        return hashlib.blake2b(secret, digest_size=size_bytes, person=b"fi1 mqtt salt").digest()


def gateway(federation: str, password: str) -> User:
    """The gateway: it hears every member and joiner, and speaks to each."""
    documents = (
        topics.gateway_state(federation),
        topics.gateway_roster(federation),
        topics.gateway_claim(federation),
    )
    return User(
        topics.GATEWAY_USER,
        password,
        write=(
            topics.query(federation, "+"),
            topics.to_device(federation, "+"),
            topics.to_client(federation, "+"),
            topics.to_helper(federation, "+"),
            topics.joined(federation, "+"),
            topics.presence(federation, "+"),
            *documents,
        ),
        read=(
            topics.from_device(federation, "+"),
            topics.presence(federation, "+"),
            topics.from_client(federation, "+"),
            topics.from_helper(federation, "+"),
            topics.join(federation),
            *documents,
        ),
    )


def device(federation: str, member: str, password: str, tasks: Sequence[int]) -> User:
    """A device that has joined. tasks: numbers of those whose queries it may hear."""
    return User(
        topics.check_id(member),
        password,
        write=(topics.from_device(federation, member), topics.presence(federation, member)),
        read=(
            topics.presence(federation, member),
            topics.to_device(federation, member),
            *(topics.query(federation, task) for task in sorted(set(tasks))),
            topics.gateway_state(federation),
        ),
    )


def client(federation: str, member: str, password: str) -> User:
    """A client that has joined."""
    return User(
        topics.check_id(member),
        password,
        write=(topics.from_client(federation, member),),
        read=(topics.to_client(federation, member), topics.gateway_state(federation)),
    )


def helper(federation: str, member: str, password: str) -> User:
    """A helper that has joined."""
    return User(
        topics.check_id(member),
        password,
        write=(topics.from_helper(federation, member),),
        read=(topics.to_helper(federation, member), topics.gateway_state(federation)),
    )


def joiner(federation: str, number: int, password: str) -> User:
    """Whoever holds the invite of this number, until it is used, withdrawn or expired."""
    return User(
        topics.joiner_user(number),
        password,
        write=(topics.join(federation),),
        read=(topics.joined(federation, number),),
    )
