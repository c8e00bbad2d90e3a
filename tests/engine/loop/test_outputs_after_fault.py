"""When an engine dies: first all that it had said, then the error, for what is still open."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from support.dying_engine import Built, Lost, ScriptedLink, batch, dies, end, run
from support.simulation import Shape
from support.simulator import Simulator
from support.toy_device import EOS, Oracle

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.errors import CorruptStateError, EngineDeadError
from quire.engine.loop.commands import Command, Submit
from quire.engine.loop.core import EngineCore
from quire.engine.loop.heartbeat import Heartbeat
from quire.engine.loop.loop import Batch, EngineLoop
from quire.engine.request import FinishReason, GenerationRequest, Output, SamplingParams
from quire.engine.scheduling.plan import StepPlan, StepResult

PARAMS = SamplingParams(max_tokens=4)


# ------------------------------------------------------------ the asyncio face


Ending = Callable[[AsyncEngine, ScriptedLink], Any]


async def is_given_up(engine: AsyncEngine, _link: ScriptedLink) -> None:
    engine.give_up()


async def is_stopped(engine: AsyncEngine, _link: ScriptedLink) -> None:
    await engine.stop()


@pytest.mark.parametrize("ending", [dies, is_given_up, is_stopped])
def test_finishes_that_were_delivered_are_heard_and_what_is_open_ends_with_the_error(
    ending: Ending,
) -> None:
    async def test() -> None:
        link = ScriptedLink()
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
        link = ScriptedLink()
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
    assert published[-1].stats is None


def test_what_is_held_when_statistics_fail_is_said_once() -> None:
    simulator = Simulator(Shape())
    built = Built(EngineCore(simulator.scheduler, Runner(simulator, 9, "", Lost()), overlap=True))
    published: list[Batch] = []
    loop = EngineLoop(built, Inbox([Submit(whole(1))]), published.append, Heartbeat())
    loop.announce()
    built.lost = True
    with pytest.raises(Lost):
        loop.run()
    assert [o.key for one in published for o in one.outputs] == [1]


def test_rows_before_the_one_that_ruins_the_books_keep_their_ends() -> None:
    simulator = Simulator(Shape(depth=0, num_blocks=40, max_num_batched_tokens=64))
    for key in (1, 2, 3):
        params = SamplingParams(max_tokens=1 if key == 1 else 2, eos_token_ids=(EOS,))
        simulator.submit(GenerationRequest(key, (key,) * 3, params))
    scheduler = simulator.scheduler
    plan = scheduler.schedule()
    assert plan is not None and [row.key for row in plan.rows] == [1, 2, 3]
    scheduler.drain_outputs()
    leave = scheduler.state.waiting.leave

    def fails(client: str, user: str = "") -> None:
        if not scheduler.knows(1):
            raise RuntimeError("spilled coffee")
        leave(client, user)

    scheduler.state.waiting.leave = fails  # type: ignore[method-assign]
    with pytest.raises(CorruptStateError):
        scheduler.apply(plan, StepResult([[3], [EOS], [3]]))
    said = scheduler.drain_outputs()
    assert [(o.key, o.finish) for o in said] == [(1, FinishReason.LENGTH)]
