"""Requests that mean no good: one body of OpenAI's API and one message of the contract each.

Invariant: both forms of a request ask for the same, and every turn's is new, so that nothing is
answered from what was kept. `refused` says whether they must be.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from quire.v1 import inference_pb2 as pb

Body = dict[str, Any]
PROMPT = "Tell me a story."


@dataclass(frozen=True)
class Load:
    """Of each turn. body: of /v1/chat/completions. message: the same over gRPC; None: HTTP alone
    can say it."""

    body: Callable[[int], Body | bytes]
    message: Callable[[int], pb.GenerateRequest] | None
    refused: bool = True


def chat(**more: Any) -> Body:
    return {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4, **more}


def asked(constraint: pb.Constraint | None = None) -> pb.GenerateRequest:
    turn = pb.ChatMessage(role="user", content=PROMPT)
    request = pb.GenerateRequest(chat=pb.Chat(messages=[turn]), constraint=constraint)
    request.sampling.max_tokens = 4
    return request


def schema_load(make: Callable[[], dict[str, Any]], *, refused: bool = True) -> Load:
    """make: a schema."""
    kept = cache(make)

    def body(turn: int) -> Body:
        told = {"name": "x", "schema": {**kept(), "title": str(turn)}, "strict": True}
        return chat(response_format={"type": "json_schema", "json_schema": told})

    def message(turn: int) -> pb.GenerateRequest:
        schema = {**kept(), "title": str(turn)}
        return asked(pb.Constraint(json_schema=json.dumps(schema)))

    return Load(body, message, refused)


def regex_load(text: str, *, refused: bool = True) -> Load:
    return Load(
        lambda turn: chat(structured_outputs={"regex": text + f"{turn:06}"}),
        lambda turn: asked(pb.Constraint(regex=text + f"{turn:06}")),
        refused,
    )


def choice_load(count: int, *, refused: bool) -> Load:
    def options(turn: int) -> list[str]:
        return [f"answer {i} of {turn}" for i in range(count)]

    return Load(
        lambda turn: chat(structured_outputs={"choice": options(turn)}),
        lambda turn: asked(pb.Constraint(choice=pb.Choice(options=options(turn)))),
        refused,
    )


def tools_load(parameters: Callable[[int], dict[str, Any]], count: int, *, refused: bool) -> Load:
    """So many strict tools with parameters of their number."""
    kept = [(f"tool_{i}", parameters(i)) for i in range(count)]

    def body(turn: int) -> Body:
        functions = [{"name": n, "parameters": {**p, "title": str(turn)}} for n, p in kept]
        tools = [{"type": "function", "function": {**one, "strict": True}} for one in functions]
        return chat(tools=tools, tool_choice="required")

    def message(turn: int) -> pb.GenerateRequest:
        request = asked()
        request.chat.tool_choice.mode = pb.TOOL_CHOICE_MODE_REQUIRED
        for name, one in kept:
            tool = request.chat.tools.add(name=name, strict=True)
            tool.parameters_json = json.dumps({**one, "title": str(turn)})
        return request

    return Load(body, message, refused)


def deep(levels: int) -> dict[str, Any]:
    schema: Any = {}
    for _ in range(levels):
        schema = {"items": schema}
    return dict(schema)


def ref_chain(length: int) -> dict[str, Any]:
    """Each definition leads to the next."""
    chained = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(length)}
    return {"$defs": {**chained, f"d{length}": {"type": "null"}}, "$ref": "#/$defs/d0"}


TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["kids"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


def wide(number: int) -> dict[str, Any]:
    names = [f"field_{number}_{i}" for i in range(60)]
    properties = {name: {"type": "string", "maxLength": 200} for name in names}
    return {"type": "object", "properties": properties, "required": names}


LOADS: dict[str, Load] = {
    "a schema 200 deep": schema_load(lambda: deep(200)),
    "6,000 properties": schema_load(lambda: {"properties": {f"p{i}": {} for i in range(6000)}}),
    "$ref to itself": schema_load(lambda: {"$ref": "#"}),
    "a tree of $refs": schema_load(lambda: TREE, refused=False),
    "20,000 $refs in a row": schema_load(lambda: ref_chain(20_000)),
    "multipleOf that meet": schema_load(
        lambda: {"multipleOf": 97, "allOf": [{"multipleOf": 89}, {"multipleOf": 8.3}]}
    ),
    "a regex of 1 MiB": regex_load("ab" * (1 << 19)),
    "a regex of 32 KiB": regex_load("(a|b)?" * 5400),
    "a regex that explodes": regex_load("(([a-z]{1,40}[0-9]{1,40}){1,40}x?){1,40}", refused=False),
    "a regex 900 deep": regex_load("(" * 900 + "a" + ")" * 900),
    "10,000 choices": choice_load(10_000, refused=False),
    "10,001 choices": choice_load(10_001, refused=True),
    "64 wide strict tools": tools_load(wide, 64, refused=True),
    "a strict tool of 20,000 $refs": tools_load(lambda _: ref_chain(20_000), 1, refused=True),
    "a tool's schema without an end": tools_load(lambda _: {"$ref": "#"}, 1, refused=True),
    "JSON 100,000 deep": Load(lambda _: b"[" * 100_000, None),
    "a key 200,000 times": Load(
        lambda _: b'{"a":1' + b',"a":1' * 200_000 + b"}",
        None,
    ),
    "100,000 unknown fields": Load(
        lambda _: json.dumps({f"f{i}": i for i in range(100_000)}).encode(), None
    ),
}
