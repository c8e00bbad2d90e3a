"""The tools of Anthropic's bodies, and whether they may be called."""

from quire.clients.openai.fields import Fields
from quire.clients.openai.tools import read_tool
from quire.v1 import inference_pb2 as pb

_KINDS = ("any", "auto", "none", "tool")
_HOSTED = "must be custom: no tool runs on this server, and the model knows no others by their type"
PASSED_OVER = ("cache_control", "eager_input_streaming")


def read(body: Fields, chat: pb.Chat) -> None:
    """Sets both."""
    tools = body.items("tools")
    for i, value in enumerate(tools):
        tool = body.item(f"tools[{i}]", value)
        if tool is not None:
            _read_tool(tool, chat)
    choice = body.nested("tool_choice")
    if choice is not None:
        _read_choice(choice, chat, has_tools=bool(tools))
        choice.end()


def _read_tool(tool: Fields, chat: pb.Chat) -> None:
    kind = tool.value("type")
    if kind not in (None, "custom"):
        tool.fault("type", kind, _HOSTED)
        return
    tool.require("input_schema")
    tool.passed_over(*PASSED_OVER)
    tool.only("allowed_callers", ["direct"], [])
    tool.only("defer_loading", False, why="must be false: nothing would load it")
    tool.only("input_examples", [], why="is not supported: give them in the description")
    read_tool(tool, chat, "input_schema")


def _read_choice(choice: Fields, chat: pb.Chat, *, has_tools: bool) -> None:
    """Without tools, auto, none and one call at most are as if unset."""
    kind = choice.text("type")
    if kind == "tool":
        chat.tool_choice.name = choice.text("name") or ""
    elif kind == "any" and not has_tools:
        choice.fault("type", kind, "there are no tools")
    elif kind == "any":
        chat.tool_choice.mode = pb.TOOL_CHOICE_MODE_REQUIRED
    elif kind == "none" and has_tools:
        chat.tool_choice.mode = pb.TOOL_CHOICE_MODE_NONE
    elif kind not in _KINDS:
        choice.fault("type", kind, f"must be one of {', '.join(_KINDS)}")
    if choice.flag("disable_parallel_tool_use") and has_tools:
        chat.parallel_tool_calls = False
