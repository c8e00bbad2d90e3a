"""Prompts unlike all before wait for no capture: those are made while nothing is asked."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.small_engine import Outcome, Setup, build_core, load_model, model_config, run

from quire.engine.loop.commands import Command, Stop, Submit
from quire.engine.loop.core import EngineCore
from quire.engine.loop.heartbeat import Heartbeat
from quire.engine.loop.loop import Batch, EngineLoop
from quire.engine.loop.stats import EngineStats
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.runner import runner as runner_module
from quire.engine.runner import uncaptured as uncaptured_module
from quire.engine.runner.graphs import (
    _KINDS,
    MAX_GRAPHS,
    PROMPT_TOKENS,
    Done,
    GraphKey,
    GraphSizes,
    Key,
    SamplerKey,
)
from quire.engine.runner.sampler import Needs

SETUP = Setup(max_num_seqs=7, max_num_batched_tokens=96, block_size=4, caching=True)
PARAMS = SamplingParams(max_tokens=6)
MODEL = load_model(model_config(), seed=2)
PROMPT, OTHER = tuple(range(1, 40)), tuple(range(100, 120))


class Kept:
    """Steps kept as closures, where a GPU would keep graphs."""

    def __init__(self) -> None:
        self.steps: dict[Key, Callable[[], Done]] = {}
        self.order: list[Key] = []
        self.replayed: list[Key] = []
        self.runs = False  # at capture too, as where a library wants a first call

    def __contains__(self, key: Key) -> bool:
        return key in self.steps

    def replay(self, key: Key) -> Done | None:
        self.replayed.append(key)
        return self.steps[key]() if key in self.steps else None

    def capture(self, key: Key, step: Callable[[], Done], *, ran: bool = True) -> None:
        assert not ran, "what is compiled is captured unseen"
        if self.runs:
            with torch.inference_mode():
                step()
        self.steps[key] = step
        self.order.append(key)

    @property
    def prompts(self) -> list[Key]:
        return [key for key in self.order if isinstance(key, GraphKey) and key.prefill_tokens]


def compiled(kept: Kept) -> tuple[EngineCore, Any]:
    """A core whose kernels are all compiled, and its runner."""
    core = build_core(*MODEL, SETUP)
    runner: Any = core.runner
    runner._graphs, runner._warm = kept, True
    return core, runner


def tokens(core: EngineCore, prompt: tuple[int, ...] = PROMPT) -> list[int]:
    outcomes: dict[tuple[int, int], Outcome] = run(core, [GenerationRequest(0, prompt, PARAMS)])
    return outcomes[0, 0].token_ids


def test_a_prompt_unlike_all_before_runs_first_and_is_captured_when_it_comes_again() -> None:
    kept = Kept()
    core, runner = compiled(kept)
    expected = tokens(core)
    assert not kept.prompts and runner.counters.eager_steps == 1
    assert kept.steps, "one-token rows are captured at once: they come with the next step"
    core.scheduler.pool.forget_free()
    assert tokens(core) == expected
    assert len(kept.prompts) == 1 and runner.counters.eager_steps == 1


def test_spare_time_captures_what_was_wanted_and_moves_nothing() -> None:
    kept = Kept()
    core, runner = compiled(kept)
    expected = tokens(core)
    other = tokens(core, OTHER)
    before = runner._kv.k.clone(), runner._state.num_computed.clone()
    kept.runs = True
    assert runner.use_spare_time() and runner.use_spare_time() and not runner.use_spare_time()
    assert len(kept.prompts) == 2
    kept.runs = False
    held, now = (k[:, 1:].nan_to_num() for k in (before[0], runner._kv.k))
    assert torch.equal(held, now), "all but the null block"
    assert torch.equal(before[1], runner._state.num_computed)
    eager = runner.counters.eager_steps
    core.scheduler.pool.forget_free()
    assert tokens(core) == expected and tokens(core, OTHER) == other
    assert runner.counters.eager_steps == eager


def test_in_spare_time_nothing_is_run_where_its_capture_fails() -> None:
    """Padding may be longer than a request: on null rows such a step can only be captured. It is
    captured once it has run, when it is wanted again."""
    kept = Kept()
    core, runner = compiled(kept)
    expected = tokens(core)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "capture", lambda *_args, **_kw: None)
        patch.setattr(runner, "_step_of", lambda _key: pytest.fail)  # called: it would be run
        assert runner.use_spare_time() and not runner.use_spare_time()
    assert not kept.prompts
    core.scheduler.pool.forget_free()
    assert tokens(core) == expected and len(kept.prompts) == 1


@pytest.mark.parametrize("most", [32, 512])
def test_what_is_captured_in_spare_time_is_replayed_once_if_null_rows_hold_its_tokens(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph's first replay takes half a millisecond longer: no request has to wait for that, nor
    for many tokens of null rows."""
    kept = Kept()
    _, runner = compiled(kept)
    longest = runner._sizes.context_bounds[-1]
    monkeypatch.setattr(runner_module, "_REPLAYED", most)
    sizes = (most, most + 16) if most < longest else (longest, longest + 16)
    fits, too_long = (GraphKey(0, 2, tokens, longest) for tokens in sizes)
    runner._uncaptured.expect((fits, SamplerKey(3, Needs(), True), too_long))
    while runner.use_spare_time():
        pass
    assert kept.replayed == [fits, SamplerKey(3, Needs(), True)]
    assert kept.order == [*kept.replayed, too_long]


