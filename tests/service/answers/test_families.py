"""The family is told by what the chat template writes."""

from typing import Any

import pytest
from support.tool_templates import HERMES, OTHER, PLAIN, XML

from quire.service.answers.events import Family, Syntax
from quire.service.answers.families import choose
from quire.service.rpc.answer_reading import family_of
from quire.service.settings import OUTPUT_PARSERS
from quire.service.text.chat_template import ChatTemplate


@pytest.mark.parametrize(
    ("template", "family"),
    [
        (HERMES, Family(Syntax.HERMES, thinks=True)),
        (HERMES.replace("think>", "hm>"), Family(Syntax.HERMES, thinks=False)),
        (XML, Family(Syntax.XML, thinks=True)),
        (OTHER, Family(None, thinks=True)),
        (PLAIN, None),
    ],
)
def test_the_template_tells(template: str, family: Family | None) -> None:
    chat = ChatTemplate(template, {"eos_token": "<|im_end|>"})
    assert family_of("auto", chat) == family
    assert family_of("none", chat) is None
    named = family_of("qwen3-coder", chat)
    assert named is not None and named.syntax is Syntax.XML


def test_several_templates_are_one_family() -> None:
    chat = ChatTemplate({"default": PLAIN, "tool_use": XML}, {"eos_token": "<|im_end|>"})
    assert family_of("auto", chat) == Family(Syntax.XML, thinks=True)
    assert family_of("auto", None) is None


def test_a_template_that_refuses_the_probe_is_judged_by_its_text() -> None:
    def refuses(_messages: list[dict[str, Any]], _tools: list[dict[str, Any]]) -> None:
        return None

    assert choose("auto", {"default": HERMES}, refuses) == Family(Syntax.HERMES, thinks=True)
    assert choose("auto", {"default": XML}, refuses) == Family(Syntax.XML, thinks=True)


def test_every_syntax_has_its_option() -> None:
    assert set(OUTPUT_PARSERS) == {"auto", "none", *Syntax}
