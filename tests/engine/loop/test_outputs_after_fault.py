"""When an engine dies: first all that it had said, then the error, for what is still open."""

import asyncio
import dataclasses
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from support.patience import PATIENCE
from support.simulator import Shape, Simulator
from support.some_engine import INFO as SOME_ENGINE
from support.toy_device import EOS, Oracle

from quire.engine.client import wire
from quire.engine.client.async_engine import AsyncEngine
from quire.engine.client.in_process import ProcessLink
from quire.engine.client.in_thread import ThreadLink
from quire.engine.client.link import Receiver
from quire.engine.config import EngineConfig
from quire.engine.errors import CorruptStateError, EngineDeadError
from quire.engine.loop.commands import Command, Submit
from quire.engine.loop.core import EngineCore
from quire.engine.loop.heartbeat import Heartbeat
from quire.engine.loop.loop import Batch, EngineLoop
from quire.engine.loop.stats import EngineInfo, EngineStats
from quire.engine.loop.step_times import StepTimes
from quire.engine.request import FinishReason, GenerationRequest, Output, SamplingParams
from quire.engine.scheduling.plan import StepPlan, StepResult

INFO = dataclasses.replace(SOME_ENGINE, max_model_len=16)
PARAMS = SamplingParams(max_tokens=4)


def end(key: int, index: int = 0) -> Output:
    return Output(key, index, token_ids=[5], finish=FinishReason.LENGTH)


def batch(*outputs: Output) -> Batch:
    return Batch(list(outputs), EngineStats(running=1), StepTimes())


def run(test: Any) -> Any:
    return asyncio.run(asyncio.wait_for(test, PATIENCE))


# ------------------------------------------------------------ the asyncio face


class Hands:
    """A Link whose engine is the test."""

    loop_share = 0.01  # the pacer is slow to wake anybody

    async def start(self, receiver: Receiver) -> EngineInfo:
        self.deliver, self.died = receiver.deliver, receiver.died
        return INFO

    def send(self, command: Command) -> None: ...

    def busy_since(self) -> float | None:
        return None

    def stack(self) -> str:
        return ""

    def give_up(self) -> None: ...

    async def stop(self) -> None: ...


Ending = Callable[[AsyncEngine, Hands], Any]


async def dies(_engine: AsyncEngine, link: Hands) -> None:
    link.died(EngineDeadError("x"))


async def is_given_up(engine: AsyncEngine, _link: Hands) -> None:
    engine.give_up()


async def is_stopped(engine: AsyncEngine, _link: Hands) -> None:
    await engine.stop()


@pytest.mark.parametrize("ending", [dies, is_given_up, is_stopped])
def test_finishes_that_were_delivered_are_heard_and_what_is_open_ends_with_the_error(
    ending: Ending,
) -> None:
    async def test() -> None:
        link = Hands()
        engine = AsyncEngine(link)
        await engine.start()
        requests = [GenerationRequest(engine.new_key(), (1,), PARAMS, n=2) for _ in range(64)]
        heard: dict[int, list[Output]] = {r.key: [] for r in requests}
        errors: dict[int, EngineDeadError] = {}

        async def read(request: GenerationRequest) -> None:
            try:
                async for outputs in engine.generate(request):
                    heard[request.key] += outputs
            except EngineDeadError as error:
                errors[request.key] = error

        async with asyncio.TaskGroup() as group:
            for request in requests:
                group.create_task(read(request))
            await asyncio.sleep(0)  # all are submitted
            for request in requests:
                whole = request.key % 2  # of the others one index is still open
                link.deliver([batch(end(request.key), *[end(request.key, 1)] * whole)])
            await ending(engine, link)
        for key, outputs in heard.items():
            assert [output.index for output in outputs] == [0, 1][: 1 + key % 2]
            assert all(output.finish is FinishReason.LENGTH for output in outputs)
            assert (key in errors) == (key % 2 == 0)

    run(test())


def test_what_comes_while_its_reader_is_busy_is_heard_before_the_error() -> None:
    async def test() -> None:
        link = Hands()
        engine = AsyncEngine(link)
        await engine.start()
        request = GenerationRequest(engine.new_key(), (1,), PARAMS, n=2)
        stream = engine.generate(request)
        assert await anext(stream) == []
        link.deliver([batch(Output(request.key, 0, token_ids=[4]))])
        assert [o.token_ids for o in await anext(stream)] == [[4]]
        link.deliver([batch(end(request.key))])  # its reader is with the last item still
        link.died(EngineDeadError("x"))
        assert [o.finish for o in await anext(stream)] == [FinishReason.LENGTH]
        with pytest.raises(EngineDeadError):
            await anext(stream)

    run(test())


