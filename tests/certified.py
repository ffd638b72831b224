"""Certificates of every quality, made for a test, and a mosquitto on loopback that presents them."""

import contextlib
import os
import pwd
import random
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from live import eventually, need

from broker.embedded import PORTS
from broker.kinds import find

HOST = "127.0.0.1"
YESTERDAY, TOMORROW = timedelta(days=-1), timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Issued:
    """PEM files of one server: its certificate, with others behind it where it presents them, and its key."""

    certificate: Path
    key: Path


class Authority:
    """A private authority. `path` is its certificate, in PEM."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self.path = folder / f"{name}.pem"
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = _name(name)
        builder = _builder(self._subject, self._subject, self._key, YESTERDAY, TOMORROW)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.certificate = builder.sign(self._key, hashes.SHA256())
        self.path.write_bytes(_pem(self.certificate))

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def issue(
        self,
        *names: str,
        begin: timedelta = YESTERDAY,
        end: timedelta = TOMORROW,
        presents: Sequence["Authority"] | None = None,
    ) -> Issued:
        """A server's certificate for these names, loopback if none, valid from then to then as seen from now.

        presents: the authorities whose certificates it sends behind its own; this one if None.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_name("server"), self._subject, key, begin, end)
            .add_extension(x509.SubjectAlternativeName([_alternative(n) for n in names or (HOST,)]), False)
            .sign(self._key, hashes.SHA256())
        )
        issued = Issued(self._folder / "server.pem", self._folder / "server.key")
        behind = [self] if presents is None else presents
        issued.certificate.write_bytes(_pem(certificate) + b"".join(_pem(its.certificate) for its in behind))
        issued.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return issued


class Mosquitto:
    """A mosquitto inside a `with`: of this certificate, or without TLS. more: lines of its configuration."""

    def __init__(self, folder: Path, issued: Issued | None, *more: str) -> None:
        need("mosquitto")
        self.port = _free_port()
        # Else a mosquitto that root starts becomes another user, who may not read the key.
        account = pwd.getpwuid(os.getuid()).pw_name
        lines = [f"listener {self.port} {HOST}", "allow_anonymous true", f"user {account}", *more]
        if issued is not None:
            lines += [f"certfile {issued.certificate}", f"keyfile {issued.key}"]
        self._configuration = folder / "mosquitto.conf"
        self._configuration.write_text("\n".join(lines) + "\n")

    def __enter__(self) -> Self:
        program = find("mosquitto").path()
        assert program is not None
        self._process = subprocess.Popen([program, "-c", self._configuration], stderr=subprocess.DEVNULL)
        eventually(self._listens)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def _listens(self) -> bool:
        assert self._process.poll() is None, "mosquitto ended"
        try:
            socket.create_connection((HOST, self.port)).close()
        except ConnectionRefusedError:
            return False
        return True


def _free_port() -> int:
    """One that nobody listens on, and that the kernel gives to no outgoing connection."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as candidate, contextlib.suppress(OSError):
            candidate.bind((HOST, port))
            return port


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, begin: timedelta, end: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begin)
        .not_valid_after(now + end)
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
