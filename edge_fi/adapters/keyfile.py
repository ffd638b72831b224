"""Key files: small TOML files, one a key: a gateway's, or a member's.

A file with a private key is made with mode 0600, and refused when anybody else may read it. A member's
key is written down before the gateway knows it, so that whatever happens while it joins, the key that
was accepted is the key that is there. Errors name the file and the field, never a value.
"""

import base64
import binascii
import json
import os
import stat
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_fi.crypto.keys import Entropy, KeyPair, SigningKey
from edge_fi.errors import KeyFileError
from edge_fi.messages import MAX_INDEX, Member
from edge_fi.session import GatewayIdentity, Identity
from edge_fi.wire.topics import check_federation, check_id

NOT_YET = 0  # in the place of the index of a member that has not been accepted


def make_gateway(path: Path, federation: str, entropy: Entropy) -> GatewayIdentity:
    """Write the key file of a new gateway. Refuses to overwrite: a lost gateway key ends a federation."""
    _usable(check_federation, federation)
    identity = GatewayIdentity(
        federation=federation,
        static=KeyPair.from_private(entropy(32)),
        signing=SigningKey.from_seed(entropy(32)),
    )
    _write(path, _gateway_content(identity))
    return identity


def read_gateway(path: Path) -> GatewayIdentity:
    """The gateway's identity of its key file."""
    fields = _read(path, "gateway")
    return GatewayIdentity(
        federation=fields.text("federation", check_federation),
        static=KeyPair.from_private(fields.key("private")),
        signing=SigningKey.from_seed(fields.key("signing_seed")),
    )


def rotate_signing(path: Path, entropy: Entropy) -> GatewayIdentity:
    """Put a new signing key into a gateway's key file; the identity itself stays."""
    identity = replace(read_gateway(path), signing=SigningKey.from_seed(entropy(32)))
    _replace(path, _gateway_content(identity))
    return identity


def make_member(
    path: Path, federation: str, role: str, member: str, *, gateway: bytes, entropy: Entropy
) -> Identity:
    """Write the key file of a member that the gateway has yet to accept. Refuses to overwrite.

    gateway: its X25519 public key, 32 bytes.
    """
    _usable(check_id, member)
    identity = Identity(
        federation=federation,
        role=role,
        id=member,
        index=NOT_YET,
        static=KeyPair.from_private(entropy(32)),
        gateway_static=gateway,
    )
    _write(path, _member_content(identity))
    return identity


def accept_member(path: Path, identity: Identity, index: int) -> Identity:
    """Put the index that the gateway gave into the key file."""
    accepted = replace(identity, index=index)
    _replace(path, _member_content(accepted))
    return accepted


def read_member(path: Path, role: str, *, is_joining: bool = False) -> Identity:
    """A member's identity of its key file. Raises KeyFileError for one that has not been accepted, unless
    is_joining.
    """
    fields = _read(path, role)
    identity = Identity(
        federation=fields.text("federation", check_federation),
        role=role,
        id=fields.text("id", check_id),
        index=fields.index(),
        static=KeyPair.from_private(fields.key("private")),
        gateway_static=fields.key("gateway_static"),
    )
    if identity.index == NOT_YET and not is_joining:
        raise KeyFileError(
            f"{_shown(path)}: {identity.id} has not joined yet: "
            f"run 'edge-fi {role} join' again, with its invite"
        )
    return identity


def introduce(
    folder: Path, members: list[tuple[str, str]], gateway: GatewayIdentity, entropy: Entropy
) -> list[Member]:
    """Keys for members that need not join, since one hand makes both sides: of a demo, of a test.

    members: role and id of each; `<id>.key` is written for it. Returns the roster's lines.
    """
    lines = []
    for index, (role, member) in enumerate(members, 1):
        path = folder / f"{member}.key"
        made = make_member(
            path, gateway.federation, role, member, gateway=gateway.static.public, entropy=entropy
        )
        accept_member(path, made, index)
        lines.append(Member(id=member, index=index, role=role, public=made.static.public))
    return lines


