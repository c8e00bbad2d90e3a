"""The command line as a process of its own: output, error lines, exit codes, Ctrl-C."""

import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support import programs
from support.not_grpc import not_grpc
from support.patience import PATIENCE

from quire.clients import cli
from quire.clients.commands.common import VARIABLES
from quire.v1 import inference_pb2 as pb


def environment(**extra: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("QUIRE_")}
    return {**kept, "COLUMNS": "200", **extra}


def quire(*words: str, stdin: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
    return programs.run(
        [sys.executable, "-m", "quire.clients.cli", *words],
        given=stdin,
        timeout=PATIENCE,
        env=environment(**extra),
    )


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The error line, checked to be just that."""
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("quire: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_generate_prints_the_text_and_nothing_else(server: Any) -> None:
    done = quire("generate", "say hello wörld 🎈", "-a", server.address)
    assert (done.stdout, done.stderr, done.returncode) == ("hello wörld 🎈\n", "", 0)


def test_generate_sends_every_sampling_field(server: Any) -> None:
    given = {
        "temperature": 0.5, "top-p": 0.5, "top-k": 4, "min-p": 0.25, "repetition-penalty": 1.5,
        "presence-penalty": 0.5, "frequency-penalty": -0.5, "seed": 0, "n": 2, "max-tokens": 9,
        "min-tokens": 1, "logprobs": 3, "stop": "a b", "stop-token-id": 7,
        "logit-bias": "5=-1.5", "allowed-token-id": 5, "banned-token-id": 6,
    }  # fmt: skip
    words = [w for name, value in given.items() for w in (f"--{name}", str(value))]
    done = quire(
        "generate",
        "say x",
        "--json",
        "--include-stop",
        "--ignore-eos",
        *words,
        "-a",
        server.address,
    )
    assert done.returncode == 0
    sampling = server.seen.requests[0].sampling
    sent = {field.name for field, _ in sampling.ListFields()}
    assert sent == set(pb.SamplingParams.DESCRIPTOR.fields_by_name)
    assert (list(sampling.stop), list(sampling.stop_token_ids)) == (["a b"], [7])
    assert (sampling.seed, sampling.top_k, sampling.logprobs) == (0, 4, 3)
    assert dict(sampling.logit_bias) == {5: -1.5}
    assert (list(sampling.allowed_token_ids), list(sampling.banned_token_ids)) == ([5], [6])


def test_generate_holds_the_output_to_a_constraint(server: Any, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    for words, expected in (
        (["--json-schema", f"@{schema}"], pb.Constraint(json_schema='{"type": "object"}')),
        (["--json-schema", "{}"], pb.Constraint(json_schema="{}")),
        (["--regex", "a+"], pb.Constraint(regex="a+")),
        (["--choice", "a", "--choice", "b"], pb.Constraint(choice=pb.Choice(options=["a", "b"]))),
    ):
        quire("generate", "say x", *words, "-a", server.address)
        assert server.seen.requests[-1].constraint == expected
    asked = len(server.seen.requests)
    for words in (
        ["--json-schema", "{}", "--regex", "a"],
        ["--json-schema", f"@{tmp_path}/none"],
        ["--logit-bias", "5"],
        ["--logit-bias", "5=1", "--logit-bias", "5=2"],
    ):
        assert quire("generate", "say x", *words, "-a", server.address).returncode == 2
    assert len(server.seen.requests) == asked


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["generate", "--ids", "9" * 5000], "--ids"),
        (["stats", "--watch", "inf"], "--watch"),
        (["top", "--interval", "1e300"], "--interval"),
    ],
)
def test_numbers_beyond_all_use_are_refused(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.startswith(f"quire: {named}") and len(told) < 200


@pytest.mark.parametrize("words", [["generate", "-"], ["tokenize", "-"], ["chat"]])
def test_standard_input_that_is_no_text_is_one_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\n"), encoding="utf-8"))
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert (ended.value.code, capsys.readouterr().err) == (
        2,
        "quire: standard input is not UTF-8\n",
    )


def test_generate_json_is_one_object_a_line(server: Any) -> None:
    done = quire("generate", "say a", "--json", "-a", server.address)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [e["event"] for e in events] == ["started", "delta", "finished"]
    assert events[1]["logprobs"][0]["bytes"] == [97]
    assert events[2]["reason"] == "stop"


def test_generate_from_ids_stdin_and_as_chat(server: Any) -> None:
    done = quire("generate", "--ids", "5, 6 7", "--ids-only", "-a", server.address)
    assert done.stdout.split() == [str(b"5"[0]), str(b" "[0]), str(b" "[0])]
    assert list(server.seen.requests[0].token_ids.ids) == [5, 6, 7]
    assert server.seen.requests[0].ids_only
    quire("generate", "-", "--raw", "-a", server.address, stdin="say from stdin")
    assert server.seen.requests[1].text == "say from stdin"
    quire("generate", "hi", "--system", "be brief", "-a", server.address)
    turns = [(m.role, m.content) for m in server.seen.requests[2].chat.messages]
    assert turns == [("system", "be brief"), ("user", "hi")]


def test_generate_sends_a_message_with_a_cap_and_says_when_it_cuts(server: Any) -> None:
    quire("generate", "hello", "-a", server.address)
    quire("generate", "hello", "-m", "7", "-a", server.address)
    first, second = server.seen.requests
    assert [(m.role, m.content) for m in first.chat.messages] == [("user", "hello")]
    assert (first.sampling.max_tokens, second.sampling.max_tokens) == (1024, 7)


def test_generate_leaves_its_cap_where_that_does_not_fit(server: Any) -> None:
    server.seen.room, server.seen.templates = 9, False
    assert quire("generate", "hello", "-a", server.address).stdout == "ok\n"
    asked = server.seen.requests
    assert [(r.WhichOneof("prompt"), r.sampling.HasField("max_tokens")) for r in asked] == [
        ("chat", True),
        ("text", True),
        ("text", False),
    ]
    server.seen.templates = True
    told = one_line(quire("generate", "hello", "-m", "10", "-a", server.address), 1)
    assert "--max-tokens: at most 9 fit" in told


def test_generate_sends_plain_text_where_the_model_takes_no_chats(server: Any) -> None:
    server.seen.templates = False
    done = quire("generate", "hello", "-a", server.address)
    assert (done.stdout, done.returncode) == ("ok\n", 0)
    assert (
        done.stderr == "quire: the model has no chat template: sent as plain text, as --raw does\n"
    )
    assert [r.WhichOneof("prompt") for r in server.seen.requests] == ["chat", "text"]
    assert "chat template" in one_line(
        quire("generate", "x", "--system", "s", "-a", server.address), 1
    )


def test_chat_keeps_the_history(server: Any) -> None:
    turns = "say one\n\nsay two\n/reset\nsay three\n/exit\nsay four\n"
    done = quire("chat", "--system", "s", "--no-thinking", "-a", server.address, stdin=turns)
    assert (done.stdout, done.stderr) == ("one\ntwo\nthree\n", "")
    chats = [[m.content for m in r.chat.messages] for r in server.seen.requests]
    assert chats == [["s", "say one"], ["s", "say one", "one", "say two"], ["s", "say three"]]
    assert server.seen.requests[0].chat.chat_template_kwargs == '{"enable_thinking": false}'


def test_chat_on_a_terminal(server: Any) -> None:
    """A prompt, an answer, an error that leaves the conversation standing, and Ctrl-D."""
    leader, follower = pty.openpty()
    process = programs.start(
        [sys.executable, "-m", "quire.clients.cli", "chat", "-a", server.address],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment(),
    )
    os.close(follower)
    typed = ["say one", "fail INVALID_ARGUMENT too long", "say two", "\x04"]
    shown = b""
    for line in typed:
        while not shown.endswith(b"> "):
            shown += os.read(leader, 4096)
        shown += b"|"
        os.write(leader, line.encode() + (b"" if line == "\x04" else b"\n"))
    assert process.wait(PATIENCE) == 0
    os.close(leader)
    assert b"one\r\n" in shown and b"two\r\n" in shown and b"too long" in shown
    last = [m.content for m in server.seen.requests[-1].chat.messages]
    assert last == ["say one", "one", "say two"]


def test_tokenize_prints_ids_that_generate_reads(server: Any) -> None:
    at = ("-a", server.address)
    assert quire("tokenize", "hi", *at).stdout == "104 105\n"
    assert quire("tokenize", "-", "--chat", *at, stdin="hi").stdout == "104 105\n"
    assert [r.WhichOneof("prompt") for r in server.seen.tokenized] == ["text", "chat"]
    told = json.loads(quire("tokenize", "hi", "--json", *at).stdout)
    assert told == {"token_ids": [104, 105], "count": 2}


def test_stats_as_table_and_json(server: Any) -> None:
    done = quire("stats", "-a", server.address)
    assert "50 of 200 prompt tokens found (25.0 %)" in done.stdout
    assert "RESOURCE_EXHAUSTED 3" in done.stdout
    found = json.loads(quire("stats", "--json", "-a", server.address).stdout)
    assert found["cache"]["blocks_total"] == 6
    assert found["engine_config"] == {"max_num_seqs": "8"}
    assert found["steps"]["graph"] == 0
    assert found["time_to_first_token_seconds"]["counts"] == [1, 8, 1, 0]


def test_health_is_an_exit_code(server: Any) -> None:
    assert quire("health", "-a", server.address).returncode == 0
    done = quire("health", "liveness", "-a", server.address)
    assert (done.returncode, done.stdout) == (1, "NOT_SERVING\n")


def test_the_environment_names_the_server(server: Any) -> None:
    done = quire(
        "generate", "say x", QUIRE_CLIENT_ADDRESS=server.address, QUIRE_CLIENT_API_KEY="secret"
    )
    assert done.stdout == "x\n"
    assert server.seen.metadata[0]["authorization"] == "Bearer secret"


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


def test_version_and_help() -> None:
    assert quire("--version").stdout.startswith("quire 0.")
    for command in ("generate", "chat", "tokenize", "stats", "health"):
        assert quire(command, "--help").returncode == 0


def test_client_commands_import_neither_torch_nor_the_engine() -> None:
    """Nor anything else that is slow to load, nor what only other commands need."""
    program = (
        "import sys, quire.clients.cli as c\n"
        "try: c.main(['stats', '--help'])\n"
        "except SystemExit: pass\n"
        "slow = {'torch', 'transformers', 'numpy', 'matplotlib', 'quire.engine', 'quire.service',\n"
        "        'quire.clients.async_client', 'quire.clients.commands.chat'}\n"
        "sys.exit(' '.join(slow & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_without_the_server_the_command_says_how_to_get_it() -> None:
    """An entry point that cannot be imported is what a light installation has."""
    program = (
        "import sys\n"
        "sys.modules['quire.service.cli.commands'] = None\n"
        "import quire.clients.cli as c\n"
        "c.main(sys.argv[1:])"
    )
    for words in (["serve", "--port", "0"], ["hash-key", "x"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=environment(),
            check=False,
        )
        assert "pip install '.[server]'" in one_line(done, 1)


def test_every_setting_may_stand_in_the_environment(server: Any) -> None:
    """Each shared option names its variable, and each variable of ours is one of them."""
    shown = quire("stats", "--help").stdout
    assert [name for name in VARIABLES if name not in shown] == []
    done = quire("stats", QUIRE_CLIENT_ADDRESS=server.address, QUIRE_CLIENT_TIMEOUT="nan")
    assert "timeout" in one_line(done, 2)
    done = quire(
        "generate", "hang", QUIRE_CLIENT_ADDRESS=server.address, QUIRE_CLIENT_TIMEOUT="0.2"
    )
    assert "deadline" in one_line(done, 1)
    done = quire("stats", QUIRE_CLIENT_ADDRESS=server.address, QUIRE_CLIENT_TLS="1")
    assert "does not speak TLS" in one_line(done, 1)
    done = quire("stats", QUIRE_CLIENT_ADDRESS=server.address, QUIRE_CLIENT_TLS="perhaps")
    assert "QUIRE_CLIENT_TLS" in one_line(done, 2)


@pytest.mark.parametrize("name", ["QUIRE_CLIENT_ADRESS", "QUIRE_CLIENT_", "QUIRE_CLIENT_TLS_CA_"])
@pytest.mark.parametrize("command", [["generate", "say x"], ["health"], ["loadtest"], ["top"]])
def test_a_setting_that_nobody_reads_is_refused(server: Any, command: list[str], name: str) -> None:
    done = quire(*command, "-a", server.address, **{name: "x"})
    line = one_line(done, 2)
    assert f"{name}: no such setting" in line and "QUIRE_CLIENT_TIMEOUT" in line


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


def test_a_service_that_is_not_there_is_named(server: Any) -> None:
    line = one_line(quire("health", "foo", "-a", server.address), 1)
    assert "'foo'" in line and "liveness" in line
