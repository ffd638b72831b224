"""Invites: one line of text that makes its holder a member, once.

The line is made for people: it may be pasted with line breaks, typed in lower case, or shown as a QR
code, whose alphanumeric mode has exactly these characters. A checksum tells a slip of the hand from a
wrong invite. It holds a secret, so nothing here ever quotes it. Whether it is still good, its gateway
says.
"""

import base64
import hashlib
import re
import struct
from dataclasses import dataclass, field

from edge_fi.messages import ROLES
from edge_fi.wire.topics import check_federation, check_id

PREFIX = "FI1:"
VERSION = 1
TOKEN_BYTES = 16
GATEWAY_BYTES = 32
PIN_BYTES = 16
CHECKSUM_BYTES = 4

_LAST_U32 = 0xFFFF_FFFF
_TLS, _PINNED = 1, 2  # bits of the flags
_ROLE_NUMBERS = {role: number for number, role in enumerate(ROLES, 1)}
_ROLE_NAMES = dict(enumerate(ROLES, 1))
_HOST = re.compile(r"[0-9A-Za-z._:-]{1,255}")
_HEAD = struct.Struct(f">BBBII{TOKEN_BYTES}s{GATEWAY_BYTES}s")

_NO_INVITE = "this is no invite: an invite is one line that begins with FI1: - copy all of it"
_DAMAGED = "this invite is cut short or mistyped: copy the whole line once more, or use its file"
_LATER = "this invite was made by a later version: install the gateway's version of edge_fi here"
_NOT_ALLOWED = "this invite holds values that are not allowed: ask the gateway's owner for a new one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """What the holder of an invite knows."""

    federation: str
    role: str
    """One of ROLES."""
    id: str
    number: int
    """1 to 2**32 - 1, never given twice."""
    expires: int
    """Seconds since 1970 in UTC."""
    token: bytes = field(repr=False)
    """16 bytes: who has them can join."""
    gateway: bytes
    """32 bytes: the gateway's X25519 public key."""
    host: str
    """The broker's DNS name or IP address."""
    port: int
    tls: bool
    pin: bytes = b""
    """16 bytes of the certificate that vouches for the broker's; empty for the system's own list of such."""

    def __post_init__(self) -> None:
        check_federation(self.federation)
        check_id(self.id)
        if self.role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}")
        if not 1 <= self.number <= _LAST_U32:
            raise ValueError(f"number must be 1 to {_LAST_U32}")
        if not 0 <= self.expires <= _LAST_U32:
            raise ValueError(f"expires must be 0 to {_LAST_U32} seconds")
        if len(self.token) != TOKEN_BYTES:
            raise ValueError(f"token must be {TOKEN_BYTES} bytes")
        if len(self.gateway) != GATEWAY_BYTES:
            raise ValueError(f"gateway must be {GATEWAY_BYTES} bytes")
        if not _HOST.fullmatch(self.host):
            raise ValueError("host must be a DNS name or an IP address of 1 to 255 characters")
        if not 1 <= self.port <= 0xFFFF:
            raise ValueError("port must be 1 to 65535")
        if len(self.pin) not in (0, PIN_BYTES):
            raise ValueError(f"pin must be {PIN_BYTES} bytes, or none")
        if self.pin and not self.tls:
            raise ValueError("a pin needs TLS")


def encode(invite: Invite) -> str:
    """The line: `FI1:` and base32 (RFC 4648) in upper case without padding."""
    content = _build(invite)
    return PREFIX + _base32(content + _checksum(content))


def decode(text: str) -> Invite:
    """The invite of a line. White space is skipped, lower case is taken as upper case.

    Raises ValueError with a sentence for the user, which never quotes the text.
    """
    line = "".join(text.split())
    # Before upper(): it would make plain letters of some that are not.
    line = line.upper() if line.isascii() else ""
    if not line.startswith(PREFIX):
        raise ValueError(_NO_INVITE)
    content = _checked(line.removeprefix(PREFIX))
    if content[0] != VERSION:
        raise ValueError(_LATER)
    try:
        invite = _parse(content)
    except ValueError:  # its message could quote
        raise ValueError(_NOT_ALLOWED) from None
    if _build(invite) != content:
        raise ValueError(_NOT_ALLOWED)
    return invite


def _checked(letters: str) -> bytes:
    """What stands before the checksum, at least as much as a head."""
    try:
        whole = base64.b32decode(letters + "=" * (-len(letters) % 8))
    except ValueError:
        whole = b""
    content, checksum = whole[:-CHECKSUM_BYTES], whole[-CHECKSUM_BYTES:]
    # The last letter may have bits that base32 ignores, and the text padding: neither is ours.
    is_ours = _base32(whole) == letters and _checksum(content) == checksum
    if not is_ours or len(content) < _HEAD.size:
        raise ValueError(_DAMAGED)
    return content


def _build(invite: Invite) -> bytes:
    flags = _TLS * invite.tls | _PINNED * bool(invite.pin)
    head = _HEAD.pack(
        VERSION,
        flags,
        _ROLE_NUMBERS[invite.role],
        invite.number,
        invite.expires,
        invite.token,
        invite.gateway,
    )
    texts = b"".join(
        bytes([len(text)]) + text.encode() for text in (invite.host, invite.federation, invite.id)
    )
    return head + invite.pin + struct.pack(">H", invite.port) + texts


def _parse(content: bytes) -> Invite:
    """Takes what is missing as zeros, and ignores what is too much: building it again shows both.

    Raises ValueError.
    """
    _, flags, role, number, expires, token, gateway = _HEAD.unpack_from(content)
    at = _HEAD.size + (PIN_BYTES if flags & _PINNED else 0)
    pin = content[_HEAD.size : at]
    port = int.from_bytes(content[at : at + 2], "big")
    at += 2
    texts = []
    for _ in range(3):
        size = int.from_bytes(content[at : at + 1], "big")
        texts.append(content[at + 1 : at + 1 + size].decode("ascii"))
        at += 1 + size
    host, federation, member = texts
    return Invite(
        federation=federation,
        role=_ROLE_NAMES.get(role, ""),
        id=member,
        number=number,
        expires=expires,
        token=token,
        gateway=gateway,
        host=host,
        port=port,
        tls=bool(flags & _TLS),
        pin=pin,
    )


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=CHECKSUM_BYTES, person=b"fi1 invite").digest()


def _base32(content: bytes) -> str:
    return base64.b32encode(content).decode().rstrip("=")
