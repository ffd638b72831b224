"""TLS of who connects: what it trusts, and how a member that knows a pin gets its broker's authority."""

import contextlib
import hashlib
import hmac
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from certified import HOST, Authority, Issued, Mosquitto
from live import PATIENCE_S

from broker import certificates
from edge_fi.adapters import tls
from edge_fi.errors import ConfigError, TransportError

OTHER_BROKER = "is not the one this invite was made for"


class Listener:
    """A TCP server on loopback that treats its one visitor in its own way, inside a `with`."""

    def __init__(self) -> None:
        self._socket = socket.create_server((HOST, 0))
        self._socket.settimeout(PATIENCE_S)
        self.port: int = self._socket.getsockname()[1]
        self.heard = b""
        self._thread = threading.Thread(target=self._receive)

    def __enter__(self) -> "Listener":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(PATIENCE_S)
        self._socket.close()

    def _receive(self) -> None:
        connection, _ = self._socket.accept()
        connection.settimeout(PATIENCE_S)
        with connection, contextlib.suppress(ConnectionResetError, ssl.SSLError):  # the visitor has gone
            self.serve(connection)

    def serve(self, connection: socket.socket) -> None:
        """Says nothing, and waits for the visitor to leave."""
        while connection.recv(4096):
            pass


class SecureListener(Listener):
    """Hears what a visitor says over TLS."""

    def __init__(self, issued: Issued, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
        super().__init__()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(issued.certificate, issued.key)
        self._context.maximum_version = newest

    def serve(self, connection: socket.socket) -> None:
        with self._context.wrap_socket(connection, server_side=True) as secured:
            self.heard = secured.recv(4096)


class PlainListener(Listener):
    """Speaks first, and no TLS."""

    def serve(self, connection: socket.socket) -> None:
        connection.sendall(b"220 mail.example.org ESMTP ready, and glad to be of service\r\n")
        super().serve(connection)


class ClosingListener(Listener):
    """Is not to be spoken to."""

    def serve(self, connection: socket.socket) -> None:
        connection.recv(4096)


def pin(der: bytes) -> bytes:
    return hashlib.blake2b(der, digest_size=16, person=b"fi1 ca pin").digest()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "other")


@pytest.fixture
def broker(tmp_path: Path, authority: Authority) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path, authority.issue()) as made:
        yield made


def greet(port: int, context: ssl.SSLContext, name: str = HOST) -> str | None:
    """The TLS version of a connection in which each side is content with the other."""
    with (
        socket.create_connection((HOST, port), timeout=PATIENCE_S) as connection,
        context.wrap_socket(connection, server_hostname=name) as secured,
    ):
        return secured.version()


# What is trusted


def test_a_broker_of_the_authority_is_trusted(broker: Mosquitto, authority: Authority) -> None:
    assert greet(broker.port, tls.make_context(authority.path)) == "TLSv1.3"


def test_a_broker_of_another_authority_is_not(broker: Mosquitto, other: Authority) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        greet(broker.port, tls.make_context(other.path))


def test_a_broker_of_another_name_is_not(broker: Mosquitto, authority: Authority) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        greet(broker.port, tls.make_context(authority.path), name="localhost")


def test_without_an_authority_the_systems_own_are_trusted(
    broker: Mosquitto, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        greet(broker.port, tls.make_context(None))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))  # as a system's administrator would add one
    assert greet(broker.port, tls.make_context(None)) == "TLSv1.3"


