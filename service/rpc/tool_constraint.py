"""The constraint that makes a chat's calls valid, where it asks for that."""

from quire.clients.strict_json import BadJson, read_object
from quire.engine.request import Constraint
from quire.service.answers.events import Family, Syntax
from quire.service.answers.tool_grammar import CallableTool, CannotHonour, tool_grammar
from quire.service.constraints.sources import CALLS
from quire.service.errors import invalid_field
from quire.service.rpc.answer_reading import must_call, needs_constraint
from quire.service.rpc.constraints import Compiler, behind
from quire.service.text.thinking import Thinking
from quire.v1 import inference_pb2 as pb


def constraint_of(
    chat: pb.Chat, family: Family | None, compiler: Compiler, thinking: Thinking
) -> Constraint | None:
    """The constraint of a chat whose tools were checked; None: there is none. Raises Refusal. If
    all tools together are too large, those that are not strict accept any object."""
    if not needs_constraint(chat):
        return None
    if family is None or family.syntax is None:
        strict = next((i for i, tool in enumerate(chat.tools) if tool.strict), 0)
        asked = "chat.tool_choice" if must_call(chat) else f"chat.tools[{strict}].strict"
        raise invalid_field(asked, "how this model writes calls is not known")
    name = chat.tool_choice.name
    chosen = [i for i, tool in enumerate(chat.tools) if not name or tool.name == name]
    tools = [_callable(i, chat.tools[i]) for i in chosen]
    grammar = why = ""
    for loose in (False, True):
        before = grammar
        grammar = _grammar(chat, family.syntax, tools, chosen, compiler, loose)
        if grammar == before:
            break
        constraint = behind(thinking, CALLS, grammar)
        why = compiler.fault(constraint)
        if not why:
            return constraint
    raise invalid_field("chat.tools", f"cannot be honoured: {why}")


def _grammar(
    chat: pb.Chat,
    syntax: Syntax,
    tools: list[CallableTool],
    chosen: list[int],
    compiler: Compiler,
    loose: bool,
) -> str:
    """chosen: the tools' places in the chat."""
    parallel = chat.parallel_tool_calls if chat.HasField("parallel_tool_calls") else True
    calls = must_call(chat)
    try:
        return tool_grammar(
            syntax, tools, compiler.schema_fault, must_call=calls, parallel=parallel, loose=loose
        )
    except CannotHonour as error:
        where = f"chat.tools[{chosen[error.tool]}].parameters_json"
        raise invalid_field(where, f"cannot be honoured: {error}") from error


def _callable(i: int, tool: pb.Tool) -> CallableTool:
    try:
        schema = read_object(tool.parameters_json) if tool.parameters_json else {}
    except BadJson as error:
        raise invalid_field(f"chat.tools[{i}].parameters_json", str(error)) from error
    return CallableTool(tool.name, schema, tool.strict)
