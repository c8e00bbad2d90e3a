"""The constraint that makes a chat's calls valid, where it asks for that."""

from quire.service.answers.events import Family
from quire.service.answers.tool_grammar import CallableTool, CannotHonour, tool_grammar
from quire.service.errors import invalid_field
from quire.service.rpc.json_text import BadJson, read_object
from quire.service.rpc.reading import must_call, needs_constraint
from quire.v1 import inference_pb2 as pb


def constraint_of(chat: pb.Chat, family: Family | None) -> pb.Constraint | None:
    """For a chat whose tools were checked. None: nothing is asked for. Raises Refusal."""
    if not needs_constraint(chat):
        return None
    if family is None or family.syntax is None:
        raise invalid_field("chat.tool_choice", "how this model writes calls is not known")
    name = chat.tool_choice.name
    chosen = [i for i, tool in enumerate(chat.tools) if not name or tool.name == name]
    parallel = chat.parallel_tool_calls if chat.HasField("parallel_tool_calls") else True
    tools = [_callable(i, chat.tools[i]) for i in chosen]
    try:
        grammar = tool_grammar(family.syntax, tools, must_call=must_call(chat), parallel=parallel)
    except CannotHonour as error:
        where = f"chat.tools[{chosen[error.tool]}].parameters_json"
        raise invalid_field(where, f"cannot be honoured: {error}") from error
    return pb.Constraint(grammar=grammar)


def _callable(i: int, tool: pb.Tool) -> CallableTool:
    try:
        schema = read_object(tool.parameters_json) if tool.parameters_json else {}
    except BadJson as error:
        raise invalid_field(f"chat.tools[{i}].parameters_json", str(error)) from error
    return CallableTool(tool.name, schema, tool.strict)
