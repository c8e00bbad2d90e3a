"""`quire chat`: a conversation.

Invariant: the history holds whole turns only. A turn whose answer failed is taken back, so that it
can be asked again.
"""

import sys
from contextlib import suppress
from typing import Annotated

import typer

from quire.clients.client import Client
from quire.clients.commands import common, sampling
from quire.clients.commands.generate import summary
from quire.clients.commands.terminal import note, say
from quire.clients.errors import InvalidRequest, Overloaded
from quire.clients.events import Delta, Finished
from quire.clients.prompts import Message, Options

_HELP = "/reset starts anew, /exit or Ctrl-D ends, Ctrl-C stops an answer and ends"


@common.one_line_errors
def chat(
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    thinking: Annotated[
        bool | None,
        typer.Option("--thinking/--no-thinking", help="enable_thinking for the template."),
    ] = None,
    temperature: sampling.Temperature = None,
    top_p: sampling.TopP = None,
    top_k: sampling.TopK = None,
    min_p: sampling.MinP = None,
    repetition_penalty: sampling.RepetitionPenalty = None,
    presence_penalty: sampling.PresencePenalty = None,
    frequency_penalty: sampling.FrequencyPenalty = None,
    seed: sampling.Seed = None,
    max_tokens: sampling.MaxTokens = None,
    stop: sampling.Stop = None,
    address: common.Address = None,
    api_key: common.ApiKey = None,
    tls: common.UseTLS = False,
    tls_ca: common.RootFile = None,
    tls_cert: common.CertFile = None,
    tls_key: common.KeyFile = None,
    tls_server_name: common.ServerName = None,
    timeout: common.Timeout = None,
) -> None:
    """Talk with the model. Each line of standard input is a turn."""
    options: Options = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "seed": seed,
        "max_tokens": max_tokens,
        "stop": stop or None,
        "chat_template_kwargs": None if thinking is None else {"enable_thinking": thinking},
    }
    secure = common.make_tls(tls, tls_ca, tls_cert, tls_key, tls_server_name)
    with common.make_client(address, api_key, secure, timeout) as client:
        with common.errors_at(client.connection):
            Conversation(client, options, system).run()


class Conversation:
    """Reads turns, asks, and keeps the history."""

    def __init__(self, client: Client, options: Options, system: str | None) -> None:
        self._client = client
        self._options = options
        self._opening = [] if system is None else [Message("system", system)]
        self._history: list[Message] = list(self._opening)
        self._interactive = sys.stdin.isatty()

    def run(self) -> None:
        """Until the end of input or /exit."""
        if self._interactive:
            with suppress(ImportError):  # line editing for input(), where the system has it
                import readline  # noqa: F401
            self._client.stats()  # says now, not after the first turn, that nobody is there
            note(_HELP)
        while (line := self._read()) is not None:
            words = line.strip()
            if words in ("/exit", "/quit"):
                return
            if words == "/reset":
                self._history = list(self._opening)
            elif words.startswith("/"):
                note(f"unknown command {words}; {_HELP}")
            elif words:
                self._turn(words)

    def _read(self) -> str | None:
        if not self._interactive:
            return sys.stdin.readline() or None
        try:
            return input("> ")
        except EOFError:
            return None

    def _turn(self, words: str) -> None:
        asked = [*self._history, Message("user", words)]
        try:
            answer = self._ask(asked)
        except (InvalidRequest, Overloaded) as error:
            if not self._interactive:
                raise
            note(common.explain(error, self._client.connection))
            return
        self._history = [*asked, Message("assistant", answer)]

    def _ask(self, messages: list[Message]) -> str:
        parts: list[str] = []
        for event in self._client.generate(messages, **self._options):
            if isinstance(event, Delta):
                parts.append(event.text)
                say(event.text)
            elif isinstance(event, Finished):
                say("\n")
                note(summary(event))
        return "".join(parts)
