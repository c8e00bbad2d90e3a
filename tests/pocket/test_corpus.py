"""The corpus: its bytes follow from its seed, and nothing held out is in it."""

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import corpus
import counting
import heldout
import jsonschema
import objects
import pytest
import raw
import recall
import repeat
import toolbox
from cells import Maker
from draw import Draw
from rows import Encoder

TOOLS = Path(corpus.__file__).parent
CONVERSATIONS = 300


@pytest.fixture(scope="module")
def made() -> list[corpus.Conversation]:
    return [
        corpus.conversation(Draw(7, "conversation", index), (256, 512, 1024, 2048)[index % 4])
        for index in range(CONVERSATIONS)
    ]


@pytest.fixture(scope="module")
def conversations(made: list[corpus.Conversation]) -> list[list[corpus.Message]]:
    return [conversation.messages for conversation in made]


def _pairs(messages: list[corpus.Message]) -> list[tuple[str, str]]:
    """The questions that were answered at once, and their answers."""
    after = itertools.pairwise(messages)
    return [(q.content, a.content) for q, a in after if q.role == "user" and not a.calls]


def test_the_bytes_follow_from_the_seed_in_another_process(tmp_path: Path) -> None:
    out = tmp_path / "corpus.txt"
    subprocess.run(
        [sys.executable, str(TOOLS / "corpus.py"), "--seed", "3", "--conversations", "40"],
        check=True,
        stdout=out.open("wb"),
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )
    here = "".join(
        corpus.conversation_text(3, index, 256) + corpus.END_OF_TEXT + "\n" for index in range(40)
    )
    assert out.read_bytes() == here.encode()


def test_seeds_and_indices_differ() -> None:
    texts = {corpus.conversation_text(seed, index, 256) for seed in (0, 1) for index in range(50)}
    assert len(texts) == 100


def test_conversations_have_the_chat_format(conversations: list[list[corpus.Message]]) -> None:
    for messages in conversations:
        roles = [m.role for m in messages]
        if roles[0] == "system":
            roles = roles[1:]
        written = "".join(role[0] for role in roles)
        assert re.fullmatch("(ua(t+a)*)*", written), roles
        assert all(m.content == m.content.strip() and (m.content or m.calls) for m in messages)
        assert all("<|" not in m.content for m in messages)


def test_each_call_is_of_a_tool_described_and_is_answered(made: list[corpus.Conversation]) -> None:
    calls = 0
    for conversation in made:
        described = {tool["function"]["name"]: tool["function"] for tool in conversation.tools}
        for at, message in enumerate(conversation.messages):
            after = conversation.messages[at + 1 : at + 1 + len(message.calls)]
            assert [m.role for m in after] == ["tool"] * len(message.calls)
            for call in message.calls:
                schema = described[call.name]["parameters"]
                assert set(schema.get("required", ())) <= set(call.arguments)
                jsonschema.validate(call.arguments, schema)
                calls += 1
    assert calls > 100


def test_what_is_said_of_a_result_was_returned(made: list[corpus.Conversation]) -> None:
    told = 0
    for conversation in made:
        for before, after in itertools.pairwise(conversation.messages):
            if before.role == "tool" and after.role == "assistant" and not after.calls:
                result = re.sub(r'\{"result": "?|"?\}$', "", before.content)
                assert result in after.content
                told += 1
    assert told > 50


def test_where_thinking_is_on_a_thought_stands_before_the_last_answer(
    made: list[corpus.Conversation],
) -> None:
    thinking = [c for c in made if any(m.thoughts for m in c.messages)]
    assert 0.05 < len(thinking) / len(made) < 0.3
    for conversation in thinking:
        assert conversation.messages[-1].thoughts
        assert all(not m.thoughts for m in conversation.messages if m.role != "assistant")
    kept = [all(m.thoughts for m in c.messages if m.role == "assistant") for c in thinking]
    assert any(kept) and not all(kept)


def test_objects_are_json_of_what_was_asked() -> None:
    for index in range(300):
        question, answer = objects.turn(Draw("objects", index))
        found = json.loads(answer)
        assert isinstance(found, dict) and answer == json.dumps(found)
        for key, value in found.items():
            assert key in question
            words = value if isinstance(value, list) else [value]
            assert all(str(word) in question for word in words)


def test_plain_texts_end_as_their_beginning_decides() -> None:
    for index in range(100):
        given, rest = raw.again(Draw("again", index), 5)
        fact = given.rsplit("Again: ", 1)[1] + rest
        assert rest.startswith(" ") and given.count(fact) == 1
        given, rest = raw.count(Draw("count", index))
        assert given.endswith(":") and rest.endswith(".")
        assert raw.text(Draw("raw", index), 300).strip()


def test_no_held_out_name_is_a_word_of_the_corpus(
    conversations: list[list[corpus.Message]],
) -> None:
    assert len(heldout.HELD_OUT_NAMES) > 1000
    text = "\n".join(m.content for messages in conversations for m in messages)
    words = {word.lower() for word in re.findall(r"[A-Za-z]+", text)}
    assert words & {name.lower() for name in heldout.TRAINED_NAMES}
    assert not words & {name.lower() for name in heldout.HELD_OUT_NAMES}


