"""Text in linear steps: stop strings and resumed ids, counted in steps, and equal to a naive
search."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.service.text.stop_strings import StopAutomaton, StopFinder, StopMatch
from quire.service.text.text_stream import Piece, TextStream


def naive(text: str, stops: list[str]) -> StopMatch | None:
    """The first to be complete, of those the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return StopMatch(longest, end - len(longest), end)
    return None


def naive_held(text: str, stops: list[str]) -> int:
    return max(
        (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0
    )


@settings(max_examples=400, deadline=None)
@given(
    text=st.text("ab]^-\\é", max_size=40),
    stops=st.lists(st.text("ab]^-\\é", min_size=1, max_size=6), min_size=1, max_size=6),
    data=st.data(),
)
def test_the_machine_finds_what_a_naive_search_finds(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    finder, at, found = StopFinder(stops), 0, None
    while at < len(text) and found is None:
        size = data.draw(st.integers(1, 5))
        found = finder.feed(text[at : at + size])
        at = min(at + size, len(text))
        if found is None:
            assert finder.held == naive_held(text[:at], stops)
    assert found == naive(text, stops)


def test_a_stop_string_that_begins_within_one_that_breaks_is_found() -> None:
    assert StopFinder(["aab"]).feed("aaab") == StopMatch("aab", 1, 4)
    assert StopFinder(["abac", "bad"]).feed("abad") == StopMatch("bad", 1, 4)
    finder = StopFinder(["abab]"])
    assert finder.feed("ababab") is None and finder.held == 4


@settings(max_examples=200, deadline=None)
@given(
    parts=st.lists(st.tuples(st.text("ab", max_size=4), st.booleans()), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4),
)
def test_what_is_not_honoured_is_passed_over(
    parts: list[tuple[str, bool]], stops: list[str]
) -> None:
    finder, text = StopFinder(stops), ""
    for piece, honour in parts:
        before, text = len(text), text + piece
        ends = [m for n in range(before + 1, len(text) + 1) if (m := ending_at(text[:n], stops))]
        match = finder.feed(piece, honour=honour)
        if honour and ends:
            assert match == ends[0]
            return
        assert match is None
        assert finder.held == naive_held(text, stops)


@pytest.mark.parametrize("stops", [["b", "ab", "aab"], ["aab", "ab", "b"], ["ab", "b", "aab"]])
def test_of_those_that_end_together_the_longest_is_told(stops: list[str]) -> None:
    assert StopFinder(stops).feed("xaab") == StopMatch("aab", 1, 4)
    assert StopFinder(stops).feed("xab") == StopMatch("ab", 1, 3)


def ending_at(text: str, stops: list[str]) -> StopMatch | None:
    found = [stop for stop in stops if text.endswith(stop)]
    if not found:
        return None
    longest = max(found, key=len)
    return StopMatch(longest, len(text) - len(longest), len(text))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Looks at nodes, counted."""
    counted, child = [0], StopAutomaton.child

    def counting(self: StopAutomaton, node: int, character: str) -> int:
        counted[0] += 1
        return child(self, node, character)

    monkeypatch.setattr(StopAutomaton, "child", counting)
    return counted


@pytest.mark.parametrize("count", [1, 16])
def test_steps_grow_with_the_text_alone(steps: list[int], count: int) -> None:
    """Stop strings that nearly match everywhere: the worst case for a naive search."""
    stops = ["a" * (255 - i) + "b" for i in range(count)]
    automaton = StopAutomaton(stops)
    assert steps[0] <= 3 * sum(map(len, stops))
    steps[0] = 0
    finder = StopFinder(automaton)
    text = "a" * 20_000
    for at in range(0, len(text), 8):
        assert finder.feed(text[at : at + 8]) is None
    assert steps[0] <= 2 * len(text) + 256
    assert finder.held == 255


def test_characters_that_begin_nothing_cost_no_step(steps: list[int]) -> None:
    finder = StopFinder(["END", "stop"])
    steps[0] = 0
    assert finder.feed("-" * 100_000) is None
    assert steps[0] == 0


def test_resumed_ids_are_gone_through_once_and_nothing_of_them_is_kept(steps: list[int]) -> None:
    pieces = [b"a" * 64, b"b"]
    stops = ["a" * 255 + chr(0x100 + i) for i in range(16)]
    stream = TextStream(pieces, stops)
    steps[0] = 0
    ids = [0] * 2_000
    assert stream.replay(ids) is None
    assert steps[0] <= 2 * 64 * len(ids) + 256
    assert stream.take() is None
    stream.push(1)
    piece = stream.take()
    assert piece is not None
    assert (piece.ids, piece.text) == ([1], "b")


def test_what_waits_is_never_joined_or_looked_at_again() -> None:
    """A part of a character, and then tokens without text: no place where the text is whole."""
    pieces = [b"\xe2", b"", b"\x82\xac"]
    stream, taken = TextStream(pieces, ["x"]), 0
    stream.push(0)
    for _ in range(20_000):
        stream.push(1)
        assert stream.take() is None
        taken += len(stream._marks)
    assert taken == 0  # no marks that each `take` would pass
    stream.push(2)
    piece = stream.take()
    assert piece is not None
    assert piece.text == "€"
    assert len(piece.ids) == 20_002


def test_parts_joined_are_the_whole_and_none_is_larger_than_asked() -> None:
    piece = Piece(list(range(10)), [str(i) for i in range(10)], None)
    parts = list(piece.parts(3))
    assert [len(part.ids) for part in parts] == [3, 3, 3, 1]
    assert [i for part in parts for i in part.ids] == piece.ids
    assert "".join(part.text for part in parts) == piece.text


def test_a_stop_string_inside_a_token_cuts_it() -> None:
    """As with an added token that is not special: `</think>` is one token, and has a text."""
    pieces = [b"so", b"</think>", b"\n"]
    for include, text in ((False, "so</thin"), (True, "so</think>\n")):
        stream = TextStream(pieces, ["k>\n"], include_stop_str_in_output=include)
        assert stream.push(0) is None
        assert stream.push(1) is None
        match = stream.push(2)
        assert match is not None and match.string == "k>\n"
        piece = stream.take()
        assert piece is not None
        assert (piece.ids, piece.text) == ([0, 1, 2], text)


def test_a_stop_string_may_be_all_of_the_first_token() -> None:
    stream = TextStream([b"stop"], ["stop"])
    match = stream.push(0)
    assert match == StopMatch("stop", 0, 4)
    piece = stream.take()
    assert piece is not None
    assert (piece.ids, piece.text) == ([0], "")
