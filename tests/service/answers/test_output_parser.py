"""Answers that come in pieces, against a reference that reads them whole."""

import random
from collections.abc import Iterable

import pytest
from support.answer_reference import Whole, joined, read
from support.answers import TOOLS, Answer, invent

from quire.service.answers.events import Event, Kind, Reading, Syntax
from quire.service.answers.parser import OutputParser

FAMILIES = [(syntax, opened) for syntax in Syntax for opened in (False, True)]
SEEDS = pytest.mark.parametrize(
    "seeds", [range(30), pytest.param(range(30, 150), marks=pytest.mark.long)], ids=str
)


def parsed(pieces: Iterable[str], reading: Reading) -> Whole:
    parser = OutputParser(reading)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return joined(events + parser.finish())


def splits(answer: Answer, seed: int) -> Iterable[list[str]]:
    """Every split into two, character by character, and random ones into many."""
    raw, draw = answer.raw, random.Random(seed)
    for at in range(len(raw) + 1):
        yield [raw[:at], raw[at:]]
    yield list(raw)
    for _ in range(5):
        cuts = sorted(draw.choices(range(len(raw) + 1), k=draw.randrange(1, 12)))
        yield [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]


@pytest.mark.parametrize(("syntax", "opened"), FAMILIES)
@SEEDS
def test_every_split_reads_as_the_whole(syntax: Syntax, opened: bool, seeds: range) -> None:
    for seed in seeds:
        answer = invent(seed, syntax, opened=opened)
        expected = read(answer.raw, answer.reading)
        if answer.said is not None:
            assert expected == answer.said, answer.raw
        for pieces in splits(answer, seed):
            assert parsed(pieces, answer.reading) == expected, (answer.raw, pieces)


@pytest.mark.parametrize(("syntax", "opened"), FAMILIES)
@SEEDS
def test_an_answer_that_is_cut_anywhere_reads_as_its_reference(
    syntax: Syntax, opened: bool, seeds: range
) -> None:
    for seed in seeds:
        answer = invent(seed, syntax, opened=opened)
        for end in range(len(answer.raw)):
            raw = answer.raw[:end]
            assert parsed(raw, answer.reading) == read(raw, answer.reading), raw


@pytest.mark.parametrize(("syntax", "opened"), FAMILIES)
@SEEDS
def test_what_was_said_up_to_a_place_is_never_taken_back(
    syntax: Syntax, opened: bool, seeds: range
) -> None:
    """Resuming behind any character gives the rest: the events up to there say the same whether
    more comes or not, and where all is certain they say all."""
    for seed in seeds:
        answer = invent(seed, syntax, opened=opened)
        live, told = OutputParser(answer.reading), list[Event]()
        for end, character in enumerate(answer.raw, 1):
            told += live.feed(character)
            again = OutputParser(answer.reading)
            assert joined(again.feed(answer.raw[:end])) == joined(told)
            if live.certain:
                assert joined([*told, *again.finish()]) == joined(told)


HERMES = Reading(Syntax.HERMES, thinks=True)
XML = Reading(Syntax.XML, thinks=True, tools=TOOLS)
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


def test_line_breaks_around_tags_belong_to_them() -> None:
    raw = f"<think>\nhm\n</think>\n\nLet me see.\n{CALL}\n{CALL}"
    assert parsed([raw], HERMES) == Whole("hm", "Let me see.", [("f", '{"a": 1}')] * 2)


def test_arguments_of_hermes_come_as_they_are_written() -> None:
    written = '{"b" :\t[1.50, "\\u00e9 \\"} </tool_call>"],\n "a":{}}'
    raw = f'<tool_call>{{"name":"f","arguments":{written}}}</tool_call>'
    assert parsed(list(raw), HERMES).calls == [("f", written)]


def test_arguments_come_piece_by_piece() -> None:
    parser = OutputParser(HERMES)
    parser.feed('<tool_call>\n{"name": "f", "arguments": {"a": "on')
    assert parser.feed("ce <b> <") == [Event(Kind.ARGUMENTS, "ce <b> <", 0)]
    assert parser.certain
    xml = OutputParser(XML)
    xml.feed("<tool_call>\n<function=weather>\n<parameter=city>\nKö")
    assert xml.feed('ln "') == [Event(Kind.ARGUMENTS, 'ln \\"', 0)]


