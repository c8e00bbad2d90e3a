"""The command line as a process of its own: output, error lines, exit codes."""

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import programs
from support.command_line import environment, one_line, quire
from support.patience import PATIENCE

from quire.clients import cli
from quire.clients.commands.common import VARIABLES
from quire.v1 import inference_pb2 as pb


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
    assert "50 of 200 prompt tokens cached (25.0 %)" in done.stdout
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


def test_version_and_help() -> None:
    told = quire("--version").stdout
    assert told.startswith("quire 0.")
    as_module = [sys.executable, "-m", "quire", "--version"]
    assert programs.run(as_module, timeout=PATIENCE, env=environment()).stdout == told
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
    assert f"{name}: no such variable" in line and "QUIRE_CLIENT_TIMEOUT" in line


def test_a_service_that_is_not_there_is_named(server: Any) -> None:
    line = one_line(quire("health", "foo", "-a", server.address), 1)
    assert "'foo'" in line and "liveness" in line
