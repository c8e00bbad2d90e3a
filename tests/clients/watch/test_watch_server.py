"""What stands before the page, what it is told, and how a prompt goes through it."""

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.fake_engine import Device
from support.harness import ask, first, generate, run, serving
from support.patience import PATIENCE

from quire.clients.client import Client
from quire.clients.commands.common import explain
from quire.clients.errors import Details, Overloaded
from quire.clients.watch import server as server_module
from quire.clients.watch.server import Watched, WatchServer
from quire.clients.watch.snapshot import MAX_CELLS, as_plain
from quire.clients.watch.source import Source
from quire.service.security.keys import make_entry
from quire.v1 import inference_pb2 as pb

OWNER, GUEST = "the-operators-own-long-key", "a-guests-own-long-key-1234"


@contextmanager
def page_of(address: str, source: Any = None, **watched: Any) -> Iterator[WatchServer]:
    with Client(address) as client:
        shown = {"chat": True, "interval": 1.0, "explain": explain, **watched}
        with WatchServer(Watched(client, source or Source(client, explain), **shown)) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield server
            finally:
                server.shutdown()
                thread.join()


@pytest.fixture
def page(server: Any) -> Iterator[WatchServer]:
    """A page over the fake server."""
    with page_of(server.address) as shown:
        yield shown


def asked(
    page: WatchServer,
    path: str = "",
    *,
    method: str = "GET",
    body: Any = None,
    token: str | None = None,
    **headers: str,
) -> http.client.HTTPResponse:
    """An answer whose body is still to be read. A header's name has _ for -."""
    connection = http.client.HTTPConnection("127.0.0.1", page.server_port, timeout=PATIENCE)
    sent = {"Host": f"127.0.0.1:{page.server_port}"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        sent = {"Origin": f"http://127.0.0.1:{page.server_port}", **sent}
        sent = {"Content-Type": "application/json", **sent}
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
    where = f"/{page.token if token is None else token}/{path}"
    connection.request(method, where, body, sent)
    return connection.getresponse()


def prompted(page: WatchServer, body: Any, **headers: str) -> http.client.HTTPResponse:
    return asked(page, "generate", method="POST", body=body, **headers)


def lines(answer: http.client.HTTPResponse) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.read().splitlines()]


def error(answer: http.client.HTTPResponse) -> tuple[int, str]:
    return answer.status, json.loads(answer.read())["error"]


# ---------------------------------------------------------------- the door


@pytest.mark.parametrize("path", ["", "drawing.js", "watch.js", "watch.css", "icon.svg", "state"])
def test_all_that_is_served_may_load_nothing_from_elsewhere(page: WatchServer, path: str) -> None:
    answer = asked(page, path)
    assert (answer.status, bool(answer.read())) == (200, True)
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy and "http" not in policy and "trusted-types 'none'" in policy
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_the_page_is_on_loopback_alone(page: WatchServer) -> None:
    assert page.server_address[0] == "127.0.0.1"
    assert page.url == f"http://127.0.0.1:{page.server_port}/{page.token}/"
    assert len(page.token) >= 32


@pytest.mark.parametrize("path", ["", "state", "generate"])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", ""])
def test_no_other_name_leads_to_it(page: WatchServer, server: Any, host: str, path: str) -> None:
    if path == "generate":
        answer = prompted(page, {"prompt": "say hi"}, Host=host)
    else:
        answer = asked(page, path, Host=host)
    assert error(answer)[0] == 421
    assert not server.seen.requests


def test_localhost_is_its_name_too(page: WatchServer) -> None:
    assert asked(page, Host=f"localhost:{page.server_port}").status == 200


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://127.0.0.1:{port}/{token}/state", "evil.example", 200),
        ("HTTP://localhost:{port}/{token}/", "localhost:{port}", 200),
        ("http://evil.example/{token}/state", "127.0.0.1:{port}", 421),
        ("http://127.0.0.1:{port}@evil.example/{token}/", "127.0.0.1:{port}", 421),
        ("http://127.0.0.1:{port}", "127.0.0.1:{port}", 404),
    ],
)
def test_of_a_target_with_a_host_that_host_counts(
    page: WatchServer, target: str, host: str, status: int
) -> None:
    here = {"port": page.server_port, "token": page.token}
    connection = http.client.HTTPConnection("127.0.0.1", page.server_port, timeout=PATIENCE)
    connection.request("GET", target.format(**here), headers={"Host": host.format(**here)})
    assert connection.getresponse().status == status
    connection.close()


