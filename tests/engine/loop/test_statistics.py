"""Statistics go with a batch where they say something new, and with every other one at least."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from support.benchmark_code import fake_device

from quire.engine.config import EngineConfig
from quire.engine.loop import loop as loop_module
from quire.engine.loop.commands import Command, FlushCache, Stop, Submit
from quire.engine.loop.heartbeat import Heartbeat
from quire.engine.loop.loop import Batch, EngineLoop
from quire.engine.request import GenerationRequest, SamplingParams

TOKENS = 9


class Inbox:
    """What each turn brings, and then, once the engine is idle, the end."""

    def __init__(self, *turns: Sequence[Command]) -> None:
        self._turns = list(turns)

    def take(self, *, wait: bool) -> Sequence[Command]:
        if self._turns:
            return self._turns.pop(0)
        return [Stop()] if wait else ()


def published(*turns: Sequence[Command]) -> list[Batch]:
    """What an engine publishes of these turns' commands, after what it says at the start."""
    batches: list[Batch] = []
    engine = fake_device.FakeEngine(EngineConfig(max_num_seqs=4), 0.0)
    loop = EngineLoop(engine, Inbox(*turns), batches.append, Heartbeat())
    loop.announce()
    assert batches.pop(0).stats is not None
    loop.run()
    assert engine.stats() == batches[-1].stats
    return batches


def asked(key: int) -> Submit:
    params = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
    return Submit(GenerationRequest(key, tuple(range(300, 340)), params))


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "STATS_SECONDS", float("inf"))


def test_a_first_token_goes_without_and_no_two_batches_in_a_row() -> None:
    batches = published([asked(1)])
    told = [batch.stats is not None for batch in batches]
    assert [batch.step_times is not None for batch in batches] == told
    started, first, *_ = batches
    assert started.outputs[0].started and started.stats is not None
    assert first.outputs[0].token_ids and first.stats is None
    assert all(one or other for one, other in pairwise(told))
    assert batches[-1].stats is not None and batches[-1].stats.generated == TOKENS


def test_they_tell_at_once_of_requests_that_come_and_end() -> None:
    batches = published([asked(1)], [asked(2)], [], [asked(3)])
    running = 0
    for batch in batches:
        started = sum(output.started for output in batch.outputs)
        ended = sum(output.finish is not None for output in batch.outputs)
        running += started - ended
        if started or ended:
            assert batch.stats is not None and batch.stats.running == running


def test_an_answer_comes_with_them() -> None:
    batches = published([asked(1)], [], [FlushCache()], [FlushCache()])
    assert [batch.stats is not None for batch in batches if batch.answers] == [True, True]


def test_what_is_older_than_a_moment_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "STATS_SECONDS", 0.0)
    assert all(batch.stats is not None for batch in published([asked(1)]))