def test_an_authority_in_the_middle_can_be_the_one_that_is_trusted(tmp_path: Path) -> None:
    """As of those who sell certificates: a root, and below it the ones that issue."""

    def run(*command: str) -> None:
        subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)

    ec = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    (tmp_path / "extensions").write_text(
        f"[ca]\nbasicConstraints=CA:TRUE\n[server]\nsubjectAltName=IP:{HOST}\n"
    )
    run("openssl", "req", "-x509", *ec, "-keyout", "root.key", "-out", "root.pem", "-subj", "/CN=root")
    for name, issuer, section in (("middle", "root", "ca"), ("server", "middle", "server")):
        run("openssl", "req", *ec, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        issue = ("-CA", f"{issuer}.pem", "-CAkey", f"{issuer}.key", "-CAcreateserial", "-extensions", section)
        made = ("-in", f"{name}.csr", "-out", f"{name}.pem", "-extfile", "extensions")
        run("openssl", "x509", "-req", *issue, *made)
    chain = tmp_path / "chain.pem"
    chain.write_text((tmp_path / "server.pem").read_text() + (tmp_path / "middle.pem").read_text())
    with Mosquitto(tmp_path, Issued(chain, tmp_path / "server.key")) as broker:
        middle = tmp_path / "middle.pem"
        assert greet(broker.port, tls.make_context(middle)) == "TLSv1.3"
        fetched = tls.fetch_ca(HOST, broker.port, tls.pin_of(middle), timeout_s=PATIENCE_S)
        assert ssl.PEM_cert_to_DER_cert(fetched) == ssl.PEM_cert_to_DER_cert(middle.read_text())


def test_tls_before_1_2_is_not_spoken(authority: Authority) -> None:
    for context in (tls.make_context(None), tls.make_context(authority.path)):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname


def test_the_keys_of_connections_go_to_no_file(
    broker: Mosquitto, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    greet(broker.port, tls.make_context(authority.path))
    assert not (tmp_path / "keys").exists()


def test_an_authority_that_is_not_there_is_named(tmp_path: Path) -> None:
    for use in (tls.make_context, tls.pin_of):
        with pytest.raises(ConfigError, match=rf"^cannot read broker.ca {tmp_path}/ca.pem: No such file"):
            use(tmp_path / "ca.pem")
        with pytest.raises(ConfigError, match=rf"^cannot read broker.ca {tmp_path}: Is a directory"):
            use(tmp_path)


NO_CERTIFICATE = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nothing of the kind",
        os.urandom(500),
        NO_CERTIFICATE.format("").encode(),
        NO_CERTIFICATE.format("AAAA").encode(),
        NO_CERTIFICATE.format("\N{LATIN SMALL LETTER E WITH ACUTE}").encode(),
        b"-----BEGIN CERTIFICATE-----\nAAAA",
    ],
)
def test_a_file_that_holds_no_certificate_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ca.pem").write_bytes(content)
    for use in (tls.make_context, tls.pin_of):
        with pytest.raises(ConfigError, match=rf"^broker.ca {tmp_path}/ca.pem holds no certificate in PEM"):
            use(tmp_path / "ca.pem")


# The pin


def test_a_pin_is_a_digest_of_the_first_certificate_in_the_file(
    tmp_path: Path, authority: Authority, other: Authority
) -> None:
    both = tmp_path / "both.pem"
    both.write_text(f"An authority:\n{authority.path.read_text()}another:\n{other.path.read_text()}")
    assert tls.pin_of(both) == tls.pin_of(authority.path) == pin(authority.der)


def test_it_is_the_pin_that_an_invite_carries(authority: Authority) -> None:
    digest = hashlib.blake2b(authority.der, digest_size=16, person=b"fi1 ca pin").digest()
    assert tls.pin_of(authority.path) == digest


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_authority_is_taken_from_what_the_broker_presents_and_nothing_is_said(
    authority: Authority, other: Authority, newest: ssl.TLSVersion
) -> None:
    with SecureListener(authority.issue(presents=[other, authority]), newest) as listener:
        fetched = tls.fetch_ca(HOST, listener.port, pin(authority.der), timeout_s=PATIENCE_S)
    assert fetched == ssl.DER_cert_to_PEM_cert(authority.der)
    assert listener.heard == b""


def test_what_was_fetched_is_what_the_next_connection_trusts(
    broker: Mosquitto, authority: Authority, tmp_path: Path
) -> None:
    fetched = tls.fetch_ca(HOST, broker.port, pin(authority.der), timeout_s=PATIENCE_S)
    (tmp_path / "fetched.pem").write_text(fetched)
    assert greet(broker.port, tls.make_context(tmp_path / "fetched.pem")) == "TLSv1.3"