@pytest.mark.parametrize("token", ["", "x", "é"])
def test_without_the_token_nothing_is_there(page: WatchServer, server: Any, token: str) -> None:
    for path in ("", "watch.js", "state"):
        status, told = error(asked(page, path, token=token.encode().hex() or token))
        assert status == 404 and "token" in told
    answer = asked(page, "generate", method="POST", body={"prompt": "say hi"}, token=token and "x")
    assert error(answer)[0] == 404
    assert not server.seen.calls


@pytest.mark.parametrize("path", ["..", "../watch.js", "page/index.html", "server.py", "state/"])
def test_no_path_leads_to_a_file(page: WatchServer, path: str) -> None:
    assert error(asked(page, path))[0] == 404


def test_a_prompt_from_another_page_is_not_sent(page: WatchServer, server: Any) -> None:
    for origin in ("http://evil.example", "null", ""):
        assert error(prompted(page, {"prompt": "say hi"}, Origin=origin))[0] == 403
    foreign = prompted(page, {"prompt": "say hi"}, Content_Type="text/plain")
    assert error(foreign)[0] == 415
    assert not server.seen.requests


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "no JSON"),
        ([], "an object of prompt, max_tokens, temperature"),
        ({"prompt": "x", "n": 2}, "an object of"),
        ({"prompt": ""}, "prompt: write some text"),
        ({"prompt": 5}, "prompt: write some text"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens: a whole number from 1 to"),
        ({"prompt": "x", "max_tokens": True}, "max_tokens"),
        ({"prompt": "x", "temperature": "hot"}, "temperature: a number"),
        ({"prompt": "\ud800"}, "surrogate"),
    ],
)
def test_a_prompt_that_cannot_be_right_is_refused(
    page: WatchServer, server: Any, body: Any, told: str
) -> None:
    status, words = error(prompted(page, body))
    assert status == 400 and told in words
    assert not server.seen.requests


def test_a_body_that_is_too_large_is_not_read(page: WatchServer) -> None:
    status, told = error(prompted(page, b"", Content_Length=str(1 << 30)))
    assert status == 413 and "1,048,576 bytes" in told
    assert error(asked(page, method="DELETE"))[0] == 501


# ---------------------------------------------------------------- what it shows


def test_the_page_gets_what_the_server_tells(page: WatchServer) -> None:
    state = json.loads(asked(page, "state").read())
    assert state["operator"] is True and state["interval"] == 1.0
    assert state["model"]["name"] == "fake"
    assert state["map"] == {"cells": "231002", "per_cell": 1}
    assert (state["requests"]["running"], state["requests"]["refused"]) == (1, 3)
    assert state["cache"]["prefix_tokens_hit"] == 50


def test_a_map_has_a_bounded_number_of_cells() -> None:
    states = bytearray(3 * MAX_CELLS + 1)
    states[4], states[-1] = 3, 2
    told = pb.StatsResponse(cache=pb.CacheStats(block_map=bytes(states)))
    shown = as_plain(told, operator=True)["map"]
    assert shown["per_cell"] == 4 and len(shown["cells"]) == 3 * MAX_CELLS // 4 + 1
    assert (shown["cells"][:3], shown["cells"][-1]) == ("030", "2")


def test_many_pages_ask_the_server_once(server: Any) -> None:
    now = [0.0]
    with Client(server.address) as client:
        source = Source(client, explain, lambda: now[0], fresh=1.0)
        for moment in (0.0, 0.5, 0.9, 1.0, 1.5, 2.0):
            now[0] = moment
            assert "error" not in source.look()
    assert server.seen.calls["stats"] == 3


