"""On the GPU: what is written ahead of a step by one replay is what is written one by one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.benchmark_code import watched

from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.runner.graphs import Key, StepGraphs, WriteKey
from quire.engine.runner.sampler import Sampled
from quire.engine.runner.staging import KEPT_BUFFERS, Staging

pytestmark = pytest.mark.gpu

Way, WatchedEngine = watched.Way, watched.WatchedEngine
CACHED = ("enable_prefix_caching", True)
LONG_KERNEL = 20_000_000  # cycles: about 10 ms


def prompt(first: int, tokens: int) -> tuple[int, ...]:
    return tuple((first + i * 7) % 8191 + 1 for i in range(tokens))


def state_of(engine: Any) -> list[Any]:
    """What is written, of all slots but the null one."""
    state = engine.engine.runner._state
    written = (state._numbers.T, state.seeds, state.block_tables)
    return [tensor[: state.null_slot].tolist() for tensor in written]


def test_writes_at_once_are_those_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cold and hits, alone and many at once, overlapped, beside a device that lags behind."""
    graphs = (("enforce_eager", False), ("overlap", True), CACHED)
    one_by_one = WatchedEngine(Way("one by one", graphs), "bfloat16", watch=False)
    one_by_one.engine.runner._writer._graphs = None
    at_once = WatchedEngine(Way("at once", graphs), "bfloat16", watch=False)
    kept = at_once.engine.runner._writer._graphs
    assert kept is not None
    replays: list[WriteKey] = []
    replay = kept.replay

    def noted(key: Key | WriteKey) -> Any:
        torch.cuda._sleep(LONG_KERNEL // 20)
        done = replay(key)
        assert done is not None and isinstance(key, WriteKey)
        replays.append(key)
        return done

    monkeypatch.setattr(kept, "replay", noted)
    drawn = SamplingParams(temperature=0.9, top_k=7, seed=-5, max_tokens=9, ignore_eos=True)
    for prompts in ([9], [3, 9, 30, 5], [200], [200], [7] * 8, [100, 120, 140, 160, 180, 200]):
        for params in (drawn, replace(drawn, temperature=0.0)):
            specs = [GenerationRequest(i + 1, prompt(n, n), params) for i, n in enumerate(prompts)]
            assert at_once.serve(specs).tokens == one_by_one.serve(specs).tokens
            assert state_of(at_once) == state_of(one_by_one)
    assert {key[:2] for key in replays} == {(16, 0), (16, 1)}


def test_a_captured_copys_buffer_is_not_written_while_it_is_read() -> None:
    """Two that take turns, each filled again as soon as may be, beside a busy device."""
    staging, graphs = Staging(torch.device("cuda"), ahead=1 << 12), StepGraphs()
    seen = []

    def put(turn: int) -> WriteKey:
        staging.begin()
        staging.put("ahead", np.full(1000, turn, np.int32))
        staging.fix()
        staging.put("rest", np.full(1000 + turn, turn, np.int32))
        buffer = staging.fill()
        assert buffer is not None
        return WriteKey(1, 0, buffer)

    def step() -> Sampled:
        staging.copy()
        return Sampled(staging.get("ahead"))

    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(KEPT_BUFFERS):
            key = put(0)
            step()
            graphs.capture(key, step)
            staging.launched()
        for turn in range(12):
            key = put(turn)
            torch.cuda._sleep(LONG_KERNEL)
            done = graphs.replay(key)
            assert isinstance(done, Sampled)
            staging.launched()
            seen.append(torch.cat((done.tokens, staging.get("rest"))))
        torch.cuda.synchronize()
    assert [{int(t.min()), int(t.max())} for t in seen] == [{turn} for turn in range(12)]
