"""A replica's server sees the caller's own key, over either of the ingress's APIs. No Ray runs
here: what it would carry between the two is handed over."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from starlette.requests import Request
from support.fake_engine import Builder, Device

from quire.clients.errors import Details, from_rpc_error
from quire.engine.client.async_engine import AsyncEngine
from quire.engine.client.in_thread import ThreadLink
from quire.engine.config import EngineConfig
from quire.service.errors import Refusal
from quire.service.ray.application_plan import Plan
from quire.service.ray.call_ends import Pairs, error_of, refused
from quire.service.ray.openai_frontend import OpenAIFrontend
from quire.service.ray.replica import REQUESTS, EngineReplica
from quire.service.security.keys import make_entry, new_key
from quire.service.settings import Settings
from quire.v1 import inference_pb2 as pb

OWNER, GUEST, STRANGER = new_key(), new_key(), new_key()
HIGHEST = 3


class Replica(EngineReplica):
    """Over the fake device. Nobody but the test ends it."""

    end = EngineReplica.__del__

    def __del__(self) -> None:  # type: ignore[override]
        pass

    def _engine(self, settings: Settings, config: EngineConfig) -> AsyncEngine:
        del settings
        return AsyncEngine(ThreadLink(config, Builder(Device())))


class Carried:
    """In place of the ingress's streams and of Ray: one replica's."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica

    async def ask(self, method: str, request: Any, metadata: Pairs) -> bytes:
        answer = await self.replica.ask(method, request.SerializeToString(), list(metadata))
        if isinstance(answer, bytes):
            return answer
        raise refused(answer)

    async def generate(
        self, request: pb.GenerateRequest, metadata: Pairs
    ) -> AsyncIterator[pb.GenerateResponse]:
        packed = request.SerializeToString()
        async for item in self.replica.generate(packed, list(metadata), (0, ())):
            if not isinstance(item, bytes):
                raise refused(item)
            yield pb.GenerateResponse.FromString(item)


def carried(folder: Path, test: Callable[[Carried, OpenAIFrontend], Awaitable[None]]) -> None:
    """Runs the test over a replica whose server wants keys."""
    keys, config = folder / "keys", folder / "quire.toml"
    owner = f"{make_entry('owner', OWNER)} operator max_priority={HIGHEST}"
    keys.write_text(f"{owner}\n{make_entry('guest', GUEST)}\n")
    config.write_text(f"[service]\napi_keys = {json.dumps(str(keys))}\n")
    plan = Plan(config=str(config))

    async def run() -> None:
        replica = Replica.__new__(Replica)
        await cast(Any, replica).__init__(plan)
        try:
            streams = Carried(replica)
            await test(streams, OpenAIFrontend(cast(Any, streams), plan))
        finally:
            await replica.end()

    asyncio.run(run())


def metadata_of(key: str | None) -> Pairs:
    more = [] if key is None else [("authorization", f"Bearer {key}")]
    return [("user-agent", "a test"), *more]


def request_of(priority: int = 0) -> pb.GenerateRequest:
    made = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[300, 301]), priority=priority)
    made.sampling.max_tokens = 2
    return made


async def code_of(streams: Carried, key: str | None, priority: int = 0) -> grpc.StatusCode:
    """What a generating call ends with."""
    try:
        async for _ in streams.generate(request_of(priority), metadata_of(key)):
            pass
    except Refusal as refusal:
        return refusal.code
    return grpc.StatusCode.OK


def test_the_replica_asks_for_the_caller_s_key_and_its_priority(tmp_path: Path) -> None:
    async def test(streams: Carried, _face: OpenAIFrontend) -> None:
        code = grpc.StatusCode
        for key in (None, STRANGER, ""):
            assert await code_of(streams, key) == code.UNAUTHENTICATED
            with pytest.raises(Refusal, match="key"):
                await streams.ask("Stats", pb.StatsRequest(), metadata_of(key))
        for key, most in ((OWNER, HIGHEST), (GUEST, 0)):
            assert await code_of(streams, key, most) == code.OK
            assert await code_of(streams, key, most + 1) == code.INVALID_ARGUMENT
        await streams.ask("FlushCache", pb.FlushCacheRequest(), metadata_of(OWNER))
        with pytest.raises(Refusal, match="operator"):
            await streams.ask("FlushCache", pb.FlushCacheRequest(), metadata_of(GUEST))

    carried(tmp_path, test)


