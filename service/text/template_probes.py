"""Invented chats: rendered when a template is loaded, they show what it does with its input.

Each string of a probe is a unique word (WORDS), so that it can be found in the rendered text. A
template may refuse a probe (turns in another order, an unknown role): that probe shows nothing, and
others are tried. No client's chat is ever used for this.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Message = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool")
WORDS = {
    **{f"{role}.content": f"qzcontentof{role}zq" for role in ROLES},
    **{f"{role}.name": f"qznameof{role}zq" for role in ROLES},
    "assistant.reasoning_content": "qzthoughtszq",
    "tool.name": "qztoolnamezq",
    "tool.description": "qztooldescriptionzq",
    "tool.key": "qztoolkeyzq",
    "tool.value": "qztoolvaluezq",
    "call.name": "qzcallnamezq",
    "call.key": "qzcallkeyzq",
    "call.value": "qzcallvaluezq",
}
_OTHER = "qzotherzq"


@dataclass(frozen=True, slots=True)
class Probe:
    """One invented chat."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    kwargs: Mapping[str, Any] | None = None
    opens: bool = False

    def variables(self, tokens: Mapping[str, str]) -> dict[str, Any]:
        """As a template gets them."""
        return {
            "documents": None,
            **tokens,
            **(self.kwargs or {}),
            "messages": [dict(message) for message in self.messages],
            "tools": [*self.tools] or None,
            "add_generation_prompt": self.opens,
        }


def probes(variables: Sequence[str]) -> Iterator[Probe]:
    """Chats of all sorts. variables: of the template, that a client could set."""
    settings: list[Mapping[str, Any]] = [{}]
    if variables:
        settings += [dict.fromkeys(variables, True), dict.fromkeys(variables, False)]
    for kwargs in settings:
        for messages in _chats():
            for tools in ((), (_tool(),)):
                yield Probe(messages, tools, kwargs)
                yield Probe(messages, tools, kwargs, opens=True)


def pairs(probe: Probe, role: str, field: str) -> Iterator[tuple[Probe, Probe]]:
    """The probe with two values of a field of one message of this role."""
    for i, message in enumerate(probe.messages):
        if message["role"] != role:
            continue
        one, two = _values(role, field)
        yield _with(probe, i, {**message, **one}), _with(probe, i, {**message, **two})


def _values(role: str, field: str) -> tuple[Message, Message]:
    if field == "tool_calls":
        return {field: [_call(WORDS["call.name"])]}, {field: [_call(_OTHER)]}
    word = WORDS.get(f"{role}.{field}", _OTHER + "1")
    if field == "reasoning_content":  # templates know it by either name
        return {field: word, "thinking": word}, {field: _OTHER, "thinking": _OTHER}
    return {field: word}, {field: _OTHER}


def _with(probe: Probe, i: int, message: Message) -> Probe:
    messages = (*probe.messages[:i], message, *probe.messages[i + 1 :])
    return replace(probe, messages=messages)


def _chats() -> Iterator[tuple[Message, ...]]:
    system, user, answer = (_said(role) for role in ("system", "user", "assistant"))
    called = {**answer, "tool_calls": [_call(WORDS["call.name"])]}
    silent = {**called, "content": ""}
    bare = {key: value for key, value in called.items() if key != "content"}
    result = {**_said("tool"), "tool_call_id": "callid123"}
    yield (user,)
    yield (user, answer)
    yield (system, user)
    yield (system, user, answer)
    yield (system, user, answer, user)
    yield (answer, user)
    yield (result,)
    for turn in (called, silent, bare):
        yield (turn,)
        yield (user, turn)
        yield (user, turn, result)
        yield (system, user, turn, result, answer)
        yield (user, turn, result, answer, user)


def _said(role: str) -> Message:
    return {"role": role, "content": WORDS[f"{role}.content"]}


def _call(name: str) -> dict[str, Any]:
    arguments = {WORDS["call.key"]: WORDS["call.value"]}
    function = {"name": name, "arguments": arguments}
    return {"id": "callid123", "type": "function", "function": function}


def _tool() -> dict[str, Any]:
    described = {"type": "string", "description": WORDS["tool.description"]}
    parameters = {
        "type": "object",
        "properties": {WORDS["tool.key"]: {**described, "enum": [WORDS["tool.value"]]}},
        "required": [WORDS["tool.key"]],
    }
    function = {"name": WORDS["tool.name"], "description": WORDS["tool.description"]}
    return {"type": "function", "function": {**function, "parameters": parameters}}
