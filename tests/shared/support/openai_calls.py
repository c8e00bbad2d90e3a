"""OpenAI's own client of a server under test."""

from typing import Any

import openai
from support.harness import Running

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


def client(running: Running, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)