# ------------------------------------------------------------ the loop and the core


class Lost(Exception):
    """What no engine survives."""


class Runner:
    """The toy device, until the step of that number, which is `fault`'s."""

    def __init__(self, simulator: Simulator, at: int, when: str, fault: Exception) -> None:
        self._device = simulator.device
        self._at, self._when, self._fault = at, when, fault

    def execute(self, plan: StepPlan) -> Any:
        if self._when == "launch" and plan.step_id == self._at:
            raise self._fault
        result, runner = StepResult(self._device.execute(plan)), self

        class Pending:
            def wait(self) -> StepResult:
                if runner._when == "wait" and plan.step_id == runner._at:
                    raise runner._fault
                return result

        return Pending()

    def reset(self) -> None: ...

    def is_fatal(self, error: Exception) -> bool:
        return isinstance(error, Lost)


class Built:
    """A BuiltEngine. `asked`: how often its statistics were."""

    info = INFO

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self.asked = 0
        self.lost = False

    def stats(self) -> EngineStats:
        if self.lost:
            raise Lost("a lost device is asked")
        self.asked += 1
        return EngineStats(steps_total=self.asked)

    def stop(self) -> None:
        """Nobody else is to be told."""


class Inbox:
    """All at once, each turn."""

    def __init__(self, *turns: Sequence[Command]) -> None:
        self._turns = list(turns)

    def take(self, *, wait: bool) -> Sequence[Command]:
        assert not wait or self._turns, "idle, and alive"
        return self._turns.pop(0) if self._turns else ()


def whole(key: int) -> GenerationRequest:
    """Resumed with its end already: it ends without a step."""
    spec = GenerationRequest(key, (1, 2), PARAMS, resume_token_ids=(1, 2, 1, 2))
    assert len(spec.resume_token_ids) == PARAMS.max_tokens
    return spec


@pytest.mark.parametrize("overlap", (False, True))
@pytest.mark.parametrize("when", ("launch", "wait"))
def test_what_the_last_turn_said_before_the_fault_is_published_before_the_end(
    when: str, overlap: bool
) -> None:
    simulator = Simulator(Shape())
    core = EngineCore(simulator.scheduler, Runner(simulator, 2, when, Lost()), overlap=overlap)
    published: list[Batch] = []
    inbox = Inbox(
        [Submit(GenerationRequest(1, (1, 2, 3), PARAMS))], [Submit(whole(2)), Submit(whole(3))]
    )
    for key in (1, 2, 3):
        spec = GenerationRequest(key, (1, 2, 3), PARAMS)
        simulator.records[key, 0] = type("R", (), {"oracle": Oracle(spec, 0, 5)})()
    loop = EngineLoop(Built(core), inbox, published.append, Heartbeat())
    with pytest.raises(Lost):
        loop.run()
    said = [output for one in published for output in one.outputs]
    ends = [(o.key, o.finish) for o in said if o.finish is not None]
    assert ends == [(2, FinishReason.LENGTH), (3, FinishReason.LENGTH)]
    assert len({(o.key, o.index, tuple(o.token_ids), o.started) for o in said}) == len(said)


def test_a_lost_device_is_asked_for_nothing_more() -> None:
    simulator = Simulator(Shape())
    built = Built(
        EngineCore(simulator.scheduler, Runner(simulator, 1, "launch", Lost()), overlap=True)
    )
    published: list[Batch] = []
    loop = EngineLoop(
        built,
        Inbox([Submit(whole(1)), Submit(GenerationRequest(2, (1,), PARAMS))]),
        published.append,
        Heartbeat(),
    )
    loop.announce()
    built.lost = True
    with pytest.raises(Lost):
        loop.run()
    assert [o.key for one in published for o in one.outputs if o.finish] == [1]
    assert published[-1].stats == published[0].stats


