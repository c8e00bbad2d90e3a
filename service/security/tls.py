"""TLS for the server's ports, from PEM files that are read again when they change.

Invariant: the material in force was checked as a whole, from files of one moment: certificate and
key belong together, the chain is in order, all certificates are valid now and of kinds that gRPC
can serve. A change that fails any of these checks leaves the old material in force (see `reload`).
New connections get the newest material; open ones keep theirs.
"""

import datetime
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from quire.engine.errors import ConfigError
from quire.service.security import certificates
from quire.service.security.reload import WatchedFiles, read_file

_MAX_FILE = 4 << 20  # bytes


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """Paths of PEM files. client_ca: only clients with a certificate signed by it are admitted."""

    cert: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class TLSMaterial:
    """The content of the files. expires_at: when the first certificate of the server's own chain
    ends, in seconds since 1970. context: the same for ports that gRPC does not serve."""

    cert: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None
    expires_at: float
    context: ssl.SSLContext = field(compare=False, repr=False)

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
    cert = read_file("tls_cert", files.cert, _MAX_FILE)
    key = read_file("tls_key", files.key, _MAX_FILE)
    client_ca = None
    if files.client_ca is not None:
        client_ca = read_file("tls_client_ca", files.client_ca, _MAX_FILE)
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    own, own_key = f"tls_cert = {files.cert}", f"tls_key = {files.key}"
    chain = certificates.parse(own, cert)
    certificates.check_server(own, own_key, chain, key, moment)
    if client_ca is not None:
        option = f"tls_client_ca = {files.client_ca}"
        certificates.check_authorities(option, certificates.parse(option, client_ca), moment)
    expires_at = min(certificate.not_valid_after_utc for certificate in chain).timestamp()
    return TLSMaterial(cert, key, client_ca, expires_at, _context(files, client_ca))


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


def _context(files: TLSFiles, client_ca: bytes | None) -> ssl.SSLContext:
    """An SSL context from the paths, which is what Python's ssl takes; the caller checks that the
    files have not changed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(files.cert, files.key, password=lambda: "")
        if client_ca is not None:
            context.load_verify_locations(cadata=client_ca.decode())
            context.verify_mode = ssl.CERT_REQUIRED
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigError(
            f"tls_cert = {files.cert}, tls_key = {files.key}: refused by OpenSSL: {error}"
        ) from error
    return context