def test_what_is_no_request_is_refused_behind_the_key(tmp_path: Path) -> None:
    async def test(streams: Carried, _face: OpenAIFrontend) -> None:
        async def end(packed: bytes, key: str | None) -> tuple[str, Details]:
            (told,) = [one async for one in replica.generate(packed, metadata_of(key), (0, ()))]
            assert told == await replica.ask("Tokenize", packed, metadata_of(key))
            return told[0], from_rpc_error(error_of(told)).details

        replica = streams.replica
        bad, large = b"\xff", bytes(replica._server.max_message + 1)
        assert await end(bad, OWNER) == ("INVALID_ARGUMENT", Details(reason="MALFORMED"))
        assert await end(large, OWNER) == (
            "RESOURCE_EXHAUSTED",
            Details(reason="MESSAGE_TOO_LARGE"),
        )
        assert {(await end(raw, STRANGER))[0] for raw in (bad, large)} == {"UNAUTHENTICATED"}

    carried(tmp_path, test)


def test_a_call_that_ray_closes_has_ended(tmp_path: Path) -> None:
    async def test(streams: Carried, _face: OpenAIFrontend) -> None:
        request, metadata = request_of(), metadata_of(OWNER)
        request.sampling.max_tokens = 50
        request.sampling.ignore_eos = True
        stream = streams.replica.generate(request.SerializeToString(), metadata, (0, ()))
        await anext(stream)
        assert streams.replica._server.ledger.open == 1
        await cast(Any, stream).aclose()
        assert streams.replica._server.ledger.open == 0

    carried(tmp_path, test)


def test_a_replica_knows_each_call_of_the_contract() -> None:
    methods = pb.DESCRIPTOR.services_by_name["InferenceService"].methods
    assert {one.name: one.input_type.name for one in methods if one.name != "Generate"} == {
        name: kind.DESCRIPTOR.name for name, kind in REQUESTS.items()
    }


async def asked(
    face: OpenAIFrontend, path: str, body: bytes | None, key: str | None
) -> tuple[int, Any]:
    """Status and body of the answer; without a body, of a GET. Counts what is read of it."""
    pairs = [("host", "localhost"), ("content-type", "application/json"), *metadata_of(key)]
    scope = {
        "type": "http",
        "method": "GET" if body is None else "POST",
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in pairs],
        "client": ("127.0.0.1", 1),
    }
    received, left = bytearray(), asyncio.Event()
    status: list[int] = []

    async def receive() -> Any:
        if status or scope.get("read"):
            await left.wait()
        scope["read"] = True
        return {"type": "http.request", "body": body or b"", "more_body": False}

    async def send(message: Any) -> None:
        if "status" in message:
            status.append(message["status"])
        received.extend(message.get("body", b""))

    request = Request(scope, receive)
    await (await face.answer(request))(scope, receive, send)
    if status[0] == 401:
        assert not scope.get("read"), "the body was read before the key"
    return status[0], json.loads(received)


def test_the_openai_api_hands_the_key_on_whoever_was_let_in_before(tmp_path: Path) -> None:
    body = {"model": "pocket", "prompt": [300, 301], "max_tokens": 2}

    async def test(_streams: Carried, face: OpenAIFrontend) -> None:
        async def status(path: str, said: Any, key: str | None) -> int:
            return (await asked(face, path, said and json.dumps(said).encode(), key))[0]

        for key in (OWNER, GUEST):
            assert await status("/v1/models", None, key) == 200
            assert await status("/v1/completions", body, key) == 200
        for key in (None, STRANGER):
            assert await status("/v1/models", None, key) == 401
            assert await status("/v1/completions", body, key) == 401
            assert await status("/v1/chat/completions", [1], key) == 401
        for key, most in ((OWNER, HIGHEST), (GUEST, 0)):  # where the lower runs first
            assert await status("/v1/completions", {**body, "priority": -most}, key) == 200
            _, said = await asked(
                face, "/v1/completions", json.dumps({**body, "priority": -most - 1}).encode(), key
            )
            assert said["error"]["param"] == "priority"
            assert f"at most {most} for this client" in said["error"]["message"]

    carried(tmp_path, test)