def test_markup_that_is_none_is_text() -> None:
    for raw in (
        "<tool_call>no",
        "<tool_call>\n{}",
        '<tool_call>{"name": "f", "arguments": 3}</tool_call>',
        '<tool_call>{"nam',
        "1 < 2",
        "x <think>no</think>",
    ):
        for reading in (HERMES, XML):
            assert parsed(list(raw), reading) == Whole(text=raw)
    assert parsed(list(f"<{CALL}"), HERMES) == Whole(text="<", calls=[("f", '{"a": 1}')])
    raw = f"<tool_call>\n{CALL}"
    assert parsed(list(raw), HERMES) == Whole(text="<tool_call>", calls=[("f", '{"a": 1}')])


def test_calls_inside_thoughts_are_thoughts() -> None:
    raw = f"<think>\n{CALL}\n</think>\n\nok"
    assert parsed(list(raw), HERMES) == Whole(CALL, "ok")
    opened = Reading(Syntax.HERMES, thinks=True, thinking=True)
    assert parsed(list("cut in thou</th"), opened) == Whole("cut in thou</th")


def test_arguments_that_are_no_json_are_kept_whole() -> None:
    raw = '<tool_call>{"name": "f", "arguments": {"a": "say "hi""}}\n</tool_call>\n' + CALL
    broken, good = parsed(list(raw), HERMES).calls
    assert broken == ("f", '{"a": "say "hi""}}\n')
    assert good == ("f", '{"a": 1}')


def test_a_call_without_its_closing_tag_does_not_swallow_the_next() -> None:
    raw = CALL.removesuffix("</tool_call>") + CALL
    assert parsed(list(raw), HERMES) == Whole(calls=[("f", '{"a": 1}')] * 2)


def test_values_become_json_by_the_schema() -> None:
    values = {
        "city": ("12", '"12"'),
        "days": ("12", "12"),
        "flag": ("True", "true"),
        "maybe": ("None", "null"),
        "deep": ('{"a": [1]}', '{"a": [1]}'),
        "list": ("not a list", '"not a list"'),
        "units": ("c", '"c"'),
        "unknown": ("7", '"7"'),
    }
    lines = [f"<parameter={k}>\n{v}\n</parameter>\n" for k, (v, _) in values.items()]
    raw = f"<tool_call>\n<function=weather>\n{''.join(lines)}</function>\n</tool_call>"
    written = ", ".join(f'"{k}": {v}' for k, (_, v) in values.items())
    assert parsed(list(raw), XML).calls == [("weather", "{" + written + "}")]


def test_a_tag_inside_a_value_does_not_end_it() -> None:
    code = "a\n</parameter>\nb </function> <tool_call>"
    raw = (
        f"<tool_call>\n<function=run_code>\n<parameter=code>\n{code}\n</parameter>\n"
        "</function>\n</tool_call>"
    )
    escaped = code.replace("\n", "\\n")
    assert parsed(list(raw), XML).calls == [("run_code", f'{{"code": "{escaped}"}}')]


def test_a_call_that_is_cut_stays_open() -> None:
    parser = OutputParser(XML)
    parser.feed("<tool_call>\n<function=weather>\n<parameter=days>\n1")
    assert parser.in_call
    assert not parser.certain
    assert parser.finish() == [Event(Kind.ARGUMENTS, "1", 0)]
    cut = "<tool_call>\n<function=weather>\n<parameter=city>\nx\n</parameter>\n"
    assert parsed([cut], XML) == Whole(calls=[("weather", '{"city": "x')])


def test_without_tools_calls_are_text() -> None:
    raw = f"<think>\nhm\n</think>\n\n{CALL}"
    assert parsed(list(raw), Reading(thinks=True)) == Whole("hm", CALL)
    assert parsed(list(raw), Reading()) == Whole(text=raw)


def test_calls_after_the_last_allowed_one_are_text() -> None:
    reading = Reading(Syntax.HERMES, most_calls=1)
    assert parsed(list(CALL + CALL), reading) == Whole(text=CALL, calls=[("f", '{"a": 1}')])


@pytest.mark.parametrize("raw", ["<tool_call>" + " " * 500, "\n" * 500])
def test_what_is_held_is_not_copied_with_each_character(raw: str) -> None:
    """A client can resume whole megabytes of it."""
    parser = OutputParser(Reading(syntax=Syntax.HERMES, tools={}))
    parser.feed(raw)
    assert parser._steps.held == raw
    assert {len(piece) for piece in parser._steps._held} == {1}
