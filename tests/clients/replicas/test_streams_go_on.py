"""Both clients against replicas that listen: streams that break go on, to the token."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from support.fake_replica import DRAIN, HELD, LENGTH, QUIET, Break, Replica, Served, whole, word
from support.free_ports import free_port
from support.not_grpc import not_grpc
from support.patience import PATIENCE

from quire.clients import (
    AsyncClient,
    Broken,
    Cancelled,
    Client,
    Delta,
    NoReplica,
    ReplicaPolicy,
    Resumed,
    RetryPolicy,
)
from quire.clients.events import Event

BOTH = pytest.mark.parametrize("mode", ["sync", "async"])
QUICK = RetryPolicy(attempts=3, first_backoff=0.001, max_backoff=0.002)
TURNS = {"routing": "round_robin"}


@pytest.fixture(scope="module")
def fleet() -> Iterator[list[Served]]:
    """Three replicas that are played afresh by each test."""
    served = [Served(Replica()) for _ in range(3)]
    for one in served:
        one.__enter__()
    yield served
    for one in served:
        one.__exit__()


@pytest.fixture
def replicas(fleet: list[Served]) -> list[Replica]:
    for number, one in enumerate(fleet):
        one.ready(True)
        one.replica.__init__(drawn=7 + number)  # type: ignore[misc]
    return [one.replica for one in fleet]


def collect(
    fleet: list[Served],
    mode: str = "sync",
    policy: dict[str, Any] | None = None,
    addresses: list[str] | None = None,
    **options: Any,
) -> list[Event]:
    """The events of one call."""
    where = addresses or [one.address for one in fleet]
    chosen = ReplicaPolicy(**{**TURNS, **(policy or {})})
    if mode == "sync":
        with Client(where, retry=QUICK, replicas=chosen, timeout=PATIENCE) as client:
            return list(client.generate("x", **options))

    async def run() -> list[Event]:
        async with AsyncClient(where, retry=QUICK, replicas=chosen, timeout=PATIENCE) as client:
            return [event async for event in client.generate("x", **options)]

    return asyncio.run(run())


def ids(events: list[Event]) -> list[int]:
    return [i for event in events if isinstance(event, Delta) for i in event.token_ids]


def kinds(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


WHOLE = ["Started", *["Delta"] * LENGTH, "Finished"]


@BOTH
@pytest.mark.parametrize("how", ["socket", DRAIN])
def test_a_broken_stream_is_as_an_unbroken_one(
    fleet: list[Served], replicas: list[Replica], mode: str, how: str
) -> None:
    """The seed is the first one's, which the others would not have drawn."""
    replicas[0].script = [Break(3, how)]
    replicas[1].script = [Break(2, how)]
    events = collect(fleet, mode)
    assert kinds(events) == WHOLE
    assert ids(events) == whole(7)
    assert "".join(e.text for e in events if isinstance(e, Delta)) == "".join(map(word, whole(7)))
    assert events[-1].completion_tokens == LENGTH  # type: ignore[union-attr]
    assert [len(r.requests) for r in replicas] == [1, 1, 1]
    assert [list(r.requests[0].resume_token_ids) for r in replicas] == [
        whole(7)[:held] for held in (0, 3, 5)
    ]
    assert not any(replica.wrong for replica in replicas)


@BOTH
def test_a_caller_who_asks_is_told(fleet: list[Served], replicas: list[Replica], mode: str) -> None:
    replicas[0].script = [Break(3)]
    events = collect(fleet, mode, {"tell_resumed": True})
    assert kinds(events) == [*WHOLE[:4], "Resumed", *WHOLE[4:]]
    told = events[4]
    assert isinstance(told, Resumed)
    assert (told.left, told.replica) == (fleet[0].address, fleet[1].address)
    assert (told.tokens, told.breaks, told.fault) == (3, 1, "Socket closed")


@BOTH
def test_with_resuming_off_a_broken_stream_ends(
    fleet: list[Served], replicas: list[Replica], mode: str
) -> None:
    replicas[0].script = [Break(3)]
    with pytest.raises(Exception, match="Socket closed"):
        collect(fleet, mode, {"resumes": 0})
    assert [len(r.requests) for r in replicas] == [1, 0, 0]


@BOTH
def test_a_third_break_ends_it(fleet: list[Served], replicas: list[Replica], mode: str) -> None:
    for replica in replicas:
        replica.script = [Break(1)] * 9
    with pytest.raises(Broken, match="3 times") as caught:
        collect(fleet, mode)
    assert caught.value.often
    assert [len(r.requests) for r in replicas] == [1, 1, 1]


@BOTH
def test_a_call_that_broke_before_it_began_is_asked_elsewhere(
    fleet: list[Served], replicas: list[Replica], mode: str
) -> None:
    replicas[0].script = [Break(None)]
    events = collect(fleet, mode)
    assert kinds(events) == WHOLE and ids(events) == whole(8)  # the second one's seed


@BOTH
def test_a_lost_status_is_no_loss(fleet: list[Served], replicas: list[Replica], mode: str) -> None:
    replicas[0].script = [Break(99, QUIET)]
    assert ids(collect(fleet, mode)) == whole(7)


@BOTH
def test_a_replica_that_serves_something_else_is_passed_over(
    fleet: list[Served], replicas: list[Replica], mode: str
) -> None:
    replicas[0].script = [Break(3)]
    replicas[1].fingerprint = "two"
    assert ids(collect(fleet, mode)) == whole(7)
    assert [len(r.requests) for r in replicas] == [1, 1, 1]
    assert replicas[1].cancelled.wait(PATIENCE)  # its tokens are of no use


