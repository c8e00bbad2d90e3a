"""Tools, the calls of them in a conversation, and whether they may be called."""

from collections.abc import Callable
from typing import Any

from quire.clients.openai.fields import Fields
from quire.v1 import inference_pb2 as pb

_MODES = {
    "none": pb.TOOL_CHOICE_MODE_NONE,
    "required": pb.TOOL_CHOICE_MODE_REQUIRED,
}
_HOSTED = ": no tool runs on this server"
Inside = Callable[[Fields, str, object], Fields | None]  # of a tool, or of a choice: the function
_INSTEAD = {  # OpenAI's other kinds of tools, and of choices among them
    "custom": ": make its input a parameter",
    "allowed_tools": ": give those tools alone",
    "namespace": ": give its functions themselves",
}


def nested(body: Fields, name: str, value: object) -> Fields | None:
    """The inside of {"type": "function", "function": {…}}."""
    item = flat(body, name, value)
    if item is None:
        return None
    function = item.nested("function")
    if function is None:
        item.fault("function", None, "is missing")
    item.end()
    return function


def flat(body: Fields, name: str, value: object) -> Fields | None:
    """The rest of {"type": "function", …}."""
    item = body.item(name, value)
    if item is None:
        return None
    kind = item.value("type")
    if kind != "function":
        item.fault("type", kind, 'must be "function"' + _INSTEAD.get(str(kind), _HOSTED))
        return None
    return item


def read_tools(body: Fields, chat: pb.Chat, inside: Inside = nested) -> None:
    """The tools, and the choice among them. `auto`, and several calls, are as if unset; so is
    one call at most, where there is nothing to call."""
    tools = body.items("tools")
    for i, value in enumerate(tools):
        function = inside(body, f"tools[{i}]", value)
        if function is None:
            continue
        read_tool(function, chat)
    _read_choice(body, chat, inside, has_tools=bool(tools))
    if body.flag("parallel_tool_calls") is False and tools:
        chat.parallel_tool_calls = False


def read_tool(function: Fields, chat: pb.Chat, schema: str = "parameters") -> None:
    """schema: the field that holds its parameters'."""
    tool = chat.tools.add(name=function.text("name") or "")
    description = function.text("description")
    if description is not None:
        tool.description = description
    tool.parameters_json = function.json_text(schema)
    tool.strict = function.flag("strict") or False
    function.end()


def _read_choice(body: Fields, chat: pb.Chat, inside: Inside, *, has_tools: bool) -> None:
    choice: Any = body.value("tool_choice")
    if choice is None or choice == "auto" or (choice == "none" and not has_tools):
        return
    if isinstance(choice, str):
        if choice == "required" and not has_tools:
            body.fault("tool_choice", choice, "there are no tools")
        elif choice in _MODES:
            chat.tool_choice.mode = _MODES[choice]
        else:
            body.fault("tool_choice", choice, "must be auto, none, required or a function")
        return
    function = inside(body, "tool_choice", choice)
    if function is not None:
        chat.tool_choice.name = function.text("name") or ""
        function.end()


def read_calls(body: Fields, message: pb.ChatMessage) -> bool:
    """The calls that an assistant made; whether there are any."""
    values = body.items("tool_calls")
    for j, value in enumerate(values):
        item = body.item(f"tool_calls[{j}]", value)
        if item is None:
            continue
        call = message.tool_calls.add(id=item.text("id") or "")
        item.passed_over("index")  # of the deltas, which some clients keep
        item.only("type", "function")
        function = item.nested("function")
        if function is None:
            item.fault("function", None, "is missing")
        else:
            call.name = function.text("name") or ""
            call.arguments_json = function.text("arguments") or ""
            function.end()
        item.end()
    return bool(values)
