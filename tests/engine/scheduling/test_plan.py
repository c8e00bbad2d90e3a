"""A plan is numbers alone: it can be written down, read again, and run by somebody else."""

import json
import marshal
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
from support.small_engine import Setup, build_core, load_model, model_config
from support.traffic import run_episode

from quire.engine.loop.core import EngineCore
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.scheduling.plan import SamplingNumbers, StepPlan, StepResult
from quire.engine.scheduling.request import Request

Carry = Callable[[Any], Any]
CARRIERS: dict[str, Carry] = {
    "marshal": lambda plain: marshal.loads(marshal.dumps(plain)),
    "json": lambda plain: json.loads(json.dumps(plain)),
}
MODEL = load_model(model_config(), seed=5)
GREEDY = SamplingParams(max_tokens=14)
# What a slot can be asked for: each field that a runner needs differs from its default somewhere.
SAMPLINGS = (
    GREEDY,
    replace(GREEDY, temperature=0.9, seed=2**64 - 3, top_k=40, top_p=0.95, min_p=0.01),
    replace(GREEDY, temperature=0.7, seed=1 << 63, repetition_penalty=1.3, presence_penalty=0.2),
    replace(GREEDY, frequency_penalty=0.4, min_tokens=6, stop_token_ids=tuple(range(300, 360))),
    replace(GREEDY, logprobs=3),
    replace(GREEDY, logprobs=0, temperature=1.1, seed=9),
    replace(GREEDY, logit_bias=((8, 2.5),), allowed_token_ids=(8, 9, 10), banned_token_ids=(9,)),
)
# Of these a slot is told in other words: seed, min_position and ending_ids.
IN_OTHER_WORDS = {
    *("seed", "max_tokens", "min_tokens", "stop_token_ids", "eos_token_ids", "ignore_eos")
}
# Blocks for about half of them at once: some are preempted, and admitted again with outputs.
SETUP = Setup(
    max_num_seqs=6,
    max_num_batched_tokens=24,
    num_blocks=26,
    block_size=4,
    caching=True,
    overlap=True,
)


def requests() -> list[GenerationRequest]:
    """One of each sampling, some with siblings, and a resumed one."""
    found = []
    for key, params in enumerate(SAMPLINGS, start=1):
        prompt = tuple((key // 2 * 31 + i * 7) % 383 + 1 for i in range(5 + 3 * key))
        n = 3 if params.temperature == 0.9 else 1
        found.append(GenerationRequest(key, prompt, params, n=n))
    resumed = replace(GREEDY, repetition_penalty=1.2)
    found.append(GenerationRequest(9, (4, 5, 6), resumed, resume_token_ids=(7, 8, 9)))
    return found


def test_what_a_request_asks_for_reaches_its_slot() -> None:
    """A parameter that is left out on the way would be accepted, and ignored."""
    for name in {field.name for field in fields(SamplingParams)} - IN_OTHER_WORDS:
        asked = [
            getattr(one, name) for one in SAMPLINGS if getattr(one, name) != getattr(GREEDY, name)
        ]
        assert asked, f"{name}: give it to one of SAMPLINGS"
        told = SamplingNumbers.of(replace(GREEDY, **{name: asked[0]}))
        assert told != SamplingNumbers.of(GREEDY), f"{name}: SamplingNumbers.of leaves it out"


class Recorder:
    """Stands between a core and its runner: keeps each plan in plain form, and each result."""

    def __init__(self, core: EngineCore) -> None:
        self.plans: list[Any] = []
        self.results: list[StepResult] = []
        execute, apply = core.runner.execute, core.scheduler.apply

        def recorded(plan: StepPlan) -> Any:
            self.plans.append(plan.plain())
            return execute(plan)

        def applied(plan: StepPlan, result: StepResult) -> Any:
            self.results.append(result)
            return apply(plan, result)

        core.scheduler.apply = applied  # type: ignore[method-assign]
        core.runner.execute = recorded  # type: ignore[method-assign]


def atoms(value: Any) -> Iterator[Any]:
    """All that nested tuples hold in the end."""
    if type(value) is tuple:
        for part in value:
            yield from atoms(part)
    else:
        yield value


@pytest.mark.parametrize("carrier", CARRIERS)
def test_recorded_plans_replayed_on_a_second_runner_give_the_same_tokens(carrier: str) -> None:
    first, second = build_core(*MODEL, SETUP), build_core(*MODEL, SETUP)
    recorder = Recorder(first)
    specs = requests()
    for turn in (specs, [replace(specs[5], key=10)]):  # the last one finds its prefix
        for request in turn:
            first.scheduler.submit(request)
        while first.scheduler.has_requests:
            first.step()
    counters = first.scheduler.counters
    assert counters.preemptions > 0 and counters.prefix_hit > 0
    assert any(StepPlan.of(plan).copies for plan in recorder.plans)
    assert len(recorder.plans) == len(recorder.results)
    carried = CARRIERS[carrier](recorder.plans)
    for plain, expected in zip(carried, recorder.results, strict=True):
        runner = second.runner
        assert (runner.execute(StepPlan.of(plain)) or runner.sample(())).wait() == expected


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_plan_is_numbers_alone_and_equal_to_what_is_read_again(carrier: str) -> None:
    plans = [plan for seed in range(40, 44) for plan in run_episode(seed, 60, log=True).log or ()]
    assert len(plans) > 100
    for plain in plans:
        assert {type(atom) for atom in atoms(plain)} <= {int, float, bool, type(None)}
        read = StepPlan.of(CARRIERS[carrier](plain))
        assert read == StepPlan.of(plain) and read.plain() == plain
        assert hash(read) == hash(StepPlan.of(plain)), "frozen all the way down"


def test_a_decode_row_carries_no_token_and_any_other_row_all_of_its_own() -> None:
    for plain in run_episode(51, 100, log=True).log or ():
        plan = StepPlan.of(plain)
        for number, row in enumerate(plan.rows):
            is_decode = number < plan.num_decode_rows
            assert len(row.token_ids) == (0 if is_decode else row.num_tokens)


def test_what_is_planned_does_not_change_when_its_request_goes_on() -> None:
    """A plan may be read long after it was made: nothing in it is shared with what lives."""
    core = build_core(*MODEL, SETUP)
    held: list[tuple[StepPlan, Any]] = []
    execute = core.runner.execute

    def kept(plan: StepPlan) -> Any:
        held.append((plan, plan.plain()))
        return execute(plan)

    core.runner.execute = kept  # type: ignore[method-assign]
    for request in requests():
        core.scheduler.submit(request)
    while core.scheduler.has_requests:
        core.step()
    assert all(plan.plain() == before for plan, before in held)


def test_siblings_have_seeds_of_their_own_in_signed_64_bits() -> None:
    for seed in (0, 5, 2**63 - 1, 2**63, 2**64 - 1):
        params = SamplingParams(temperature=1.0, seed=seed)
        spec = GenerationRequest(1, (3, 4), params, n=5)
        rows = [Request(spec, index, index).admission_row() for index in range(5)]
        seeds = [row.sampling.seed for row in rows]
        assert seeds[0] % 2**64 == seed and len(set(seeds)) == 5
        assert all(-(2**63) <= one < 2**63 for one in seeds)
