"""The metrics' port follows the clients' authorities: who may scrape changes while it listens."""

import asyncio
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.harness import PATIENCE, Running, run, serving

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="no openssl command to make certificates")

NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"


def openssl(*words: str | Path) -> None:
    done = subprocess.run(
        [str(OPENSSL), *map(str, words)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr


def key(path: Path) -> Path:
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path)
    return path


def self_signed(place: Path, name: str, *more: str) -> None:
    openssl(
        *("req", "-x509", "-key", key(place / f"{name}.key"), "-days", "30"),
        *("-subj", f"/CN={name}", "-out", place / f"{name}.crt", *more),
    )


def issued(place: Path, name: str, authority: str) -> None:
    """A client's certificate, signed by an authority."""
    request = place / f"{name}.csr"
    openssl(
        *("req", "-new", "-key", key(place / f"{name}.key"), "-subj", f"/CN={name}"),
        *("-out", request),
    )
    openssl(
        *("x509", "-req", "-in", request, "-CA", place / f"{authority}.crt", "-days", "30"),
        *("-CAkey", place / f"{authority}.key", "-CAcreateserial", "-out", place / f"{name}.crt"),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server; the old and the new authority, and a client of each."""
    place = tmp_path_factory.mktemp("authorities")
    self_signed(place, "server", "-addext", NAMES)
    for name in ("old", "new"):
        self_signed(place, f"{name}-ca")
        issued(place, f"{name}-client", f"{name}-ca")
    return place


def contexts(made: Path, client: str | None) -> ssl.SSLContext:
    """A client's side of TLS; client: whose certificate it shows."""
    context = ssl.create_default_context(cafile=str(made / "server.crt"))
    if client is not None:
        context.load_cert_chain(made / f"{client}.crt", made / f"{client}.key")
    return context


def scrape(port: int, context: ssl.SSLContext, session: Any = None) -> tuple[str, Any]:
    """The page over a connection of its own, and the session to resume. Raises OSError."""
    with socket.create_connection(("localhost", port), timeout=PATIENCE) as plain:
        with context.wrap_socket(plain, server_hostname="localhost", session=session) as secure:
            secure.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            page = b""
            while more := secure.recv(65536):
                page += more
            return page.decode(), secure.session


def refused(port: int, context: ssl.SSLContext, session: Any = None) -> bool:
    """Under TLS 1.3 a client learns of it when it reads; a connection that ends is a no too."""
    try:
        return scrape(port, context, session)[0] == ""
    except OSError:
        return True


def follow(running: Running) -> list[bool]:
    return [watched.refresh() for watched in running.server._security.watched]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_new_authority_lets_its_clients_in_and_the_olds_out(
    made: Path, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    authorities = tmp_path / "clients.crt"
    shutil.copy(made / "old-ca.crt", authorities)
    old, new, nobody = (contexts(made, name) for name in ("old-client", "new-client", None))
    for context in (old, new, nobody):
        context.maximum_version = version
    options = {
        "tls_cert": str(made / "server.crt"),
        "tls_key": str(made / "server.key"),
        "tls_client_ca": str(authorities),
        "metrics_host": "0.0.0.0",
        "metrics_port": 0,
    }

    async def test() -> None:
        async with serving(**options) as running:
            port = running.server.metrics_port
            page, session = await asyncio.to_thread(scrape, port, old)
            assert "quire_queue_limit" in page
            assert await asyncio.to_thread(refused, port, new)
            shutil.copy(made / "new-ca.crt", authorities)
            assert follow(running) == [True]
            assert "quire_queue_limit" in (await asyncio.to_thread(scrape, port, new))[0]
            assert await asyncio.to_thread(refused, port, old)
            assert await asyncio.to_thread(refused, port, old, session)  # nor where it left off
            assert await asyncio.to_thread(refused, port, nobody)
            authorities.write_text("not a certificate\n")
            assert follow(running) == [False]
            assert "quire_queue_limit" in (await asyncio.to_thread(scrape, port, new))[0]
            assert await asyncio.to_thread(refused, port, old)

    run(test)
