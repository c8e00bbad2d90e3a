"""OpenAI's JSON bodies of chats and completions as messages of the contract.

Invariant: every field of a body arrives in the request or is refused by its name; a field of null
is one that was not given. What a value may be beyond its kind is the server's affair, as for every
other call.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from quire.clients.arguments import flag, float32, instance, integer, items, kind, show, text, texts
from quire.clients.errors import ClientError, OptionError
from quire.clients.json_text import write_object
from quire.clients.messages import encode_message, encode_tool
from quire.v1 import inference_pb2 as pb

CHATS, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
COMPLETION_TOKENS = 16  # that a completion makes where max_tokens is not given, as OpenAI's
_UINT32 = (1 << 32) - 1
_MODES = {
    "auto": pb.TOOL_CHOICE_MODE_AUTO,
    "none": pb.TOOL_CHOICE_MODE_NONE,
    "required": pb.TOOL_CHOICE_MODE_REQUIRED,
}


class BodyError(ClientError):
    """A body that cannot be asked. param: the field at fault; code: OpenAI's word for the fault."""

    def __init__(self, param: str, message: str, code: str = "invalid_value") -> None:
        super().__init__(f"{param}: {message}")
        self.param = param
        self.code = code


def read_body(url: str, body: Mapping[str, Any]) -> pb.GenerateRequest:
    """The request that a body of CHATS or COMPLETIONS asks for. Raises BodyError."""
    fields = _CHAT_FIELDS if url == CHATS else _COMPLETION_FIELDS
    given = {name: value for name, value in body.items() if value is not None}
    for name in given:
        if name not in fields:
            raise BodyError(name, f"is not supported by {url} here", "unknown_parameter")
    request = pb.GenerateRequest()
    try:
        for name, value in given.items():
            fields[name](request, name, value)
        _check_whole(request, url, given)
    except OptionError as error:  # `where: what is wrong`
        where, _, words = str(error).partition(": ")
        raise BodyError(where, words) from None
    return request


def _check_whole(request: pb.GenerateRequest, url: str, given: Mapping[str, Any]) -> None:
    """What no field shows alone, and what is there where nothing is said."""
    if url == CHATS:
        if "messages" not in given:
            raise BodyError("messages", "is missing", "missing_required_parameter")
        if "top_logprobs" in given and not given.get("logprobs"):
            raise BodyError("top_logprobs", "goes with logprobs = true")
        if "tool_choice" in given and "tools" not in given and given["tool_choice"] != "none":
            raise BodyError("tool_choice", "goes with tools")
        if "max_tokens" in given and "max_completion_tokens" in given:
            raise BodyError("max_tokens", "means the same as max_completion_tokens: give one")
    else:
        if "prompt" not in given:
            raise BodyError("prompt", "is missing", "missing_required_parameter")
        if "max_tokens" not in given:
            request.sampling.max_tokens = COMPLETION_TOKENS


# ---------------------------------------------------------------- fields of both


def _model(request: pb.GenerateRequest, where: str, value: Any) -> None:
    request.model = text(where, value)


def _number(request: pb.GenerateRequest, where: str, value: Any) -> None:
    setattr(request.sampling, where, float32(where, value))


def _count(request: pb.GenerateRequest, where: str, value: Any, *, name: str = "") -> None:
    setattr(request.sampling, name or where, integer(where, value, 0, _UINT32))


def _seed(request: pb.GenerateRequest, where: str, value: Any) -> None:
    """A negative one stands for its two's complement."""
    seed = integer(where, value, -(1 << 63), (1 << 64) - 1)
    request.sampling.seed = seed % (1 << 64)


def _stop(request: pb.GenerateRequest, where: str, value: Any) -> None:
    if isinstance(value, str):
        request.sampling.stop.append(text(where, value))
    else:
        request.sampling.stop.extend(texts(where, items(where, value, "strings")))


def _no_stream(_request: pb.GenerateRequest, where: str, value: Any) -> None:
    if flag(where, value):
        raise OptionError(f"{where}: true; an answer to a file is whole")


# ---------------------------------------------------------------- fields of chats


def _messages(request: pb.GenerateRequest, where: str, value: Any) -> None:
    request.chat.SetInParent()
    for i, turn in enumerate(items(where, value, "messages")):
        at = f"{where}[{i}]"
        message = dict(instance(at, turn, Mapping, "a message"))
        if message.get("role") == "developer":
            message["role"] = "system"
        request.chat.messages.append(encode_message(at, message))


