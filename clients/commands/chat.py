"""`quire chat`: a conversation.

Invariant: the history holds whole turns only. A turn whose answer failed or was stopped is taken
back, so that it can be asked again.

Ctrl-C on a terminal stops the answer, or drops the line that is being typed; the next one, if
nothing was entered in between, leaves with 130. Ctrl-D and /exit leave with 0. Where turns come
from a file or a pipe, the first Ctrl-C leaves.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Annotated

import typer

from quire.clients.client import Client, Generation
from quire.clients.commands import common, sampling
from quire.clients.commands.generate import summary
from quire.clients.commands.line_input import read_line
from quire.clients.commands.option_names import named
from quire.clients.commands.terminal import note, report, say, think, warn
from quire.clients.errors import CallError, InvalidRequest, Overloaded
from quire.clients.events import Delta, Finished, ToolCallDelta, joined_calls
from quire.clients.prompts import Message, Options

_HELP = """\
/help    show this
/reset   forget the conversation
/exit    leave, like /quit and Ctrl-D
Ctrl-C   stop an answer (its turn is not kept); press it again to leave"""
_AGAIN = "press Ctrl-C again, or Ctrl-D, to leave"


@common.one_line_errors
def chat(
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    thinking: Annotated[
        bool | None,
        typer.Option("--thinking/--no-thinking", help="Set the chat template's enable_thinking."),
    ] = None,
    allow_special_tokens: sampling.AllowSpecialTokens = False,
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
    """Talk with the model. Each line of standard input is a turn; /help lists the commands."""
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
        "allow_special_tokens": allow_special_tokens or None,
        "chat_template_kwargs": None if thinking is None else {"enable_thinking": thinking},
    }
    secure = common.make_tls(tls, tls_ca, tls_cert, tls_key, tls_server_name)
    with common.connected(address, api_key, secure, timeout, named) as client:
        Conversation(client, options, system).run()


class Conversation:
    """Reads turns, asks, and keeps the history."""

    def __init__(self, client: Client, options: Options, system: str | None) -> None:
        self._client = client
        self._options = options
        self._opening = [] if system is None else [Message("system", system)]
        self._history: list[Message] = list(self._opening)
        self._interactive = sys.stdin.isatty()
        self._interrupted = False  # by Ctrl-C, and nothing was entered since
        self._answering = False

    def run(self) -> None:
        """Runs until the end of input or /exit. Raises KeyboardInterrupt if Ctrl-C should end the
        program."""
        if self._interactive:
            with suppress(ImportError):  # line editing for input(), where the system has it
                import readline  # noqa: F401
            self._greet()
        going_on = True
        while going_on:
            try:
                going_on = self._step()
            except KeyboardInterrupt:
                if not self._interactive or self._leaves():
                    raise

    def _greet(self) -> None:
        """Say which model answers, or that no server does, before the first turn."""
        model = self._client.stats().model
        where = f" on {model.device}" if model.device else ""
        note(f"{model.name or 'a model without a name'}{where}, at {self._client.connection}")
        note("/help lists the commands")

    def _step(self) -> bool:
        """One line of input; False where it is the last."""
        self._answering = False
        line = self._read()
        if line is None:
            return False
        self._interrupted = False
        words = line.strip()
        if words in ("/exit", "/quit"):
            return False
        if words == "/help":
            report(_HELP)
        elif words == "/reset":
            self._history = list(self._opening)
        elif words.startswith("/"):
            warn(f"unknown command {words}; /help lists the commands")
        elif words:
            self._turn(words)
        return True

    def _read(self) -> str | None:
        if not self._interactive:
            return sys.stdin.readline() or None
        try:
            return read_line("> ")
        except EOFError:
            say("\n")
            return None

    def _leaves(self) -> bool:
        """Whether Ctrl-C ends the program: False if it has stopped an answer or dropped a line."""
        say("\n")
        if self._answering:
            note(f"stopped: this turn is not kept. {_AGAIN}")
        elif self._interrupted and not _typed():
            return True
        else:
            note(_AGAIN)
        self._interrupted = True
        return False

    def _turn(self, words: str) -> None:
        asked = [*self._history, Message("user", words)]
        self._answering = True
        try:
            answer = self._ask(asked)
        except (InvalidRequest, Overloaded) as error:
            if not self._interactive:
                raise
            note(named(common.explain(error, self._client.connection)))
            if error.details.reason == "CONTEXT_LENGTH_EXCEEDED":
                note("/reset forgets the conversation, so that there is room again")
            return
        self._history = [*asked, Message("assistant", answer)]
        self._answering = False

    def _ask(self, messages: list[Message]) -> str:
        parts: list[str] = []
        calls: list[ToolCallDelta] = []
        thinking = False
        with self._client.generate(messages, **self._options) as generation, stopping(generation):
            for event in generation:
                if isinstance(event, Delta):
                    think(event.reasoning)
                    thinking = thinking or bool(event.reasoning)
                    if thinking and event.text:  # the answer begins on a line of its own
                        think("\n")
                        thinking = False
                    parts.append(event.text)
                    calls += event.tool_calls
                    say(event.text)
                elif isinstance(event, Finished):
                    say("\n")
                    for call in joined_calls(calls):
                        report(f"calls {call.name} {call.arguments}")
                    note(summary(event))
        return "".join(parts)


@contextmanager
def stopping(generation: Generation) -> Iterator[None]:
    """Within it Ctrl-C cancels the generation, and is raised once the loop over it has ended.

    An exception in the middle of opening the call would leave the call open with no owner; a
    generation that was closed meanwhile cancels its call as soon as it has it.
    """
    pressed = False

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        nonlocal pressed
        pressed = True
        generation.close()

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # ignored, or another's
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    except CallError:
        if not pressed:
            raise
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def _typed() -> str:
    """The text of the line being edited; empty if no line editor is in use."""
    with suppress(ImportError):
        import readline

        return readline.get_line_buffer()
    return ""