def test_rows_of_one_token_are_captured_in_spare_time_and_never_run() -> None:
    """Their slots are not in the upload: on the device they may be those of requests."""
    kept = Kept()
    _, runner = compiled(kept)
    rows = (GraphKey(4, 0, 0, 96), SamplerKey(4, Needs()))
    runner._uncaptured.expect(rows)
    while runner.use_spare_time():
        pass
    assert kept.order == list(rows) and not kept.replayed


@pytest.mark.parametrize("prompts", [(), (16, 32, 64, 128, 1024, 4096)])
@pytest.mark.parametrize("most", (1, 2, 64, 256))
def test_a_start_captures_the_largest_steps_and_those_of_few_tokens(
    most: int, prompts: tuple[int, ...]
) -> None:
    sizes = GraphSizes(most, 4096, PROMPT_TOKENS if prompts else ())
    first = sizes.first_keys()
    assert len(first) == len(set(first))
    models = [key for key in first if isinstance(key, GraphKey)]
    assert set(models) <= set(sizes.common_keys()) and not any(key.needs for key in models)
    rows = {key.decode_rows for key in models if not key.prefill_tokens}
    assert rows == {rows for rows in (1, 2, 4, 8) if rows <= most} | {most}
    assert {key.prefill_tokens for key in models} == {0, *prompts} - {1024}
    samplers = {(key.rows, key.needs) for key in first if isinstance(key, SamplerKey)}
    assert samplers == {(count, needs) for count in rows for needs in _KINDS}


def test_few_rows_are_two_graphs_until_they_are_captured_as_one() -> None:
    kept = Kept()
    core, runner = compiled(kept)
    sizes = runner._sizes = GraphSizes(SETUP.max_num_seqs, 128, (16, 32, 64))
    expected = tokens(build_core(*MODEL, SETUP))
    runner.warm_up((), lambda _share: None, spare_time=True)
    runner._warm = True
    kept.replayed.clear()
    assert tokens(core) == expected
    one = sizes.decode(1, 1, None)
    assert kept.replayed[-2:] == [one, SamplerKey(1, Needs())]
    while runner.use_spare_time():
        pass
    kept.replayed.clear()
    core.scheduler.pool.forget_free()
    assert tokens(core) == expected
    assert kept.replayed[-1] == one._replace(needs=Needs())


@pytest.mark.parametrize("longest", (24, 64, 96))
def test_what_a_start_runs_on_null_rows_stays_within_their_table(
    longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a capture fails the step is run: all its tokens as one row, or as two of a model that
    takes few, would reach past the null slot's table."""
    core = build_core(*MODEL, replace(SETUP, max_model_len=longest))
    runner: Any = core.runner
    runner._sizes = GraphSizes(SETUP.max_num_seqs, longest, (16, 32, 64, 128))
    runner._graphs, lens = Kept(), list[int]()
    prepare = runner._ops.prepare_mixed

    def noted(slots: torch.Tensor, starts: torch.Tensor, *more: Any) -> None:
        lens.extend(starts.diff().tolist())
        prepare(slots, starts, *more)

    monkeypatch.setattr(type(runner._ops), "prepare_mixed", staticmethod(noted), raising=False)
    monkeypatch.setattr(Kept, "capture", lambda *_, **__: None)
    runner.warm_up((), lambda _share: None, spare_time=True)
    assert 0 < max(lens) <= longest
    assert sum(lens) >= sum(size for size in (16, 32, 64, 128) if size <= 2 * longest)


@pytest.mark.parametrize("spare_time", (True, False))
def test_what_a_start_leaves_out_is_captured_in_spare_time(spare_time: bool) -> None:
    kept = Kept()
    _, runner = compiled(kept)
    longest = runner._sizes.context_bounds[-1]
    runner._sizes = sizes = GraphSizes(SETUP.max_num_seqs, longest, (16, 32, 64))
    first = sizes.first_keys() if spare_time else sizes.common_keys()
    runner.warm_up((), lambda _share: None, spare_time=spare_time)
    assert kept.order == first
    whole = sizes.decode(1, 1, Needs())
    assert runner._best(sizes.decode(1, 1, None), Needs(), 1) == (
        whole._replace(needs=None) if spare_time else whole
    )
    while runner.use_spare_time():
        pass
    assert kept.order[: len(first)] == first and set(kept.order) >= set(sizes.common_keys())
    assert len(kept.order) == len(set(kept.order))


def test_a_server_that_is_never_idle_captures_few_rows_as_one_graph_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = Kept()
    _, runner = compiled(kept)
    sizes = runner._sizes = GraphSizes(SETUP.max_num_seqs, 128, (16, 32, 64))
    monkeypatch.setattr(uncaptured_module, "_PATIENCE", 3)
    runner.warm_up((), lambda _share: None, spare_time=True)
    apart = sizes.decode(1, 1, None)
    chosen = [runner._best(apart, Needs(), 1) for _ in range(5)]
    assert chosen == [apart] * 3 + [apart._replace(needs=Needs())] * 2


def test_rows_of_one_token_that_were_met_are_captured_at_once_not_later() -> None:
    kept = Kept()
    core, runner = compiled(kept)
    runner._warm = False  # nothing is captured at once
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "capture", lambda *_args, **_kw: None)
        tokens(core)
    runner._warm = True
    while runner.use_spare_time():
        pass
    assert kept.order == kept.prompts != []


