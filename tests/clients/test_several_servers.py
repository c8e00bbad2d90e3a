"""Several servers: each is checked against its own name over TLS, they take turns, and one that is
down is passed over."""

import asyncio
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.patience import PATIENCE

from quire.clients import (
    NO_RETRY,
    TLS,
    AsyncClient,
    Client,
    ReplicaPolicy,
    RetryPolicy,
    Unavailable,
)
from quire.clients.replicas import fleet as fleet_module

OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="no openssl command here")
QUICK = RetryPolicy(attempts=3, first_backoff=0.001, max_backoff=0.002)
TURNS = ReplicaPolicy(routing="round_robin")


def openssl(*words: str | Path) -> None:
    command = [str(OPENSSL), *map(str, words)]
    subprocess.run(command, capture_output=True, timeout=PATIENCE, check=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.crt, and certificates of its for one name each: name.* and ip.*."""
    place = tmp_path_factory.mktemp("names")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        *("req", "-x509", *key, "-keyout", place / "ca.key", "-out", place / "ca.crt"),
        *("-subj", "/CN=an authority", "-days", "30"),
    )
    for name, subject in (("name", "DNS:localhost"), ("ip", "IP:127.0.0.1")):
        openssl(
            *("req", "-x509", *key, "-keyout", place / f"{name}.key", "-days", "30"),
            *("-CA", place / "ca.crt", "-CAkey", place / "ca.key", "-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName={subject}", "-addext", "basicConstraints=CA:FALSE"),
            *("-out", place / f"{name}.crt"),
        )
    return place


@pytest.fixture
def serve(fake: Any, authority: Path) -> Iterator[Callable[[str], Any]]:
    """Starts a server with a certificate; all are stopped in the end."""
    running: list[Any] = []

    def start(name: str) -> Any:
        pair = tuple((authority / f"{name}.{kind}").read_bytes() for kind in ("key", "crt"))
        server = fake.FakeServer(grpc.ssl_server_credentials([pair]))
        running.append(server.__enter__())
        return server

    yield start
    for server in running:
        server.__exit__()


def ask(client: Client, times: int) -> None:
    for _ in range(times):
        assert client.generate("say hi", timeout=PATIENCE).text() == "hi"


@needs_openssl
def test_each_is_checked_against_its_own_name(authority: Path, serve: Any) -> None:
    """The second's certificate would not do for the first's name, nor the first's for it."""
    named, bare = serve("name"), serve("ip")
    addresses = [f"localhost:{named.port}", f"127.0.0.1:{bare.port}"]
    with Client(
        addresses, tls=TLS(root=authority / "ca.crt"), retry=QUICK, replicas=TURNS
    ) as client:
        ask(client, 4)
        assert [len(s.seen.requests) for s in (named, bare)] == [2, 2]
        assert client.health(timeout=PATIENCE) == "SERVING" == client.health(timeout=PATIENCE)

    async def run() -> None:
        trust = TLS(root=authority / "ca.crt")
        async with AsyncClient(addresses, tls=trust, retry=QUICK, replicas=TURNS) as client:
            for _ in range(4):
                assert await client.generate("say hi", timeout=PATIENCE).text() == "hi"
            for _ in range(2):
                await client.stats(timeout=PATIENCE)

    asyncio.run(run())
    assert [len(s.seen.requests) for s in (named, bare)] == [4, 4]
    assert [s.seen.calls["stats"] for s in (named, bare)] == [1, 1]


@needs_openssl
def test_a_certificate_for_another_name_is_not_taken(authority: Path, serve: Any) -> None:
    """Both servers hold the first's certificate: the second must not be believed."""
    first, second = serve("name"), serve("name")
    addresses = [f"localhost:{first.port}", f"127.0.0.1:{second.port}"]
    with Client(
        addresses, tls=TLS(root=authority / "ca.crt"), retry=QUICK, replicas=TURNS
    ) as client:
        ask(client, 4)
    assert [len(s.seen.requests) for s in (first, second)] == [4, 0]
    alone = Client(addresses[1], tls=TLS(root=authority / "ca.crt"), retry=QUICK)
    with alone, pytest.raises(Unavailable):
        alone.generate("say hi", timeout=PATIENCE).text()


@needs_openssl
def test_one_name_given_holds_for_all(authority: Path, serve: Any) -> None:
    first, second = serve("name"), serve("name")
    addresses = [f"127.0.0.1:{first.port}", f"localhost:{second.port}"]
    trust = TLS(root=authority / "ca.crt", server_name="localhost")
    with Client(addresses, tls=trust, retry=QUICK, replicas=TURNS) as client:
        ask(client, 2)
    assert [len(s.seen.requests) for s in (first, second)] == [1, 1]


@needs_openssl
def test_a_server_that_is_gone_is_passed_over(authority: Path, serve: Any) -> None:
    named, bare = serve("name"), serve("ip")
    addresses = [f"localhost:{named.port}", f"127.0.0.1:{bare.port}"]
    with Client(
        addresses, tls=TLS(root=authority / "ca.crt"), retry=QUICK, replicas=TURNS
    ) as client:
        ask(client, 2)
        bare.__exit__()
        ask(client, 4)
    assert len(named.seen.requests) == 5


@needs_openssl
def test_who_is_down_is_not_asked_again(
    authority: Path, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without retries one call fails, and the next ones go to the server that is up."""
    monkeypatch.setattr(fleet_module, "FIRST_REST", 1e9)
    monkeypatch.setattr(fleet_module, "LONGEST_REST", 1e9)
    trust = TLS(root=authority / "ca.crt")
    named, bare = serve("name"), serve("ip")
    addresses = [f"localhost:{named.port}", f"127.0.0.1:{bare.port}"]
    bare.__exit__()
    with Client(addresses, tls=trust, retry=NO_RETRY, replicas=TURNS) as client:
        ask(client, 1)
        with pytest.raises(Unavailable):
            ask(client, 1)
        ask(client, 3)
    with Client(addresses, tls=trust, retry=NO_RETRY, replicas=TURNS) as client:
        client.stats(timeout=PATIENCE)
        with pytest.raises(Unavailable):
            client.stats(timeout=PATIENCE)
        client.stats(timeout=PATIENCE)
        client.stats(timeout=PATIENCE)

    async def run() -> None:
        async with AsyncClient(addresses, tls=trust, retry=NO_RETRY, replicas=TURNS) as client:
            for up in (True, False, True, True):
                try:
                    assert await client.generate("say hi", timeout=PATIENCE).text() == "hi"
                except Unavailable:
                    assert not up

    asyncio.run(run())
    assert len(named.seen.requests) == 4 + 3
