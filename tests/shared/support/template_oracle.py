"""Chat templates of public models and transformers' own rendering, to compare with.

The templates are not in this repository: packages that carry them are read where they are installed
or unpacked (TESTS_TEMPLATES: folders, separated as in PATH).
"""

import importlib.util
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from quire.service.text.chat_template import Message
from quire.service.text.template_traits import Traits

TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}
TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Würde das Wetter sagen, 'heute' & \"morgen\"",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "Where <to> look"},
                    "days": {"type": "integer", "enum": [1, 2, 3]},
                    "units": {"type": ["string", "null"], "default": None},
                },
                "required": ["place"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds",
            "parameters": {
                "type": "object",
                "properties": {"terms": {"type": "array", "items": {"type": "number"}}},
                "required": [],
            },
        },
    },
)


def folders() -> list[Path]:
    """Folders with templates that are on this machine."""
    found = [Path(part) for part in os.environ.get("TESTS_TEMPLATES", "").split(os.pathsep) if part]
    spec = importlib.util.find_spec("trl")
    if spec is not None and spec.origin is not None:
        found.append(Path(spec.origin).parent / "chat_templates")
    return [folder for folder in found if folder.is_dir()]


def templates() -> list[Path]:
    """Files of templates."""
    return sorted(path for folder in folders() for path in folder.rglob("*.jinja"))


def call(name: str, call_id: str | None = None, **arguments: Any) -> dict[str, Any]:
    """A call of a tool, as a message holds it."""
    made: dict[str, Any] = {} if call_id is None else {"id": call_id}
    return made | {"type": "function", "function": {"name": name, "arguments": arguments}}


def said(role: str, content: str, **fields: Any) -> Message:
    """A message."""
    return {"role": role, "content": content, **fields}


def chats() -> Iterator[dict[str, Any]]:
    """Conversations of all sorts, as keyword arguments of Conversation."""
    system, user = said("system", "Be brief."), said("user", "  Wie wird's, <b>Köln</b>?\n ")
    answer = said("assistant", "Sonnig.")
    thinking = said("assistant", "Sonnig.", reasoning_content="Hm,\nso.")
    calling = said("assistant", "", tool_calls=[call("weather", "callid001", place="Köln", days=2)])
    two = said(
        "assistant",
        "Both.",
        tool_calls=[call("weather", "callid001", place="K"), call("add", "callid002", terms=[1.5])],
        reasoning_content="First the weather.",
    )
    result = said("tool", '{"sun": true}', tool_call_id="callid001")
    named = said("tool", "3", name="add", tool_call_id="callid002")
    for messages in (
        (user,),
        (system, user),
        (user, answer, user),
        (system, user, thinking, user, thinking),
        (user, calling, result),
        (system, user, calling, result, answer, user),
        (user, two, result, named, answer),
        (user, two, result, named, thinking, user),
    ):
        for tools in ((), TOOLS):
            for kwargs in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
                for opens in (True, False):
                    yield {
                        "messages": messages,
                        "tools": tools,
                        "chat_template_kwargs": kwargs,
                        "add_generation_prompt": opens,
                    }
    for content in ("Well", "Well,  ", " \n", "", "a <b>\n\n"):
        messages = (system, user, said("assistant", content))
        for start in (0, 1):
            yield {
                "messages": messages[start:],
                "add_generation_prompt": False,
                "continue_final_message": True,
            }


_WORDS = (
    "a",
    "Zwölf",
    " ",
    "\n",
    "  \n",
    "<b>",
    "{{ x }}",
    "日本",
    "'",
    '"',
    "\\",
    "👩‍👩‍👧",
    "</p>",
    "&",
    "",
)


def random_chat(seed: int) -> dict[str, Any]:
    """An invented conversation, the same for the same seed."""
    draw = random.Random(seed)

    def text() -> str:
        return "".join(draw.choice(_WORDS) for _ in range(draw.randrange(8)))

    messages: list[Message] = []
    if draw.random() < 0.5:
        messages.append(said("system", text()))
    for _ in range(draw.randrange(1, 5)):
        messages.append(said("user", text()))
        if draw.random() < 0.4:
            calls = [
                call(
                    draw.choice(("weather", "add")),
                    f"callid00{i}",
                    **{
                        text() or "k": text(),
                        "n": draw.choice((1, 2.5, None, True, [1, {"b": text()}])),
                    },
                )
                for i in range(draw.randrange(1, 3))
            ]
            messages.append(said("assistant", text(), tool_calls=calls))
            messages += [said("tool", text(), tool_call_id=c["id"]) for c in calls]
        if draw.random() < 0.7:
            messages.append(said("assistant", text()))
            if draw.random() < 0.3:
                messages[-1]["reasoning_content"] = text()
    goes_on = messages[-1]["role"] == "assistant" and draw.random() < 0.3
    return {
        "messages": tuple(messages),
        "tools": TOOLS[: draw.randrange(3)],
        "chat_template_kwargs": draw.choice(({}, {}, {"enable_thinking": draw.random() < 0.5})),
        "add_generation_prompt": not goes_on and draw.random() < 0.7,
        "continue_final_message": goes_on,
    }


def fitting(traits: Traits, chat: dict[str, Any]) -> dict[str, Any]:
    """The conversation without what the template would ignore, which Quire refuses."""
    messages = []
    for message in chat["messages"]:
        kept = {
            key: value
            for key, value in message.items()
            if key not in ("name", "tool_calls", "reasoning_content")
            or traits.shows(message["role"], key)
        }
        messages.append(kept)
    kwargs = chat.get("chat_template_kwargs", {})
    return chat | {
        "messages": tuple(messages),
        "tools": chat.get("tools", ()) if traits.shows_tools else (),
        "chat_template_kwargs": {k: v for k, v in kwargs.items() if k in traits.variables},
    }


def expected(source: str, chat: dict[str, Any], tokens: dict[str, str] = TOKENS) -> str | Exception:
    """transformers' text, or what it raised."""
    try:
        rendered, _ = render_jinja_template(
            conversations=[json.loads(json.dumps(chat["messages"]))],
            tools=json.loads(json.dumps(chat.get("tools", ()))) or None,
            chat_template=source,
            add_generation_prompt=chat.get("add_generation_prompt", True),
            continue_final_message=chat.get("continue_final_message", False),
            **tokens,
            **chat.get("chat_template_kwargs", {}),
        )
    except Exception as error:
        return error
    return rendered[0]
