"""`chat_template_kwargs`, and what other fields mean to a template."""

from collections.abc import Iterable
from typing import NamedTuple

from quire.clients import large_json
from quire.clients.openai.fields import Fields
from quire.v1 import inference_pb2 as pb

EFFORT, THINKING = "reasoning_effort", "enable_thinking"


class Setting(NamedTuple):
    """What a field, whose name is `told`, sets of a template's variables."""

    told: str
    key: str
    value: object


def of_effort(effort: str | None, told: str) -> list[Setting]:
    """Of the effort that OpenAI's clients give."""
    if effort is None:
        return []
    return [Setting(told, THINKING, False) if effort == "none" else Setting(told, EFFORT, effort)]


def read(body: Fields, chat: pb.Chat, settings: Iterable[Setting]) -> dict[str, str]:
    """Sets them. Returns the contract's fields under the names given."""
    kwargs = body.mapping("chat_template_kwargs")
    given: dict[str, str] = {}
    for told, key, value in settings:
        if key in kwargs:
            body.fault(told, value, f"excludes chat_template_kwargs.{key}: give one of the two")
        kwargs = {**kwargs, key: value}
        given[f"chat.chat_template_kwargs.{key}"] = told
    if kwargs:
        chat.chat_template_kwargs = large_json.dumps(kwargs, ensure_ascii=False)
    return given
