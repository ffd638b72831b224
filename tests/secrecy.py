"""What no log, repr, argument or file may show: secrets, in every spelling in which they could slip out."""

import base64
from collections import deque
from collections.abc import Iterable, Iterator, Mapping

SECRETS = frozenset(
    {
        "KeyPair.private",
        "SigningKey.seed",
        "SigningKey._expanded",
        "SessionKeys.answer",
        "SessionKeys.up",
        "SessionKeys.ask",
        "SessionKeys.down",
        "Epoch.seal_key",
        "Epoch.digest_key",
        "TaskEpoch.key",
        "TaskEpoch._settle_secret",
        "Welcome.epoch_key",
        "Rekey.epoch_key",
        "JoinKeys.psk",
        "JoinKeys.mac",
        "Invite.token",
        "Invitation.token",
        "Joiner._mac_key",
        "Peer._mac_key",
        "Claim._private",
        "HandshakeIKpsk1._psk",
        "_State.chaining_key",
    }
)
"""What holds one, by class and name, of all that edge_fi's objects hold."""


def spellings(secret: bytes) -> set[bytes]:
    """How a secret could be written: raw, in hex, escaped, in base64 and base32 also amid more."""
    found = {secret, secret.hex().encode(), secret.hex().upper().encode(), repr(secret)[2:-1].encode()}
    for encode, group in ((base64.b64encode, 3), (base64.urlsafe_b64encode, 3), (base64.b32encode, 5)):
        letters = {3: 4, 5: 8}[group]
        for before in range(group):
            whole = encode(bytes(before) + secret)
            # Letters that no byte before the secret, and none behind it, has a part in.
            first = -(-before * letters // group)
            last = (before + len(secret)) * letters // group
            found.add(whole[first:last])
    return found


def found_in(text: bytes, secrets: Mapping[str, bytes]) -> list[str]:
    """The names of the secrets that stand in this text."""
    return [name for name, secret in secrets.items() if any(its in text for its in spellings(secret))]


def objects(*roots: object) -> Iterator[object]:
    """Every object of edge_fi's own classes that is reachable from these."""
    waiting, seen = deque(roots), set()
    while waiting:
        one = waiting.popleft()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple, set, frozenset, deque)):
            waiting += one
        if type(one).__module__.split(".")[0] == "edge_fi":
            yield one
            waiting += [value for _, value in attributes(one)]


def attributes(one: object) -> Iterable[tuple[str, object]]:
    """Names and values of what an object holds."""
    names = dict.fromkeys(getattr(one, "__dict__", {}))
    for kind in type(one).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names |= dict.fromkeys([slots] if isinstance(slots, str) else slots)
    return [(name, getattr(one, name)) for name in names if hasattr(one, name)]


def secrets_of(*roots: object) -> dict[str, bytes]:
    """Every secret that these hold, named after where it stands."""
    return {
        f"{type(one).__name__}.{name} {number}": value
        for number, one in enumerate(objects(*roots))
        for name, value in attributes(one)
        if f"{type(one).__name__}.{name}" in SECRETS and isinstance(value, bytes) and value
    }
