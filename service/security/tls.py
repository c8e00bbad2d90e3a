"""TLS for the server's ports, from PEM files, read again when they change.

Invariant: what is in force was checked as a whole: certificate and key belong together, the
certificate is valid now, the authorities can be parsed. A change that fails any of it leaves the
old in force (see `watched`). New connections get the newest; open ones keep what they have.
"""

import datetime
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from quire.engine.errors import ConfigError
from quire.service.security.reload import WatchedFiles

_SEQUENCE, _CONTEXT_0 = 0x30, 0xA0
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """Paths of PEM files. client_ca: only clients whose certificate it has signed get in."""

    cert: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class TLSMaterial:
    """What the files held. expires_at: seconds since 1970, of the server's own certificate."""

    cert: bytes
    key: bytes
    client_ca: bytes | None
    expires_at: float

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """As gRPC wants it."""
        return grpc.ssl_server_certificate_configuration(
            [(self.key, self.cert)], root_certificates=self.client_ca
        )


def watch(files: TLSFiles, now: Callable[[], float] = time.time) -> WatchedFiles[TLSMaterial]:
    """The files' content, kept fresh by `refresh`. Raises ConfigError."""
    paths = [path for path in (files.cert, files.key, files.client_ca) if path is not None]
    return WatchedFiles("tls", paths, lambda: read(files, now()))


def read(files: TLSFiles, now: float) -> TLSMaterial:
    """Read and check. now: seconds since 1970. Raises ConfigError."""
    cert = _bytes("tls_cert", files.cert)
    key = _bytes("tls_key", files.key)
    client_ca = None if files.client_ca is None else _bytes("tls_client_ca", files.client_ca)
    _check_pair(files)
    if (files.cert.read_bytes(), files.key.read_bytes()) != (cert, key):
        raise ConfigError(f"tls_cert = {files.cert}: changed while it was read")
    if client_ca is not None:
        _check_authorities(files, client_ca)
    begins_at, expires_at = validity(_first_certificate(files.cert, cert))
    for bound, holds, words in (
        (begins_at, now >= begins_at, "is not valid before"),
        (expires_at, now < expires_at, "has expired on"),
    ):
        if not holds:
            day = datetime.datetime.fromtimestamp(bound, datetime.UTC)
            raise ConfigError(f"tls_cert = {files.cert}: {words} {day:%Y-%m-%d %H:%M:%S} UTC")
    return TLSMaterial(cert, key, client_ca, expires_at)


def credentials(material: WatchedFiles[TLSMaterial], *, mutual: bool) -> grpc.ServerCredentials:
    """Credentials that follow the files: gRPC asks at each handshake."""
    in_force = material.value

    def newer() -> grpc.ServerCertificateConfiguration | None:
        nonlocal in_force
        if material.value is in_force:
            return None
        in_force = material.value
        return in_force.configuration()

    return grpc.dynamic_ssl_server_credentials(
        in_force.configuration(),
        newer,  # type: ignore[arg-type]  # None: nothing new, as gRPC documents it
        require_client_authentication=mutual,
    )


def _bytes(option: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{option} = {path}: cannot be read: {error.strerror}") from error


def _check_pair(files: TLSFiles) -> None:
    """OpenSSL says whether they parse and belong together."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.cert, files.key, password=_no_password)
    except (ssl.SSLError, OSError, _EncryptedKey) as error:
        raise ConfigError(
            f"tls_cert = {files.cert}, tls_key = {files.key}: {_explain(error)}"
        ) from error


class _EncryptedKey(Exception):
    pass


def _no_password() -> str:
    raise _EncryptedKey


def _explain(error: Exception) -> str:
    if isinstance(error, _EncryptedKey):
        return "the key is encrypted; give one without a passphrase"
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return "the key is not the certificate's"
    return "not a certificate and its key in PEM"


def _check_authorities(files: TLSFiles, client_ca: bytes) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=client_ca.decode())
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"tls_client_ca = {files.client_ca}: no certificates in PEM") from error


# ------------------------------------------------------------ the dates of a certificate


def _first_certificate(path: Path, pem: bytes) -> bytes:
    """DER of the first certificate: the server's own."""
    end = "-----END CERTIFICATE-----"
    try:
        text = pem.decode("ascii", "replace")
        start = text.index("-----BEGIN CERTIFICATE-----")
        return ssl.PEM_cert_to_DER_cert(text[start : text.index(end, start) + len(end)])
    except ValueError as error:
        raise ConfigError(f"tls_cert = {path}: no certificate in PEM") from error


def validity(der: bytes) -> tuple[float, float]:
    """notBefore and notAfter in seconds since 1970 (RFC 5280, 4.1): the standard library has no
    public way to read them from a certificate of one's own."""
    _, body, _ = _element(der, 0)
    _, tbs, _ = _element(body, 0)
    tag, _, at = _element(tbs, 0)
    skip = 4 if tag == _CONTEXT_0 else 3  # version (optional), serial, algorithm, issuer
    for _ in range(skip - 1):
        _, _, at = _element(tbs, at)
    tag, dates, _ = _element(tbs, at)
    if tag != _SEQUENCE:
        raise ConfigError("tls_cert: not an X.509 certificate")
    tag, first, at = _element(dates, 0)
    begins = _time(tag, first)
    tag, last, _ = _element(dates, at)
    return begins, _time(tag, last)


def _element(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Tag and content of the DER element at an offset, and where the next one begins."""
    try:
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(data[at : at + size], "big")
            at += size
    except IndexError:
        raise ConfigError("tls_cert: not an X.509 certificate") from None
    return tag, data[at : at + length], at + length


def _time(tag: int, content: bytes) -> float:
    if tag not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ConfigError("tls_cert: not an X.509 certificate")
    text = content.decode("ascii", "replace")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    try:
        moment = datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ")
    except ValueError:
        raise ConfigError("tls_cert: not an X.509 certificate") from None
    return moment.replace(tzinfo=datetime.UTC).timestamp()
