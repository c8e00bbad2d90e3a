"""A step that does not end: who notices, what the probes are told, and how it ends."""

import asyncio
import threading

import grpc
import pytest
from support.fake_engine import EOS, VOCAB_SIZE
from support.harness import NOT_SERVING, SERVING, Running, ask, generate, health, run, serving
from support.patience import PATIENCE

from quire.engine.client.in_thread import stack_of
from quire.engine.errors import EngineDeadError
from quire.service.app.watchdog import Verdict, Watchdog
from quire.service.rpc.constraints import Compiler
from quire.service.telemetry.metrics import QuireCollector, Sources


def test_the_watchdog_counts_its_looks() -> None:
    step: float | None = None
    dog = Watchdog(lambda: step, 8.0, 4.0)
    assert dog.interval == 1.0
    assert [dog.look() for _ in range(20)] == [Verdict.NOTHING] * 20  # idle
    for begin in range(100, 120):  # busy, each look another step
        step = begin
        assert dog.look() is Verdict.NOTHING
    step = 7.0
    looks = [dog.look() for _ in range(9)]
    assert looks == [Verdict.NOTHING] * 8 + [Verdict.HUNG] and dog.hung
    assert dog.look() is Verdict.NOTHING
    step = 8.0
    assert dog.look() is Verdict.RECOVERED and not dog.hung
    looks = [dog.look() for _ in range(12)]
    assert looks.index(Verdict.HUNG) == 7 and looks.index(Verdict.LOST) == 11


def test_without_a_second_bound_a_hung_step_is_waited_for() -> None:
    dog = Watchdog(lambda: 1.0, 4.0, 0.0)
    looks = [dog.look() for _ in range(1000)]
    assert looks.count(Verdict.HUNG) == 1 and Verdict.LOST not in looks


def test_a_stack_is_that_of_the_thread() -> None:
    ready, done = threading.Event(), threading.Event()

    def stands_here() -> None:
        ready.set()
        done.wait()

    thread = threading.Thread(target=stands_here)
    thread.start()
    ready.wait()
    assert "stands_here" in stack_of(thread.ident)
    done.set()
    thread.join()
    assert stack_of(thread.ident) == stack_of(None) == "the thread has ended"


async def until_probe(running: Running, service: str, status: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while await health(running, service) != status:
            await asyncio.sleep(0.01)


def test_a_hung_step_is_told_to_the_probes_and_taken_back_when_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with serving(watchdog_seconds=0.2, watchdog_exit_seconds=0.0) as running:
            assert hung(running) == 0
            running.device.hold()
            call = asyncio.create_task(generate(running, ask([300])))
            await until_probe(running, "liveness", NOT_SERVING)
            await until_probe(running, "", NOT_SERVING)
            assert hung(running) == 1
            running.device.release()
            assert (await call).ids() == [300, EOS]
            await until_probe(running, "liveness", SERVING)
            await until_probe(running, "", SERVING)
            assert hung(running) == 0

    run(test)
    assert "a step hangs" in caplog.text
    assert "device.open.wait()" in caplog.text  # where the engine's thread stood


def hung(running: Running) -> float:
    """The metric, as it would be scraped."""
    watchdog = running.server._watchdog
    assert watchdog is not None
    sources = Sources(
        running.server.ledger,
        running.engine.stats,
        running.engine.step_times,
        lambda: watchdog.hung,
    )
    metrics = {metric.name: metric for metric in QuireCollector(sources).collect()}
    return float(metrics["quire_step_hung"].samples[0].value)


def test_a_step_that_hangs_for_good_ends_every_stream_and_the_engine() -> None:
    async def test() -> None:
        async with serving(watchdog_seconds=0.1, watchdog_exit_seconds=0.1) as running:
            running.device.hold()
            call = asyncio.create_task(generate(running, ask([300])))
            async with asyncio.timeout(PATIENCE):
                await running.server.wait_dead()
            answer = await call
            assert answer.code is grpc.StatusCode.UNAVAILABLE
            assert running.server.engine_abandoned
            assert (await generate(running, ask([300]))).code is grpc.StatusCode.UNAVAILABLE

    run(test)


@pytest.mark.parametrize("ends", [None, (EOS,)])
def test_an_engine_that_dies_before_all_is_read_ends_the_start(
    ends: tuple[int, ...] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, read_at_last = asyncio.Event(), threading.Event()

    async def test() -> None:
        loop = asyncio.get_running_loop()

        def vocabulary(_self: Compiler) -> None:
            loop.call_soon_threadsafe(reading.set)
            assert read_at_last.wait(PATIENCE)

        monkeypatch.setattr(Compiler, "vocabulary", vocabulary)
        async with serving(load=False) as running:
            loading = asyncio.create_task(running.server.load(VOCAB_SIZE, eos_token_ids=ends))
            await reading.wait()
            running.engine.give_up()
            with pytest.raises(EngineDeadError):
                await loading
            read_at_last.set()

    run(test)
