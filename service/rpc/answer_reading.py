"""How a request's answers are parsed: by what it asks for, its tools and the model.

Invariant: tool calls are parsed only if this request showed the model tools, or if the client
rendered the prompt itself and asked for parsing. What cannot be parsed is refused, never ignored.
"""

from typing import Any

from quire.clients.strict_json import read_object
from quire.service.answers import families
from quire.service.answers.events import Family, Reading, Syntax
from quire.service.rpc.field_faults import Faults
from quire.service.text.chat_template import ChatTemplate, Conversation, TemplateRefusal
from quire.service.text.template_traits import PROBE_LIMITS
from quire.service.text.thinking import Thinking
from quire.v1 import inference_pb2 as pb

_NONE, _REQUIRED = pb.TOOL_CHOICE_MODE_NONE, pb.TOOL_CHOICE_MODE_REQUIRED


def family_of(option: str, chat: ChatTemplate | None) -> Family | None:
    """The family of a model's template. option: as in ServiceConfig.output_parser."""
    if chat is None:
        return families.choose(option, {}, lambda _messages, _tools: None)

    def render(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str | None:
        asked = Conversation(tuple(messages), tuple(tools), add_generation_prompt=False)
        try:
            return chat.render(asked, PROBE_LIMITS)
        except TemplateRefusal:
            return None

    return families.choose(option, chat.sources, render)


def shows_tools(chat: pb.Chat) -> bool:
    """Whether the model is shown the tools."""
    return bool(chat.tools) and chat.tool_choice.mode != _NONE


def needs_constraint(chat: pb.Chat) -> bool:
    """Whether calls have to be made, or to be valid."""
    if not shows_tools(chat):
        return False
    return must_call(chat) or any(tool.strict for tool in chat.tools)


def must_call(chat: pb.Chat) -> bool:
    """Whether an answer without a call is none."""
    named = chat.tool_choice.WhichOneof("choice") == "name"
    return named or chat.tool_choice.mode == _REQUIRED


def check_parse(request: pb.GenerateRequest, family: Family | None, faults: Faults) -> None:
    """Whether output can be parsed where that is asked for."""
    if not request.parse_output:
        return
    if request.ids_only:
        faults.add("parse_output", True, "no text is made with ids_only")
    elif family is None:
        faults.add(
            "parse_output",
            True,
            "how this model writes thoughts and calls of tools is not known (see the server's "
            "option output_parser)",
        )


def check_tools(request: pb.GenerateRequest, family: Family | None) -> None:
    """Everything that a chat says of calls. Raises Refusal."""
    chat, faults = request.chat, Faults()
    choice = chat.tool_choice
    if choice.mode not in pb.ToolChoiceMode.values():
        faults.add("chat.tool_choice.mode", choice.mode, "is no ToolChoiceMode")
    if choice.mode == _REQUIRED and not chat.tools:
        faults.add("chat.tool_choice.mode", "REQUIRED", "there are no tools")
    named = choice.WhichOneof("choice") == "name"
    if named and all(tool.name != choice.name for tool in chat.tools):
        faults.add("chat.tool_choice.name", choice.name, "is none of the tools")
    if chat.HasField("parallel_tool_calls"):
        _check_parallel(request, family, faults)
    if request.HasField("constraint") and needs_constraint(chat):
        why = "tool_choice or a strict tool makes one of its own: give one of the two"
        faults.add("constraint", request.constraint.WhichOneof("kind"), why)
    faults.raise_if_any()


def _check_parallel(request: pb.GenerateRequest, family: Family | None, faults: Faults) -> None:
    where, asked = "chat.parallel_tool_calls", request.chat.parallel_tool_calls
    counted = family is not None and family.syntax is not None and _parses(request, family)
    if not request.chat.tools:
        faults.add(where, asked, "there are no tools")
    elif not asked and shows_tools(request.chat) and not counted:
        faults.add(where, asked, "calls are not read out of this answer, so they are not counted")


def _parses(request: pb.GenerateRequest, family: Family | None) -> bool:
    """Whether the output is to be parsed: as the request says, or by default."""
    if family is None or request.ids_only:
        return False
    if request.HasField("parse_output"):
        return request.parse_output
    return request.HasField("chat")


def reading_of(
    request: pb.GenerateRequest, family: Family | None, thinking: Thinking
) -> Reading | None:
    """How to parse the answers of a request that was checked. thinking: where the output begins.
    None: all is text."""
    if family is None or not _parses(request, family):
        return None
    of_chat = request.HasField("chat")
    calls = not of_chat or shows_tools(request.chat)
    syntax = family.syntax if calls else None
    if syntax is None and not family.thinks:
        return None
    one = of_chat and request.chat.HasField("parallel_tool_calls")
    return Reading(
        syntax=syntax,
        thinks=family.thinks,
        thinking=family.thinks and thinking is Thinking.OPENED,
        most_calls=1 if one and not request.chat.parallel_tool_calls else None,
        tools=_schemas(request.chat) if syntax is Syntax.XML else None,
    )


def _schemas(chat: pb.Chat) -> dict[str, dict[str, Any]]:
    """Each tool's schema, by name. Invalid JSON has been refused before."""
    return {
        tool.name: read_object(tool.parameters_json) if tool.parameters_json else {}
        for tool in chat.tools
    }
