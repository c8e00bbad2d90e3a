"""Which family a model's answers belong to: found in its chat template, or set by an option.

Invariant: a syntax is chosen only if the template itself writes calls like that, in a rendered
probe or, if it renders none, in its text.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from quire.service.answers.events import Family, Syntax

_NAME, _KEY = "qzprobename", "qzprobekey"
_WRITTEN = {
    Syntax.HERMES: re.compile(rf'<tool_call>\s*\{{\s*"name":\s*"{_NAME}",\s*"arguments":\s*\{{'),
    Syntax.XML: re.compile(rf"<tool_call>\s*<function={_NAME}>\s*<parameter={_KEY}>"),
}
_MENTIONED = {
    Syntax.HERMES: re.compile(r"""<tool_call>\s*(?:\\n)?\s*\{\s*\\?["']name\\?["']"""),
    Syntax.XML: re.compile(r"<tool_call>\s*(?:\\n)?\s*<function="),
}

Render = Callable[[list[dict[str, Any]], list[dict[str, Any]]], str | None]


def choose(option: str, sources: Mapping[str, str], render: Render) -> Family | None:
    """option: one of OUTPUT_PARSERS. sources: the templates' texts by name. render: of messages and
    tools, None where the template refuses them. None: answers are not read."""
    if option == "none":
        return None
    thinks = any("<think>" in text and "</think>" in text for text in sources.values())
    if option != "auto":
        return Family(Syntax(option), thinks)
    syntax = _syntax(sources, render)
    return Family(syntax, thinks) if syntax is not None or thinks else None


def _syntax(sources: Mapping[str, str], render: Render) -> Syntax | None:
    function = {"name": _NAME, "arguments": {_KEY: "value"}}
    called = [{"id": "callid123", "type": "function", "function": function}]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": "", "tool_calls": called},
    ]
    schema = {"type": "object", "properties": {_KEY: {"type": "string", "description": "a key"}}}
    described = {"name": _NAME, "description": "a tool", "parameters": schema}
    text = render(messages, [{"type": "function", "function": described}])
    patterns = _MENTIONED if text is None else _WRITTEN
    searched = "\n".join(sources.values()) if text is None else text
    found = [syntax for syntax, pattern in patterns.items() if pattern.search(searched)]
    return found[0] if len(found) == 1 else None
