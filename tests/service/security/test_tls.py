"""TLS and mutual TLS from files that change, made by the openssl command."""

import asyncio
import logging
import shutil
import ssl
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.harness import Running, ask, read, run, serving
from support.patience import PATIENCE
from support.server_process import quire

from quire.engine.errors import ConfigError
from quire.service.security import tls
from quire.service.security.tls import TLSFiles
from quire.service.settings import ServiceConfig
from quire.v1 import inference_pb2 as pb
from quire.v1 import inference_pb2_grpc as pb_grpc

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="no openssl command to make certificates")

DAY = 86400.0


def openssl(*words: str | Path) -> str:
    done = subprocess.run(
        [str(OPENSSL), *map(str, words)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Self-signed certificates: one, two (clients named so), expired, future, and others."""
    place = tmp_path_factory.mktemp("certificates")
    for name in ("one", "two"):
        key = place / f"{name}.key"
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
        openssl(
            *("req", "-x509", "-key", key, "-out", place / f"{name}.crt", "-days", "30"),
            *("-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        )
    request = place / "old.csr"
    openssl("req", "-new", "-key", place / "one.key", "-subj", "/CN=old", "-out", request)
    openssl(
        *("x509", "-req", "-in", request, "-signkey", place / "one.key", "-days", "-1"),
        *("-out", place / "old.crt"),
    )
    openssl(
        *("ec", "-in", place / "one.key", "-aes256", "-passout", "pass:secret"),
        *("-out", place / "locked.key"),
    )
    (place / "none.pem").write_text("not a certificate\n")
    return place


@pytest.fixture
def files(made: Path, tmp_path: Path) -> TLSFiles:
    """A server's own copies, to be changed."""
    shutil.copy(made / "one.crt", tmp_path / "tls.crt")
    shutil.copy(made / "one.key", tmp_path / "tls.key")
    return TLSFiles(tmp_path / "tls.crt", tmp_path / "tls.key")


def options(files: TLSFiles) -> dict[str, Any]:
    given = {"tls_cert": str(files.cert), "tls_key": str(files.key)}
    return given if files.client_ca is None else {**given, "tls_client_ca": str(files.client_ca)}


# ------------------------------------------------------------ what is read


def test_the_end_is_the_one_that_openssl_shows(made: Path, files: TLSFiles) -> None:
    shown = openssl("x509", "-in", made / "one.crt", "-noout", "-enddate").strip()
    assert tls.watch(files).value.expires_at == ssl.cert_time_to_seconds(
        shown.removeprefix("notAfter=")
    )


def test_far_dates_and_old_versions_are_read_too(made: Path, tmp_path: Path) -> None:
    """Beyond 2049 a date has another form; without extensions a certificate is of version 1."""
    request = tmp_path / "csr"
    openssl("req", "-new", "-key", made / "one.key", "-subj", "/CN=far", "-out", request)
    openssl(
        *("x509", "-req", "-in", request, "-signkey", made / "one.key", "-days", "20000"),
        *("-out", tmp_path / "far.crt"),
    )
    value = tls.watch(TLSFiles(tmp_path / "far.crt", made / "one.key")).value
    assert value.expires_at - time.time() > 19_999 * DAY


@pytest.mark.parametrize(
    ("cert", "key", "words"),
    [
        ("old.crt", "one.key", "has expired on"),
        ("one.crt", "two.key", "does not belong to the certificate"),
        ("one.crt", "locked.key", "encrypted"),
        ("none.pem", "one.key", "PEM"),
        ("one.crt", "none.pem", "PEM"),
        ("one.crt", "missing", "cannot be read"),
        ("missing", "one.key", "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_refused(made: Path, cert: str, key: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        tls.watch(TLSFiles(made / cert, made / key))
    assert "\n" not in str(caught.value)


def test_a_certificate_of_tomorrow_is_refused_today(files: TLSFiles) -> None:
    value = tls.watch(files).value
    with pytest.raises(ConfigError, match="is not valid before"):
        tls.watch(files, lambda: value.expires_at - 31 * DAY)
    with pytest.raises(ConfigError, match="has expired on"):
        tls.watch(files, lambda: value.expires_at)


def test_authorities_that_are_none_are_refused(made: Path, files: TLSFiles) -> None:
    with pytest.raises(ConfigError, match="tls_client_ca"):
        tls.watch(TLSFiles(files.cert, files.key, made / "none.pem"))


def test_any_bytes_end_in_a_config_error(made: Path, files: TLSFiles) -> None:
    der = ssl.PEM_cert_to_DER_cert((made / "one.crt").read_text())
    for length in range(0, len(der) - 1, 7):
        files.cert.write_text(ssl.DER_cert_to_PEM_cert(der[:length]))
        with pytest.raises(ConfigError, match="tls_cert"):
            tls.read(files, 0.0)


@pytest.mark.parametrize(
    "given", [{"tls_cert": "a"}, {"tls_key": "a"}, {"tls_client_ca": "a"}], ids=str
)
def test_options_that_go_together(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="tls_"):
        ServiceConfig(**given)  # type: ignore[arg-type]


# ------------------------------------------------------------ over the wire


def channel(running: Running, root: Path, client: Path | None = None) -> grpc.aio.Channel:
    key = client and client.with_suffix(".key").read_bytes()
    cert = client and client.with_suffix(".crt").read_bytes()
    credentials = grpc.ssl_channel_credentials(root.read_bytes(), key, cert)
    # A pool of its own, so that each channel shakes hands anew.
    own: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.secure_channel(f"localhost:{running.server.port}", credentials, options=own)


async def code(running: Running, root: Path, client: Path | None = None) -> grpc.StatusCode:
    async with channel(running, root, client) as secure:
        stub: Any = pb_grpc.InferenceServiceStub(secure)
        return (await read(stub.Generate(ask([300, 301]), timeout=PATIENCE))).code


OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE


def test_tls_alone(made: Path, files: TLSFiles) -> None:
    async def test() -> None:
        async with serving(**options(files)) as running:
            assert await code(running, made / "one.crt") is OK
            assert await code(running, made / "two.crt") is UNAVAILABLE
            plain = await read(running.stub.Generate(ask([300])))  # the harness speaks no TLS
            assert plain.code is UNAVAILABLE

    run(test)


def test_mutual_tls_and_the_name_of_the_client(
    made: Path, files: TLSFiles, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        mutual = TLSFiles(files.cert, files.key, made / "two.crt")
        async with serving(**options(mutual)) as running:
            assert await code(running, made / "one.crt", made / "two") is OK
            assert await code(running, made / "one.crt") is UNAVAILABLE
            assert await code(running, made / "one.crt", made / "one") is UNAVAILABLE

    with caplog.at_level(logging.INFO, logger="quire"):
        run(test)
    clients = [r.fields["client"] for r in caplog.records if r.getMessage() == "request ended"]  # type: ignore[attr-defined]
    assert clients == ["cert:two"]


def refresh(running: Running) -> list[bool]:
    return [watched.refresh() for watched in running.server._security.watched]


def test_new_files_serve_new_connections_and_bad_ones_do_not(
    made: Path, files: TLSFiles, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with serving(**options(files)) as running:
            async with channel(running, made / "one.crt") as old:
                stub: Any = pb_grpc.InferenceServiceStub(old)
                assert (await read(stub.Generate(ask([300])))).code is OK
                shutil.copy(made / "two.crt", files.cert)  # its key is not there yet
                assert refresh(running) == [False]
                assert "the key does not belong to the certificate" in caplog.text
                assert await code(running, made / "one.crt") is OK
                shutil.copy(made / "two.key", files.key)
                assert refresh(running) == [True]
                assert await code(running, made / "two.crt") is OK
                assert await code(running, made / "one.crt") is UNAVAILABLE
                assert (await read(stub.Generate(ask([300])))).code is OK  # as it was opened
            shutil.copy(made / "old.crt", files.cert)
            shutil.copy(made / "one.key", files.key)
            assert refresh(running) == [False]
            assert "has expired" in caplog.text
            assert await code(running, made / "two.crt") is OK

    run(test)


def scrape(made: Path, port: int, scheme: str = "http", name: str = "one") -> str:
    context = ssl.create_default_context(cafile=str(made / f"{name}.crt"))
    with urllib.request.urlopen(
        f"{scheme}://localhost:{port}/metrics",
        timeout=PATIENCE,
        context=context if scheme == "https" else None,
    ) as answer:
        text: str = answer.read().decode()
    return text


def test_the_end_of_the_certificate_is_a_metric(made: Path, files: TLSFiles) -> None:
    async def test() -> None:
        async with serving(metrics_port=0, **options(files)) as running:
            text = await asyncio.to_thread(scrape, made, running.server.metrics_port)
            name = "quire_tls_certificate_expiry_timestamp_seconds"
            told = next(line for line in text.splitlines() if line.startswith(name))
            assert float(told.split()[1]) == tls.watch(files).value.expires_at
            assert "quire_queue_limit 1024.0" in text

    run(test)


def test_beyond_this_machine_metrics_speak_tls_and_follow_the_files(
    made: Path, files: TLSFiles
) -> None:
    async def test() -> None:
        async with serving(metrics_host="0.0.0.0", metrics_port=0, **options(files)) as running:
            port = running.server.metrics_port
            assert "quire_queue" in await asyncio.to_thread(scrape, made, port, "https")
            with pytest.raises(OSError):
                await asyncio.to_thread(scrape, made, port)
            shutil.copy(made / "two.crt", files.cert)
            shutil.copy(made / "two.key", files.key)
            assert refresh(running) == [True]
            assert "quire_queue" in await asyncio.to_thread(scrape, made, port, "https", "two")

    run(test)


def test_probes_that_speak_no_tls_have_a_port_of_their_own(files: TLSFiles) -> None:
    async def test() -> None:
        async with serving(health_port=0, load=False, **options(files)) as running:
            address = f"127.0.0.1:{running.server.health_port}"
            async with grpc.aio.insecure_channel(address) as plain:
                health = health_pb2_grpc.HealthStub(plain)

                async def status(service: str) -> int:
                    asked = health_pb2.HealthCheckRequest(service=service)
                    return int((await health.Check(asked)).status)

                serving_, not_serving = 1, 2
                assert await status("quire.v1.InferenceService") == not_serving
                assert await status("liveness") == serving_
                await running.server.load(4096)
                assert await status("quire.v1.InferenceService") == serving_
                stub: Any = pb_grpc.InferenceServiceStub(plain)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Stats(pb.StatsRequest())
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(test)


# ------------------------------------------------------------ start


@pytest.mark.parametrize("cert", ["old.crt", "missing.crt"])
def test_a_certificate_at_fault_ends_the_start_with_one_line(made: Path, cert: str) -> None:
    done = quire(
        *("serve", "--port", "0", "--tls-cert", str(made / cert)),
        *("--tls-key", str(made / "one.key")),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "tls_cert" in done.stderr
