"""A federation's own authority: what its certificates say, who accepts them, and how they are renewed."""

import stat
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from broker import certificates
from edge_fi.adapters.tls import pin_of
from edge_fi.errors import ConfigError, KeyFileError

EXAMPLE = """\
-----BEGIN CERTIFICATE-----
MIIBdjCCARugAwIBAgIUCdipgHWVX1zlrbD4sCaMn8Y3I+QwCgYIKoZIzj0EAwIw
FzEVMBMGA1UEAwwMZWRnZS1maSBhY21lMB4XDTI2MTEyMzE0NTQyN1oXDTM2MTEy
MzE0NTQyN1owFzEVMBMGA1UEAwwMZWRnZS1maSBhY21lMFkwEwYHKoZIzj0CAQYI
KoZIzj0DAQcDQgAEYyZiOk9G2lf/obCWg3kefJbWZkRG1McGDnazUih4ve8Bq1mS
Chkhqh7O8ZaDw0RWkcEM4WJlSCX/5kVOp38Il6NFMEMwHQYDVR0OBBYEFBGeSzW4
yRUniA1IXnVAO0B6eer6MBIGA1UdEwEB/wQIMAYBAf8CAQAwDgYDVR0PAQH/BAQD
AgEGMAoGCCqGSM49BAMCA0kAMEYCIQCqifFhUXUwzWj4DO8vTQbWhSzWEQd1k5oj
4s6WF7DwbgIhAMVWp4YI3tJaqXJoEDaIEfO9Vav67BLj3KglVrzWhcyF
-----END CERTIFICATE-----
"""
NAMES = ["broker.example.org", "192.0.2.7", "2001:db8::7", "nas"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    certificates.make(tmp_path / "tls", "acme", NAMES)
    return tmp_path / "tls"


def chain(folder: Path) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates((folder / "server.pem").read_bytes())


def authority(folder: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())


def is_accepted(
    folder: Path, name: str, *, trusted: x509.Certificate | None = None, when: datetime | None = None
) -> bool:
    """Whether a client that trusts the authority takes the server for this one, by RFC 5280."""
    address = ip_address(name) if name[0].isdigit() else None
    builder = PolicyBuilder().store(Store([trusted or authority(folder)])).time(when or datetime.now(UTC))
    subject = x509.IPAddress(address) if address else x509.DNSName(name)
    server, *others = chain(folder)
    try:
        builder.build_server_verifier(subject).verify(server, others)
    except VerificationError:
        return False
    return True


# What is made


def test_four_files_are_made_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "tls"
    made = certificates.make(folder, "acme", NAMES)
    assert [path.name for path in made] == ["ca.pem", "ca.key", "server.pem", "server.key"]
    assert sorted(folder.iterdir()) == sorted(made)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in made)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_authority_may_sign_servers_and_nothing_else(folder: Path) -> None:
    extensions = authority(folder).extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.key_cert_sign and not usage.value.digital_signature


