"""The vectors as they are collected: named once each, one JSON text each, and what spoils a frame."""

import hashlib
import json
from typing import Any

Fields = dict[str, Any]


def seeded(name: str, size: int = 32) -> bytes:
    """Bytes that depend on the name alone."""
    return hashlib.blake2b(name.encode(), digest_size=size, person=b"fi1 vectors").digest()


def flip(frame: bytes, at: int, bit: int = 0) -> bytes:
    """The frame with one bit of the byte at this place changed."""
    changed = bytearray(frame)
    changed[at] ^= 1 << bit
    return bytes(changed)


def rounded(values: Any) -> Any:
    """Numbers that depend on a library's exp or log, as far as they are the same everywhere."""
    if isinstance(values, float | int):
        return float(f"{values:.10g}")
    return [rounded(float(value)) for value in values]


class Book:
    """The vectors, by name."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}

    def add(self, name: str, kind: str, about: str, expect: str = "ok", **fields: Any) -> None:
        """One more vector. Bytes become hex."""
        assert name not in self.files
        entries = {"name": name, "kind": kind, "about": about, "expect": expect} | fields
        lines = [f"  {json.dumps(key)}: {json.dumps(_plain(value))}" for key, value in entries.items()]
        self.files[name] = "{\n" + ",\n".join(lines) + "\n}\n"


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
