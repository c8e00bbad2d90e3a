"""What is too many is refused by its number, before any of it is looked at."""

from collections.abc import Callable
from typing import Any

import pytest

from quire.clients.openai import fields
from quire.clients.openai.faults import BadBody
from quire.clients.openai.fields import put_all
from quire.clients.openai.vectors import MAX_TEXTS, read_embeddings, read_rerank
from quire.service.rpc import pooled_requests


class Unread(list[Any]):
    """A list that nobody may go through."""

    def __iter__(self) -> Any:
        raise AssertionError("an item is looked at")


def test_the_server_s_limit_is_the_reader_s() -> None:
    assert MAX_TEXTS == pooled_requests.MAX_TEXTS


@pytest.mark.parametrize(
    ("read", "body", "field"),
    [
        (read_embeddings, {"input": Unread(["a"] * (MAX_TEXTS + 1))}, "input"),
        (read_embeddings, {"input": Unread([[1]] * (MAX_TEXTS + 1))}, "input"),
        (
            read_rerank,
            {"query": "a", "documents": Unread(["a"] * (MAX_TEXTS + 1))},
            "documents",
        ),
    ],
)
def test_texts_are_counted_before_they_are_read(
    read: Callable[[Any], Any], body: dict[str, Any], field: str
) -> None:
    with pytest.raises(BadBody) as caught:
        read(body)
    assert str(caught.value) == f"{field}: {MAX_TEXTS + 1}: must be between 1 and {MAX_TEXTS}"


def test_very_many_values_are_written_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "_AT_ONCE", 3)
    pieces: list[list[int]] = []
    field = type("Field", (), {"extend": lambda _self, values: pieces.append(values)})()
    put_all(field, list(range(7)))
    assert pieces == [[0, 1, 2], [3, 4, 5], [6]]
