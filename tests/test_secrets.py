"""No secret of the core is in a repr, in an error's message or in a traceback, whatever happens."""

import base64
import io
import traceback
from collections.abc import Callable
from dataclasses import fields, is_dataclass

import pytest
from federation import Federation, constant, gateway_identity, identity, lone_gateway
from secrecy import SECRETS, attributes, found_in, objects, secrets_of, spellings

from edge_fi.applicant import Applicant
from edge_fi.crypto import aead, keys, noise
from edge_fi.errors import EdgeFiError
from edge_fi.gateway import Gateway
from edge_fi.roster import Invitation, Roster
from edge_fi.session import hello_key
from edge_fi.wire.invites import Invite, decode, encode
from edge_fi.wire.payloads import Rekey, Welcome
from firmware_sim.stream import Stream

TOKEN = Stream("token")(16)
KEY = Stream("epoch key")(32)


class Lived:
    """A federation in the middle of everything: sessions, an open round, somebody who joins."""

    def __init__(self) -> None:
        self.federation = Federation([constant(1, 2, 3, 4)] * 2, clients=1).join()
        self.federation.client_asks("x")
        self.federation.fleet.run(1)
        self.federation.start()
        static = gateway_identity().static
        invitation = Invitation(number=1, role="device", id="pi-9", token=TOKEN)
        self.gateway = Gateway(
            gateway_identity(), Roster(invitations=(invitation,)), [], Stream("g"), is_claiming=True
        )
        self.invite = Invite(
            federation="acme", role="device", id="pi-9", number=1, expires=0, token=TOKEN,
            gateway=static.public, host="h", port=1, tls=False,
        )  # fmt: skip
        self.applicant = Applicant(self.invite, identity("pi-9", 9).static, Stream("a"))
        self.gateway.connected(now=0)
        self.gateway.tick(now=2_000_000)
        (join,) = self.applicant.connected(now=0)
        self.admit = self.gateway.receive(join.topic, join.payload, now=2_000_000)  # type: ignore[union-attr]
        self.values = (
            Welcome(session=1, boot=1, rejoin_window_ms=1, epoch=1, floor=1, epoch_key=KEY, verify=bytes(32)),
            Rekey(epoch=1, grace_ms=1, epoch_key=KEY, verify=bytes(32)),
        )

    @property
    def roots(self) -> tuple[object, ...]:
        machines = [node.machine for node in self.federation.fleet.nodes.values()]
        return *machines, self.gateway, self.applicant, self.admit, self.invite, *self.values


@pytest.fixture(scope="module")
def lived() -> Lived:
    return Lived()


def test_every_secret_that_is_known_of_is_found_in_a_federation(lived: Lived) -> None:
    """Else the tests below would look for nothing."""
    assert {name.split()[0] for name in secrets_of(*lived.roots)} == SECRETS


def test_no_repr_shows_a_secret(lived: Lived) -> None:
    secrets = secrets_of(*lived.roots)
    for one in objects(*lived.roots):
        assert found_in(repr(one).encode(), secrets) == [], type(one)
        assert found_in(str(one).encode(), secrets) == [], type(one)


def test_no_dataclass_shows_a_field_of_bytes_that_nobody_has_called_public(lived: Lived) -> None:
    """So that a field which is added later is thought about: is it a secret?"""
    public = {
        "KeyPair.public", "SigningKey.public", "Member.public", "Task.features", "Identity.gateway_static",
        "Invite.gateway", "Invite.pin", "Invitation.redeemed_by", "Labelling.model", "Session.model",
        "Welcome.verify", "Rekey.verify", "_Held.verify", "Publish.payload", "Asked.frame",
        "Asked.query_hash", "ClientAsk.digest", "_Asked.query_hash", "_Asked.settle", "_Asked.answer",
        "_Asked.digest", "_Asked.outcome", "_Pattern.name", "Tensor.content", "_Open.payload", "_Open.frame",
    }  # fmt: skip
    shown = {
        f"{type(one).__name__}.{field.name}"
        for one in objects(*lived.roots)
        if is_dataclass(one) and "__repr__" in type(one).__dict__
        for field in fields(one)
        if field.repr and isinstance(getattr(one, field.name), bytes)
    }
    assert shown - public == set()