def test_the_server_may_be_a_server_and_nothing_else(folder: Path) -> None:
    extensions = chain(folder)[0].extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature and not usage.key_cert_sign
    purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_keys_are_p_256_and_fit_their_certificates(folder: Path) -> None:
    for key_name, certificate in (("ca.key", authority(folder)), ("server.key", chain(folder)[0])):
        key = serialization.load_pem_private_key((folder / key_name).read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp256r1"
        assert key.public_key() == certificate.public_key()


def test_the_authority_stands_behind_the_server_in_one_file(folder: Path) -> None:
    assert chain(folder)[1:] == [authority(folder)]


def test_certificates_are_valid_since_yesterday_and_as_long_as_they_should(folder: Path) -> None:
    now = datetime.now(UTC)
    for certificate, days in ((authority(folder), 3652), (chain(folder)[0], 397)):
        since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        assert timedelta(0) <= now - timedelta(days=1) - since < timedelta(minutes=1)
        assert timedelta(0) <= now + timedelta(days=days) - until < timedelta(minutes=1)
    assert certificates.expires(folder / "server.pem") == chain(folder)[0].not_valid_after_utc


# Who accepts it


@pytest.mark.parametrize("name", NAMES)
def test_a_client_accepts_the_server_under_each_of_its_names(folder: Path, name: str) -> None:
    assert is_accepted(folder, name)


@pytest.mark.parametrize("name", ["other.example.org", "192.0.2.8", "sub.broker.example.org"])
def test_a_client_accepts_it_under_no_other_name(folder: Path, name: str) -> None:
    assert not is_accepted(folder, name)


def test_a_client_of_another_federation_does_not_accept_it(folder: Path, tmp_path: Path) -> None:
    certificates.make(tmp_path / "other", "acme", NAMES)
    assert not is_accepted(folder, NAMES[0], trusted=authority(tmp_path / "other"))


@pytest.mark.parametrize(("days", "accepted"), [(-2, False), (-0.9, True), (396, True), (398, False)])
def test_a_client_accepts_it_in_its_time_alone(folder: Path, days: float, accepted: bool) -> None:
    assert is_accepted(folder, NAMES[0], when=datetime.now(UTC) + timedelta(days=days)) == accepted


@pytest.mark.parametrize("name", ["", "a b", "*.example.org", "-a", "a_b", "x" * 64, "1.2.3.4/8", None])
def test_a_name_that_is_none_is_refused_before_anything_is_made(tmp_path: Path, name: str | None) -> None:
    with pytest.raises(KeyFileError, match="by which members reach"):
        certificates.make(tmp_path / "tls", "acme", [] if name is None else [name])
    assert not (tmp_path / "tls").exists()


def test_names_are_taken_as_dns_takes_them(tmp_path: Path) -> None:
    certificates.make(tmp_path, "acme", ["Broker.Example.ORG.", "broker.example.org"])
    names = chain(tmp_path)[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["broker.example.org"]


# The pin


def test_the_pin_is_this_hash_of_the_der(tmp_path: Path) -> None:
    # A fixed certificate, so that other implementations can compare.
    (tmp_path / "ca.pem").write_text(EXAMPLE)
    assert pin_of(tmp_path / "ca.pem").hex() == "3fee49ee351d099e70301d93ca931bc3"


def test_the_pin_of_an_authority_is_a_hash_of_its_der(folder: Path) -> None:
    der = authority(folder).public_bytes(serialization.Encoding.DER)
    assert pin_of(folder / "ca.pem") == blake2b(der, digest_size=16, person=b"fi1 ca pin").digest()


def test_the_pin_of_another_authority_is_another(folder: Path, tmp_path: Path) -> None:
    certificates.make(tmp_path / "other", "acme", NAMES)
    assert pin_of(folder / "ca.pem") != pin_of(tmp_path / "other" / "ca.pem")


@pytest.mark.parametrize("bad", [b"", b"x", b"-----BEGIN CERTIFICATE-----\n"])
def test_what_is_no_certificate_has_no_pin(tmp_path: Path, bad: bytes) -> None:
    (tmp_path / "ca.pem").write_bytes(bad)
    with pytest.raises(ConfigError):
        pin_of(tmp_path / "ca.pem")


# Renewing


def test_a_renewed_certificate_is_another_with_the_same_names_key_and_authority(folder: Path) -> None:
    before, key, root = chain(folder)[0], (folder / "server.key").read_bytes(), authority(folder)
    assert certificates.renew(folder) == [folder / "server.pem"]
    after = chain(folder)[0]
    assert after.serial_number != before.serial_number
    assert after.public_key() == before.public_key() and (folder / "server.key").read_bytes() == key
    assert authority(folder) == root
    assert all(is_accepted(folder, name) for name in NAMES)


def test_a_broker_that_moved_gets_its_new_names(folder: Path) -> None:
    certificates.renew(folder, ["198.51.100.1"])
    assert is_accepted(folder, "198.51.100.1") and not is_accepted(folder, NAMES[0])


def test_a_server_key_that_was_removed_is_made_anew(folder: Path) -> None:
    before = chain(folder)[0]
    (folder / "server.key").unlink()
    assert certificates.renew(folder) == [folder / "server.pem", folder / "server.key"]
    assert chain(folder)[0].public_key() != before.public_key()
    assert is_accepted(folder, NAMES[0])


def test_an_authority_is_never_overwritten(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(KeyFileError, match="exists and is not overwritten"):
        certificates.make(folder, "acme", NAMES)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_without_an_authority_nothing_is_renewed(folder: Path) -> None:
    (folder / "ca.key").unlink()
    with pytest.raises(KeyFileError, match=r"cannot read .*ca\.key: No such file or directory"):
        certificates.renew(folder)


@pytest.mark.parametrize("name", ["ca.pem", "ca.key", "server.key", "server.pem"])
def test_a_broken_file_is_named_and_not_shown(folder: Path, name: str) -> None:
    (folder / name).write_text("something secret")
    with pytest.raises(KeyFileError, match=name.replace(".", r"\.")) as caught:
        certificates.renew(folder)
    assert "secret" not in str(caught.value)


def test_a_key_of_another_kind_is_named(folder: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.key").write_bytes(pem)
    with pytest.raises(KeyFileError, match="is not a private key made here"):
        certificates.renew(folder)


def test_a_server_certificate_without_names_cannot_tell_them_to_the_next(folder: Path) -> None:
    (folder / "server.pem").write_bytes((folder / "ca.pem").read_bytes())
    with pytest.raises(KeyFileError, match="names no broker: renew it with the names"):
        certificates.renew(folder)


def test_an_authority_that_has_expired_signs_nothing_more(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = authority(folder).subject, datetime.now(UTC)
    expired = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now - timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(expired.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(KeyFileError, match="has expired: move it away, make another and invite every member"):
        certificates.renew(folder)


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tls").mkdir()
    (tmp_path / "tls").chmod(0o777)
    with pytest.raises(ConfigError, match="others may write to it: run chmod 700"):
        certificates.make(tmp_path / "tls", "acme", NAMES)
