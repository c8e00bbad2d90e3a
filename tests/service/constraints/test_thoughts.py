"""Where an answer's constraint begins: behind the thoughts, if there are any."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from quire.engine.errors import ConstraintError
from quire.engine.request import Constraint, Vocabulary
from quire.engine.scheduling.matching import Matcher
from quire.service.constraints.grammars import Grammars
from quire.service.models import pocket
from quire.service.rpc.constraints import read_constraint
from quire.service.text.chat_template import ChatTemplate, Conversation
from quire.service.text.thinking import CLOSES, OPENS, Thinking, thinking_of
from quire.v1 import inference_pb2 as pb

EOS = 2
TOKENIZER = Tokenizer.from_file(str(Path(pocket.directory()) / "tokenizer.json"))


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    made = Grammars()
    made.set_vocabulary(Vocabulary(TOKENIZER.to_str(), 4096, (EOS,)))
    return made


def allows(matcher: Matcher, token_id: int) -> bool:
    return bool(matcher.mask()[token_id >> 3] & 1 << (token_id & 7))


def say(matcher: Matcher, text: str) -> None:
    """Token by token, each of which must be allowed."""
    for token_id in TOKENIZER.encode(text, add_special_tokens=False).ids:
        assert allows(matcher, token_id), TOKENIZER.decode([token_id])
        matcher.accept(token_id)


def test_thoughts_that_are_open_may_be_anything_but_an_end(grammars: Grammars) -> None:
    matcher = grammars.compile(Constraint("regex", "[0-9]+", "", CLOSES))
    say(matcher, "so, is it {7}? < /think> I think")
    assert not matcher.may_end() and not allows(matcher, EOS)
    say(matcher, " so.</think>")
    copy = matcher.copy()
    say(matcher, "\n42")
    assert matcher.may_end()
    say(copy, "7")
    with pytest.raises(ConstraintError):
        copy.accept(TOKENIZER.encode("x", add_special_tokens=False).ids[0])


def test_thoughts_that_the_output_may_open_are_its_choice(grammars: Grammars) -> None:
    constraint = Constraint("choice", '["yes", "no"]', OPENS, CLOSES)
    thinks, answers = grammars.compile(constraint), grammars.compile(constraint)
    say(thinks, "<think>hm</think>no")
    say(answers, "yes")
    assert thinks.may_end() and answers.may_end()


def test_what_a_prompt_says_of_thoughts() -> None:
    hybrid = {"messages", "enable_thinking"}

    def told(prompt: str, variables: set[str] = hybrid, *, continues: bool = False) -> Thinking:
        return thinking_of(prompt, variables, continued=prompt if continues else None)

    assert told("<|im_start|>assistant\n<think>\n", set()) is Thinking.OPENED
    assert told("<|im_start|>assistant\n") is Thinking.MAY_OPEN
    assert told("<|im_start|>assistant\n", {"messages"}) is Thinking.NONE
    assert told("assistant\n<think>\n\n</think>\n\n") is Thinking.NONE
    assert told("assistant\n<think>\nWell", continues=True) is Thinking.OPENED
    assert told("assistant\n<think>\nWell</think>Yes", continues=True) is Thinking.NONE


@pytest.mark.parametrize(
    ("switch", "asked"),
    [
        ("{% if enable_thinking %}<think>\n{% endif %}", (Thinking.NONE, Thinking.OPENED)),
        (
            "{% if enable_thinking is false %}<think></think>{% endif %}",
            (Thinking.MAY_OPEN, Thinking.MAY_OPEN),
        ),
    ],
    ids=["off-unless-asked", "on-unless-asked"],
)
def test_who_opens_thoughts_is_found_in_the_template(
    switch: str, asked: tuple[Thinking, Thinking]
) -> None:
    source = "{{ messages[0].content }}{% if add_generation_prompt %}a:" + switch + "{% endif %}"
    template = ChatTemplate(source, {})
    given: tuple[dict[str, bool], ...] = ({}, {"enable_thinking": True}, {"enable_thinking": False})
    found = []
    for kwargs in given:
        chat = Conversation(({"role": "user", "content": "x"},), chat_template_kwargs=kwargs)
        found.append(template.thinking(chat, template.render(chat)))
    assert found == [*asked, Thinking.NONE]


def test_from_the_first_token_thoughts_are_under_it_too() -> None:
    message = pb.Constraint(regex="a")
    assert read_constraint(message, Thinking.OPENED) == Constraint("regex", "a", "", CLOSES)
    assert read_constraint(message, Thinking.MAY_OPEN) == Constraint("regex", "a", OPENS, CLOSES)
    message.from_first_token = True
    assert read_constraint(message, Thinking.OPENED) == Constraint("regex", "a")


def test_equal_texts_are_compiled_once_and_what_is_kept_is_bounded() -> None:
    made = Grammars()
    made.set_vocabulary(Vocabulary(TOKENIZER.to_str(), 4096, (EOS,)))
    first = made.compile(Constraint("regex", "[ab]+"))
    say(first, "ab")
    assert not made.compile(Constraint("regex", "[ab]+")).may_end()  # it begins anew
    assert len(made._kept) == 1
    for i in range(70):
        made.compile(Constraint("choice", f'["{i}"]'))
    assert len(made._kept) == 64