def test_what_a_function_says_of_wrong_bytes_does_not_quote_them() -> None:
    secrets = {"key": Stream("k")(31), "token": Stream("t")(15)}
    key, token = secrets.values()
    calls: list[Callable[[], object]] = [
        lambda: keys.KeyPair.from_private(key),
        lambda: keys.SigningKey.from_seed(key),
        lambda: keys.dh(key, bytes(32)),
        lambda: keys.dh(bytes(32), key),
        lambda: aead.seal(b"", key=key, nonce=0, header=b""),
        lambda: aead.open_sealed(key, key=key, nonce=0, header=b""),
        lambda: hello_key(gateway_identity().static, key, b""),
        lambda: Invite(
            federation="acme", role="device", id="pi-9", number=1, expires=0, token=token, gateway=key,
            host="h", port=1, tls=False,
        ),
        lambda: decode("FI1:" + key.hex()),
        lambda: noise.HandshakeIKpsk1(
            initiator=True, prologue=b"", static=gateway_identity().static,
            ephemeral=gateway_identity().static, peer_static=bytes(32), psk=key,
        ),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises((EdgeFiError, ValueError, TypeError)) as caught:
            call()
        told = "".join(traceback.format_exception(caught.value)).encode()
        assert found_in(told, secrets) == [], caught.value


@pytest.mark.parametrize(
    "where",
    [
        "edge_fi.session.dh",
        "edge_fi.session.derive",
        "edge_fi.session.seal",
        "edge_fi.session.open_sealed",
        "edge_fi.crypto.noise.dh",
        "edge_fi.crypto.noise.open_sealed",
        "edge_fi.crypto.seal.is_equal",
        "edge_fi.crypto.seal.seal",
        "edge_fi.gateway.open_sealed",
        "edge_fi.device.aead_seal",
    ],
)
def test_a_bug_shows_no_secret_in_its_traceback(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends with it: in a journal, for whoever reads that."""

    def broken(*arguments: object, **named: object) -> bytes:
        raise RuntimeError(f"called with {len(arguments)} and {sorted(named)}")

    federation = Federation([constant(1, 2, 3, 4)] * 2, clients=1)
    monkeypatch.setattr(where, broken)
    with pytest.raises(RuntimeError) as caught:
        live(federation)
    secrets = secrets_of(*(node.machine for node in federation.fleet.nodes.values()))
    assert len(secrets) > 8
    told = io.StringIO()
    traceback.print_exception(caught.value, file=told)
    assert "RuntimeError: called with" in told.getvalue()
    assert found_in(told.getvalue().encode(), secrets) == []


def live(federation: Federation) -> None:
    federation.join()
    federation.client_asks("x")
    federation.ask()


def test_the_search_finds_a_secret_in_each_spelling_and_amid_other_bytes() -> None:
    secret = Stream("secret")(16)
    for before in range(6):
        amid = bytes(before) + secret + b"after"
        for text in (
            amid, amid.hex().encode(), amid.hex().upper().encode(), repr(amid).encode(),
            base64.b64encode(amid), base64.urlsafe_b64encode(amid), base64.b32encode(amid),
        ):  # fmt: skip
            assert found_in(b"x" + text, {"it": secret}) == ["it"]
    assert found_in(base64.b64encode(Stream("another")(64)), {"it": secret}) == []
    assert min(len(spelling) for spelling in spellings(secret)) >= 16
    line = encode(
        Invite(
            federation="acme", role="device", id="pi-9", number=1, expires=0, token=secret,
            gateway=bytes(32), host="h", port=1, tls=False,
        )
    )  # fmt: skip
    assert found_in(line.encode(), {"it": secret}) == ["it"]


def test_what_an_object_holds_is_seen_with_slots_and_without() -> None:
    pair = gateway_identity().static
    assert dict(attributes(pair))["private"] == pair.private
    assert dict(attributes(lone_gateway()))["identity"].static == pair  # type: ignore[attr-defined]
