"""What a certificate is, and whether gRPC can serve it.

The kinds were found by connecting gRPC's client to gRPC's server with each: its TLS library takes
RSA and the curves P-256 and P-384. With P-521 or Ed25519 a port opens and no client can connect;
with Ed448, brainpool, secp256k1 or P-224 no port opens.

Invariant: what passes here can be served to a client that trusts its issuer.
"""

import datetime
import functools
import hashlib
import itertools
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import PublicKeyAlgorithmOID

from quire.engine.errors import ConfigError

MIN_RSA, MAX_RSA = 2048, 8192  # bits
_PLAIN_RSA = PublicKeyAlgorithmOID.RSAES_PKCS1_v1_5
_CURVES = (ec.SECP256R1, ec.SECP384R1)
_KINDS = f"RSA of {MIN_RSA} to {MAX_RSA} bits, or EC on P-256 or P-384"
_DEAD_HASHES = (hashes.MD5, hashes.SHA1)


def parse(option: str, pem: bytes) -> list[x509.Certificate]:
    """All certificates of a file, in order. option: named in errors. Raises ConfigError."""
    try:
        found = x509.load_pem_x509_certificates(pem)
        for certificate in found:
            certificate.public_key()  # read late, and some cannot be
            _ = certificate.extensions
    except UnsupportedAlgorithm as error:
        raise ConfigError(f"{option}: a key of a kind that gRPC cannot use; {_KINDS}") from error
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ConfigError(f"{option}: no certificates in PEM") from error
    return found


def check_server(
    cert: str, key: str, chain: Sequence[x509.Certificate], key_pem: bytes, now: datetime.datetime
) -> None:
    """Check a server's certificate, its chain, and its private key. cert, key: the options' names
    in errors. Raises ConfigError."""
    _check_key(cert, key, chain[0], key_pem)
    for certificate in chain:
        check_kind(cert, certificate)
        _check_dates(cert, certificate, now)
    for certificate, issuer in itertools.pairwise(chain):
        _check_issued(cert, certificate, issuer)
    if chain[0].issuer != chain[0].subject:
        _check_hash(cert, chain[0])


def check_authorities(
    option: str, authorities: Sequence[x509.Certificate], now: datetime.datetime
) -> None:
    """Check the authorities that sign clients' certificates: all of a kind that can be verified, at
    least one of them valid. Raises ConfigError."""
    for certificate in authorities:
        check_kind(option, certificate)
    for certificate in authorities:
        if certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
            return
    _check_dates(option, authorities[0], now)


def check_kind(option: str, certificate: x509.Certificate) -> None:
    """Raises ConfigError for a key that gRPC's TLS cannot use, or that is weak."""
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        found, served = f"RSA of {key.key_size} bits", MIN_RSA <= key.key_size <= MAX_RSA
        # A key that is bound to PSS is read as a plain one; gRPC's TLS does not know it.
        served = served and certificate.public_key_algorithm_oid == _PLAIN_RSA
    elif isinstance(key, ec.EllipticCurvePublicKey):
        found, served = f"EC on {key.curve.name}", isinstance(key.curve, _CURVES)
    else:
        found, served = type(key).__name__.removesuffix("PublicKey"), False
    if not served:
        raise ConfigError(f"{option}: a key of the kind {found}: gRPC can serve {_KINDS}")


def _check_key(cert: str, key: str, leaf: x509.Certificate, key_pem: bytes) -> None:
    both = f"{cert}, {key}"
    try:
        private = load_pem_private_key(key_pem, password=None)
        own = private.public_key()
    except TypeError as error:
        raise ConfigError(f"{key}: the key is encrypted; give one without a passphrase") from error
    except UnsupportedAlgorithm as error:
        raise ConfigError(f"{key}: of a kind that gRPC cannot use; {_KINDS}") from error
    except ValueError as error:
        raise ConfigError(f"{both}: not a certificate and its key in PEM") from error
    if _spki(own) != _spki(leaf.public_key()):
        raise ConfigError(
            f"{both}: the key does not belong to the certificate (the first of several)"
        )


def _check_dates(option: str, certificate: x509.Certificate, now: datetime.datetime) -> None:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    for bound, holds, words in (
        (begins, now >= begins, "is not valid before"),
        (ends, now < ends, "has expired on"),
    ):
        if not holds:
            raise ConfigError(f"{option}: {words} {bound:%Y-%m-%d %H:%M:%S} UTC")


def _check_issued(option: str, certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{option}: out of order: each certificate must be signed by the one that follows it"
        ) from error


def _check_hash(option: str, certificate: x509.Certificate) -> None:
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return  # signed by a kind that the clients have to know
    if isinstance(algorithm, _DEAD_HASHES):
        raise ConfigError(f"{option}: signed with {algorithm.name}, which clients refuse")


@functools.lru_cache(maxsize=1024)
def identity(pem: bytes) -> str:
    """The SHA-256 of a certificate's public key, in hexadecimal: shared only by certificates
    with the same key. A name would not do: anyone may ask an authority for it again. Raises
    ConfigError."""
    leaf = parse("the client's certificate", pem)[0]
    return hashlib.sha256(_spki(leaf.public_key())).hexdigest()


def _spki(key: object) -> bytes:
    raw: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return raw
