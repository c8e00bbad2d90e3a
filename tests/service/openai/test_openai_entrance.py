"""Who may come in over HTTP: the keys and certificates of gRPC, read again when they change."""

import asyncio
import logging
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.harness import PATIENCE, Running, run, serving
from support.http1 import CHAT, HELLO, Peer, Told, ask, head, posted

from quire.engine.errors import ConfigError
from quire.service.app import ports
from quire.service.openai.request_guard import AllowedHosts
from quire.service.security.auth import make_entry
from quire.service.settings import ServiceConfig

OPENSSL = shutil.which("openssl")
KEY = "a-key-that-is-long-enough"
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="no openssl command")


def test_a_key_is_asked_for_before_the_body_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quire.service")
    keys = tmp_path / "keys"
    keys.write_text(make_entry("alice", KEY) + "\n")

    async def test() -> None:
        async with serving(http=True, api_keys=str(keys)) as running:
            port = running.server.http_port
            told = await ask(port, head("POST", CHAT, content_length="1000"))  # no body comes
            assert (told.status, told.code) == (401, "invalid_api_key")
            assert told.headers["www-authenticate"] == "Bearer"
            for path in ("/v1/models", "/v1/responses/x", "/metrics", "/version"):
                assert (await ask(port, head("GET", path))).status == 401
            for path, body in (("/tokenize", {"prompt": "a"}), ("/v1/responses", {"input": "a"})):
                assert (await ask(port, posted(path, body))).status == 401
            assert (await ask(port, head("GET", "/health"))).status == 200
            bearer = f"Bearer {KEY}"
            assert (await ask(port, posted(CHAT, HELLO, authorization=bearer))).status == 200
            told = await ask(port, head("GET", "/metrics", authorization=bearer))
            assert told.status == 200
            keys.write_text(make_entry("bob", KEY[::-1]) + "\n")
            running.server._security.watched[0].refresh()
            assert (await ask(port, posted(CHAT, HELLO, authorization=bearer))).status == 401

    run(test)
    ended = [r for r in caplog.records if r.getMessage() == "request ended"]
    assert [r.fields["client"] for r in ended] == ["key:alice"]  # type: ignore[attr-defined]
    assert KEY not in caplog.text


def test_clients_are_the_same_over_both_protocols(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quire.service")

    async def test() -> None:
        from support.harness import ask as asked
        from support.harness import generate

        async with serving(http=True) as running:
            await generate(running, asked([300]))
            await ask(running.server.http_port, posted(CHAT, HELLO))

    run(test)
    ended = [r for r in caplog.records if r.getMessage() == "request ended"]
    assert [r.fields["client"] for r in ended] == ["ipv4:127.0.0.1"] * 2  # type: ignore[attr-defined]


def openssl(*words: str | Path) -> None:
    done = subprocess.run([str(OPENSSL), *map(str, words)], capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Self-signed certificates, one and two."""
    place = tmp_path_factory.mktemp("certificates")
    for name in ("one", "two"):
        key = place / f"{name}.key"
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
        openssl(
            *("req", "-x509", "-key", key, "-out", place / f"{name}.crt", "-days", "30"),
            *("-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        )
    return place


async def secured(running: Running, made: Path, root: str, client: str | None = None) -> Told:
    """Raises ssl.SSLError or ConnectionError where the two do not trust each other."""
    context = ssl.create_default_context(cafile=str(made / f"{root}.crt"))
    if client is not None:
        context.load_cert_chain(made / f"{client}.crt", made / f"{client}.key")
    peer = await Peer.to(running.server.http_port, context=context)
    try:
        return await peer.ask(posted(CHAT, HELLO))
    finally:
        await peer.close()


@needs_openssl
def test_tls_follows_the_files(made: Path, tmp_path: Path) -> None:
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    shutil.copy(made / "one.crt", cert)
    shutil.copy(made / "one.key", key)

    async def test() -> None:
        async with serving(http=True, tls_cert=str(cert), tls_key=str(key)) as running:
            assert (await secured(running, made, "one")).status == 200
            with pytest.raises(ssl.SSLError):
                await secured(running, made, "two")
            peer = await Peer.to(running.server.http_port)  # speaks no TLS
            peer.writer.write(posted(CHAT, HELLO))
            assert b"HTTP" not in await peer.ended()
            shutil.copy(made / "two.crt", cert)
            shutil.copy(made / "two.key", key)
            assert running.server._security.watched[0].refresh()
            assert (await secured(running, made, "two")).status == 200
            with pytest.raises(ssl.SSLError):
                await secured(running, made, "one")

    run(test)


@needs_openssl
def test_a_client_s_certificate_is_asked_for_and_names_it(
    made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quire.service")

    async def test() -> None:
        files: dict[str, Any] = {
            "tls_cert": str(made / "one.crt"),
            "tls_key": str(made / "one.key"),
            "tls_client_ca": str(made / "two.crt"),
        }
        async with serving(http=True, **files) as running:
            assert (await secured(running, made, "one", "two")).status == 200
            for stranger in (None, "one"):
                with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                    await secured(running, made, "one", stranger)

    run(test)
    ended = [r for r in caplog.records if r.getMessage() == "request ended"]
    assert [r.fields["client"] for r in ended] == ["cert:two"]  # type: ignore[attr-defined]


def test_beyond_this_machine_it_asks_for_tls_as_grpc_does() -> None:
    with pytest.raises(ConfigError, match="http_host"):
        ServiceConfig(http_host="0.0.0.0")
    ServiceConfig(http_host="0.0.0.0", http_port=0)
    ServiceConfig(http_host="0.0.0.0", insecure=True)
    ServiceConfig(http_host="0.0.0.0", tls_cert="c", tls_key="k")
    for wrong in ({"cors_origin": "example.org"}, {"http_names": "a:80"}, {"http_port": 65536}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ServiceConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("listening", "guarded", "host", "known"),
    [
        ("0.0.0.0", False, "10.1.2.3:8000", True),
        ("0.0.0.0", False, "attacker.example", False),
        ("0.0.0.0", True, "models.example", True),
        ("127.0.0.1", True, "attacker.example", False),
        ("127.0.0.1", False, "", False),
    ],
)
def test_which_hosts_are_known(listening: str, guarded: bool, host: str, known: bool) -> None:
    from quire.service.errors import Refusal

    hosts = AllowedHosts(listening, (), guarded=guarded)
    if known:
        hosts.check(host)
    else:
        with pytest.raises(Refusal):
            hosts.check(host)


def test_the_two_ports_share_the_descriptors() -> None:
    alone = ports.max_connections(256, probes=False)
    assert ports.max_connections(256, probes=False, http=True) == alone // 2
