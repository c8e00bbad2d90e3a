"""JSON of any size is read and written as `json` does it; where there is much, value by value."""

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.clients import large_json
from quire.clients.large_json import LARGE, MANY, MAX_DEPTH, RepeatedKey, TooManyParts

FAR = " " * LARGE  # puts any text behind the border
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=20,
)


def outcome(work: Callable[[], Any]) -> str:
    try:
        return repr(work())
    except RecursionError:
        return "too deep"
    except ValueError as error:
        return f"{type(error).__name__}: {error}"


@given(VALUES, st.booleans())
def test_what_is_written_and_read_is_what_json_does(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_json, "MANY", 0)
        patch.setattr(large_json, "LARGE", 0)
        assert large_json.dumps(value, ensure_ascii=ascii_only) == text
        assert repr(large_json.loads(text)) == repr(json.loads(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1,]",
        '{"a" 1}',
        '{"a":1,}',
        "01",
        "nul",
        '["\n"]',
        '"\\ud800"',
        "\ufeff{}",
        "{} {}",
        '{"a":1 "b":2}',
        '{"a":}',
        '{"a": [1,]}',
        '{ "a" : 1 , "b" : 2 , }',
        "{1:2}",
        '{"a":1, ,}',
        '{"a":\n"b',
        "[1, 2, 3, ]",
        "[1, 2, 03]",
        "[1, 2, ,3]",
        "[1, 2 3]",
        "[1, 2, -]",
        "[1, 2",
        "[1, 2,",
        *(f"[{number}]" for number in ("1٢", "1.٢", "1.5٢", "1e٢", "1e+٢", "-1२", "٢", "1２")),
    ],
)
def test_what_is_refused_is_refused_with_the_same_words(text: str) -> None:
    for whole in (text, text + FAR, " " * LARGE + text, "[" * LARGE + text, "1" * LARGE + text):
        assert outcome(lambda: large_json.loads(whole)) == outcome(lambda: json.loads(whole))  # noqa: B023


def test_a_key_that_comes_again_is_refused_before_what_follows_is_read() -> None:
    for behind in (FAR, ', "b": no JSON' + FAR):
        with pytest.raises(RepeatedKey, match='"a" stands twice') as caught:
            large_json.loads('[{"a": 1}, {"a": 1, "b": {"a": 1}, "a": 2' + behind)
        assert caught.value.key == "a"


def test_what_is_deep_is_refused_before_much_of_it_is_read() -> None:
    """And what is raised keeps no frames of what was read."""
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        inside = FAR + opening * MAX_DEPTH + "1" + closing * MAX_DEPTH
        assert large_json.loads(inside) == json.loads(inside)
        deeper = FAR + opening * 50 * MAX_DEPTH
        with pytest.raises(RecursionError, match=f"more than {MAX_DEPTH}") as caught:
            large_json.loads(deeper)
        assert len(caught.traceback) == 2
        assert turns(lambda: outcome(lambda: large_json.loads(deeper))) < 10 * MAX_DEPTH  # noqa: B023


def test_a_large_text_has_so_many_parts_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_json, "MAX_PARTS", 4)
    for text in ('[[], {}, {"a": [1, 2, 3]}]', '{"a": 1, "b": 2, "c": 3, "d": 4}', "[[[[[]]]]]"):
        with pytest.raises(TooManyParts, match="more than 4 objects, lists and keys"):
            large_json.loads(text + FAR)
        assert large_json.loads(text) == json.loads(text)
    for text in ('[{"a": [1, 2, 3, 4, 5, 6]}]', '{"a": 1, "b": 2, "c": "3"}'):
        assert large_json.loads(text + FAR) == json.loads(text)


IDS = st.lists(
    st.integers(0, 1 << 40) | st.sampled_from([-1, 0.5, "1,2", None, [1, 2], {"a": [3, 4]}]),
    max_size=40,
)


@given(IDS, st.sampled_from([",", ", ", " ,\n\t"]))
def test_runs_of_whole_numbers_are_read_as_one_by_one(ids: list[Any], comma: str) -> None:
    text = json.dumps(ids, separators=(comma, ":")) + FAR
    assert repr(large_json.loads(text)) == repr(json.loads(text))


def test_ids_are_read_in_runs_of_bounded_length() -> None:
    count = 100_000
    text = json.dumps(list(range(count))) + FAR
    assert count / 1024 < turns(lambda: large_json.loads(text), "c_call") < count / 100


def test_a_pattern_goes_back_over_little_white_space() -> None:
    """It holds all threads meanwhile."""
    for pattern in (large_json._RUN, large_json._FIRST, large_json._COLON, large_json._NEXT):
        spaces = pattern.pattern.count(r"[ \t\n\r]")
        bounded = pattern.pattern.count(r"[ \t\n\r]{0,16}") + pattern.pattern.count(r"[ \t\n\r]*+")
        assert spaces == bounded
    wide = "[" + ",".join(f"{' ' * (n % 40)}{n}" for n in range(20_000)) + "]"
    assert large_json.loads(wide) == list(range(20_000))


def test_what_json_cannot_hold_is_refused_however_much_there_is() -> None:
    for few in ([float("inf")], [float("nan")]):
        for value in (few, few * 2 * MANY):
            with pytest.raises(ValueError, match="Out of range float"):
                large_json.dumps(value, allow_nan=False)
    holds_itself: list[Any] = []
    holds_itself.append(holds_itself)
    with pytest.raises(ValueError, match="Circular"):
        large_json.dumps(holds_itself)


def turns(work: Callable[[], Any], counted: str = "call") -> int:
    """How often the interpreter comes by while work() runs: there it changes threads. counted:
    calls of Python's functions, or of C's."""
    count = 0

    def come_by(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event == counted

    sys.setprofile(come_by)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_others_are_let_in_between_any_two_values_where_there_are_many() -> None:
    value = {str(i): [i, "text"] for i in range(MANY)}
    text = json.dumps(value)
    assert turns(lambda: json.loads(text + FAR)) < 20  # what must not be
    assert turns(lambda: large_json.loads(text + FAR)) > 2 * MANY
    assert turns(lambda: large_json.dumps(value)) > 2 * MANY
    assert turns(lambda: large_json.loads('{"a": 1}')) < 20  # not for small ones
