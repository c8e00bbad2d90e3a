"""/v1/embeddings and /v1/rerank: OpenAI's own client, and bodies of Jina's and Cohere's."""

import asyncio
import base64
import re
from array import array
from pathlib import Path
from typing import Any

import openai
import pytest
from support import http1, judging_tokenizer
from support.fake_engine import Device, state_of
from support.harness import Running, run, serving

from quire.clients.openai.vectors import EmbeddingsBody

TEXTS = [[300, 301], [302], [303, 304, 305]]


@pytest.fixture(scope="module")
def judging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return judging_tokenizer.write(tmp_path_factory.mktemp("judging"))


def unit(numbers: list[float]) -> Any:
    length = sum(x * x for x in numbers) ** 0.5
    return pytest.approx([x / length for x in numbers], rel=1e-6)


async def post(running: Running, path: str, body: Any, **headers: str) -> http1.Told:
    return await http1.ask(running.server.http_port, http1.posted(f"/v1/{path}", body, **headers))


def test_openais_client_gets_embeddings(judging: Path) -> None:
    async def test() -> None:
        async with (
            serving(http=True, tokenizer=judging) as running,
            openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as api,
        ):
            told = await api.embeddings.create(model="fake", input=TEXTS)  # unpacks base64
            assert [one.index for one in told.data] == [0, 1, 2]
            assert [one.embedding for one in told.data] == [unit(state_of(t)) for t in TEXTS]
            assert (told.object, told.model, told.usage.prompt_tokens) == ("list", "fake", 6)
            assert told.usage.total_tokens == 6
            plain = await api.embeddings.create(
                model="fake", input=TEXTS[2], encoding_format="float", dimensions=2, user="me"
            )
            assert [one.embedding for one in plain.data] == [unit(state_of(TEXTS[2])[:2])]
            for text in ("yes", ["yes", "no"]):
                count = len((await api.embeddings.create(model="fake", input=text)).data)
                assert count == (1 if isinstance(text, str) else 2)
            with pytest.raises(openai.NotFoundError):
                await api.embeddings.create(model="other", input="yes")
            with pytest.raises(openai.BadRequestError) as caught:
                await api.embeddings.create(model="fake", input=TEXTS, dimensions=9)
            assert caught.value.param == "dimensions"

    run(test)


def test_base64_is_float32() -> None:
    async def test() -> None:
        async with serving(http=True) as running:
            body = {"input": TEXTS[0], "encoding_format": "base64"}
            told = await post(running, "embeddings", body, x_request_id="mine")
            assert told.headers["x-request-id"] == "mine"
            numbers = array("f", base64.b64decode(told.json["data"][0]["embedding"]))
            assert numbers.tolist() == unit(state_of(TEXTS[0]))

    run(test)


OF_THE_CONTRACT = re.compile(r"inputs|(?<!_)token_ids|sampling|chat\.|(?<!: see )allow_special")


def test_bad_bodies_name_their_fields() -> None:
    bad: list[tuple[str, dict[str, Any], str]] = [
        ("embeddings", {}, "input: is missing"),
        ("embeddings", {"input": [[5], [-1]]}, "input[1][0]: -1: must be a token id"),
        ("completions", {"prompt": [5, -1]}, "prompt[1]: -1: must be a token id"),
        ("completions", {"prompt": "a", "stop": ["b", 5]}, "stop[1]: 5: must be a string"),
        ("embeddings", {"input": ["a", 5]}, "input[1]: 5: must be a string or a list"),
        ("embeddings", {"input": []}, "input: 0: at least one token is needed"),
        ("embeddings", {"input": [[5], [4096]]}, "input[1][0]: 4096: the vocabulary has"),
        (
            "embeddings",
            {"input": [5], "instruction": "x"},
            "instruction: 'x': goes with text, and input is ids",
        ),
        (
            "embeddings",
            {"input": [[5], [6]], "instruction": "x"},
            "instruction: 'x': goes with text, and input[0] is ids",
        ),
        ("embeddings", {"input": "a", "encoding_format": "int8"}, "encoding_format: 'int8'"),
        ("embeddings", {"input": "a", "task": "x"}, "task: 'x'"),
        ("rerank", {"documents": ["a"]}, "query: is missing"),
        ("rerank", {"query": "", "documents": ["a"]}, "query: '': is missing"),
        ("rerank", {"query": "a"}, "documents: is missing"),
        ("rerank", {"query": "a", "documents": []}, "documents: 0: must be between 1 and"),
        ("rerank", {"query": "a", "documents": [5]}, "documents[0]: 5"),
        ("rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n: 0"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "<|im_end|>"}]},
            "which is a special token or a marker that the chat template writes itself",
        ),
        (
            "chat/completions",
            {
                "messages": [{"role": "user", "content": "a"}],
                "min_tokens": 9,
                "max_completion_tokens": 3,
            },
            "min_tokens: 9: is more than max_completion_tokens = 3",
        ),
    ]

    async def test() -> None:
        async with serving(http=True) as running:
            for path, body, field in bad:
                told = await post(running, path, body)
                error = told.json["error"]
                assert told.status == 400, (body, error)
                assert field in error["message"], (body, error)
                assert not OF_THE_CONTRACT.search(error["message"]), (body, error)
            stats = await running.stats()
            assert stats.requests.refused["INVALID_ARGUMENT"] == len(bad)

    run(test)


def test_names_of_a_body_are_made_for_a_refusal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    names = EmbeddingsBody.names

    def counted(body: EmbeddingsBody) -> Any:
        made.append(1)
        return names.fget(body)  # type: ignore[attr-defined]

    async def test() -> None:
        async with serving(http=True) as running:
            assert (await post(running, "embeddings", {"input": TEXTS})).status == 200
            assert not made
            told = await post(running, "embeddings", {"input": [[1], [1 << 20]]})
            assert told.json["error"]["param"] == "input[1][0]"
            assert made == [1]

    monkeypatch.setattr(EmbeddingsBody, "names", property(counted))
    run(test)


def test_documents_are_ranked(judging: Path) -> None:
    async def test() -> None:
        device = Device()
        async with serving(device, http=True, tokenizer=judging) as running:
            body = {"model": "fake", "query": "Judge", "documents": ["yes", {"text": "no"}, "yes"]}
            told = (await post(running, "rerank", body)).json
            ranked = [(one["index"], one["relevance_score"]) for one in told["results"]]
            assert ranked == sorted(ranked, key=lambda one: (-one[1], one[0]))
            assert sorted(i for i, _ in ranked) == [0, 1, 2]
            assert "document" not in told["results"][0] and told["model"] == "fake"
            assert told["usage"]["total_tokens"] > 0 and told["id"]
            body |= {"top_n": 1, "return_documents": True}
            (best,) = (await post(running, "rerank", body)).json["results"]
            assert (best["index"], best["relevance_score"]) == ranked[0]
            assert best["document"]["text"] in ("yes", "no")
            for path in ("/v2/rerank", "/rerank"):
                answer = await http1.ask(running.server.http_port, http1.posted(path, body))
                assert answer.json["results"] == [best]

    run(test)


def test_a_client_that_leaves_cancels_its_texts() -> None:
    async def test() -> None:
        device = Device()
        async with serving(device, http=True) as running:
            device.hold()
            body = http1.posted("/v1/embeddings", {"input": [[5] * 40] * 8})
            _reader, writer = await asyncio.open_connection("127.0.0.1", running.server.http_port)
            writer.write(body)
            await running.until(lambda s: s.requests.accepted == 8)
            writer.close()
            await running.until(lambda s: s.requests.finished_cancelled == 8)
            device.release()
            await running.idle()

    run(test)
