"""Renders conversations with the model's chat template, to the same text as transformers.

Invariant: a conversation is rendered once, in linear time, and within limits that hold while it is
rendered. Nothing that a client gives is silently ignored: a field that the template does not show
(template_traits finds that out at load) is refused by name. So is a marker of the template inside a
client's string (unless allowed), so that nobody can forge a turn.
"""

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import jinja2

from quire.engine.errors import ModelError
from quire.service.text.template_environment import Environment
from quire.service.text.template_meter import RenderLimits, TooManyBytes, TooMuch
from quire.service.text.template_traits import PROBE_LIMITS, Traits, find_traits
from quire.service.text.template_values import as_rendered, texts
from quire.service.text.thinking import Thinking, thinking_of
from quire.service.text.tokenizer import Tokenizer
from quire.service.text.workers import NotWanted

_END_MARK = "QUIRE-END-OF-MESSAGE-"
_RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})
_JUDGED = ("name", "tool_calls")  # and thoughts; ids of calls are checked against the calls
_USUAL_EFFORT = ("reasoning_effort", "medium")  # what a template that knows no effort does
_NO_LIMITS = RenderLimits()
_MAX_SOURCE = 1 << 18  # characters of all of a model's templates: a compiler takes seconds for them

Message = dict[str, Any]


class TemplateRefusal(Exception):
    """A conversation that the template cannot render, or would not render whole."""

    def __init__(self, field_name: str, message: str) -> None:
        super().__init__(f"{field_name}: {message}")
        self.field = field_name
        self.message = message


class TemplateTooLong(TemplateRefusal):
    """A conversation that renders to more than is allowed."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """The conversation to render. A message holds role and content and, if given, name, tool_calls,
    tool_call_id and reasoning_content."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    allow_special_tokens: bool = False
    omit_unshown_reasoning: bool = False


class _Compiled:
    """One template and its traits."""

    def __init__(
        self, source: str, tokens: Mapping[str, str], special: Iterable[str], added: Iterable[str]
    ) -> None:
        self.environment = Environment()
        self.environment.meter.begin(PROBE_LIMITS)  # the compiler computes what is constant
        self.template = self.environment.from_string(source)
        self.traits: Traits = find_traits(
            self.environment, source, self.template, tokens, special, added
        )


class ChatTemplate:
    """A model's template, or several by name: `tool_use` where there are tools, else `default`."""

    def __init__(
        self,
        source: str | Mapping[str, str],
        tokens: Mapping[str, str],
        special: Iterable[str] = (),
        added: Iterable[str] = (),
        *,
        origin: str = "chat template",
    ) -> None:
        """tokens: names such as eos_token and their strings. special: the vocabulary's special
        tokens; added: its other added tokens. origin: the file, for errors. Raises ModelError."""
        self._tokens = dict(tokens)
        self._compiled: dict[str, _Compiled] = {}
        self.sources = sources = {"default": source} if isinstance(source, str) else source
        if (size := sum(map(len, sources.values()))) > _MAX_SOURCE:
            raise ModelError(f"{origin}: chat template: {size} characters: at most {_MAX_SOURCE}")
        for name, text in sources.items():
            where = origin if len(sources) == 1 else f"{origin} ({name})"
            try:
                self._compiled[name] = _Compiled(text, tokens, special, added)
            except jinja2.TemplateSyntaxError as error:
                raise ModelError(f"{where}: chat template, line {error.lineno}: {error}") from error
            except TooMuch as error:
                raise ModelError(f"{where}: a chat of a few words {error}") from error
            except Exception as error:  # recursion, overflow: a compiler may fail in any way
                raise ModelError(f"{where}: chat template: {error}") from error

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self | None:
        """The template beside a tokenizer, or None. Raises ModelError, naming the file."""
        if not tokenizer.chat_templates:
            return None
        return cls(
            tokenizer.chat_templates,
            tokenizer.template_tokens,
            tokenizer.special_tokens,
            tokenizer.added_tokens,
            origin=str(tokenizer.template_origin),
        )

    def traits(self, name: str = "default") -> Traits:
        """A template's traits, found when it was loaded."""
        return self._compiled[name].traits

    def render(self, chat: Conversation, limits: RenderLimits = _NO_LIMITS) -> str:
        """The prompt's text. Raises TemplateRefusal, or NotWanted if `limits` says so."""
        if not chat.messages:
            raise TemplateRefusal("chat.messages", "is empty: at least one message is needed")
        compiled = self._choose(chat)
        if not chat.allow_special_tokens:
            _refuse_forgery(chat, compiled.traits)
        self._refuse_unknown(chat, compiled)
        _refuse_ignored(chat, compiled.traits)
        if chat.continue_final_message:
            return self._render_open(chat, compiled, limits)
        return self._render(chat, chat.messages, compiled, limits)

    def thinking(self, chat: Conversation, rendered: str) -> Thinking:
        """Where the output begins, for a chat that was rendered like this."""
        traits = self._choose(chat).traits
        variables = frozenset() if traits.opens_thoughts else traits.variables
        continued = chat.messages[-1]["content"] if chat.continue_final_message else None
        return thinking_of(rendered, variables, continued=continued)

    def _choose(self, chat: Conversation) -> _Compiled:
        if chat.tools and "tool_use" in self._compiled:
            return self._compiled["tool_use"]
        if "default" in self._compiled:
            return self._compiled["default"]
        names = ", ".join(sorted(self._compiled))
        raise TemplateRefusal(
            "chat", f"the model's chat templates are {names}: none is called default"
        )

    def _render(
        self,
        chat: Conversation,
        messages: Sequence[Message],
        compiled: _Compiled,
        limits: RenderLimits,
    ) -> str:
        variables = {
            "documents": None,
            **self._tokens,
            **chat.chat_template_kwargs,
            "messages": [as_rendered(message) for message in messages],
            "tools": list(chat.tools) or None,
            "add_generation_prompt": chat.add_generation_prompt,
        }
        try:
            return compiled.environment.render(compiled.template, variables, limits)
        except NotWanted:
            raise
        except TooManyBytes as error:
            raise TemplateTooLong("chat", str(error)) from error
        except TooMuch as error:
            raise TemplateRefusal("chat", str(error)) from error
        except Exception as error:  # a template may fail in any way on what it is given
            raise TemplateRefusal("chat", f"the chat template refused it: {error}") from error

    def _render_open(self, chat: Conversation, compiled: _Compiled, limits: RenderLimits) -> str:
        """Everything up to the end of the last message's content, which is marked for the while.

        The mark ends in a space: where the template keeps that, it keeps the content's own spaces;
        where it strips it, the content's own are stripped too.
        """
        *before, last = chat.messages
        if last.get("tool_calls"):  # they stand behind the content, and would be cut off
            raise TemplateRefusal(
                "chat.continue_final_message", "the last message calls tools: nothing goes on there"
            )
        mark = _END_MARK + secrets.token_hex(16)  # which no client can have written
        marked = {**last, "content": last["content"] + mark + " "}
        text = self._render(chat, (*before, marked), compiled, limits)
        opened, found, rest = text.rpartition(mark)
        if not found or last["content"].strip() not in text:
            raise TemplateRefusal(
                "chat.continue_final_message", "the chat template does not show the last message"
            )
        return opened if rest.startswith(" ") else opened.rstrip()

    def _refuse_unknown(self, chat: Conversation, compiled: _Compiled) -> None:
        if chat.tools and not compiled.traits.shows_tools:
            raise TemplateRefusal("chat.tools", "the model's chat template has no tools")
        for key, value in chat.chat_template_kwargs.items():
            where = f"chat.chat_template_kwargs.{key}"
            if key in _RESERVED or key in self._tokens or key in compiled.environment.globals:
                raise TemplateRefusal(where, "is set by the server and cannot be given")
            if key not in compiled.traits.variables and (key, value) != _USUAL_EFFORT:
                raise TemplateRefusal(where, "the model's chat template does not mention it")


