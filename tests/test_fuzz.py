"""A short form of `python -m tests.fuzz`, and that it would find what it looks for."""

from collections.abc import Callable

import pytest
from fuzz import fuzz, targets

import edge_fi.session
from edge_fi.claim import Claim
from edge_fi.crypto import aead
from edge_fi.errors import SealError
from edge_fi.wire import frames
from edge_fi.wire.frames import Type

FRAMES = 15_000


def test_no_mutated_frame_is_accepted_or_raises() -> None:
    result = fuzz(FRAMES, seed=1)
    assert result.is_good, result.examples
    assert result.frames + result.insider_frames == FRAMES and result.insider_frames > 500
    # Frames of each type came as far as their seal, mac, digest or signature.
    assert {"length", "type", "direction", "flags", "form", "seal", "mac", "settled", "signature"} <= set(
        result.rejected
    )


def test_there_is_a_target_for_every_type_of_frame() -> None:
    assert set(targets()) == set(Type)


def open_unless_sealed(otherwise: Callable[[], bytes]) -> Callable[..., bytes]:
    """A cipher that is right about genuine frames, and does this about others."""

    def open_sealed(sealed: bytes, *, key: bytes, nonce: int, header: bytes) -> bytes:
        try:
            return aead.open_sealed(sealed, key=key, nonce=nonce, header=header)
        except SealError:
            return otherwise()

    return open_sealed


def test_the_fuzzer_finds_a_seal_that_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = lambda: b"\x00\x02\x00\x00\x00\x00"  # noqa: E731
    monkeypatch.setattr(edge_fi.session, "open_sealed", open_unless_sealed(ready))
    assert fuzz(2_000, seed=1).accepted > 0


def test_the_fuzzer_finds_a_mac_that_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Claim, "_read", lambda self, kind, frame: frames.parse_claim(frame)[0])
    assert fuzz(2_000, seed=1).accepted > 0


def test_the_fuzzer_finds_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless() -> bytes:
        raise OverflowError

    monkeypatch.setattr(edge_fi.session, "open_sealed", open_unless_sealed(careless))
    result = fuzz(2_000, seed=1)
    assert result.exceptions > 0 and not result.is_good
