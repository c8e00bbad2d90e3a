"""Detokenizer, stop strings, and ids that travel with their text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.service.models import pocket
from quire.service.text.detokenizer import Detokenizer
from quire.service.text.stop_strings import StopFinder
from quire.service.text.text_stream import TextStream
from quire.service.text.tokenizer import Tokenizer, load

VOCAB_SIZE = 4096


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load(pocket.directory(), VOCAB_SIZE)


def decoded(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.backend.decode(ids, skip_special_tokens=True)


TEXTS = [
    "Hello world",
    "naïve café",
    "日本語のテキスト",
    "👩‍👩‍👧‍👦 family 👍🏽",
    "עברית",
    "हिन्दी",
    "\n\t  x",
]


@pytest.mark.parametrize("text", TEXTS)
def test_deltas_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer.text_pieces)
    pieces = [detokenizer.push(i) for i in ids]
    assert "".join(pieces) + detokenizer.flush() == text == decoded(tokenizer, ids)
    assert all("�" not in piece for piece in pieces)


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=40))
def test_any_ids_decode_as_the_library_does(ids: list[int]) -> None:
    tokenizer = load_once()
    detokenizer = Detokenizer(tokenizer.text_pieces)
    text = "".join(detokenizer.push(i) for i in ids) + detokenizer.flush()
    assert text == decoded(tokenizer, ids)


_loaded: list[Tokenizer] = []


def load_once() -> Tokenizer:
    if not _loaded:
        _loaded.append(load(pocket.directory(), VOCAB_SIZE))
    return _loaded[0]


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("ab\n", max_size=40),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=5), min_size=1, max_size=4),
    data=st.data(),
)
def test_a_stop_is_found_wherever_the_pieces_are_cut(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    ends = {s: text.find(s) + len(s) for s in stops if s in text}
    expected = min(ends.values(), default=None)
    finder, at, found = StopFinder(stops), 0, None
    while at < len(text) and found is None:
        size = data.draw(st.integers(1, 4))
        piece = text[at : at + size]
        at += len(piece)
        found = finder.feed(piece)
        if found is None:
            safe = text[: at - finder.held]
            assert all(s not in safe for s in stops)
            rest = text[at - finder.held : at]
            assert not rest or any(s.startswith(rest) for s in stops)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert found.end == expected
        assert text[found.start : found.end] == found.string
        assert len(found.string) == max(len(s) for s, e in ends.items() if e == expected)


def test_a_stop_before_min_tokens_is_passed_over() -> None:
    finder = StopFinder(["ab", "abc"])
    assert finder.feed("ab", honour=False) is None
    assert finder.feed("x") is None
    match = finder.feed("ab")
    assert match is not None
    assert (match.start, match.end) == (3, 5)


PIECES = [b"a", b"b", b"ab", b"\xc3", b"\xa9", b"x\xe2\x82", b"\xac", b"", b"\xf0\x9f\x98\x80"]


@settings(max_examples=400, deadline=None)
@given(
    ids=st.lists(st.integers(0, len(PIECES) - 1), max_size=30),
    stops=st.lists(st.sampled_from(["ab", "ba", "é", "bab", "€a"]), max_size=2),
    include=st.booleans(),
    minimum=st.integers(0, 10),
    cut=st.integers(0, 30),
)
def test_a_resumed_stream_goes_on_as_if_unbroken(
    ids: list[int], stops: list[str], include: bool, minimum: int, cut: int
) -> None:
    def open_stream() -> TextStream:
        return TextStream(PIECES, stops, include_stop_str_in_output=include, min_tokens=minimum)

    whole, sent, ended = open_stream(), [], False
    for token_id in ids:
        ended = whole.push(token_id) is not None
        sent.append(whole.take())
        if ended:
            break
    if not ended:
        sent.append(whole.end())
    pieces = [p for p in sent if p is not None]
    count = sum(len(p.ids) for p in pieces)
    # The stream breaks after some messages: the client holds their ids and their text.
    held, text = [], ""
    for piece in pieces[:cut]:
        held += piece.ids
        text += piece.text
    if len(held) == count:
        return  # there is nothing left to resume
    again = open_stream()
    assert again.replay(held) is None
    ended = False
    for token_id in ids[len(held) :]:
        ended = again.push(token_id) is not None
        piece = again.take()
        if piece is not None:
            held += piece.ids
            text += piece.text
        if ended:
            break
    if not ended and (piece := again.end()) is not None:
        held += piece.ids
        text += piece.text
    assert held == [i for p in pieces for i in p.ids] == ids[:count]
    assert text == "".join(p.text for p in pieces)


def test_special_tokens_make_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|im_start|>b", add_special_tokens=False)
    assert 1 in ids
    stream = TextStream(tokenizer.text_pieces)
    text = ""
    for i in ids:
        stream.push(i)
        piece = stream.take()
        assert piece is not None and len(piece.ids) == 1
        text += piece.text
    assert text == "ab"
