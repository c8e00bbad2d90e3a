"""The OpenAI API at an ingress tells of models and of what is not there as a server does."""

import asyncio
import json
import threading
from typing import Any, cast

import pytest
from starlette.requests import Request

from quire.service.openai.request_reader import INLINE_BYTES
from quire.service.ray import openai_frontend
from quire.service.ray.application_plan import Plan
from quire.service.ray.openai_frontend import OpenAIFrontend
from quire.v1 import inference_pb2 as pb

NAME = "org/some model"


class Streams:
    """In place of the replicas."""

    def __init__(self) -> None:
        self.asked = 0

    async def ask(self, method: str, _request: Any, _metadata: Any) -> bytes:
        assert method == "GetModelInfo"
        self.asked += 1
        model = pb.ModelInfo(name=NAME, max_model_len=1024)
        return pb.GetModelInfoResponse(model=model).SerializeToString()


def answer(face: OpenAIFrontend, method: str, path: str) -> tuple[int, dict[str, Any]]:
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "server": ("127.0.0.1", 8000),
        "headers": [(b"host", b"127.0.0.1")],
    }
    told = asyncio.run(face.answer(Request(scope)))
    return told.status_code, json.loads(bytes(told.body))


@pytest.fixture
def streams() -> Streams:
    return Streams()


@pytest.fixture
def face(streams: Streams) -> OpenAIFrontend:
    return OpenAIFrontend(cast(Any, streams), Plan())


def test_models_are_told_as_a_server_tells_them(face: OpenAIFrontend, streams: Streams) -> None:
    status, listed = answer(face, "GET", "/v1/models")
    assert (status, listed["object"]) == (200, "list")
    (card,) = listed["data"]
    assert (card["id"], card["max_model_len"], card["owned_by"]) == (NAME, 1024, "quire")
    assert card["created"] > 0
    assert answer(face, "GET", f"/v1/models/{NAME}") == (200, card)
    assert streams.asked == 1
    status, told = answer(face, "GET", "/v1/models/another")
    assert status == 404 and "another" in told["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/v1/nothing", 404, "there is nothing at"),
        ("GET", "/health", 404, "there is nothing at"),
        ("GET", "/v1/completions", 405, "is not for"),
        ("POST", "/v1/models", 405, "is not for"),
    ],
)
def test_what_is_not_there_is_refused_in_the_servers_words(
    face: OpenAIFrontend, streams: Streams, method: str, path: str, status: int, words: str
) -> None:
    found, told = answer(face, method, path)
    assert found == status and words in told["error"]["message"]
    assert {"message", "type", "code"} <= set(told["error"])
    assert streams.asked == 0


@pytest.mark.parametrize("size", [1, INLINE_BYTES])
def test_a_large_body_is_parsed_off_the_event_loop(
    face: OpenAIFrontend, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    parse = openai_frontend.parse

    def parsed(body: bytes) -> dict[str, Any]:
        threads.append(threading.current_thread())
        return parse(body)

    monkeypatch.setattr(openai_frontend, "parse", parsed)
    body = json.dumps({"prompt": "a" * size}).encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "query_string": b"",
        "server": ("127.0.0.1", 8000),
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    asyncio.run(face.answer(Request(scope, receive)))
    assert [thread is threading.current_thread() for thread in threads] == [size == 1]