@BOTH
def test_a_replica_that_drains_gets_no_new_calls(
    fleet: list[Served], replicas: list[Replica], mode: str
) -> None:
    """It is known by its health, before anything is sent to it."""
    fleet[0].ready(False)
    assert ids(collect(fleet, mode)) == whole(8)
    assert not replicas[0].requests
    replicas[1].script = [("UNAVAILABLE", "the server is shutting down", "DRAINING", None)] * 9
    assert ids(collect(fleet, mode)) == whole(9)


@BOTH
def test_a_conversation_goes_to_one_replica(
    fleet: list[Served], replicas: list[Replica], mode: str
) -> None:
    turns = [{"role": "user", "content": "hi"}]

    async def run() -> None:
        policy = ReplicaPolicy()
        async with AsyncClient([one.address for one in fleet], replicas=policy) as client:
            for _ in range(4):
                answer = await client.generate(turns).text()
                turns.extend({"role": role, "content": answer} for role in ("assistant", "user"))

    if mode == "async":
        asyncio.run(run())
    else:
        with Client([one.address for one in fleet]) as client:  # by prefix, unless told otherwise
            for _ in range(4):
                answer = client.generate(turns).text()
                turns.extend({"role": role, "content": answer} for role in ("assistant", "user"))
    assert sorted(len(r.requests) for r in replicas) == [0, 0, 4]


def test_single_answers_come_from_whoever_is_up(
    fleet: list[Served], replicas: list[Replica]
) -> None:
    for number, replica in enumerate(replicas):
        replica.fingerprint = str(number)
    fleet[1].ready(False)
    where = [one.address for one in fleet]
    with Client(where, retry=QUICK, replicas=ReplicaPolicy()) as client:
        versions = {client.stats(timeout=PATIENCE).version for _ in range(6)}
        assert client.health(timeout=PATIENCE) == "SERVING"

    async def run() -> set[str]:
        async with AsyncClient(where, retry=QUICK) as client:
            return {(await client.stats(timeout=PATIENCE)).version for _ in range(6)}

    assert versions == asyncio.run(run()) == {"0", "2"}


@BOTH
def test_where_nobody_is_left_each_is_named(mode: str) -> None:
    """One port is closed, and behind the other there is a program of another kind."""
    nobody = f"127.0.0.1:{free_port()}"
    with not_grpc() as strange, pytest.raises(NoReplica) as caught:
        collect([], mode, addresses=[nobody, strange])
    assert set(caught.value.faults) == {nobody, strange}
    assert "refused" in caught.value.faults[nobody]
    assert caught.value.faults[strange] == "what listens there is not gRPC"


@pytest.mark.usefixtures("replicas")
def test_leaving_the_loop_gives_the_call_back(fleet: list[Served]) -> None:
    with Client([one.address for one in fleet]) as client:
        for _ in client.generate("x"):
            break
        generation = client.generate("x")
        generation.close()
        with pytest.raises(Cancelled):
            generation.text()
        assert client._replicas is not None
        assert not any(one.open for one in client._replicas.fleet._replicas.values())

    async def run() -> None:
        async with AsyncClient([one.address for one in fleet]) as client:
            async for _ in client.generate("x"):
                break
            assert client._replicas is not None
            assert not any(one.open for one in client._replicas.fleet._replicas.values())
            messages = [m async for m in client.generate("x").messages()]
            assert len(messages) == len(WHOLE)

    asyncio.run(run())


@BOTH
@pytest.mark.parametrize("count", [1, 3])
def test_a_client_that_is_closed_has_no_calls(
    fleet: list[Served], replicas: list[Replica], mode: str, count: int
) -> None:
    """Of several replicas another one took the stream up, over a connection that nobody closed."""
    where = [one.address for one in fleet][:count]
    for one in replicas:
        one.script = [Break(1, HELD)]

    async def run() -> None:
        client = AsyncClient(where, retry=QUICK, timeout=PATIENCE)
        stream = aiter(client.generate("x"))
        await anext(stream)
        await client.close()
        with pytest.raises(Cancelled):
            _ = [event async for event in stream]
        for call in (client.stats(), client.generate("x").text()):
            with pytest.raises(Cancelled, match="this client is closed"):
                await call

    if mode != "sync":
        asyncio.run(run())
        return
    client = Client(where, retry=QUICK, timeout=PATIENCE)
    stream = iter(client.generate("x"))
    next(stream)
    client.close()
    with pytest.raises(Cancelled):
        list(stream)
    for call in (client.stats, client.generate("x").text):
        with pytest.raises(Cancelled, match="this client is closed"):
            call()


@pytest.mark.usefixtures("replicas")
def test_one_address_has_nobody_to_choose_from(fleet: list[Served]) -> None:
    with Client(fleet[0].address) as client:
        assert client._replicas is None
    with Client(fleet[0].address, replicas=ReplicaPolicy()) as client:
        assert client.generate("x").text()
        assert client._replicas is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [("routing", "random"), ("resumes", 3), ("exact", 1), ("budget", -1), ("lookup_seconds", -1.0)],
)
def test_a_policy_that_cannot_be_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"replicas.{field}"):
        ReplicaPolicy(**{field: value})  # type: ignore[arg-type]


def test_something_else_than_a_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="replicas: a ReplicaPolicy"):
        Client(["a:1", "b:1"], replicas={"routing": "prefix"})  # type: ignore[arg-type]