def _tools(request: pb.GenerateRequest, where: str, value: Any) -> None:
    for i, tool in enumerate(items(where, value, "tools")):
        at = f"{where}[{i}]"
        outer = dict(instance(at, tool, Mapping, "a tool"))
        inner = dict(instance(f"{at}.function", outer.get("function"), Mapping, "a function"))
        strict = inner.pop("strict", None)
        encoded = encode_tool(at, {**outer, "function": inner})
        if strict is not None:
            encoded.strict = flag(f"{at}.function.strict", strict)
        request.chat.tools.append(encoded)


def _tool_choice(request: pb.GenerateRequest, where: str, value: Any) -> None:
    choice = request.chat.tool_choice
    if isinstance(value, Mapping):
        named = _object(where, value, {"type", "function"})
        if named.get("type", "function") != "function":
            raise OptionError(f"{where}.type: {show(named['type'])}; only 'function' is supported")
        function = _object(f"{where}.function", named.get("function"), {"name"})
        choice.name = text(f"{where}.function.name", function.get("name"))
        return
    if not isinstance(value, str) or value not in _MODES:
        raise OptionError(f"{where}: {show(value)}; auto, none, required, or a function by name")
    choice.mode = _MODES[value]


def _parallel(request: pb.GenerateRequest, where: str, value: Any) -> None:
    request.chat.parallel_tool_calls = flag(where, value)


def _logprobs(request: pb.GenerateRequest, where: str, value: Any) -> None:
    if flag(where, value) and not request.sampling.HasField("logprobs"):
        request.sampling.logprobs = 0


def _response_format(request: pb.GenerateRequest, where: str, value: Any) -> None:
    chosen = _object(where, value, {"type", "json_schema"})
    sort = chosen.get("type")
    if sort == "json_schema":
        at = f"{where}.json_schema"
        schema = _object(at, chosen.get("json_schema"), _SCHEMA_FIELDS)
        if "schema" not in schema:
            raise OptionError(f"{at}.schema: is missing")
        if "strict" in schema:  # an answer is valid for the schema, whether it was asked to be
            flag(f"{at}.strict", schema["strict"])
        request.constraint.json_schema = write_object(f"{at}.schema", schema["schema"])
        return
    if "json_schema" in chosen:
        raise OptionError(f"{where}.json_schema: goes with type 'json_schema'")
    if sort == "json_object":
        request.constraint.json_object = True
    elif sort != "text":
        raise OptionError(f"{where}.type: {show(sort)}; text, json_object or json_schema")


_SCHEMA_FIELDS = {"name", "description", "schema", "strict"}


def _object(where: str, value: Any, names: set[str]) -> dict[str, Any]:
    """The parts of an object that are not null. Raises OptionError for one that is not known."""
    given = instance(where, value, Mapping, "an object")
    for name in given:
        if name not in names:
            raise OptionError(f"{where}.{name}: is not supported")
    return {name: part for name, part in given.items() if part is not None}


# ---------------------------------------------------------------- fields of completions


def _prompt(request: pb.GenerateRequest, where: str, value: Any) -> None:
    """A text, or token ids; a list of one prompt is that prompt."""
    if isinstance(value, str):
        request.text = text(where, value)
        return
    if not isinstance(value, list) or not value:
        raise OptionError(f"{where}: a text or token ids, not {kind(value)}")
    if isinstance(value[0], str | list):
        if len(value) > 1:
            raise OptionError(f"{where}: {len(value)} prompts; one a request")
        _prompt(request, f"{where}[0]", value[0])
        return
    ids = [integer(f"{where}[{i}]", item, 0, _UINT32) for i, item in enumerate(value)]
    request.token_ids.ids.extend(ids)


# ---------------------------------------------------------------- all of them

Field = Callable[[pb.GenerateRequest, str, Any], None]

_FIELDS: dict[str, Field] = {
    "model": _model,
    **dict.fromkeys(("temperature", "top_p", "presence_penalty", "frequency_penalty"), _number),
    "n": _count,
    "max_tokens": _count,
    "seed": _seed,
    "stop": _stop,
    "stream": _no_stream,
}
_CHAT_FIELDS: dict[str, Field] = {
    **_FIELDS,
    "messages": _messages,
    "max_completion_tokens": partial(_count, name="max_tokens"),
    "tools": _tools,
    "tool_choice": _tool_choice,
    "parallel_tool_calls": _parallel,
    "logprobs": _logprobs,
    "top_logprobs": partial(_count, name="logprobs"),
    "response_format": _response_format,
}
_COMPLETION_FIELDS: dict[str, Field] = {**_FIELDS, "prompt": _prompt, "logprobs": _count}
