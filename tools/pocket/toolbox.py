"""Tools, and tasks that need them: the question, the calls, what the tools return, the answer.

Invariant: names and arguments of a call come from the tools described and from the question alone,
and the answer repeats what the tools returned; what `heldout` reserves is in no trained task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import heldout
import lexicon
from chat import Call, Definition, Message, dumps
from draw import Draw

KINDS = ("calculator", "weather", "lookup", "free")
NAMES = {
    "calculator": ("calculator", "calculate", "compute", "calc", "evaluate", "arithmetic"),
    "weather": ("get_weather", "weather", "current_weather", "weather_in", "getWeather"),
    "lookup": ("lookup", "look_up", "search", "find", "get_record", "table_lookup"),
}
PARAMETERS = {
    "calculator": ("expression", "formula", "input", "expression"),
    "weather": ("city", "location", "place", "city"),
    "lookup": ("key", "name", "item", "query", "entry"),
}
DESCRIPTIONS = {
    "calculator": ("Works out an arithmetic expression.", "Calculate.", "Does sums."),
    "weather": ("The weather in a city.", "Tells the weather.", "Current weather of a place."),
    "lookup": ("Looks up an entry in a table.", "Finds a record.", "Look something up."),
    "free": ("Does something.", "A tool.", "Use it when asked."),
}
ATTRIBUTES = (
    "price", "age", "phone number", "weight", "address", "code", "height", "owner", "stock",
    "colour", "size", "number", "job", "room",
)  # fmt: skip
NUMBERED = ("price", "age", "weight", "height", "stock", "size", "number")
SKIES = ("sunny", "cloudy", "rainy", "foggy", "windy", "snowy", "clear", "stormy", "warm", "cold")
VERBS = ("open", "close", "set", "get", "send", "start", "stop", "move", "book", "order", "list")
FREE_PARAMETERS = ("name", "value", "count", "colour", "target", "level", "word", "room", "day")
SIGNS = (("+", "plus"), ("-", "minus"), ("*", "times"))
FAILING_SHARE = 0.04
NO_TOOL = "I have no tool for that."


@dataclass(frozen=True)
class Tool:
    """A described tool; `parameters` are those that a call fills, (name, JSON type)."""

    kind: str
    name: str
    parameters: tuple[tuple[str, str], ...]
    definition: Definition


@dataclass(frozen=True)
class Step:
    """One use of a tool: what is asked, the call, what comes back, and what is said of it."""

    question: str
    call: Call
    result: str
    answer: str


def _definition(draw: Draw, kind: str, name: str, parameters: dict[str, Any]) -> Definition:
    function: dict[str, Any] = {"name": name}
    if draw.chance(0.8):
        function["description"] = draw.pick(DESCRIPTIONS[kind])
    schema: dict[str, Any] = {"type": "object", "properties": parameters}
    if draw.chance(0.9):
        schema["required"] = [key for key in parameters if key not in ("unit", "limit")]
    if draw.chance(0.2):
        schema["additionalProperties"] = False
    function["parameters"] = schema
    return {"type": "function", "function": function}


def tool(draw: Draw, kind: str) -> Tool:
    """A tool of `kind` under one of its names."""
    if kind == "free":
        return _free_tool(draw)
    name, parameter = draw.pick(NAMES[kind]), draw.pick(PARAMETERS[kind])
    described: dict[str, Any] = {parameter: {"type": "string"}}
    if draw.chance(0.2):
        described[parameter]["description"] = draw.pick(DESCRIPTIONS[kind])
    if kind == "weather" and draw.chance(0.2):
        described["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    if kind == "lookup" and draw.chance(0.1):
        described["limit"] = {"type": "integer"}
    made = _definition(draw, kind, name, described)
    return Tool(kind, name, ((parameter, "string"),), made)


def _free_tool(draw: Draw) -> Tool:
    name = f"{draw.pick(VERBS)}_{draw.pick(lexicon.THINGS)}"
    keys = draw.distinct(FREE_PARAMETERS, draw.between(1, 2))
    typed = tuple((key, draw.pick(("string", "string", "integer"))) for key in keys)
    described = {key: {"type": kind} for key, kind in typed}
    return Tool("free", name, typed, _definition(draw, "free", name, described))


def tools(draw: Draw) -> list[Tool]:
    """One to three tools of different kinds, in any order."""
    weighted = (("two", 5.0), ("one", 2.0), ("three", 2.0))
    count = {"one": 1, "two": 2, "three": 3}[draw.weighted(weighted)]
    return [tool(draw, kind) for kind in draw.distinct(KINDS, count)]


def _result(draw: Draw, text: str) -> str:
    """What a tool returns: the text, or an object that holds it."""
    if draw.chance(0.75):
        return text
    value: Any = int(text) if text.lstrip("-").isdigit() else text
    return dumps({"result": value})


def _expression(draw: Draw, held_out: bool) -> tuple[str, str, int]:
    """(as it is asked, as it is calculated, its value)."""
    while True:
        a, b = (draw.below(draw.pick((20, 100, 1000, 10000))) for _ in range(2))
        sign, word = draw.pick(SIGNS)
        text = f"{a} {sign} {b}"
        value = {"+": a + b, "-": a - b, "*": a * b}[sign]
        asked = f"{a} {word} {b}" if draw.chance(0.3) else text
        if draw.chance(0.25):
            c = draw.between(2, 99)
            text, value = f"({text}) * {c}", value * c
            asked = text
        if heldout.task_held_out("calculator", text) == held_out:
            return asked, text, value


def _calculator(draw: Draw, used: Tool, held_out: bool) -> Step:
    asked, text, value = _expression(draw, held_out)
    form = draw.pick(
        ("What is {}?", "Calculate {}.", "How much is {}?", "{}", "Work out {}.", "Compute {}.")
    )
    call = Call(used.name, {used.parameters[0][0]: text})
    return Step(form.format(asked), call, _result(draw, str(value)), f"{text} = {value}.")


def _weather(draw: Draw, used: Tool, held_out: bool) -> Step:
    city = draw.pick(lexicon.CITIES)
    while True:
        text = f"{draw.pick(SKIES)}, {draw.between(-20, 40)} degrees"
        if draw.chance(0.2):
            text = f"{draw.pick(SKIES)} and {draw.pick(SKIES)}"
        if heldout.task_held_out("weather", f"{city} {text}") == held_out:
            break
    form = draw.pick(
        ("What is the weather in {}?", "How is the weather in {}?", "Weather in {}?",
         "Tell me the weather in {}.", "What's the weather like in {}?")
    )  # fmt: skip
    call = Call(used.name, {used.parameters[0][0]: city})
    return Step(form.format(city), call, _result(draw, text), f"The weather in {city} is {text}.")


def _entry(draw: Draw, held_out: bool) -> str:
    if held_out:
        return draw.pick(heldout.HELD_OUT_NAMES)
    pool = draw.pick((lexicon.THINGS, lexicon.FIRST_NAMES, heldout.TRAINED_NAMES))
    return draw.pick(pool)


def _found(draw: Draw, attribute: str) -> str:
    if attribute in NUMBERED or draw.chance(0.4):
        return str(draw.between(1, draw.pick((99, 999, 9999))))
    return draw.pick(lexicon.WORDS)


def _lookup(draw: Draw, used: Tool, held_out: bool, attribute: str = "") -> Step:
    attribute = attribute or draw.pick(ATTRIBUTES)
    entry, found = _entry(draw, held_out), _found(draw, attribute)
    form = draw.pick(
        ("What is the {a} of {e}?", "Look up the {a} of {e}.", "Find the {a} of {e}.",
         "What is {e}'s {a}?", "Tell me the {a} of {e}.")
    )  # fmt: skip
    call = Call(used.name, {used.parameters[0][0]: entry})
    answer = f"The {attribute} of {entry} is {found}."
    return Step(form.format(a=attribute, e=entry), call, _result(draw, found), answer)


def _free(draw: Draw, used: Tool, held_out: bool) -> Step:
    while True:
        given: dict[str, Any] = {}
        for key, kind in used.parameters:
            given[key] = draw.between(0, 999) if kind == "integer" else draw.pick(lexicon.WORDS)
        told = " and ".join(f"{key} {value}" for key, value in given.items())
        if heldout.task_held_out("free", f"{used.name} {told}") == held_out:
            break
    form = draw.pick(("Call {} with {}.", "Use {} with {}.", "Please call {} with {}."))
    found = draw.pick(("done", "ok", draw.pick(lexicon.WORDS), str(draw.below(1000))))
    answer = f"{used.name} answered {found}."
    return Step(form.format(used.name, told), Call(used.name, given), _result(draw, found), answer)


_MAKERS = {"calculator": _calculator, "weather": _weather, "lookup": _lookup, "free": _free}


def step(draw: Draw, used: Tool, held_out: bool = False) -> Step:
    """One use of a tool; now and then it fails."""
    made = _MAKERS[used.kind](draw, used, held_out)
    if not draw.chance(FAILING_SHARE):
        return made
    told = " ".join(draw.picks(lexicon.WORDS, draw.between(1, 4)))
    return replace(made, result=f"error: {told}", answer=f"The tool failed with error: {told}.")


def thought(call: Call) -> str:
    """What is thought before a call."""
    return f"I need {call.name} for this."


RETURNED = "The tool has answered."


def _asking(calls: Sequence[Call], thinks: bool) -> Message:
    thoughts = " ".join(thought(call) for call in calls) if thinks else ""
    return Message("assistant", "", thoughts, tuple(calls))


def _saying(answer: str, thinks: bool) -> Message:
    return Message("assistant", answer, RETURNED if thinks else "")


def _chain(draw: Draw, search: Tool, sums: Tool, held_out: bool, thinks: bool) -> list[Message]:
    """An entry is looked up, then calculated with."""
    first = _lookup(draw, search, held_out, draw.pick(NUMBERED))
    found = first.answer.rstrip(".").rsplit(" ", 1)[1]
    factor = draw.between(2, 99)
    sign, wording = draw.pick((("*", "multiply it by"), ("+", "add"), ("-", "subtract")))
    text = f"{found} {sign} {factor}"
    value = {"*": int(found) * factor, "+": int(found) + factor, "-": int(found) - factor}[sign]
    question = f"{first.question.rstrip('.?')}, then {wording} {factor}."
    call = Call(sums.name, {sums.parameters[0][0]: text})
    return [
        Message("user", question),
        _asking([first.call], thinks),
        Message("tool", first.result),
        _asking([call], thinks),
        Message("tool", _result(draw, str(value))),
        _saying(f"{first.answer} {text} = {value}.", thinks),
    ]


def _together(draw: Draw, used: Sequence[Tool], held_out: bool, thinks: bool) -> list[Message]:
    """One or more uses in one turn."""
    steps = [step(draw, one, held_out) for one in used]
    question = steps[0].question
    for after in steps[1:]:
        question = question if question[-1] in ".?" else question + "."
        question += draw.pick((" ", " And ", " Then: ")) + after.question
    return [
        Message("user", question),
        _asking([one.call for one in steps], thinks),
        *(Message("tool", one.result) for one in steps),
        _saying(" ".join(one.answer for one in steps), thinks),
    ]


def task(
    draw: Draw, given: Sequence[Tool], held_out: bool = False, thinks: bool = False
) -> list[Message]:
    """A whole task: from the user's question to the last answer."""
    by_kind = {one.kind: one for one in given}
    if {"lookup", "calculator"} <= by_kind.keys() and draw.chance(0.3):
        return _chain(draw, by_kind["lookup"], by_kind["calculator"], held_out, thinks)
    if len(given) > 1 and draw.chance(0.3):
        return _together(draw, draw.distinct(given, 2), held_out, thinks)
    if "weather" not in by_kind and draw.chance(0.1):
        asked = _weather(draw, tool(draw, "weather"), held_out).question
        thoughts = "There is no tool for this." if thinks else ""
        return [Message("user", asked), Message("assistant", NO_TOOL, thoughts)]
    return _together(draw, [draw.pick(given)], held_out, thinks)
