"""What all tests share: how Hypothesis runs them, and what a refusal costs."""

import pytest
from hypothesis import settings

import edge_fi.crypto.noise
import edge_fi.session
from edge_fi.crypto import keys

# A slow or busy machine must not fail a test; a failure must say how to see it again.
settings.register_profile("edge_fi", deadline=None, print_blob=True)
settings.load_profile("edge_fi")


@pytest.fixture
def dh_calls(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The public keys of all Diffie-Hellmans from now on."""
    calls: list[bytes] = []

    def dh(private: bytes, public: bytes) -> bytes:
        calls.append(public)
        return keys.dh(private, public)

    monkeypatch.setattr(edge_fi.session, "dh", dh)
    monkeypatch.setattr(edge_fi.crypto.noise, "dh", dh)
    return calls
