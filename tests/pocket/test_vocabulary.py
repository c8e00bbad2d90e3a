"""The tokenizer: nothing unknown, special tokens whole, digits alone, one text one spelling."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import Encoder
from tokenizers import Tokenizer
from vocabulary import SPECIAL


@given(text=st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_every_string_comes_back(text: str, encoder: Encoder) -> None:
    ids = encoder.tokenizer.encode(text, add_special_tokens=False).ids
    assert encoder.tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("token", SPECIAL)
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


def test_the_template_writes_the_training_format(encoder: Encoder, shipped: object) -> None:
    import corpus
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(shipped))
    messages = [
        corpus.Message("system", "Be brief."),
        corpus.Message("user", "Hi"),
        corpus.Message("assistant", "Hello!"),
        corpus.Message("user", "你好 \U0001f600"),
    ]
    chat = [{"role": m.role, "content": m.content} for m in messages]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == corpus.render(messages, ask=True)
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ids == encoder.tokenizer.encode(text).ids
    with pytest.raises(Exception, match="role must be"):
        tokenizer.apply_chat_template([{"role": "wizard", "content": "x"}], tokenize=False)


def test_training_the_tokenizer_again_gives_the_same_file(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vocabulary

    monkeypatch.setattr(vocabulary, "SAMPLE_CONVERSATIONS", 200)
    first, second = vocabulary.train(4).to_str(), vocabulary.train(4).to_str()
    assert first == second
    assert Tokenizer.from_str(first).get_vocab_size() <= encoder.tokenizer.get_vocab_size()
