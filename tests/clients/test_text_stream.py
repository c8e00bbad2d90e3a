"""The text of a generation alone: whole, or piece by piece as it comes."""

import asyncio
from typing import Any

import pytest
from support.patience import PATIENCE

from quire import AsyncClient, Client, ClientError, OptionError, Unavailable


def test_pieces_joined_are_the_text(server: Any) -> None:
    with Client(server.address) as client:
        assert list(client.generate("say one two three").text_stream()) == ["one", " two", " three"]
        assert client.generate("say one two three").text() == "one two three"
        # Of several completions it is the first's alone.
        assert list(client.generate("say a b", n=3).text_stream()) == ["a", " b"]

    async def run() -> None:
        async with AsyncClient(server.address) as client:
            stream = client.generate("say one two", n=2).text_stream()
            assert [piece async for piece in stream] == ["one", " two"]
            assert await client.generate("say one two").text() == "one two"

    asyncio.run(run())


def test_leaving_the_loop_cancels(server: Any) -> None:
    with Client(server.address) as client:
        for piece in client.generate("forever").text_stream():
            assert piece == "x"
            break
        assert server.seen.cancelled.wait(PATIENCE)


def test_leaving_the_asyncio_loop_cancels(server: Any) -> None:
    async def run() -> None:
        async with AsyncClient(server.address) as client:
            async for piece in client.generate("forever").text_stream():
                assert piece == "x"
                break
            assert await asyncio.to_thread(server.seen.cancelled.wait, PATIENCE)

    asyncio.run(run())


def test_it_is_iterated_once_and_errors_come_through(server: Any) -> None:
    with Client(server.address) as client:
        generation = client.generate("say a")
        assert generation.text() == "a"
        with pytest.raises(ClientError, match="once"):
            generation.text_stream()
        with pytest.raises(Unavailable):
            list(client.generate("late UNAVAILABLE").text_stream())


def test_no_text_is_promised_where_none_is_made(server: Any) -> None:
    with Client(server.address) as client:
        for ask in ("text", "text_stream"):
            with pytest.raises(OptionError, match="ids_only"):
                getattr(client.generate("say a", ids_only=True), ask)()
    assert not server.seen.requests
