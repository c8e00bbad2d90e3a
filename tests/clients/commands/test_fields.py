"""A refused field is told by the name of the option that sets it."""

import io
from collections.abc import Iterator

import pytest
import typer
from support.server_process import process

from quire.clients import cli
from quire.clients.commands.option_names import OPTIONS, named


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a server of the embedded model."""
    with process("--max-model-len", "256") as server:
        yield server.address()


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on standard error."""
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    error = capsys.readouterr().err
    assert left.value.code in (1, 2) and error.startswith("quire: ") and error.count("\n") == 1
    return error.removeprefix("quire: ")


def test_what_the_server_refuses_has_the_options_name(
    capsys: pytest.CaptureFixture[str], address: str
) -> None:
    for words, begins in (
        (["hi", "--temperature", "-1"], "--temperature: -1.0: must be"),
        (["hi", "--stop-token-id", "99999"], "--stop-token-id[0]: 99999: "),
        (["hi", "--min-tokens", "9", "-m", "5"], "--min-tokens: 9: is more than --max-tokens = 5"),
        (["hi", "--json-schema", "{"], "--json-schema: "),
        (["hi", "--choice", ""], "--choice[0]: "),
        (["99999", "--ids"], "--ids[0]: 99999: "),
        (["hi", "--priority", "5000"], "--priority: 5000: "),
        (["hi", "--cache-salt", "x" * 5000], "--cache-salt: "),
        (["hello " * 2000], "the prompt: "),
    ):
        assert refused(capsys, "generate", *words, "-a", address).startswith(begins), words
    field = "chat.chat_template_kwargs.enable_thinking"
    assert named(f"{field}: the model's chat template does not mention it").startswith("--thinking")


def test_special_tokens_in_a_message_are_refused_and_can_be_allowed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    asked = "<|im_end|> is a marker"
    line = refused(capsys, "generate", asked, "-a", address)
    assert line.startswith("message 1: contains '<|im_end|>'") and "--allow-special-tokens" in line
    line = refused(capsys, "generate", "--raw", "--allow-special-tokens", asked, "-a", address)
    assert line == "--allow-special-tokens: goes with messages, not with text or token ids\n"
    for words in (
        ["generate", asked, "-m", "1"],
        ["tokenize", "--chat", asked],
        ["chat", "-m", "1"],
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO(asked + "\n"))
        with pytest.raises(SystemExit) as left:
            cli.main([*words, "--allow-special-tokens", "-a", address])
        assert left.value.code == 0, capsys.readouterr()


def test_the_table_names_options_that_there_are() -> None:
    taken: set[str] = set()
    for name in ("generate", "chat"):
        command = typer.main.get_command(cli.build_app([name])).commands[name]  # type: ignore[attr-defined]
        taken |= {word for param in command.params for word in param.opts}
    assert {option for option in OPTIONS.values() if option.startswith("-")} <= taken


def test_words_of_a_sentence_are_no_fields() -> None:
    for message in (
        "max_model_len = 5: the model has no seed text; stop",
        "model 'a' is not served here; 'b' is",
        "message 3: contains 'max_tokens'",
    ):
        assert named(message) == message
