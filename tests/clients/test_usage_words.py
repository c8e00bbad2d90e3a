"""A mistake on the command line: one line that names the option and what it takes."""

import socket
from pathlib import Path

import grpc
import pytest

from quire.clients import cli
from quire.clients.arguments import text
from quire.clients.commands.common import explain
from quire.clients.connection import Connection
from quire.clients.errors import (
    OPERATORS_ONLY,
    Details,
    OptionError,
    Unauthenticated,
    Unavailable,
    call_error,
)
from quire.clients.replicas.faults import told


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line, of a command that ends with 2."""
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    printed = capsys.readouterr()
    assert (left.value.code, printed.out) == (2, "")
    assert printed.err.startswith("quire: ") and printed.err.count("\n") == 1
    return printed.err.removeprefix("quire: ").rstrip()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["generate", "x", "--max-tokens", "two"], "--max-tokens two: must be a whole number"),
        (["generate", "x", "-t", "warm"], "--temperature warm: must be a number"),
        (["batch", "-i", "a", "-o", "b", "-c", "0"], "--concurrency 0: must be at least 1"),
        (["batch", "-i", "a", "-o", "b", "-c", "9999"], "--concurrency 9999: must be at most 4096"),
        (["serve", "--tensor-parallel-size", "two"], "--tensor-parallel-size two: must be a whole"),
        (["serve", "--drain-seconds", "long"], "--drain-seconds long: must be a number"),
    ],
)
def test_a_value_of_the_wrong_kind_is_told_in_plain_words(
    capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    found = said(capsys, *words)
    assert found.startswith(line) and found.endswith(" (see --help)")


def test_a_value_of_the_environment_is_told_by_its_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUIRE_CLIENT_TIMEOUT", "soon")
    line = said(capsys, "stats")
    assert line.startswith("QUIRE_CLIENT_TIMEOUT (for --timeout) soon: must be a number")


def test_a_schema_that_cannot_be_read_is_told_without_numbers_of_errors(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missing, latin = tmp_path / "none.json", tmp_path / "latin.json"
    latin.write_bytes(b'"\xff"')
    for path, why in (
        (missing, "cannot be read: No such file or directory"),
        (latin, "is not UTF-8"),
    ):
        line = said(capsys, "generate", "x", "--json-schema", f"@{path}")
        assert line == f"--json-schema @{path}: {why}"
    line = said(capsys, "generate", "x", "--json-schema", f"{missing}")
    assert line == f"--json-schema {missing}: @{missing} reads a file"


def test_without_a_command_the_help_is_all_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([])
    told = capsys.readouterr().err
    assert left.value.code == 2
    assert told.startswith("Usage: quire ") and "see --help" not in told


def test_what_is_for_operators_is_told_with_the_way_to_it() -> None:
    """The server names a field of the contract, which nobody has typed."""
    fault = Unauthenticated(
        grpc.StatusCode.PERMISSION_DENIED,
        "include_block_map = true: is for operators",
        Details(reason=OPERATORS_ONLY),
    )
    line = explain(fault)
    assert "`operator`" in line and "--api-key" in line and "include_block_map" not in line


@pytest.mark.parametrize(("tls", "way"), [(True, "leave the --tls"), (False, "add --tls")])
def test_nobody_at_a_names_last_address_does_not_hide_who_listens_at_another(
    tls: bool, way: str
) -> None:
    """The words are gRPC's, of a name with two addresses: it tells of the last one."""
    words = (
        "connections to all backends failing; last error: UNKNOWN: ipv6:%5B::1%5D:5: "
        "Failed to connect to remote host: Connection refused"
    )
    fault = Unavailable(grpc.StatusCode.UNAVAILABLE, words)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connection = Connection(f"localhost:{listening.getsockname()[1]}", tls=tls)
        line = explain(fault, connection)
        assert "no server" not in line and way in line
    assert "no server" in explain(fault, connection)


def test_replicas_faults_are_told_without_grpcs_preamble() -> None:
    why = "UNKNOWN: ipv4:127.0.0.1:5: Failed to connect to remote host: Connection refused"
    for words in ("failed to connect to all addresses", "connections to all backends failing"):
        fault = Unavailable(grpc.StatusCode.UNAVAILABLE, f"{words}; last error: {why}")
        assert told(fault) == why


def test_bytes_that_are_not_utf8_are_called_so() -> None:
    """Python puts halves of surrogate pairs in their place, which nobody has typed."""
    for typed, why in (("caf\udce9", "bytes that are not UTF-8"), ("\ud83d", "surrogate pair")):
        with pytest.raises(OptionError, match=why):
            text("prompt", typed)


def test_a_request_beyond_grpcs_bound_is_told_in_bytes() -> None:
    words = "SERVER: Received message larger than max (5000026 vs. 4194304)"
    fault = call_error(grpc.StatusCode.RESOURCE_EXHAUSTED, words, None)
    line = explain(fault)
    assert "takes 5000026 bytes, and the server reads 4194304" in line and "vs." not in line


def test_batch_does_not_claim_an_address_that_it_does_not_use(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pages = {}
    for command in ("batch", "generate"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        pages[command] = " ".join(capsys.readouterr().out.split())
    assert "(default: 127.0.0.1:50051)" in pages["generate"]
    assert "50051" not in pages["batch"]
    assert "(default: none: starts its own server)" in pages["batch"]
