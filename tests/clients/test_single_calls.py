"""The calls with one answer, by either client: what is sent, and what comes of it."""

import asyncio
import inspect
from typing import Any

import pytest

from quire.clients import AsyncClient, Client, Message, OptionError, Tool

_SINGLE = ["model_info", "tokenize", "detokenize", "flush_cache"]
BOTH = pytest.mark.parametrize("mode", ["sync", "async"])


def ask(server: Any, mode: str, method: str, *arguments: Any, **options: Any) -> Any:
    """One method's answer, by either client."""
    if mode == "sync":
        with Client(server.address, api_key="key-of-an-operator") as client:
            return getattr(client, method)(*arguments, **options)

    async def run() -> Any:
        async with AsyncClient(server.address, api_key="key-of-an-operator") as client:
            return await getattr(client, method)(*arguments, **options)

    return asyncio.run(run())


@BOTH
def test_what_is_served_is_told(server: Any, mode: str) -> None:
    info = ask(server, mode, "model_info")
    assert (info.model.name, list(info.eos_token_ids), info.has_chat_template) == (
        "fake",
        [2],
        True,
    )


@BOTH
def test_a_text_or_a_conversation_becomes_ids_and_ids_a_text(server: Any, mode: str) -> None:
    ids = ask(server, mode, "tokenize", "wörld")
    assert ids == list("wörld".encode())
    assert ask(server, mode, "detokenize", ids) == "wörld"
    turns = [Message("system", "be"), {"role": "user", "content": "good"}]
    tool = Tool("weather", parameters={"type": "object"})
    told = ask(server, mode, "tokenize", turns, tools=[tool], add_generation_prompt=False)
    assert told == list(b"be good")
    chat = server.seen.tokenized[-1].chat
    assert (chat.tools[0].name, chat.add_generation_prompt) == ("weather", False)
    assert chat.HasField("add_generation_prompt")


@BOTH
def test_texts_become_embeddings_and_documents_scores(server: Any, mode: str) -> None:
    told = ask(server, mode, "embed", ["abc", [1, 2]], dimensions=7, instruction="x", priority=-2)
    assert told == [[3.0, 7.0], [2.0, 7.0]]
    sent = server.seen.embedded[-1]
    assert (sent.instruction, sent.priority, sent.truncate) == ("x", -2, False)
    assert ask(server, mode, "score", "ab", ["a", "xa"], truncate=True) == [1.0, 0.5]
    assert server.seen.scored[-1].truncate


@BOTH
def test_a_flush_goes_with_the_key(server: Any, mode: str) -> None:
    assert ask(server, mode, "flush_cache") == 3
    assert server.seen.metadata[-1]["authorization"] == "Bearer key-of-an-operator"


@BOTH
@pytest.mark.parametrize(
    ("method", "arguments", "options", "words"),
    [
        ("tokenize", ([1, 2],), {}, "prompt: text or messages"),
        ("tokenize", ("hi",), {"max_tokens": 3}, "max_tokens: goes with generate"),
        ("tokenize", ("hi",), {"add_generation_prompt": True}, "goes with messages"),
        ("detokenize", ("hi",), {}, "token_ids: a list of token ids"),
        ("detokenize", ([1, -2],), {}, r"token_ids\[1\]: -2"),
        ("flush_cache", (), {"timeout": -1}, "timeout"),
        ("embed", ("one text",), {}, "texts: a list of texts or lists of token ids"),
        ("embed", (["a", 5],), {}, r"texts\[1\]: a list of token ids"),
        ("embed", ([[1, -2]],), {}, r"texts\[0\]\[1\]: -2"),
        ("embed", (["a"],), {"inputs": []}, "inputs: is not an option"),
        ("embed", (["a"],), {"dimensions": 1.5}, "dimensions: a whole number"),
        ("score", ("a", "b"), {}, "documents: a list of texts"),
        ("score", ("a", ["b"]), {"truncate": 1}, "truncate: True or False"),
        ("score", ("a", ["b"]), {"dimensions": 1}, "dimensions: is not an option"),
    ],
)
def test_what_cannot_be_sent_is_named_before_it_is(
    server: Any, mode: str, method: str, arguments: Any, options: Any, words: str
) -> None:
    with pytest.raises(OptionError, match=words):
        ask(server, mode, method, *arguments, **options)
    assert not server.seen.tokenized


@pytest.mark.parametrize("method", [*_SINGLE, "embed", "score"])
def test_both_clients_have_the_same_calls(method: str) -> None:
    one, other = getattr(Client, method), getattr(AsyncClient, method)
    assert inspect.signature(one) == inspect.signature(other)
    assert inspect.iscoroutinefunction(other)