def _refuse_forgery(chat: Conversation, traits: Traits) -> None:
    for where, kind, text in _strings(chat):
        marker = traits.markers.find(text, kind)
        if marker is not None:
            raise TemplateRefusal(
                where,
                f"contains {marker!r}, which is a special token or a marker that the chat template "
                "writes itself (see chat.allow_special_tokens)",
            )


def _refuse_ignored(chat: Conversation, traits: Traits) -> None:
    """A name, tool calls or thoughts that the template never shows would be lost without a word;
    not a tool's name, where the call that it answers says the same, nor the name of who alone
    speaks in a role: names tell the speakers of one role apart. Thoughts may be, if that is asked
    for."""
    judged = _JUDGED if chat.omit_unshown_reasoning else (*_JUDGED, "reasoning_content")
    called: dict[str, str] = {}  # functions, by their calls' ids
    speakers: dict[str, set[str | None]] = {}
    for message in chat.messages:
        speakers.setdefault(message["role"], set()).add(message.get("name"))
    for i, message in enumerate(chat.messages):
        for call in message.get("tool_calls", ()):
            if "id" in call:
                called[call["id"]] = call["function"]["name"]
        known = called.get(message.get("tool_call_id", ""))
        if message["role"] != "tool" and len(speakers[message["role"]]) == 1:
            known = message.get("name")
        for name in judged:
            lost = name in message and not traits.shows(message["role"], name)
            if lost and not (name == "name" and message["name"] == known):
                said = "; its content may say who speaks" if name == "name" else ""
                why = f"the model's chat template would ignore it{said}"
                raise TemplateRefusal(f"chat.messages[{i}].{name}", why)


def _strings(chat: Conversation) -> Iterator[tuple[str, str, str]]:
    """Every string that comes from the client, with its field and kind."""
    for i, message in enumerate(chat.messages):
        for key, value in message.items():
            kind = "call" if key == "tool_calls" else f"{message['role']}.{key}"
            for inner, text in texts(value, kind):
                yield f"chat.messages[{i}].{key}", inner, text
        for call in message.get("tool_calls", ()):
            arguments = call.get("function", {}).get("arguments")
            if isinstance(arguments, str):  # no JSON around it: as open as what a user says
                yield f"chat.messages[{i}].tool_calls", "user.content", arguments
    for i, tool in enumerate(chat.tools):
        for kind, text in texts(tool, "tool"):
            yield f"chat.tools[{i}]", kind, text
    for key, value in chat.chat_template_kwargs.items():
        for kind, text in texts(value, "kwarg"):
            yield f"chat.chat_template_kwargs.{key}", kind, text
