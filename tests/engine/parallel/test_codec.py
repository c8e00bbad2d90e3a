"""A plan comes out of its bytes as it went in; whatever else they are, they are refused."""

import random
from dataclasses import replace
from functools import cache

import pytest
from support.small_engine import FAMILIES, Setup, build_core, load_model, model_config, run

from quire.engine.errors import RankError
from quire.engine.loop.core import EngineCore
from quire.engine.parallel.codec import decode, decode_masks, encode, encode_masks
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.scheduling.plan import BlockUpdate, Pooled, PromptLogprobsRow, StepPlan

GREEDY = SamplingParams(max_tokens=12)
SAMPLINGS = (
    GREEDY,
    replace(GREEDY, temperature=0.9, seed=2**64 - 3, top_k=40, top_p=0.95, min_p=0.01),
    replace(GREEDY, temperature=0.7, seed=1 << 63, repetition_penalty=1.3, presence_penalty=0.2),
    replace(GREEDY, frequency_penalty=0.4, min_tokens=6, stop_token_ids=tuple(range(300, 360))),
    replace(GREEDY, logprobs=0, logit_bias=((8, 2.5),), allowed_token_ids=(8, 9, 10)),
    replace(GREEDY, logprobs=3, banned_token_ids=(9,)),
)


@cache
def plans() -> list[StepPlan]:
    """Of an engine whose requests come in chunks, share blocks, and are preempted."""
    few = Setup(max_num_seqs=4, max_num_batched_tokens=24, num_blocks=18, caching=True)
    made: list[StepPlan] = []
    for config in (model_config(), FAMILIES["qwen2, both"]):
        made += plans_of(build_core(*load_model(config, seed=5), few))
    return made


def plans_of(core: EngineCore) -> list[StepPlan]:
    made: list[StepPlan] = []
    execute = core.runner.execute

    def noted(plan: StepPlan) -> object:
        made.append(plan)
        return execute(plan)

    core.runner.execute = noted  # type: ignore[method-assign, assignment]
    specs = [
        GenerationRequest(key, tuple((i * i + key // 2) % 383 for i in range(5, 30)), params, n=2)
        for key, params in enumerate(SAMPLINGS)
    ]
    run(core, specs)
    return made


def masked() -> StepPlan:
    return plans()[0]._replace(
        masked=(0, 3, 7),
        pooled=(Pooled(5, ()), Pooled(2, (9, 300))),
        prompt_logprobs=(PromptLogprobsRow(4, 12, 300, 20), PromptLogprobsRow(1, 1, -1, 0)),
    )


MASKS = ((0, b"\x00\xff\x10"), (3, b""))
EXTREMES = StepPlan(2**62, (), (), (BlockUpdate(0, 2**31 - 1, 2**31 - 1),), ((1, 2),), 0, 0)


def test_it_comes_out_as_it_went_in() -> None:
    for plan in (*plans(), masked(), EXTREMES):
        again = decode(encode(plan))
        assert again == plan
        assert again.plain() == plan.plain()


def test_the_plans_hold_all_that_there_is() -> None:
    """Otherwise the test above would show little."""
    admitted = [one for plan in plans() for one in plan.admitted]
    assert any(plan.copies for plan in plans()) and any(plan.block_updates for plan in plans())
    assert any(plan.window_copies for plan in plans()) and any(
        plan.window_updates for plan in plans()
    )
    assert any(plan.is_mixed for plan in plans())
    assert any(one.num_computed for one in admitted)
    assert any(one.output_token_ids for one in admitted)
    assert {one.sampling.logprobs for one in admitted} == {None, 0, 3}
    assert any(one.sampling.logit_bias and one.sampling.allowed_ids for one in admitted)


def test_no_beginning_of_a_plan_and_no_more_than_one_is_a_plan() -> None:
    data = encode(next(plan for plan in plans() if plan.admitted and plan.block_updates))
    for length in range(len(data)):
        with pytest.raises(RankError, match="no plan"):
            decode(data[:length])
    with pytest.raises(RankError, match=f"the end is at {len(data)}"):
        decode(data + b"\0")


def test_masks_come_out_as_they_went_in_and_nothing_else_does() -> None:
    for masks in ((), MASKS):
        data = encode_masks(masks)
        assert decode_masks(data) == masks
        with pytest.raises(RankError, match="no plan"):
            decode(data)
        for other in (*(data[:length] for length in range(len(data))), data + b"\0"):
            with pytest.raises(RankError, match="no masks"):
                decode_masks(other)


def test_changed_bytes_are_another_plan_or_refused() -> None:
    """Neither memory without bound nor an error of another kind comes of any byte."""
    chance = random.Random(1)
    whole = [encode(plan) for plan in (*plans(), masked())]
    for _ in range(3000):
        data = bytearray(chance.choice(whole))
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.choice((0, 1, 127, 128, 255))
        try:
            plan = decode(bytes(data))
        except RankError:
            continue
        assert isinstance(plan, StepPlan)


def test_numbers_that_do_not_fit_are_refused() -> None:
    first = plans()[0]
    for plan in (
        first._replace(rows=(first.rows[0]._replace(slot=2**31),)),
        first._replace(step_id=2**63),
    ):
        with pytest.raises(RankError, match="cannot be told to the ranks"):
            encode(plan)


def test_a_plan_beyond_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire.engine.parallel.codec.MAX_BYTES", 100)
    with pytest.raises(RankError, match="at most 100"):
        encode(masked())
