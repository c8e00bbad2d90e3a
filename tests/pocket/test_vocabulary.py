"""The tokenizer: nothing unknown, special tokens whole, digits alone, one text one spelling."""

import json
from typing import Any

import corpus
import pytest
import vocabulary
from chat import render
from draw import Draw
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import Encoder
from tokenizers import Tokenizer
from vocabulary import SPECIAL, TAGS


@given(text=st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_every_string_comes_back(text: str, encoder: Encoder) -> None:
    ids = encoder.tokenizer.encode(text, add_special_tokens=False).ids
    assert encoder.tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("token", (*SPECIAL, *TAGS))
def test_special_tokens_are_one_token(token: str, encoder: Encoder) -> None:
    assert encoder.tokenizer.encode(token).ids == [encoder.tokenizer.token_to_id(token)]


def test_digits_are_tokens_of_their_own(encoder: Encoder) -> None:
    ids = encoder.tokenizer.encode("2026 and 17").ids
    pieces = [encoder.tokenizer.decode([token]) for token in ids]
    assert [p.strip() for p in pieces if any(c.isdigit() for c in p)] == list("202617")


@pytest.mark.parametrize(
    ("text", "most"),
    [("by the river", 3), ("的一是不", 8), ("\U0001f600\U0001f43a", 8), ("a1b2c3d4", 8)],
)
def test_token_counts_are_sensible(text: str, most: int, encoder: Encoder) -> None:
    assert len(encoder.tokenizer.encode(text).ids) <= most


def test_a_few_thousand_tokens(encoder: Encoder) -> None:
    assert encoder.tokenizer.get_vocab_size() == 4096


def test_tags_are_text_that_a_decoder_keeps(encoder: Encoder) -> None:
    text = "".join(TAGS)
    ids = encoder.tokenizer.encode(text).ids
    assert ids == list(range(4096 - len(TAGS), 4096))
    assert encoder.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tags_take_the_last_ids_and_are_text(encoder: Encoder) -> None:
    """Into a tokenizer without them: all other ids stay."""
    plain = json.loads(encoder.tokenizer.to_str())
    plain["added_tokens"] = [t for t in plain["added_tokens"] if t["special"]]
    words = plain["model"]["vocab"]
    left, right = "".join(TAGS)[:2]
    for at in range(len(TAGS)):  # merges that are to go
        words[left + right * (at + 1)] = 4090 + at
        plain["model"]["merges"].append([left + right * at, right])
    tagged = vocabulary.with_tags(Tokenizer.from_str(json.dumps(plain)))
    text = "Hello by the river" + "".join(TAGS)
    assert tagged.encode(text).ids == encoder.tokenizer.encode(text).ids
    assert tagged.decode(tagged.encode(text).ids, skip_special_tokens=True) == text


def _chat(conversation: corpus.Conversation) -> list[dict[str, Any]]:
    """As a client of OpenAI's API holds it."""
    chat = []
    for message in conversation.messages:
        written: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.thoughts:
            written["reasoning_content"] = message.thoughts
        if message.calls:
            written["tool_calls"] = [
                {"type": "function", "function": {"name": c.name, "arguments": dict(c.arguments)}}
                for c in message.calls
            ]
        chat.append(written)
    return chat


def test_the_template_writes_the_training_format(encoder: Encoder, shipped: object) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(shipped))
    calls = thoughts = 0
    for index in range(60):
        made = corpus.conversation(Draw("template", index), 300)
        calls += bool(made.tools)
        thoughts += any(message.thoughts for message in made.messages)
        for thinks in (False, True):
            asked: dict[str, Any] = {
                "tools": list(made.tools) or None, "add_generation_prompt": True,
                **({"enable_thinking": True} if thinks else {}),
            }  # fmt: skip
            text = tokenizer.apply_chat_template(_chat(made), tokenize=False, **asked)
            expected = render(made.messages, ask=True, tools=made.tools, thinks=thinks)
            assert text == expected
    assert calls > 5 and thoughts > 3
    ids = tokenizer.apply_chat_template(_chat(made), return_dict=False, **asked)
    assert ids == encoder.tokenizer.encode(text).ids
    with pytest.raises(Exception, match="role must be"):
        tokenizer.apply_chat_template([{"role": "wizard", "content": "x"}], tokenize=False)


def test_training_the_tokenizer_again_gives_the_same_file(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "SAMPLE_CONVERSATIONS", 200)
    first, second = vocabulary.train(4).to_str(), vocabulary.train(4).to_str()
    assert first == second
    assert Tokenizer.from_str(first).get_vocab_size() <= encoder.tokenizer.get_vocab_size()
