"""Invented answers of models: what they say, and how it is written in each syntax."""

import json
import random
from dataclasses import dataclass
from typing import Any

from support.answer_reference import Whole

from quire.service.answers.events import Reading, Syntax

TOOLS: dict[str, dict[str, Any]] = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "units": {"enum": ["c", "f"]},
            "deep": {"type": "object"},
            "list": {"type": "array"},
            "flag": {"type": "boolean"},
            "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        },
    },
    "run_code": {"type": "object", "properties": {"code": {"type": "string"}}},
    "no-schema": {},
}
_STRINGS = (
    "Köln", "日本 🎉", 'say "hi"', "back\\slash", "line\nbreak", "tab\t", "", " ", "{", "}]", "<",
    "</", "a<b", "<tool_call>", "</tool_call>", "<think>", "</think>", "</tool_cal", "null", "12",
    "</parameter>", "<parameter=x>", "<function=f>", "</function>\n", "a\n</parameter>\nb", "\n\n",
    "\\u00e9", "\\", '\\"', "x" * 40, "trailing\n", "\nleading",
)  # fmt: skip
_WORDS = (
    "Let me see.", "Grüße 👋", "1 < 2", "a <b> c", "<tool", "\n", "\n\n", "</think>", "so:\n", "  ",
    "<<", '{"name": "x"}', "</tool_call>", "<function=f>", "é", "<tool_call", "<think>",
)  # fmt: skip
_JUNK = (
    "<tool_call>", "<tool_call>\n", "</tool_call>", "<tool_call>{", '<tool_call>{"name": "',
    '<tool_call>{"name": "f", "arguments": {"a": "b"c"}}</tool_call>', '<tool_call>{"name": ""}',
    '<tool_call>\n{"name": "f", "arguments": {"a": 1}, "id": 3}\n</tool_call>', "<tool_call>\n\n",
    '<tool_call>{"name": "f"}</tool_call>', '<tool_call>{"arguments": {"a": [1}, "name": "f"}',
    '<tool_call>{"arguments": {"a": "<tool_call>"}, "name": "f"}\n</tool_call>',
    '<tool_call>{"name": "f", "arguments": "text"}</tool_call>', '<tool_call>{"name": "\\ud800"}',
    '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n', "<function=f>", "<tool_call><function=>",
    "<tool_call>\n<function=weather>\n<parameter=city>\nx\n</parameter>\noops\n</function>",
    "<tool_call>\n<function=weather>\n</tool_call>\n", "<tool_call><function=a<b>", "\n", "<",
    "<tool_call><function=weather><parameter=days>7</parameter><parameter=>x</parameter>",
    "<tool_call>\n<function=run_code>\n<parameter=code>\nx\n</parameter>\n</tool_call>", "}", '"',
    "</function>", "</parameter>", "<parameter=city>", "<think>", "</think>\n\n", "</",
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """raw: what the model writes. said: what that means; None where it is malformed."""

    raw: str
    reading: Reading
    said: Whole | None


def invent(seed: int, syntax: Syntax, *, opened: bool) -> Answer:
    """opened: the template has opened the thoughts. Every third one is malformed or cut."""
    draw = random.Random(f"{seed} {syntax} {opened}")
    reading = Reading(
        syntax, thinks=True, thinking=opened, most_calls=draw.choice((None, None, 1)), tools=TOOLS
    )
    if seed % 3 == 2:
        return Answer(_malformed(draw, syntax, opened), reading, None)
    raw, whole = _thoughts(draw, opened)
    text = _line(draw)
    raw, whole.text = raw + text, text
    for number in range(draw.randrange(0, 3)):
        name, arguments = _call(draw)
        written, meant = _write(draw, syntax, name, arguments)
        if number and reading.most_calls == 1:
            whole.text += written + "\n"
        else:
            whole.calls.append((name, meant))
        raw += ("" if number else draw.choice(("", "\n", "\n\n"))) + written + "\n"
    return Answer(raw, reading, whole)


def _malformed(draw: random.Random, syntax: Syntax, opened: bool) -> str:
    parts = [_thoughts(draw, opened)[0] if draw.random() < 0.5 else ""]
    for _ in range(draw.randrange(1, 4)):
        parts.append(draw.choice((*_JUNK, *_WORDS)))
        if draw.random() < 0.5:
            parts.append(_write(draw, syntax, *_call(draw))[0])
    raw = "".join(parts)
    return raw[: draw.randrange(len(raw) + 1)] if draw.random() < 0.6 else raw


def _thoughts(draw: random.Random, opened: bool) -> tuple[str, Whole]:
    if not opened and draw.random() < 0.4:
        return "", Whole()
    inside = "".join(w for w in draw.choices(_WORDS, k=draw.randrange(3)) if "think>" not in w)
    inside = inside.strip("\n")
    breaks = draw.choice(("", "\n", "\n\n"))
    raw = ("" if opened else "<think>\n") + inside + "\n</think>" + breaks
    return raw, Whole(reasoning=inside)


def _line(draw: random.Random) -> str:
    """Text that begins with no thoughts and holds no call, with no line break at its ends."""
    words = draw.choices([w for w in _WORDS if w != "<think>"], k=draw.randrange(3))
    text = "".join(words).strip("\n")
    return text if "<tool_call>" not in text else "so"


def _call(draw: random.Random) -> tuple[str, dict[str, Any]]:
    name = draw.choice(list(TOOLS))
    if name != "weather":
        return name, {"code": draw.choice(_STRINGS)} if draw.random() < 0.8 else {}
    values: dict[str, Any] = {
        "city": draw.choice(_STRINGS),
        "days": draw.choice((0, -1, 10**20)),
        "units": "c",
        "deep": {"a": {"b": [1, {"c": draw.choice(_STRINGS)}]}, draw.choice(_STRINGS): None},
        "list": [1.5, True, None, draw.choice(_STRINGS), [], {}],
        "flag": draw.choice((True, False)),
        "maybe": draw.choice((None, 3)),
    }
    return name, {key: values[key] for key in draw.sample(sorted(values), draw.randrange(4))}


def _write(
    draw: random.Random, syntax: Syntax, name: str, arguments: dict[str, Any]
) -> tuple[str, str]:
    """The call as a model writes it, and the JSON text of its arguments."""
    written = json.dumps(
        arguments, ensure_ascii=draw.random() < 0.3, indent=draw.choice((None, None, 2))
    )
    if syntax is Syntax.HERMES:
        inside = f'{{"name": {json.dumps(name)}, "arguments": {written}}}'
        if draw.random() < 0.2:
            inside = f'{{"arguments": {written}, "name": {json.dumps(name)}}}'
        between = draw.choice(("\n", "\n", "", " "))
        return f"<tool_call>{between}{inside}{between}</tool_call>", written
    kept = {key: value for key, value in arguments.items() if not _ambiguous(value)}
    lines = [f"<parameter={key}>\n{_bare(value)}\n</parameter>\n" for key, value in kept.items()]
    raw = f"<tool_call>\n<function={name}>\n{''.join(lines)}</function>\n</tool_call>"
    return raw, json.dumps(kept, ensure_ascii=False)


def _ambiguous(value: Any) -> bool:
    """Whether XML cannot tell the value's end from the end of the call."""
    return "</parameter>" in _bare(value) and _bare(value).endswith("</parameter>")


def _bare(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