def test_no_held_out_pair_is_added_in_the_corpus(conversations: list[list[corpus.Message]]) -> None:
    seen = 0
    for messages in conversations:
        for question, answer in _pairs(messages):
            if found := re.fullmatch(r"(\d+) \+ (\d+) = (\d+)", answer):
                a, b, c = map(int, found.groups())
                assert a + b == c and not heldout.pair_held_out(a, b), question
                seen += 1
            elif found := re.fullmatch(r"(\d+) - (\d+) = (\d+)", answer):
                c, a, b = map(int, found.groups())
                assert c - a == b and not heldout.pair_held_out(a, b), question
    assert seen > 100


def test_a_tenth_of_the_pairs_is_held_out_whatever_their_order() -> None:
    held = [(a, b) for a in range(100) for b in range(100) if heldout.pair_held_out(a, b)]
    assert 0.08 < len(held) / 10_000 < 0.12
    assert all(heldout.pair_held_out(b, a) for a, b in held)


def test_no_held_out_payload_or_range_is_answered_in_the_corpus(
    conversations: list[list[corpus.Message]],
) -> None:
    asked = re.compile(r"(?:Count|List)[a-z ]* from (\S+) to (\S+)\.")
    words = {"Count from": "up", "List the numbers": "up", "Count down": "down"}
    words |= {"Count by": "twos", "List the letters": "letters"}
    repeated = ranges = 0
    for messages in conversations:
        for question, answer in _pairs(messages):
            if question.endswith(answer) and "epeat" in question:
                assert not heldout.repeat_held_out(answer)
                repeated += 1
            if found := asked.fullmatch(question):
                kind = next((k for head, k in words.items() if question.startswith(head)), None)
                if kind is not None:
                    assert not heldout.range_held_out(kind, *found.groups())
                    ranges += 1
    assert repeated > 100 and ranges > 50


def test_evaluation_draws_only_what_is_held_out(encoder: Encoder) -> None:
    for cell in Maker(encoder.tokenizer).cells():
        for case in cell.cases(5, 3):
            kind = cell.name.split()[0]
            if kind == "repeat":
                assert heldout.repeat_held_out(case.answer)
                assert case.answer in case.prompt[-1].content
            elif kind == "recall":
                assert heldout.contains_held_out_name(case.prompt[-1].content)
                assert (case.answer in _stated(case.prompt)) != ("removed" in cell.name)
            elif cell.name == "tool calls":
                assert "<tool_call>" in case.answer or case.answer == toolbox.NO_TOOL
            elif kind == "sums" or cell.name.startswith("thinking"):
                a, b = map(int, re.findall(r"\d+", case.answer)[:2])
                assert heldout.pair_held_out(a, b)


def _stated(prompt: list[corpus.Message]) -> str:
    """The first message with each statement in both of its wordings."""
    text = prompt[0].content
    both = re.sub(r"The (\w+) of (\w+) is", r"\2's \1 is", text)
    return text + both + re.sub(r"(\w+)'s (\w+) is", r"The \2 of \1 is", text)


def test_every_fact_has_one_answer() -> None:
    for index in range(100):
        stated = recall.facts(Draw(index), 30)
        assert len({(f.name, f.attribute) for f in stated}) == len(stated)


def test_what_was_not_stated_is_said_to_be_untold() -> None:
    for index in range(200):
        draw = Draw("absent", index)
        stated = recall.facts(draw, 12)
        question, reply = recall.absent_question(draw, stated)
        assert reply == recall.UNTOLD
        assert all(question != fact.question(form)[0] for fact in stated for form in (0, 1))


@pytest.mark.parametrize("kind", repeat.KINDS)
def test_payload_lengths_are_near_what_was_asked(kind: str, encoder: Encoder) -> None:
    for tokens in (40, 300):
        lengths = [
            len(encoder.tokenizer.encode(repeat.payload(Draw(i), kind, tokens, False)).ids)
            for i in range(40)
        ]
        assert 0.7 * tokens < sum(lengths) / 40 < 1.6 * tokens


def test_payloads_reach_three_hundred_tokens(encoder: Encoder) -> None:
    longest = max(
        len(encoder.tokenizer.encode(repeat.turn(Draw(index), corpus.LONGEST_PAYLOAD)[1]).ids)
        for index in range(200)
    )
    assert longest >= 300


def test_counting_is_right() -> None:
    for index in range(200):
        question, answer = counting.range_turn(Draw(index), kind="up")
        low, high = map(int, re.findall(r"\d+", question))
        assert answer == ", ".join(map(str, range(low, high + 1)))


def test_the_sample_has_not_drifted() -> None:
    """Any change of a grammar, a list or an order changes every model: it must be meant."""
    text = "".join(corpus.conversation_text(0, index, 300) for index in range(100))
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "f8c8d930c8b636d361bc57d6baca978e325964d04fbe4a8ed421efcb319e7f5e"