def test_nothing_is_captured_in_spare_time_before_all_is_compiled_or_without_graphs() -> None:
    core, runner = compiled(Kept())
    runner._warm = False
    tokens(core)
    assert not runner.use_spare_time()
    runner._warm, runner._graphs = True, None
    assert not runner.use_spare_time()


@pytest.mark.parametrize("most", (1, 2, 64, 256))
def test_what_a_burst_needs_is_few_graphs_for_many_of_its_steps(most: int) -> None:
    sizes = GraphSizes(most, 4096, PROMPT_TOKENS)
    keys = sizes.burst_keys()
    models = [key for key in keys if isinstance(key, GraphKey)]
    assert len(keys) == len(set(keys)) and len(models) <= 250
    assert len(keys) + len(sizes.common_keys()) <= MAX_GRAPHS
    for rows in range(min(most, 64)):
        for prompts in range(1, min(64, most - rows + 1)):
            for each in (65, 80, 128, 129):
                key = sizes.mixed(rows, prompts, prompts * each, 600)
                assert key in models
                sampler = sizes.sampler(key, Needs(draws=True), 1)
                assert sampler in keys if sampler is not None else key.rows > 2 * most
    assert not GraphSizes(most, 64, (16, 32, 64)).burst_keys()


# ---------------------------------------------------------------- the loop


class Built:
    """A BuiltEngine without statistics."""

    info: Any = None

    def __init__(self, core: EngineCore) -> None:
        self.core = core

    def stats(self) -> EngineStats:
        return EngineStats()

    def stop(self) -> None:
        """Nobody else is to be told."""


class Inbox:
    """Commands by turn; what `take` is asked for is written down."""

    def __init__(self, story: list[str], *turns: Sequence[Command]) -> None:
        self._story = story
        self._turns = list(turns)

    def take(self, *, wait: bool) -> Sequence[Command]:
        commands = self._turns.pop(0)
        while wait and not commands:
            commands = self._turns.pop(0)
        if commands:
            self._story.append(("waited: " if wait else "") + type(commands[0]).__name__)
        return commands


def live(core: EngineCore, story: list[str], *turns: Sequence[Command]) -> None:
    def publish(batch: Batch) -> None:
        story.extend("said" for _ in batch.outputs)

    EngineLoop(Built(core), Inbox(story, *turns), publish, Heartbeat()).run()


def test_spare_time_ends_where_a_command_comes_and_where_nothing_is_left() -> None:
    core, _runner = compiled(Kept())
    story: list[str] = []
    left = [True] * 3

    def spare() -> bool:
        assert not core.has_requests
        story.append("spare")
        return bool(left) and left.pop()

    core.spare = [spare]
    one = replace(PARAMS, max_tokens=1)
    live(core, story, (), [Submit(GenerationRequest(1, PROMPT, one))], *[()] * 9, [Stop()])
    # A command between two bits of work goes first; where nothing is left the loop waits.
    said = ["said"] * 2  # its start and its token
    assert story == ["spare", "Submit", *said, *["spare"] * 3, "waited: Stop"]


def test_work_in_spare_time_that_fails_is_given_up_and_the_engine_lives() -> None:
    core, runner = compiled(Kept())
    calls: list[int] = []

    def spare() -> bool:
        calls.append(1)
        raise ValueError("no room")

    core.spare = [spare]
    assert not core.use_spare_time() and not core.use_spare_time() and len(calls) == 1
    core.spare = [lambda: bool(calls.append(2)), spare, lambda: not calls.append(3)]
    assert core.use_spare_time() and calls == [1, 2, 1, 3], "each, until one had something to do"
    assert core.use_spare_time() and calls[4:] == [2, 3], "but for what has failed"
    core.spare = [spare]
    runner.is_fatal = lambda _error: True
    with pytest.raises(ValueError, match="no room"):
        core.use_spare_time()
