"""What is refused of a body before anything is made of it."""

import pytest

from quire.service.errors import Refusal
from quire.service.openai.bodies import parse


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "not JSON"),
        (b"[1]", "must be a JSON object"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1e999}', "beyond the range"),
        (b'{"a": ' + b"[" * 256 + b"]" * 256 + b"}", "too deep"),
        (b"[" * 100_000, "too deep"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "digits"),
    ],
)
def test_a_body_that_says_nothing_certain_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(Refusal, match=why):
        parse(body)
