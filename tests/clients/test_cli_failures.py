"""The command line when something goes wrong: no server, no trust, bad usage, Ctrl-C."""

import os
import pty
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support import programs
from support.command_line import environment, one_line, quire
from support.not_grpc import not_grpc
from support.patience import PATIENCE

from quire.clients import cli


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nothing listens, kept so by a bound socket."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


@pytest.mark.parametrize("command", [["generate", "x"], ["stats"], ["health"], ["chat"]])
def test_no_server(command: list[str], nobody: str) -> None:
    line = one_line(quire(*command, "-a", nobody, stdin="x\n"), 1)
    assert nobody in line and "quire serve" in line and "--address" in line


def test_a_port_that_is_not_grpc() -> None:
    with not_grpc() as address:
        assert "not gRPC" in one_line(quire("stats", "-a", address), 1)


def test_a_grpc_server_of_another_kind() -> None:
    from concurrent.futures import ThreadPoolExecutor

    other = grpc.server(ThreadPoolExecutor(1))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    try:
        line = one_line(quire("stats", "-a", f"127.0.0.1:{port}"), 1)
        assert "is it a Quire" in line
    finally:
        other.stop(None)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with cert.pem and key.pem for localhost and 127.0.0.1."""
    directory = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-nodes", "-days", "2", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem"),
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return directory


def test_tls_and_its_mismatches(fake: Any, server: Any, certificate: Path) -> None:
    cert, key = str(certificate / "cert.pem"), str(certificate / "key.pem")
    pair = [(Path(key).read_bytes(), Path(cert).read_bytes())]
    with fake.FakeServer(grpc.ssl_server_credentials(pair)) as tls:
        assert quire("stats", "--tls-ca", cert, "-a", tls.address).returncode == 0
        assert "add --tls" in one_line(quire("stats", "-a", tls.address), 1)
        assert "--tls-ca" in one_line(quire("stats", "--tls", "-a", tls.address), 1)
        wrong_name = quire("stats", "--tls-ca", cert, "--tls-server-name", "x", "-a", tls.address)
        assert "--tls-server-name" in one_line(wrong_name, 1)
    https = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    https.load_cert_chain(cert, key)
    with not_grpc(https) as address:
        assert "not gRPC" in one_line(quire("stats", "--tls-ca", cert, "-a", address), 1)
    does_not = quire("stats", "--tls", "-a", server.address)
    assert "does not speak TLS" in one_line(does_not, 1)
    mutual = grpc.ssl_server_credentials(pair, pair[0][1], require_client_auth=True)
    with fake.FakeServer(mutual) as tls:
        ours = ["--tls-cert", cert, "--tls-key", key]
        assert quire("stats", "--tls-ca", cert, *ours, "-a", tls.address).returncode == 0
        refused = quire("stats", "--tls-ca", cert, "-a", tls.address)
        told = one_line(refused, 1)
        assert "--tls-cert" in told and "add --tls " not in told


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["stats", "--frob"], "--frob"),
        (["generate"], "prompt"),
        (["nonsense"], "nonsense"),
        (["stats", "--timeout", "soon"], "--timeout"),
        (["stats", "-a", "http://x"], "--address: 'http://x' is not HOST:PORT"),
        (["stats", "-a", "10.0.0.1:5", "--api-key", "k"], "TLS"),
        (["generate", "1 x", "--ids"], "'x'"),
        (["stats", "--tls-ca", "/no/such.pem"], "--tls-ca: cannot read '/no/such.pem'"),
        (["generate", "x", "--seed", "-1"], "seed"),
    ],
)
def test_usage_errors_are_one_line_and_code_two(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    out, err = capsys.readouterr()
    told = one_line(subprocess.CompletedProcess(words, int(ended.value.code or 0), out, err), 2)
    assert named in told or named.upper() in told  # versions of typer differ


def test_what_the_server_refuses_is_said_in_its_words_with_the_options_name(server: Any) -> None:
    done = quire("generate", "fail INVALID_ARGUMENT top_p: 7 is above 1", "-a", server.address)
    assert one_line(done, 1) == "quire: --top-p: 7 is above 1\n"
    done = quire("generate", "fail UNAUTHENTICATED no key", "-a", server.address)
    assert "--api-key" in one_line(done, 1)
    done = quire("generate", "hang", "--timeout", "0.2", "-a", server.address)
    assert "--timeout" in one_line(done, 1)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_ctrl_c_cancels_on_the_server(server: Any, command: str) -> None:
    words = ["generate", "forever"] if command == "generate" else ["chat"]
    process = programs.start(
        [sys.executable, "-m", "quire.clients.cli", *words, "-a", server.address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdin is not None and process.stdout is not None
    if command == "chat":
        process.stdin.write(b"forever\n")
        process.stdin.flush()
    assert process.stdout.read(3) == b"xxx"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert errors == b""
    assert server.seen.cancelled.wait(PATIENCE)


def test_ctrl_c_while_the_command_is_imported_ends_it_quietly(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    done = subprocess.run(
        [sys.executable, "-m", "quire.clients.cli", "stats"],
        env=environment() | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_reader_that_leaves_cancels(server: Any) -> None:
    process = programs.start(
        [sys.executable, "-m", "quire.clients.cli", "generate", "forever", "-a", server.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(3)
    process.stdout.close()
    assert process.wait(PATIENCE) == 1
    assert process.stderr.read() == b""
    process.stderr.close()
    assert server.seen.cancelled.wait(PATIENCE)


def test_a_model_cannot_drive_the_terminal(server: Any) -> None:
    """On a terminal, control characters are left out; in a pipe, bytes pass as they are."""
    hostile = "say \x1b[2Jred\x07"
    assert quire("generate", hostile, "-a", server.address).stdout == "\x1b[2Jred\x07\n"
    leader, follower = pty.openpty()
    process = programs.start(
        [sys.executable, "-m", "quire.clients.cli", "generate", hostile, "-a", server.address],
        stdout=follower,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.wait(PATIENCE) == 0
    os.close(follower)
    shown = os.read(leader, 4096)
    os.close(leader)
    assert process.stderr is not None
    process.stderr.close()
    assert shown == b"[2Jred\r\n"


@pytest.mark.parametrize("between", [",", " ", pytest.param(", ", marks=pytest.mark.long)])
def test_several_servers_stand_in_one_variable(
    server: Any, second_server: Any, between: str
) -> None:
    several = f"{server.address}{between}{second_server.address}"
    for prompt in ("gather 1", "gather 1"):
        assert quire("generate", prompt, QUIRE_CLIENT_ADDRESS=several).returncode == 0
    assert quire("stats", "-a", f"{server.address},{second_server.address}").returncode == 0
    assert len(server.seen.requests) + len(second_server.seen.requests) == 2
    broken = quire("stats", QUIRE_CLIENT_ADDRESS=f"{server.address},x:y")
    assert "HOST:PORT" in one_line(broken, 2)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = [f"127.0.0.{i}:{closed.getsockname()[1]}" for i in (2, 3)]
    line = one_line(quire("stats", QUIRE_CLIENT_ADDRESS=",".join(nobody)), 1)
    assert all(f"{address}: " in line for address in nobody)
