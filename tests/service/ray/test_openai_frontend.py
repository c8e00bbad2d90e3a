"""The OpenAI API at an ingress tells of models and of what is not there as a server does."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
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
        self.metadata: Any = ()

    async def ask(self, method: str, _request: Any, metadata: Any) -> bytes:
        self.metadata = metadata
        assert method == "GetModelInfo"
        self.asked += 1
        model = pb.ModelInfo(name=NAME, max_model_len=1024)
        return pb.GetModelInfoResponse(model=model).SerializeToString()

    async def generate(self, _request: Any, _metadata: Any) -> AsyncIterator[pb.GenerateResponse]:
        yield pb.GenerateResponse(started=pb.Started(request_id="r"))
        yield pb.GenerateResponse(delta=pb.Delta(text="So"))
        yield pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_STOP))


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
        ("GET", "/v1/responses", 405, "is not for"),
        ("GET", "/v1/messages", 405, "is not for"),
        ("POST", "/v1/models", 405, "is not for"),
    ],
)
def test_what_is_not_there_is_refused_in_the_servers_words(
    face: OpenAIFrontend, streams: Streams, method: str, path: str, status: int, words: str
) -> None:
    found, told = answer(face, method, path)
    assert found == status and words in told["error"]["message"]
    anthropic = path == "/v1/messages"
    assert {"message", "type"} | (set() if anthropic else {"code"}) == set(told["error"]) - {
        "param"
    }
    assert streams.asked == 0


def posted(path: str, body: bytes, *headers: tuple[bytes, bytes]) -> Request:
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "server": ("127.0.0.1", 8000),
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), *headers],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(scope, receive)


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x"}]},
            "chat.completion",
        ),
        ("/v1/completions", {"prompt": "x"}, "text_completion"),
        ("/v1/responses", {"input": "x"}, "response"),
        ("/v1/messages", {"max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}, None),
    ],
)
def test_each_api_answers_in_its_own_form(
    face: OpenAIFrontend, path: str, body: dict[str, Any], kind: str | None
) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def gone() -> Any:
        return await asyncio.Future()  # nobody leaves

    async def test() -> None:
        request = posted(path, json.dumps(body).encode())
        await (await face.answer(request))(request.scope, gone, send)

    asyncio.run(test())
    begin, rest = sent
    told = json.loads(rest["body"])
    assert (begin["status"], told.get("object"), told["model"]) == (200, kind, NAME)


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
    asyncio.run(face.answer(posted("/v1/completions", body)))
    assert [thread is threading.current_thread() for thread in threads] == [size == 1]


def test_a_key_in_anthropics_header_is_told_to_replicas_as_any(
    face: OpenAIFrontend, streams: Streams
) -> None:
    asyncio.run(face.answer(posted("/v1/messages", b"{}", (b"x-api-key", b"KEY"))))
    assert ("authorization", "Bearer KEY") in streams.metadata
    assert "x-api-key" not in dict(streams.metadata)