class _Fields:
    """A key file's content; every access checks one field and names it when it is wrong."""

    def __init__(self, path: Path, fields: dict[str, Any]) -> None:
        self._path = _shown(path)
        self._fields = fields
        self.kind = str(fields.get("kind"))

    def text(self, name: str, check: Callable[[str], str]) -> str:
        """A name that passes this check."""
        value = self._fields.get(name)
        if not isinstance(value, str):
            raise KeyFileError(f"{self._path}: {name} is missing; make the file again")
        try:
            return check(value)
        except ValueError as error:
            raise KeyFileError(f"{self._path}: {error}") from None

    def index(self) -> int:
        """The member's index."""
        value = self._fields.get("index")
        if type(value) is not int or not NOT_YET <= value <= MAX_INDEX:
            raise KeyFileError(f"{self._path}: index must be a whole number of 1 to {MAX_INDEX}")
        return value

    def key(self, name: str) -> bytes:
        """32 bytes."""
        try:
            value = base64.b64decode(self._fields[name], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error):
            value = b""
        if len(value) != 32:
            raise KeyFileError(f"{self._path}: {name} must be 32 bytes in base64; make the file again")
        return value


def _read(path: Path, kind: str) -> _Fields:
    try:
        # Opened before its mode is asked, so that both speak of the same file.
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise KeyFileError(
                    f"{_shown(path)} has mode {mode:04o}, others may read it: run chmod 600 {_shown(path)}"
                )
            fields = _Fields(path, tomllib.load(file))
    except OSError as error:
        made_by = "edge-fi gateway new" if kind == "gateway" else f"edge-fi {kind} join"
        raise KeyFileError(
            f"cannot read key file {_shown(path)}: {error.strerror}; '{made_by}' makes one"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        # The parser's own message could quote a line, and so a key.
        raise KeyFileError(f"{_shown(path)} is not a key file: its TOML does not parse") from None
    if fields.kind != kind:
        raise KeyFileError(f"{_shown(path)}: kind is {fields.kind!r}, but a {kind} key is needed here")
    return fields


def _gateway_content(identity: GatewayIdentity) -> str:
    return _content(
        "The gateway's private keys: whoever has them is the gateway.",
        kind="gateway",
        federation=identity.federation,
        private=identity.static.private,
        signing_seed=identity.signing.seed,
    )


def _member_content(identity: Identity) -> str:
    return _content(
        f"The private key of {identity.role} {identity.id}: keep it on that machine alone.",
        kind=identity.role,
        federation=identity.federation,
        id=identity.id,
        index=identity.index,
        private=identity.static.private,
        gateway_static=identity.gateway_static,
    )


def _content(comment: str, **fields: str | int | bytes) -> str:
    lines = [f"# {comment}"]
    for name, value in fields.items():
        plain = base64.b64encode(value).decode() if isinstance(value, bytes) else value
        lines.append(f"{name} = {json.dumps(plain)}")
    return "\n".join(lines) + "\n"


def _write(path: Path, content: str) -> None:
    """Make a file that is not there yet, on the disk when this returns."""
    is_made = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        is_made = True
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _sync(path.parent)
    except OSError as error:
        if is_made:
            path.unlink()  # a full disk leaves an empty file
        elif os.path.lexists(path):
            raise KeyFileError(f"{_shown(path)} exists and is not overwritten: move it away first") from None
        raise KeyFileError(f"cannot write {_shown(path)}: {error.strerror}") from None


def _replace(path: Path, content: str) -> None:
    """Write a file anew: whoever reads it, or cuts the power, finds the old one or the new one whole."""
    beside = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    _write(beside, content)
    try:
        beside.replace(path)
        _sync(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise KeyFileError(f"cannot write {_shown(path)}: {error.strerror}") from None


def _sync(folder: Path) -> None:
    """The names in it: a file that is on the disk without its name is not there after a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _shown(path: Path) -> str:
    """As a message shows it: `keys/x.key` for `configs/../keys/x.key`."""
    return os.path.normpath(path)


def _usable(check: Callable[[str], str], name: str) -> None:
    try:
        check(name)
    except ValueError as error:
        raise KeyFileError(str(error)) from None
