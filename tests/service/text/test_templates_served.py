"""Chat templates in a server: judged before the weights, and bounded for each call."""

import asyncio
import shutil
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.harness import VOCAB_SIZE, generate, serving
from support.patience import PATIENCE

from quire.engine.errors import ModelError
from quire.service.models import pocket
from quire.service.models.resolve import ResolvedModel
from quire.service.rpc import messages
from quire.v1 import inference_pb2 as pb


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, PATIENCE))


def test_a_broken_template_is_told_before_weights_are_read(tmp_path: Path) -> None:
    shutil.copy(pocket.directory() / "tokenizer.json", tmp_path)
    broken = tmp_path / "chat_template.jinja"
    broken.write_text("line\n{% for %}")

    async def test() -> None:
        begun = []
        async with serving(load=False, before=lambda: begun.append(1)) as running:
            running.server._resolved = ResolvedModel("broken", "fake", tmp_path)
            with pytest.raises(ModelError) as caught:
                await running.server.load(VOCAB_SIZE)
            assert f"{broken}: chat template, line 2" in str(caught.value)
            assert not begun

    run(test())


def test_a_chat_of_more_parts_than_tokens_is_refused_before_it_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def built(_: pb.Chat) -> None:
        raise AssertionError("the conversation is built")

    monkeypatch.setattr(messages, "read", built)
    user = pb.ChatMessage(role="user", content="a")
    calls = pb.ChatMessage(role="assistant", tool_calls=[pb.ToolCall(name="f")] * 2100)
    chats = (
        pb.Chat(messages=[user], tools=[pb.Tool(name="f")] * 2100),
        pb.Chat(messages=[user] * 2100),
        pb.Chat(messages=[user, calls]),
    )

    async def test() -> None:
        async with serving() as running:
            for chat in chats:
                answer = await generate(running, pb.GenerateRequest(chat=chat))
                assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
                assert "messages, calls and tools: more than the" in answer.details

    run(test())