def test_where_maps_are_asked_for_too_often_the_last_one_stays() -> None:
    class Busy:
        """Gives one map, then none."""

        maps = 0

        def stats(self, **options: Any) -> pb.StatsResponse:
            told = pb.StatsResponse()
            if options.get("include_block_map"):
                self.maps += 1
                if self.maps > 1:
                    code = grpc.StatusCode.RESOURCE_EXHAUSTED
                    raise Overloaded(code, "include_block_map", Details())
                told.cache.block_map = b"\1\2"
            return told

    client: Any = Busy()
    source = Source(client, explain, fresh=0.0)
    assert [source.look()["map"]["cells"] for _ in range(3)] == ["12", "12", "12"]


def test_a_guests_key_shows_what_is_served_and_an_operators_all(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{make_entry('owner', OWNER)} operator\n{make_entry('guest', GUEST)}\n")

    def look(address: str, key: str) -> dict[str, Any]:
        with Client(address, api_key=key) as client:
            return Source(client, explain).look()

    async def test() -> None:
        async with serving(Device(step_seconds=0.01), api_keys=str(keys)) as running:
            address = f"127.0.0.1:{running.server.port}"
            bearer = (("authorization", f"Bearer {GUEST}"),)
            await generate(running, ask([300] * 40, max_tokens=2), metadata=bearer)
            forever = ask([300] * 40, max_tokens=2000, ignore_eos=True, request_id="open")
            call = running.stub.Generate(forever, metadata=bearer)
            await first(call)
            guest = await asyncio.to_thread(look, address, GUEST)
            assert guest["operator"] is False and guest["model"]["name"] == "fake"
            assert not {"requests", "map", "open", "tokens", "steps"} & set(guest)
            owner = await asyncio.to_thread(look, address, OWNER)
            assert owner["operator"] is True and set(owner["map"]["cells"]) >= set("02")
            assert [row["request_id"] for row in owner["open"]] == ["open"]
            assert owner["steps"]["kinds"]["prefill"]["count"] >= 1
            wrong = await asyncio.to_thread(look, address, "a-key-that-nobody-knows")
            assert "--api-key" in wrong["error"]
            call.cancel()

    run(test)


def test_a_server_that_has_gone_is_a_sentence(fake: Any) -> None:
    with fake.FakeServer() as going:
        with page_of(going.address) as shown:
            going.__exit__()
            state = json.loads(asked(shown, "state").read())
    assert "start one with `quire serve`" in state["error"]


# ---------------------------------------------------------------- prompts


def test_a_prompt_comes_back_as_it_is_written(page: WatchServer, server: Any) -> None:
    events = lines(prompted(page, {"prompt": "say one two", "max_tokens": 9, "temperature": 0}))
    assert [event["event"] for event in events] == ["started", "delta", "delta", "finished"]
    assert "".join(event.get("text", "") for event in events) == "one two"
    assert events[0]["request_id"].startswith("watch-") and events[0]["cached_tokens"] == 4
    assert events[-1]["reason"] == "stop"
    (request,) = server.seen.requests
    assert request.chat.messages[0].content == "say one two"
    assert (request.sampling.max_tokens, request.sampling.temperature) == (9, 0.0)


def test_without_a_template_a_prompt_is_plain_text(server: Any) -> None:
    with page_of(server.address, chat=False) as shown:
        lines(prompted(shown, {"prompt": "say hi"}))
    assert server.seen.requests[0].text == "say hi"


def test_a_call_that_fails_is_a_sentence(page: WatchServer) -> None:
    (event,) = lines(prompted(page, {"prompt": "fail INVALID_ARGUMENT too hot"}))
    assert event == {"event": "error", "message": "too hot"}


def test_a_viewer_who_leaves_ends_the_call(page: WatchServer, server: Any) -> None:
    answer = prompted(page, {"prompt": "hang"})
    assert b"started" in answer.readline()
    answer.close()  # nothing is written any more that could fail
    assert server.seen.cancelled.wait(PATIENCE)


def test_prompts_at_once_are_bounded(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_STREAMS", 1)
    with page_of(server.address) as shown:
        busy = prompted(shown, {"prompt": "hang"})
        assert b"started" in busy.readline()
        status, told = error(prompted(shown, {"prompt": "say hi"}))
        assert status == 429 and "wait for one" in told
        busy.close()
