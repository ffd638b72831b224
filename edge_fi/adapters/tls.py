"""TLS on the side of whoever connects: verification is always on, there is no switch for it.

A member that knows only its invite knows the broker's authority by a pin. It takes that certificate from
the chain which the broker presents, over a connection on which it says nothing, and from then on demands
it as the issuer. What goes wrong with TLS is put into words here, once.
"""

import hashlib
import hmac
import re
import socket
import ssl
import time
from pathlib import Path
from typing import Any

from edge_fi.errors import ConfigError, TransportError

PIN_BYTES = 16

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]*-----END CERTIFICATE-----")

# What OpenSSL says, under its various versions, of bytes that are no TLS at all.
_NO_TLS = frozenset(
    {
        "DATA_LENGTH_TOO_LONG",
        "PACKET_LENGTH_TOO_LONG",
        "RECORD_LAYER_FAILURE",
        "UNEXPECTED_MESSAGE",
        "UNKNOWN_PROTOCOL",
        "WRONG_VERSION_NUMBER",
    }
)
_OLD_TLS = frozenset({"TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL"})


class _Socket(ssl.SSLSocket):
    """Closed when the handshake fails: paho would leave that to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def make_context(ca: Path | None) -> ssl.SSLContext:
    """For connections to a broker whose certificate this authority vouches for; one of the system's if None.

    ca: in PEM, a root or not. Raises ConfigError where the file is missing or holds no certificate.
    """
    # Not create_default_context: what that demands changes with Python's version, and it writes the keys of
    # connections to a file that the environment names.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A renegotiation could make a write wait for a read, which nobody who drives the connection expects.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.sslsocket_class = _Socket
    if ca is None:
        context.load_default_certs()
        return context
    context.verify_flags |= (
        ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    )  # to what is in the file, and no further
    try:
        context.load_verify_locations(cadata="\n".join(_certificates(ca)))
    except ssl.SSLError:
        raise _no_certificate(ca) from None
    return context


def pin_of(ca: Path) -> bytes:
    """16 bytes that name the first certificate of a PEM file. Raises ConfigError."""
    make_context(ca)  # which refuses what only looks like one
    return _pin(ssl.PEM_cert_to_DER_cert(_certificates(ca)[0]))


def fetch_ca(host: str, port: int, pin: bytes, *, timeout_s: float) -> str:
    """The certificate of this pin, in PEM, from the chain that the broker presents.

    Nothing is sent there but the handshake, and nothing of it believed: what is returned hashes to the pin.
    That it is an authority's and vouches for the broker is verified on the connection that comes after.
    Raises TransportError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the pin is the verification
    deadline = time.monotonic() + timeout_s
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            with context.wrap_socket(connection, server_hostname=host) as secured:
                chain = _chain(secured)
    except (OSError, ValueError) as error:  # ValueError: of a name that is none
        raise TransportError(
            f"broker {host}:{port} cannot be reached: {explain(error)}; check that it runs and that this "
            "machine is on its network, or ask the gateway's owner for a new invite if the broker has moved"
        ) from None
    for der in chain:
        if hmac.compare_digest(_pin(der), pin):
            return ssl.DER_cert_to_PEM_cert(der)
    raise TransportError(
        f"the broker at {host}:{port} is not the one this invite was made for: ask the gateway's owner for a "
        "new invite, and whether the broker presents its authority's certificate behind its own"
    )


def explain(error: OSError | ValueError) -> str:
    """Why there is no connection, in a few words."""
    match error:
        case ssl.SSLCertVerificationError():
            return _distrust(error)
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError() | ConnectionResetError() | BrokenPipeError():
            return "it closes the connection instead of beginning TLS: does it speak TLS on this port?"
        case ssl.SSLError(reason=reason) if reason in _NO_TLS:
            return "it speaks no TLS on this port"
        case ssl.SSLError(reason=reason) if reason in _OLD_TLS:
            return "it speaks TLS only in versions before 1.2, which are not safe"
        case ssl.SSLError(reason=reason):
            return f"TLS fails: {reason}".lower().replace("_", " ").replace("tls", "TLS")
        case TimeoutError() if "handshake" in str(error):
            return "it took the connection but does not answer"
        case TimeoutError():
            return "no answer in time"
    return getattr(error, "strerror", None) or str(error)


def _distrust(error: ssl.SSLCertVerificationError) -> str:
    """What is wrong with a certificate. The codes are OpenSSL's X509_V_ERR_..."""
    # A Raspberry Pi has no clock that runs on without power.
    clock = f"this machine's clock says {time.strftime('%Y-%m-%d', time.gmtime())}"
    match error.verify_code:
        case 9:  # CERT_NOT_YET_VALID
            return f"its certificate is not valid yet, but {clock}, which may be wrong"
        case 10:  # CERT_HAS_EXPIRED
            return f"its certificate has expired and must be renewed, unless the date is wrong: {clock}"
        case 2 | 7 | 18 | 19 | 20 | 21:  # no way from it to a certificate that is trusted
            return "its certificate comes from an authority that is not trusted here: is broker.ca right?"
        case 62 | 64:  # HOSTNAME_MISMATCH, IP_ADDRESS_MISMATCH
            return "its certificate is for another name or address than broker.host"
    return f"its certificate is refused: {error.verify_message}"


def _certificates(ca: Path) -> list[str]:
    """Each in PEM, one at least. Raises ConfigError."""
    try:
        found = _CERTIFICATE.findall(ca.read_text(encoding="ascii", errors="replace"))
    except OSError as error:
        raise ConfigError(
            f"cannot read broker.ca {ca}: {error.strerror}; it is the certificate of who vouches for the "
            "broker, which 'edge-fi broker config' and 'edge-fi device join' write"
        ) from None
    if not found:
        raise _no_certificate(ca)
    return found


def _no_certificate(ca: Path) -> ConfigError:
    return ConfigError(f"broker.ca {ca} holds no certificate in PEM: name the file of the broker's authority")


def _chain(secured: ssl.SSLSocket) -> list[bytes]:
    """What the server presented, in DER. Public only from Python 3.13 on."""
    if hasattr(secured, "get_unverified_chain"):
        return list(secured.get_unverified_chain())
    inner: Any = secured._sslobj  # type: ignore[attr-defined]
    return [ssl.PEM_cert_to_DER_cert(its.public_bytes()) for its in inner.get_unverified_chain() or ()]


def _pin(der: bytes) -> bytes:
    return hashlib.blake2b(der, digest_size=PIN_BYTES, person=b"fi1 ca pin").digest()
