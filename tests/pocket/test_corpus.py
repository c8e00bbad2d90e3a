"""The corpus: its bytes follow from its seed, and nothing held out is in it."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import corpus
import counting
import heldout
import pytest
import recall
import repeat
from cells import Maker
from draw import Draw
from rows import Encoder

TOOLS = Path(corpus.__file__).parent
CONVERSATIONS = 300


@pytest.fixture(scope="module")
def conversations() -> list[list[corpus.Message]]:
    return [
        corpus.conversation(Draw(7, "conversation", index), (256, 512, 1024, 2048)[index % 4])
        for index in range(CONVERSATIONS)
    ]


def _pairs(messages: list[corpus.Message]) -> list[tuple[str, str]]:
    turns = [m for m in messages if m.role != "system"]
    return [(q.content, a.content) for q, a in zip(turns[::2], turns[1::2], strict=True)]


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
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(m.content == m.content.strip() and m.content for m in messages)
        assert all("<|" not in m.content for m in messages)


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
            elif kind == "sums":
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
    assert digest == "3d9a57aacbe5ca21d40e8f59f4c9a04e87efef1b82dab3fb751663ededbdaec5"
