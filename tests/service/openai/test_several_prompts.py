"""Prompts of one request: as many as could ever begin together, and no more."""

from typing import Any

import pytest
from support.harness import run, serving
from support.http1 import ask, posted

COMPLETIONS = "/v1/completions"
CASES: list[tuple[dict[str, Any], int, int, str]] = [  # options, n, prompts, what is told
    ({"max_waiting": 4}, 1, 4, "max_waiting = 4"),
    ({"max_waiting": 5}, 2, 3, "max_waiting = 5"),
    ({"max_streams_per_client": 3}, 1, 3, "max_streams_per_client = 3"),
    (
        {"rate_limit_requests": 0.5},
        1,
        5,
        "rate_limit_requests = 0.5, rate_limit_burst_seconds = 10",
    ),
]


@pytest.mark.parametrize(("options", "n", "most", "words"), CASES)
def test_more_prompts_than_can_ever_begin_together_are_not_asked_for_again(
    options: dict[str, Any], n: int, most: int, words: str
) -> None:
    async def test() -> None:
        async with serving(http=True, **options) as running:
            asked = {"prompt": ["Hello"] * (most + 1), "n": n, "max_tokens": 4}
            port = running.server.http_port
            told = await ask(port, posted(COMPLETIONS, asked))
            assert (told.status, told.json["error"]["param"]) == (400, "prompt")
            prompts = f"prompt: {most + 1} prompts with n = {n}: at most {most} at once: "
            assert told.json["error"]["message"] == prompts + words
            assert (await running.idle()).requests.refused == {"INVALID_ARGUMENT": 1}
            told = await ask(port, posted(COMPLETIONS, asked | {"prompt": ["Hello"] * most}))
            assert (told.status, len(told.json["choices"])) == (200, n * most), told.json

    run(test)
