"""Key files: small TOML files, one a key, and the folder of public ones that is the roster.

A file with a private key is made with mode 0600, and refused when anybody else may read it. Errors
name the file and the field, never a value.
"""

import base64
import binascii
import json
import os
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_fi.crypto.keys import Entropy, KeyPair, SigningKey
from edge_fi.errors import KeyFileError
from edge_fi.session import GatewayIdentity, Identity, Member
from edge_fi.wire.topics import check_federation, check_id

MAX_INDEX = 0xFFFF
ROLES = ("device", "client")


def make_gateway(folder: Path, federation: str, entropy: Entropy) -> list[Path]:
    """Write `gateway.key` and `gateway.pub`. Refuses to overwrite: a lost gateway key ends a federation."""
    _usable(check_federation, federation)
    static = KeyPair.from_private(entropy(32))
    signing = SigningKey.from_seed(entropy(32))
    private = _content(
        "The gateway's private keys: whoever has them is the gateway.",
        kind="gateway",
        federation=federation,
        private=static.private,
        signing_seed=signing.seed,
    )
    public = _content(
        "The gateway's public keys: give them to every device and client.",
        kind="gateway-public",
        federation=federation,
        static=static.public,
        verify=signing.public,
    )
    return _write_pair(folder / "gateway.key", private, folder / "gateway.pub", public)


def make_member(
    folder: Path,
    role: str,
    member: str,
    *,
    gateway: Path,
    roster: Path,
    index: int | None,
    entropy: Entropy,
) -> list[Path]:
    """Write `<id>.key` for a device or client, and `<id>.pub` into the roster's folder.

    gateway: the gateway's `gateway.pub`. index: the next free one of the roster if None.
    """
    _usable(check_id, member)
    fields = _read(gateway, "gateway-public")
    federation = fields.text("federation", check_federation)
    gateway_static, gateway_verify = fields.key("static"), fields.key("verify")
    known = read_roster(roster) if roster.is_dir() else []
    taken = {other.index for other in known}
    if index is None:
        index = next(i for i in range(1, MAX_INDEX + 2) if i not in taken)
    if not 1 <= index <= MAX_INDEX:
        raise KeyFileError(f"index {index} must be 1 to {MAX_INDEX}")
    if index in taken:
        raise KeyFileError(
            f"index {index} is taken in {_shown(roster)}: choose another, or leave --index out"
        )
    public_path = roster / f"{member}.pub"
    if public_path.exists():
        raise KeyFileError(f"{_shown(public_path)} exists: {member} is in the roster; choose another id")
    static = KeyPair.from_private(entropy(32))
    private = _content(
        f"The private key of {role} {member}: keep it on that machine alone.",
        kind=role,
        federation=federation,
        id=member,
        index=index,
        private=static.private,
        gateway_static=gateway_static,
        gateway_verify=gateway_verify,
    )
    public = _content(
        f"The public key of {role} {member}: belongs in the gateway's roster.",
        kind=f"{role}-public",
        federation=federation,
        id=member,
        index=index,
        public=static.public,
    )
    return _write_pair(folder / f"{member}.key", private, public_path, public)


def read_gateway(path: Path) -> GatewayIdentity:
    """The gateway's identity of its key file."""
    fields = _read(path, "gateway", is_private=True)
    return GatewayIdentity(
        federation=fields.text("federation", check_federation),
        static=KeyPair.from_private(fields.key("private")),
        signing=SigningKey.from_seed(fields.key("signing_seed")),
    )


def read_member(path: Path, role: str) -> Identity:
    """A device's or client's identity of its key file."""
    fields = _read(path, role, is_private=True)
    return Identity(
        federation=fields.text("federation", check_federation),
        role=role,
        id=fields.text("id", check_id),
        index=fields.index(),
        static=KeyPair.from_private(fields.key("private")),
        gateway_static=fields.key("gateway_static"),
        gateway_verify=fields.key("gateway_verify"),
    )


def read_roster(folder: Path, federation: str | None = None) -> list[Member]:
    """Every member whose `.pub` file is in the folder, by index."""
    if not folder.is_dir():
        raise KeyFileError(f"no roster folder {_shown(folder)}: make members with 'edge-fi keys new device'")
    members: dict[int, Member] = {}
    for path in sorted(folder.glob("*.pub")):
        fields = _read(path, *(f"{role}-public" for role in ROLES))
        its_federation = fields.text("federation", check_federation)
        if federation not in (None, its_federation):
            raise KeyFileError(
                f"{_shown(path)}: federation is {its_federation}, but the gateway's is {federation}"
            )
        member = Member(
            id=fields.text("id", check_id),
            index=fields.index(),
            role=fields.kind.removesuffix("-public"),
            public=fields.key("public"),
        )
        if member.index in members:
            raise KeyFileError(f"{_shown(path)}: index {member.index} is that of {members[member.index].id}")
        if member.id in {other.id for other in members.values()}:
            raise KeyFileError(f"{_shown(path)}: id {member.id} is in the roster twice")
        members[member.index] = member
    return [members[index] for index in sorted(members)]


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
        if type(value) is not int or not 1 <= value <= MAX_INDEX:
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


def _read(path: Path, *kinds: str, is_private: bool = False) -> _Fields:
    try:
        # Opened before its mode is asked, so that both speak of the same file.
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if is_private and mode & 0o077:
                raise KeyFileError(
                    f"{_shown(path)} has mode {mode:04o}, others may read it: run chmod 600 {_shown(path)}"
                )
            fields = _Fields(path, tomllib.load(file))
    except OSError as error:
        raise KeyFileError(
            f"cannot read key file {_shown(path)}: {error.strerror}; make one with 'edge-fi keys new'"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        # The parser's own message could quote a line, and so a key.
        raise KeyFileError(f"{_shown(path)} is not a key file: its TOML does not parse") from None
    if fields.kind not in kinds:
        raise KeyFileError(
            f"{_shown(path)}: kind is {fields.kind!r}, but a {' or '.join(kinds)} key is needed here"
        )
    return fields


def _content(comment: str, **fields: str | int | bytes) -> str:
    lines = [f"# {comment}"]
    for name, value in fields.items():
        plain = base64.b64encode(value).decode() if isinstance(value, bytes) else value
        lines.append(f"{name} = {json.dumps(plain)}")
    return "\n".join(lines) + "\n"


def _write_pair(private: Path, private_content: str, public: Path, public_content: str) -> list[Path]:
    """Write both files, or neither: half a pair would only be in the way of the next attempt."""
    for path in (private, public):
        if os.path.lexists(path):
            raise KeyFileError(_exists(path))
    _write(private, private_content, mode=0o600)
    try:
        _write(public, public_content, mode=0o644)
    except KeyFileError:
        private.unlink()
        raise
    return [private, public]


def _write(path: Path, content: str, *, mode: int) -> None:
    is_made = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        is_made = True
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
    except OSError as error:
        if is_made:
            path.unlink()  # a full disk leaves an empty file
        elif os.path.lexists(path):
            raise KeyFileError(_exists(path)) from None  # somebody made it since it was looked for
        raise KeyFileError(f"cannot write {_shown(path)}: {error.strerror}") from None


def _exists(path: Path) -> str:
    return f"{_shown(path)} exists and is not overwritten: move it away first"


def _shown(path: Path) -> str:
    """As a message shows it: `keys/x.key` for `configs/../keys/x.key`."""
    return os.path.normpath(path)


def _usable(check: Callable[[str], str], name: str) -> None:
    try:
        check(name)
    except ValueError as error:
        raise KeyFileError(str(error)) from None
