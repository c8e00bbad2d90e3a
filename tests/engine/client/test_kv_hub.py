"""Who watches the cached blocks hears of everything once, or starts over from a snapshot."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest
from support.patience import PATIENCE

from quire.engine.client import kv_hub
from quire.engine.client.kv_hub import KvHub
from quire.engine.errors import EngineDeadError
from quire.engine.scheduling.kv_events import CHANGES, LOST, REMOVED, SNAPSHOT, KvEvent, KvEvents

Watching = AsyncGenerator[KvEvents, None]


def snapshot(number: int) -> KvEvents:
    return KvEvents(number, 0.0, SNAPSHOT)


def change(number: int, count: int = 1) -> KvEvents:
    return KvEvents(number, 0.0, CHANGES, (KvEvent(REMOVED, b"h"),) * count)


class Asked:
    """A hub, and what it has asked of the engine."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.hub = KvHub(lambda: self.said.append("begin"), lambda: self.said.append("end"))

    async def watch(self, start: int = 0) -> tuple[Watching, "asyncio.Task[KvEvents]"]:
        """A watcher, and its first batch to come."""
        watching = self.hub.watch(start)
        first = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(0)  # it is among the watchers now
        return watching, first


def run(test: Callable[[Asked], Awaitable[None]]) -> None:
    async def in_loop() -> None:
        await asyncio.wait_for(test(Asked()), PATIENCE)

    asyncio.run(in_loop())


def test_a_snapshot_comes_first_then_each_change_and_the_end_is_told() -> None:
    async def test(asked: Asked) -> None:
        watching, first = await asked.watch()
        asked.hub.deliver([change(4), snapshot(4), change(5), change(6)])
        assert await first == snapshot(4)
        assert [await anext(watching) for _ in range(2)] == [change(5), change(6)]
        assert asked.said == ["begin"]
        await watching.aclose()
        assert asked.said == ["begin", "end"]

    run(test)


def test_a_second_watcher_gets_a_snapshot_of_its_own_and_the_first_does_not() -> None:
    async def test(asked: Asked) -> None:
        one, first = await asked.watch()
        asked.hub.deliver([snapshot(4), change(5)])
        other, second = await asked.watch()
        asked.hub.deliver([change(6), snapshot(6), change(7)])
        assert [await first, *[await anext(one) for _ in range(3)]] == [
            snapshot(4),
            change(5),
            change(6),
            change(7),
        ]
        assert [await second, await anext(other)] == [snapshot(6), change(7)]

    run(test)


def test_who_comes_back_goes_on_from_a_number_that_is_known() -> None:
    async def test(asked: Asked) -> None:
        _keeps_on, _ = await asked.watch()
        asked.hub.deliver([snapshot(4), change(5), change(6), change(7)])
        back, first = await asked.watch(6)
        assert [await first, await anext(back)] == [change(6), change(7)]
        late, first = await asked.watch(4)  # before what is known
        asked.hub.deliver([snapshot(7)])
        assert await first == snapshot(7)
        assert asked.said == ["begin", "begin"]
        await late.aclose()

    run(test)


@pytest.mark.parametrize("lost", (KvEvents(9, 0.0, LOST), change(9)))
def test_a_gap_makes_all_start_over_from_a_snapshot(lost: KvEvents) -> None:
    async def test(asked: Asked) -> None:
        watching, first = await asked.watch()
        asked.hub.deliver([snapshot(4)])
        assert await first == snapshot(4)
        asked.hub.deliver([change(5), lost, change(10)])
        assert asked.said == ["begin", "begin"]
        asked.hub.deliver([snapshot(10), change(11)])
        assert [await anext(watching), await anext(watching)] == [snapshot(10), change(11)]

    run(test)


def test_a_slow_watcher_starts_over_and_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_hub, "MAX_EVENTS", 3)

    async def test(asked: Asked) -> None:
        slow, first = await asked.watch()
        quick, second = await asked.watch()
        asked.hub.deliver([snapshot(4)])
        assert await first == await second == snapshot(4)
        for number in (5, 6):
            asked.hub.deliver([change(number, 2)])
            assert await anext(quick) == change(number, 2)
        assert asked.said == ["begin"] * 3
        asked.hub.deliver([snapshot(6), change(7)])
        assert [await anext(slow), await anext(slow)] == [snapshot(6), change(7)]
        assert await anext(quick) == change(7)

    run(test)


def test_the_engine_s_end_is_told_behind_what_waits() -> None:
    async def test(asked: Asked) -> None:
        watching, first = await asked.watch()
        asked.hub.deliver([snapshot(4), change(5)])
        asked.hub.fail(EngineDeadError("id"))
        assert [await first, await anext(watching)] == [snapshot(4), change(5)]
        with pytest.raises(EngineDeadError):
            await anext(watching)

    run(test)
