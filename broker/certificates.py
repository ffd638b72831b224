"""A private certificate authority for one federation's broker, and server certificates from it.

Only for who has no certificates of his own. Members learn the authority by its pin, which their invite
carries, and take the certificate itself from the chain that the broker sends. It vouches for this broker's
names and for nothing else: what members say to each other is sealed without it.
"""

import ipaddress
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from broker import files
from edge_fi.errors import KeyFileError

AUTHORITY, AUTHORITY_KEY = "ca.pem", "ca.key"
SERVER, SERVER_KEY = "server.pem", "server.key"

AUTHORITY_VALID = timedelta(days=3652)  # ten years: members hold its pin, and there is no way to send another
SERVER_VALID = timedelta(days=397)  # the most that browsers and phones accept
BACKDATED = timedelta(days=1)  # clocks differ, and those without a battery wake up some time ago

_DNS_NAME = re.compile(
    r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)


def make(folder: Path, federation: str, names: Sequence[str]) -> list[Path]:
    """An authority, and a first server certificate. names: the broker's, in DNS or as IP addresses.

    Returns the files: `ca.pem`, `ca.key`, `server.pem` (the authority's certificate behind the server's) and
    `server.key`. Raises KeyFileError where there is an authority already.
    """
    alternatives = _alternatives(names)
    for path in (folder / AUTHORITY, folder / AUTHORITY_KEY):
        if os.path.lexists(path):
            raise KeyFileError(
                f"{path} exists and is not overwritten, since members trust that authority alone: "
                "renew its server certificate, or move it away and invite every member again"
            )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"edge-fi {federation}")])
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    authority = (
        _builder(key.public_key(), subject, subject, now - BACKDATED, now + AUTHORITY_VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    files.make_folder(folder)
    # Ours to keep: a broker that runs under another account has no use for it.
    files.replace(folder / AUTHORITY_KEY, _private_pem(key), keep=True)
    files.replace(folder / AUTHORITY, _pem(authority))
    return [folder / AUTHORITY, folder / AUTHORITY_KEY, *_issue(folder, authority, key, alternatives)]


def renew(folder: Path, names: Sequence[str] | None = None) -> list[Path]:
    """A new server certificate from the same authority. names: those of the present one if None.

    Returns the files that changed. The server's key stays, if there is one: so one rename is the whole
    change, and a broker that starts in the middle of it finds a certificate that fits its key. To change the
    key as well, remove `server.key` first. Raises KeyFileError if the authority is not here or has expired.
    """
    authority = _certificate(folder / AUTHORITY)
    key = _private_key(folder / AUTHORITY_KEY)
    if authority.not_valid_after_utc <= datetime.now(UTC):
        raise KeyFileError(
            f"the authority {folder / AUTHORITY} has expired: move it away, make another and invite every "
            "member again"
        )
    alternatives = _names_of(folder / SERVER) if names is None else _alternatives(names)
    return _issue(folder, authority, key, alternatives)


def expires(path: Path) -> datetime:
    """When the first certificate in a PEM file does, in UTC. Raises KeyFileError if there is none."""
    return _certificate(path).not_valid_after_utc


def _issue(
    folder: Path,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    alternatives: x509.SubjectAlternativeName,
) -> list[Path]:
    has_key = (folder / SERVER_KEY).exists()
    key = _private_key(folder / SERVER_KEY) if has_key else ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    # Clients look for names in the alternatives alone; this one tells it from its issuer.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edge-fi broker")])
    server = (
        _builder(
            key.public_key(),
            subject,
            authority.subject,
            max(now - BACKDATED, authority.not_valid_before_utc),
            min(now + SERVER_VALID, authority.not_valid_after_utc),
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
        )
        .add_extension(alternatives, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    changed = [(folder / SERVER, files.replace(folder / SERVER, _pem(server) + _pem(authority)))]
    changed.append((folder / SERVER_KEY, files.replace(folder / SERVER_KEY, _private_pem(key))))
    return [path for path, is_changed in changed if is_changed]


def _builder(
    key: ec.EllipticCurvePublicKey, subject: x509.Name, issuer: x509.Name, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _alternatives(names: Sequence[str]) -> x509.SubjectAlternativeName:
    """Raises KeyFileError for what is neither a DNS name nor an IP address, and for none at all."""
    found: list[x509.GeneralName] = []
    for name in dict.fromkeys(name.lower().removesuffix(".") for name in names):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            if not _DNS_NAME.fullmatch(name):
                raise KeyFileError(
                    f"{name!r} is no name of a broker: give the DNS name or the IP address by which members "
                    "reach it"
                ) from None
            found.append(x509.DNSName(name))
    if not found:
        raise KeyFileError(
            "a certificate needs the DNS names or IP addresses by which members reach the broker"
        )
    return x509.SubjectAlternativeName(found)


def _names_of(path: Path) -> x509.SubjectAlternativeName:
    try:
        return _certificate(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise KeyFileError(
            f"{path} names no broker: renew it with the names by which members reach it"
        ) from None


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise KeyFileError(
            f"cannot read {path}: {error.strerror}; make it, or name the right folder"
        ) from None
    except ValueError:
        raise KeyFileError(
            f"{path} is not a PEM certificate: restore it, or move it away and make another"
        ) from None


def _private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise KeyFileError(
            f"cannot read {path}: {error.strerror}; make it, or name the right folder"
        ) from None
    except (TypeError, ValueError):  # TypeError: it is encrypted
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        # From nothing: the parser's own message is no place for a key.
        raise KeyFileError(f"{path} is not a private key made here: restore it, or move it away") from None
    return key


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
