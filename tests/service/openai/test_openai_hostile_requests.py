"""Hosts, headers and bodies that the HTTP API must not take."""

import json
from typing import Any

import pytest
from support.harness import Running, generate, run, serving
from support.http1 import CHAT, HELLO, Peer, ask, head, posted

from quire.service.admission import intake
from quire.service.openai.logprob_budget import LogprobBudget
from quire.v1 import inference_pb2 as pb


def port(running: Running) -> int:
    return running.server.http_port


@pytest.mark.parametrize(
    ("host", "names", "status"),
    [
        ("127.0.0.1:8000", None, 200),
        ("LOCALHOST", None, 200),
        ("[::1]:8000", None, 200),
        ("attacker.example:8000", None, 403),
        ("127.0.0.1.attacker.example", None, 403),
        ("10.0.0.1", None, 403),
        ("attacker.example", "models.example", 403),
        ("models.example", "a.example, models.example", 200),
        ("any.example", "*", 200),
    ],
)
def test_a_foreign_host_gets_no_answer(host: str, names: str | None, status: int) -> None:
    async def test() -> None:
        async with serving(http=True, load=False, http_names=names) as running:
            told = await ask(port(running), head("GET", "/version", host=host))
            assert told.status == status
            if status == 403:
                assert told.code == "foreign_host"

    run(test)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json; charset=utf-8", 200),
        ('Application/JSON ;Charset="UTF-8"', 200),
        ("application/json;charset=UTF8", 200),
        ("application/json;", 200),
        ("application/json; odata=verbose; charset=utf-8 ;", 200),
        ("application/json; charset=utf-16", 415),
        ("application/json; version=1; charset=latin-1", 415),
        ("application/json; charset", 415),
        ("application/jsonp", 415),
        ("text/plain; application/json", 415),
    ],
)
def test_parameters_of_json_are_taken_but_for_another_charset(kind: str, status: int) -> None:
    async def test() -> None:
        async with serving(http=True) as running:
            told = await ask(port(running), posted(CHAT, HELLO, content_type=kind))
            assert told.status == status
            if "charset" in kind and status != 200:
                assert "the charset must be utf-8" in told.json["error"]["message"]

    run(test)


def test_only_json_is_read_and_only_what_is_not_too_large() -> None:
    async def test() -> None:
        async with serving(http=True) as running:
            number, most = port(running), running.server.max_message
            for kind in ("text/plain", "", "application/x-www-form-urlencoded"):
                told = await ask(number, posted(CHAT, HELLO, content_type=kind))
                assert (told.status, told.code) == (415, "content_type")
            told = await ask(number, posted(CHAT, HELLO, content_encoding="gzip"))
            assert (told.status, told.code) == (415, "content_encoding")
            told = await ask(number, posted(CHAT, b"", content_length=str(most + 1)))
            assert (told.status, told.code) == (413, "body_too_large")
            peer = await Peer.to(number)
            peer.writer.write(
                head("POST", CHAT, content_type="application/json", transfer_encoding="chunked")
            )
            chunk = b"%x\r\n" % (1 << 16) + b" " * (1 << 16) + b"\r\n"
            for _ in range(most // (1 << 16) + 1):
                peer.writer.write(chunk)
            assert (await peer.told()).code == "body_too_large"
            await peer.close()
            for body in (b'{"model": "a", "model": "b"}', b'{"n": NaN}', b"["):
                told = await ask(number, posted(CHAT, body))
                assert (told.status, told.code) == (400, "malformed")
            stats = await running.idle()
            assert stats.requests.refused["INVALID_ARGUMENT"] == 7
            assert stats.requests.refused["RESOURCE_EXHAUSTED"] == 2

    run(test)


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "BODY_SECONDS", 0.05)

    async def test() -> None:
        async with serving(http=True) as running:
            told = await ask(port(running), posted(CHAT, b"{", content_length="100"))
            assert (told.status, told.code) == (408, "slow_request")

    run(test)