def test_a_broker_made_by_us_presents_its_authority(tmp_path: Path) -> None:
    certificates.make(tmp_path / "made", "acme", [HOST])
    issued = Issued(tmp_path / "made" / certificates.SERVER, tmp_path / "made" / certificates.SERVER_KEY)
    ca = tmp_path / "made" / certificates.AUTHORITY
    with Mosquitto(tmp_path, issued) as broker:
        fetched = tls.fetch_ca(HOST, broker.port, tls.pin_of(ca), timeout_s=PATIENCE_S)
        assert fetched.split() == ca.read_text().split()
        assert greet(broker.port, tls.make_context(ca)) == "TLSv1.3"


def test_who_shows_the_authority_without_being_its_server_is_not_trusted(
    tmp_path: Path, authority: Authority, other: Authority
) -> None:
    """Its certificate is no secret: anybody in between can present it behind his own."""
    with Mosquitto(tmp_path, other.issue(presents=[authority])) as impostor:
        fetched = tls.fetch_ca(HOST, impostor.port, pin(authority.der), timeout_s=PATIENCE_S)
        (tmp_path / "fetched.pem").write_text(fetched)
        with pytest.raises(ssl.SSLCertVerificationError):
            greet(impostor.port, tls.make_context(tmp_path / "fetched.pem"))


def refusal(port: int, its_pin: bytes = bytes(16), timeout_s: float = PATIENCE_S, host: str = HOST) -> str:
    """The sentence with which a fetch ends."""
    with pytest.raises(TransportError) as caught:
        tls.fetch_ca(host, port, its_pin, timeout_s=timeout_s)
    return str(caught.value)


def test_another_broker_is_told_apart(broker: Mosquitto, other: Authority) -> None:
    told = refusal(broker.port, pin(other.der))
    assert told.startswith(f"the broker at {HOST}:{broker.port} {OTHER_BROKER}: ask the gateway's owner")


def test_a_broker_that_presents_its_own_certificate_alone_is_told_apart(
    tmp_path: Path, authority: Authority
) -> None:
    with Mosquitto(tmp_path, authority.issue(presents=[])) as broker:
        assert OTHER_BROKER in refusal(broker.port, pin(authority.der))


def test_a_broker_that_is_not_there_is_told(broker: Mosquitto) -> None:
    broker.__exit__()
    told = refusal(broker.port)
    assert told.startswith(f"broker {HOST}:{broker.port} cannot be reached: Connection refused; check that")


def test_a_broker_without_tls_is_told(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, None) as broker:
        assert "does it speak TLS on this port?" in refusal(broker.port)
    with ClosingListener() as listener:
        assert "does it speak TLS on this port?" in refusal(listener.port)
    with PlainListener() as listener:
        assert "it speaks no TLS on this port" in refusal(listener.port)


def test_a_broker_that_says_nothing_is_given_up_in_time(tmp_path: Path) -> None:
    began = time.monotonic()
    with Listener() as listener:
        assert "it took the connection but does not answer" in refusal(listener.port, timeout_s=0.2)
    assert time.monotonic() - began < PATIENCE_S / 2


def test_a_name_that_can_be_none_is_told() -> None:
    assert "cannot be reached" in refusal(8883, host="h" * 255)


def test_a_broker_that_speaks_older_tls_alone_is_told(authority: Authority) -> None:
    """As far behind as one that speaks 1.1 is behind what we demand: who made this Python left that out."""
    context = tls.make_context(authority.path)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    listener = SecureListener(authority.issue(), ssl.TLSVersion.TLSv1_2)
    with listener, pytest.raises(ssl.SSLError) as caught:
        greet(listener.port, context)
    assert tls.explain(caught.value) == "it speaks TLS only in versions before 1.2, which are not safe"


def test_the_pin_is_compared_in_constant_time(
    broker: Mosquitto, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def spy(one: bytes, two: bytes) -> bool:
        compared.append(two)
        return compare(one, two)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    tls.fetch_ca(HOST, broker.port, pin(authority.der), timeout_s=PATIENCE_S)
    assert compared and set(compared) == {pin(authority.der)}