def test_rows_before_the_one_that_ruins_the_books_keep_their_ends() -> None:
    simulator = Simulator(Shape(depth=0, num_blocks=40, max_num_batched_tokens=64))
    for key in (1, 2, 3):
        params = SamplingParams(max_tokens=1 if key == 1 else 2, eos_token_ids=(EOS,))
        simulator.submit(GenerationRequest(key, (key,) * 3, params))
    scheduler = simulator.scheduler
    plan = scheduler.schedule()
    assert plan is not None and [row.key for row in plan.rows] == [1, 2, 3]
    scheduler.drain_outputs()
    leave = scheduler.roster.waiting.leave

    def fails(client: str, user: str = "") -> None:
        if not scheduler.knows(1):
            raise RuntimeError("spilled coffee")
        leave(client, user)

    scheduler.roster.waiting.leave = fails  # type: ignore[method-assign]
    with pytest.raises(CorruptStateError):
        scheduler.apply(plan, StepResult([[3], [EOS], [3]]))
    said = scheduler.drain_outputs()
    assert [(o.key, o.finish) for o in said] == [(1, FinishReason.LENGTH)]


# ------------------------------------------------------------ both links


class Heard:
    """A Receiver's side, in order."""

    def __init__(self) -> None:
        self.words: list[Any] = []
        self.receiver = Receiver(
            lambda batches: self.words.extend(o.key for b in batches for o in b.outputs),
            lambda error: self.words.append(error.error_id),
            lambda _stage, _share: None,
        )


def test_a_thread_that_is_given_up_has_delivered_what_it_had_published() -> None:
    async def test() -> None:
        heard = Heard()

        def build(_config: EngineConfig, _progress: Any) -> Any:
            simulator = Simulator(Shape())
            return Built(EngineCore(simulator.scheduler, simulator.device, overlap=False))  # type: ignore[arg-type]

        link = ThreadLink(EngineConfig(), build)
        await link.start(heard.receiver)
        published = threading.Thread(target=lambda: link._publish(batch(end(7))))
        published.start()
        published.join(PATIENCE)
        assert heard.words == [], "the event loop has had no turn since"
        link.give_up()
        assert heard.words == [7]
        await asyncio.sleep(0)
        assert heard.words == [7], "and not twice"
        link._abandoned = False
        await link.stop()

    run(test())


class Closing:
    """An event loop that is closed by another thread after each look at it."""

    def is_closed(self) -> bool:
        return False

    def call_soon_threadsafe(self, *_: Any) -> None:
        raise RuntimeError("Event loop is closed")


def test_what_a_thread_says_to_a_loop_that_closes_just_now_is_dropped() -> None:
    link: Any = ThreadLink(EngineConfig())
    link._loop, link._receiver = Closing(), Heard().receiver
    link._publish(batch(end(7)))


class Child:
    """A child process's parent side, whose other end the test holds."""

    pid = 0

    def __init__(self) -> None:
        self.socket, self.theirs = socket.socketpair()
        self.busy = Heartbeat()

    def kill(self) -> None:
        self.theirs.close()

    def wait(self) -> int:
        return 1


async def started(child: Child) -> tuple[Heard, ProcessLink]:
    """A link to it, which has told what its engine is."""
    heard = Heard()
    link = ProcessLink(EngineConfig(), child)  # type: ignore[arg-type]
    starting = asyncio.ensure_future(link.start(heard.receiver))
    await asyncio.sleep(0)
    child.theirs.sendall(wire.frame(wire.pack_info(INFO)))
    await starting
    return heard, link


def test_how_a_process_has_ended_is_told_before_the_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    waits = [threading.Event(), threading.Event()]

    class Slow(Child):
        """Who waits for it first is told last."""

        def wait(self) -> int:
            if waits[0].is_set():
                waits[1].set()
            else:
                waits[0].set()
                assert waits[1].wait(PATIENCE)
            return -9

    async def test() -> None:
        child = Slow()
        _, link = await started(child)
        child.theirs.close()
        assert await asyncio.to_thread(waits[0].wait, PATIENCE)
        await link.stop()
        assert "the engine's process has ended by SIGKILL" in caplog.text

    run(test())


@pytest.mark.parametrize("ending", ("dies", "is killed", "is given up"))
def test_a_process_s_words_all_come_before_its_end(ending: str) -> None:
    async def test() -> None:
        child = Child()
        heard, link = await started(child)
        for key in range(64):
            child.theirs.sendall(wire.frame(wire.pack_batch(batch(end(key)))))
        if ending == "is given up":
            link.give_up()
            assert heard.words == list(range(64)), "told at once; the error is the caller's"
        else:
            if ending == "dies":
                child.theirs.sendall(wire.frame((wire.DIED, "id")))
            child.theirs.close()
            while len(heard.words) < 65:
                await asyncio.sleep(0.001)
            assert heard.words[:64] == list(range(64))
            assert isinstance(heard.words[64], str)
        await link.stop()

    run(test())