def test_large_headers_and_what_is_no_http_are_refused() -> None:
    async def test() -> None:
        async with serving(http=True) as running:
            told = await ask(port(running), head("GET", "/version", x="y" * (20 << 10)))
            assert (told.status, told.code) in ((431, "headers_too_large"), (400, "http"))
            told = await ask(port(running), b"nonsense\r\n\r\n")
            assert (told.status, told.code) == (400, "http")
            told = await ask(port(running), head("GET", CHAT))
            assert (told.status, told.code, told.headers["allow"]) == (405, "method", "POST")
            told = await ask(port(running), head("POST", "/chat/completions"))
            assert (told.status, told.code) == (404, "unknown_path")
            assert "base URL ends in /v1" in told.json["error"]["message"]

    run(test)


def test_a_large_body_is_read_on_a_thread_and_refused_with_the_prompt_s_name() -> None:
    async def test() -> None:
        async with serving(http=True) as running:
            content = "a b " * 20_000
            body = HELLO | {"messages": [{"role": "user", "content": content}]}
            told = await ask(port(running), posted(CHAT, body))
            assert (told.status, told.json["error"]["param"]) == (400, "messages")

    run(test)


def test_no_page_of_the_web_may_call_unless_its_origin_is_named() -> None:
    async def test() -> None:
        asked = {"origin": "https://page.example", "access_control_request_method": "POST"}
        async with serving(http=True) as running:
            told = await ask(port(running), head("OPTIONS", CHAT, **asked))
            assert told.status == 405
            told = await ask(port(running), posted(CHAT, HELLO, origin="https://page.example"))
            assert "access-control-allow-origin" not in told.headers
        async with serving(http=True, cors_origin="https://page.example") as running:
            told = await ask(port(running), head("OPTIONS", CHAT, **asked))
            assert told.headers["access-control-allow-origin"] == "https://page.example"
            other = {**asked, "origin": "https://other.example"}
            told = await ask(port(running), head("OPTIONS", CHAT, **other))
            assert "access-control-allow-origin" not in told.headers

    run(test)


def test_an_answer_that_would_be_too_large_whole_is_refused_and_not_when_streamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LogprobBudget.__init__, "__defaults__", (100, 1 << 20))

    async def test() -> None:
        async with serving(http=True) as running:
            body = HELLO | {
                "max_tokens": 20, "ignore_eos": True, "logprobs": True, "top_logprobs": 20
            }  # fmt: skip
            told = await ask(port(running), posted(CHAT, body))
            assert (told.status, told.json["error"]["param"]) == (400, "logprobs")
            few = await ask(port(running), posted(CHAT, body | {"max_tokens": 4}))
            assert few.status == 200
            peer = await Peer.to(port(running))
            streamed = posted(CHAT, body | {"stream": True}, connection="close")
            assert (await peer.ask(streamed)).status == 200
            assert b"[DONE]" in await peer.ended()
            assert (await running.idle()).requests.finished_cancelled <= 1

    run(test)


def test_what_is_nested_too_deep_is_refused_by_its_fields_name() -> None:
    """In the words that gRPC has for it."""

    async def test() -> None:
        schema: Any = {}
        for _ in range(200):
            schema = {"items": schema}
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        tool = {"type": "function", "function": {"name": "x", "parameters": schema}}
        async with serving(http=True) as running:
            body = {**HELLO, "response_format": wanted}
            told = await ask(port(running), posted(CHAT, body))
            request = pb.GenerateRequest(text="Hello")
            request.constraint.json_schema = json.dumps(schema)
            answer = await generate(running, request)
            field, words = "constraint.json_schema", "201 brackets inside one another: at most 64"
            assert words in answer.violations[field]
            assert told.status == 400
            error = told.json["error"]
            assert error["param"] == "response_format.json_schema.schema"
            assert error["message"].endswith(answer.violations[field])
            told = await ask(port(running), posted(CHAT, {**HELLO, "tools": [tool]}))
            assert told.status == 400
            assert told.json["error"]["param"] == "tools[0].function.parameters"

    run(test)
