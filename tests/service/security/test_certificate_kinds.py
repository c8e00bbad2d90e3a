"""Which certificates are taken, and that gRPC's own client can use every one of these."""

import datetime
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from support.patience import PATIENCE

from quire.engine.errors import ConfigError
from quire.service.errors import Refusal
from quire.service.security import tls
from quire.service.security.auth import Authenticator, Caller
from quire.service.security.tls import TLSFiles, TLSMaterial

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
KINDS: dict[str, Callable[[], Any]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "RSA 2048": lambda: rsa.generate_private_key(65537, 2048),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "P-224": lambda: ec.generate_private_key(ec.SECP224R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "brainpool": lambda: ec.generate_private_key(ec.BrainpoolP256R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
    "RSA 1024": lambda: rsa.generate_private_key(65537, 1024),
}
SERVED = ("P-256", "P-384", "RSA 2048")
REFUSED = tuple(kind for kind in KINDS if kind not in SERVED)


def certificate(
    key: Any,
    name: str = "localhost",
    issuer: tuple[Any, x509.Certificate] | None = None,
    days: tuple[int, int] = (-1, 9),
) -> x509.Certificate:
    """Self-signed, or signed by an issuer's key. days: from and until, counted from now."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    signer = key if issuer is None else issuer[0]
    edwards = isinstance(signer, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer[1].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + days[0] * DAY)
        .not_valid_after(NOW + days[1] * DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(signer, None if edwards else hashes.SHA256())
    )


def pem(*found: x509.Certificate) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in found)


def private(key: Any, lock: KeySerializationEncryption | None = None) -> bytes:
    raw: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock or NoEncryption())
    return raw


def write(place: Path, cert: bytes, key: bytes, client_ca: bytes | None = None) -> TLSFiles:
    (place / "tls.crt").write_bytes(cert)
    (place / "tls.key").write_bytes(key)
    if client_ca is None:
        return TLSFiles(place / "tls.crt", place / "tls.key")
    (place / "ca.crt").write_bytes(client_ca)
    return TLSFiles(place / "tls.crt", place / "tls.key", place / "ca.crt")


def read(files: TLSFiles) -> TLSMaterial:
    return tls.read(files, NOW.timestamp())


@pytest.mark.parametrize("kind", SERVED)
def test_what_is_taken_can_be_served(tmp_path: Path, kind: str) -> None:
    """gRPC's server and gRPC's client, on the material that was read."""
    key = KINDS[kind]()
    cert = pem(certificate(key))
    read(write(tmp_path, cert, private(key), cert))
    files = tls.watch(TLSFiles(tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt"))
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        port = server.add_secure_port("localhost:0", tls.credentials(files, mutual=True))
        server.start()
        own: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
        credentials = grpc.ssl_channel_credentials(cert, private(key), cert)
        with grpc.secure_channel(f"localhost:{port}", credentials, options=own) as channel:
            grpc.channel_ready_future(channel).result(PATIENCE)
        server.stop(None)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_grpc_cannot_serve_is_refused_by_its_kind(tmp_path: Path, kind: str) -> None:
    key = KINDS[kind]()
    with pytest.raises(ConfigError, match=r"tls_cert.*RSA of 2048 to 8192 bits, or EC on P-256"):
        read(write(tmp_path, pem(certificate(key)), private(key)))
    sound = KINDS["P-256"]()
    with pytest.raises(ConfigError, match="tls_client_ca"):
        read(write(tmp_path, pem(certificate(sound)), private(sound), pem(certificate(key))))


def test_a_change_to_what_cannot_be_served_leaves_the_old_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = KINDS["P-256"]()
    files = tls.watch(write(tmp_path, pem(certificate(key)), private(key)))
    before = files.value
    for kind in ("P-521", "Ed25519", "Ed448", "brainpool"):
        other = KINDS[kind]()
        caplog.clear()
        write(tmp_path, pem(certificate(other)), private(other))
        assert not files.refresh()
        assert files.value is before
        assert "the old stays in force" in caplog.text and "read again" not in caplog.text


def chain() -> tuple[Any, list[x509.Certificate]]:
    """A key, its certificate, an intermediate one, and the root."""
    root, middle, leaf = (KINDS["P-256"]() for _ in range(3))
    top = certificate(root, "root")
    between = certificate(middle, "between", (root, top))
    return leaf, [certificate(leaf, "leaf", (middle, between)), between, top]


def test_a_chain_in_order_is_taken_and_another_order_is_not(tmp_path: Path) -> None:
    key, (leaf, between, top) = chain()
    for sound in ((leaf,), (leaf, between), (leaf, between, top)):
        read(write(tmp_path, pem(*sound), private(key)))
    for order, words in (
        ((leaf, top, between), "out of order"),
        ((leaf, top), "out of order"),
        ((between, leaf, top), "does not belong to the certificate"),
    ):
        with pytest.raises(ConfigError, match=words):
            read(write(tmp_path, pem(*order), private(key)))


def test_all_of_a_chain_must_be_valid_now(tmp_path: Path) -> None:
    root, leaf = KINDS["P-256"](), KINDS["P-256"]()
    for days, words in (((-9, -1), "has expired on"), ((1, 9), "is not valid before")):
        top = certificate(root, "root", days=days)
        below = certificate(leaf, "leaf", (root, top))
        with pytest.raises(ConfigError, match=words):
            read(write(tmp_path, pem(below, top), private(leaf)))
        with pytest.raises(ConfigError, match=f"tls_client_ca.*{words}"):
            read(write(tmp_path, pem(below), private(leaf), pem(top)))
    soon = certificate(root, "root", days=(-1, 2))
    below = certificate(leaf, "leaf", (root, soon))
    value = read(write(tmp_path, pem(below, soon), private(leaf)))
    assert value.expires_at == soon.not_valid_after_utc.timestamp()  # the first of them to end


def test_keys_that_are_locked_or_anothers(tmp_path: Path) -> None:
    key, other = KINDS["P-256"](), KINDS["RSA 2048"]()
    cert = pem(certificate(key))
    with pytest.raises(ConfigError, match="encrypted"):
        read(write(tmp_path, cert, private(key, BestAvailableEncryption(b"word"))))
    with pytest.raises(ConfigError, match="does not belong to the certificate"):
        read(write(tmp_path, cert, private(other)))


def test_no_private_key_is_shown(tmp_path: Path) -> None:
    key = KINDS["P-256"]()
    value = read(write(tmp_path, pem(certificate(key)), private(key)))
    assert "PRIVATE" not in repr(value)
    assert isinstance(value.context, ssl.SSLContext)


# ------------------------------------------------------------ who a certificate is


class Context:
    """A call over TLS, as far as who calls is concerned."""

    def __init__(self, certificate_pem: bytes, name: str) -> None:
        self._auth = {"x509_pem_cert": [certificate_pem], "x509_common_name": [name.encode()]}

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._auth


def caller(cert: bytes, name: str) -> Caller:
    context: Any = Context(cert, name)
    return Authenticator(certificates=True).caller(context)


@pytest.mark.parametrize("name", ["same", ""])
def test_certificates_of_one_name_or_none_are_no_one_tenant(name: str) -> None:
    keys = [KINDS["P-256"]() for _ in range(2)]
    one, two = (caller(pem(certificate(key, name)), name) for key in keys)
    assert one.tenant and two.tenant and one.tenant != two.tenant
    renewed = caller(pem(certificate(keys[0], name)), name)
    assert renewed.tenant == one.tenant  # the same key
    assert not one.operator


def test_a_certificate_that_cannot_be_read_is_nobodys() -> None:
    for cert in (b"", b"nonsense"):
        with pytest.raises(Refusal, match="UNAUTHENTICATED"):
            caller(cert, "same")
