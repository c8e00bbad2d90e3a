"""Renders conversations with the model's chat template, in Jinja's immutable sandbox.

Invariant: nothing that a client gives is ignored in silence. What the template does not mention, or
what makes no difference to what it renders, is refused with the field's name; so is a special token
inside a client's string (unless allowed), so that nobody forges a role.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

from quire.engine.errors import ModelError

_END_MARK = "\ue000end-of-message\ue001"
_PROBE = "\ue000probe\ue001"
_RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})

Message = dict[str, Any]


class TemplateRefusal(Exception):
    """A conversation that the template cannot render, or would not render whole."""

    def __init__(self, field_name: str, message: str) -> None:
        super().__init__(f"{field_name}: {message}")
        self.field = field_name
        self.message = message


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is rendered. A message holds role and content, and where they are given name,
    tool_calls, tool_call_id and reasoning_content."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    allow_special_tokens: bool = False


class ChatTemplate:
    """One model's template."""

    def __init__(
        self,
        source: str,
        tokens: Mapping[str, str],
        find_special: Callable[[str], str | None],
    ) -> None:
        """tokens: names such as eos_token and their strings. Raises ModelError."""
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
            parsed = environment.parse(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"chat template: {error}") from error
        self._mentioned = jinja2.meta.find_undeclared_variables(parsed)
        self._knows_reasoning = _names_part(parsed, "reasoning_content")
        self._tokens = dict(tokens)
        self._find_special = find_special

    def render(self, chat: Conversation) -> str:
        """The prompt's text. Raises TemplateRefusal."""
        if not chat.messages:
            raise TemplateRefusal("chat.messages", "is empty: at least one message is needed")
        if not chat.allow_special_tokens:
            self._refuse_forgery(chat)
        self._refuse_unmentioned(chat)
        self._refuse_ignored(chat)
        if chat.continue_final_message:
            return self._render_open(chat)
        return self._render(chat, chat.messages)

    def _render(self, chat: Conversation, messages: tuple[Message, ...]) -> str:
        variables = {
            **self._tokens,
            **chat.chat_template_kwargs,
            "messages": list(messages),
            "tools": list(chat.tools) or None,
            "add_generation_prompt": chat.add_generation_prompt,
        }
        try:
            return self._template.render(variables)
        except Exception as error:  # a template may fail in any way on what it is given
            raise TemplateRefusal("chat", f"the chat template refused it: {error}") from error

    def _render_open(self, chat: Conversation) -> str:
        """Everything up to the end of the last message's content."""
        *before, last = chat.messages
        marked = {**last, "content": last["content"] + _END_MARK}
        text, mark, _ = self._render(chat, (*before, marked)).rpartition(_END_MARK)
        if not mark:
            raise TemplateRefusal(
                "chat.continue_final_message", "the chat template does not show the last message"
            )
        return text

    def _refuse_forgery(self, chat: Conversation) -> None:
        for where, text in _strings(chat):
            token = self._find_special(text)
            if token is not None:
                raise TemplateRefusal(
                    where, f"contains the special token {token!r} (see allow_special_tokens)"
                )

    def _refuse_unmentioned(self, chat: Conversation) -> None:
        if chat.tools and "tools" not in self._mentioned:
            raise TemplateRefusal("chat.tools", "the model's chat template has no tools")
        for key in chat.chat_template_kwargs:
            if key in _RESERVED or key in self._tokens:
                raise TemplateRefusal(
                    f"chat.chat_template_kwargs.{key}", "is set by the server and cannot be given"
                )
            if key not in self._mentioned:
                raise TemplateRefusal(
                    f"chat.chat_template_kwargs.{key}",
                    "the model's chat template does not mention it",
                )

    def _refuse_ignored(self, chat: Conversation) -> None:
        """A name or tool calls that make no difference would be lost without a word.

        Reasoning is judged by the template, not by what comes out: templates that know it leave it
        out of earlier turns on purpose. A tool_call_id was checked against the calls themselves.
        """
        for i, message in enumerate(chat.messages):
            if "reasoning_content" in message and not self._knows_reasoning:
                raise TemplateRefusal(
                    f"chat.messages[{i}].reasoning_content",
                    "the model's chat template would ignore it",
                )
            if "name" in message:
                self._must_differ(chat, i, "name", {**message, "name": _PROBE})
            if "tool_calls" in message:
                bare = {k: v for k, v in message.items() if k != "tool_calls"}
                self._must_differ(chat, i, "tool_calls", bare)

    def _must_differ(self, chat: Conversation, i: int, name: str, changed: Message) -> None:
        others = (*chat.messages[:i], changed, *chat.messages[i + 1 :])
        if self._render(chat, others) == self._render(chat, chat.messages):
            raise TemplateRefusal(
                f"chat.messages[{i}].{name}", "the model's chat template would ignore it"
            )


def _strings(chat: Conversation) -> Iterator[tuple[str, str]]:
    """Every string that comes from the client, with the field it stands in."""
    for i, message in enumerate(chat.messages):
        for key, value in message.items():
            for text in _texts(value):
                yield f"chat.messages[{i}].{key}", text
    for i, tool in enumerate(chat.tools):
        for text in _texts(tool):
            yield f"chat.tools[{i}]", text
    for key, value in chat.chat_template_kwargs.items():
        for text in _texts(value):
            yield f"chat.chat_template_kwargs.{key}", text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _names_part(parsed: jinja2.nodes.Template, name: str) -> bool:
    """Whether a template reads a part of this name: `message.name` or `message["name"]`."""
    named = any(node.attr == name for node in parsed.find_all(jinja2.nodes.Getattr))
    return named or any(node.value == name for node in parsed.find_all(jinja2.nodes.Const))


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
