"""Log-probabilities of a prompt's own tokens: those that the model had given for them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import pytest
from support.small_engine import Setup, build_core, load_model, model_config

from quire.engine.errors import RequestError
from quire.engine.loop.core import EngineCore
from quire.engine.prompt_logprobs import record, unpacked
from quire.engine.request import FinishReason, GenerationRequest, SamplingParams, TokenLogprob

MODEL = load_model(model_config(), seed=3)
GREEDY = SamplingParams(max_tokens=20, logprobs=3)
CLOSE = 2e-4  # chunks add up in other orders


@dataclass
class Told:
    """Of one index."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    judged: bytes = b""
    pieces: list[tuple[int, int]] = field(default_factory=list)  # tokens known, records told
    finish: FinishReason | None = None
    preemptions: int = 0


def run(core: EngineCore, requests: Sequence[GenerationRequest]) -> dict[tuple[int, int], Told]:
    found: dict[tuple[int, int], Told] = {}
    for request in requests:
        core.submit(request)
    for _ in range(5000):
        if not core.has_requests:
            return found
        for output in core.step():
            told = found.setdefault((output.key, output.index), Told())
            if output.prompt_logprobs:
                told.pieces.append((len(told.ids), len(output.prompt_logprobs)))
            told.judged += output.prompt_logprobs
            told.ids += output.token_ids
            told.logprobs += output.logprobs or []
            told.finish = output.finish or told.finish
            told.preemptions = max(told.preemptions, output.preemptions)
    raise AssertionError("it does not end")


def judged(told: Told, request: GenerationRequest) -> list[TokenLogprob]:
    top = request.prompt_logprobs
    assert top is not None
    return list(unpacked(told.judged, top, request.prompt_token_ids[1:]))


def assert_close(found: Sequence[TokenLogprob], expected: Sequence[TokenLogprob]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.token_id == other.token_id and one.rank == other.rank
        assert math.isclose(one.logprob, other.logprob, abs_tol=CLOSE)
        assert [i for i, _ in one.top] == [i for i, _ in other.top]
        for (_, value), (_, beside) in zip(one.top, other.top, strict=True):
            assert math.isclose(value, beside, abs_tol=CLOSE)


def spoken(key: int) -> tuple[GenerationRequest, list[TokenLogprob]]:
    """A prompt that the model has spoken itself but for its beginning, and what it said of it."""
    begun = GenerationRequest(key, (5 + key, 6, 7, 8 + key), GREEDY)
    told = run(build_core(*MODEL, Setup()), [begun])[key, 0]
    prompt = (*begun.prompt_token_ids, *told.ids)
    sampling = replace(GREEDY, max_tokens=4, logprobs=None)
    return GenerationRequest(key, prompt, sampling, prompt_logprobs=3), told.logprobs


@cache
def all_spoken() -> list[tuple[GenerationRequest, list[TokenLogprob]]]:
    return [spoken(key) for key in range(6)]


SETUPS = {
    "whole": Setup(),
    "in chunks": Setup(max_num_batched_tokens=5),
    "token by token": Setup(max_num_batched_tokens=1),
    "padded": Setup(max_num_seqs=6, max_num_batched_tokens=40, overlap=True, padded=True),
    "two phases": Setup(max_num_seqs=3, max_num_batched_tokens=16, two_phase=True),
    "overlapped and cached": Setup(4, 7, num_blocks=60, overlap=True, caching=True),
}


@pytest.mark.parametrize("name", SETUPS)
def test_a_prompts_tokens_have_what_they_had_when_they_were_sampled(name: str) -> None:
    """However it is cut, and whatever is beside it."""
    core = build_core(*MODEL, SETUPS[name])
    alone = {key: judged(run(build_core(*MODEL, Setup()), [r])[key, 0], r)
             for key, (r, _) in enumerate(all_spoken())}  # fmt: skip
    free = [GenerationRequest(k, (9, k, 4), replace(GREEDY, logprobs=None)) for k in (20, 21)]
    found = run(core, [*(request for request, _ in all_spoken()), *free])
    for key, (request, said) in enumerate(all_spoken()):
        told = found[key, 0]
        mine = judged(told, request)
        assert_close(mine[-len(said) :], said)
        assert_close(mine, alone[key])
        assert all(known == 0 for known, _ in told.pieces)
        assert len(told.ids) == 4 and told.finish is FinishReason.LENGTH
    if name == "token by token":
        assert len(found[0, 0].pieces) == len(all_spoken()[0][0].prompt_token_ids) - 1


@pytest.mark.parametrize("overlap", [False, True])
def test_what_was_told_before_a_preemption_is_not_told_again(overlap: bool) -> None:
    """Rows of one token take the blocks of a prompt that is half computed."""
    setup = Setup(3, 5, num_blocks=12, overlap=overlap, caching=True)
    free = [GenerationRequest(k, (9, k, 4), replace(GREEDY, logprobs=None)) for k in (20, 21)]
    request, said = all_spoken()[0]
    found = run(build_core(*MODEL, setup), [*free, request])
    told = found[0, 0]
    assert told.preemptions > 0 and len(told.pieces) > 2
    assert_close(judged(told, request)[-len(said) :], said)
    assert told.ids == run(build_core(*MODEL, Setup()), [request])[0, 0].ids


def test_what_is_cached_is_computed_for_it_and_shared_by_others() -> None:
    request, said = all_spoken()[0]
    plain = replace(request, prompt_logprobs=None)
    core = build_core(*MODEL, Setup(caching=True))
    run(core, [plain])
    told = run(core, [replace(request, key=1)])[1, 0]
    assert_close(judged(told, request)[-len(said) :], said)
    assert core.scheduler.counters.prefix_hit == 0
    assert run(core, [replace(plain, key=2)])[2, 0].ids == told.ids
    assert core.scheduler.counters.prefix_hit > 0


@pytest.mark.parametrize("together", (3, 1))
def test_siblings_share_what_the_first_of_them_tells(together: int) -> None:
    """Forks, and those that begin when it has ended and compute the prompt anew."""
    request, said = all_spoken()[1]
    setup = Setup(together, max_num_batched_tokens=6, overlap=True, caching=True)
    found = run(build_core(*MODEL, setup), [replace(request, n=3)])
    assert [bool(found[1, index].judged) for index in range(3)] == [True, False, False]
    assert_close(judged(found[1, 0], request)[-len(said) :], said)
    assert found[1, 1].ids == found[1, 2].ids == found[1, 0].ids


def test_nothing_stands_before_a_prompt_of_one_token() -> None:
    one = GenerationRequest(1, (5,), replace(GREEDY, max_tokens=2), prompt_logprobs=0)
    told = run(build_core(*MODEL, Setup()), [one])[1, 0]
    assert told.judged == b"" and len(told.ids) == 2


def test_without_the_best_a_record_is_eight_bytes() -> None:
    request, said = all_spoken()[2]
    bare = replace(request, prompt_logprobs=0)
    told = run(build_core(*MODEL, Setup(max_num_batched_tokens=9)), [bare])[2, 0]
    assert record(0).itemsize == 8 and len(told.judged) == 8 * (len(bare.prompt_token_ids) - 1)
    mine = judged(told, bare)[-len(said) :]
    assert_close(mine, [replace(one, top=()) for one in said])


@pytest.mark.parametrize("budget", [256, 4])
def test_numbers_that_are_none_end_the_request_and_no_other(budget: int) -> None:
    """Whole, and in chunks, of which the first with such a number tells nothing."""
    model, ops = load_model(model_config(tied=False), seed=3)
    core = build_core(model, ops, Setup(max_num_seqs=2, max_num_batched_tokens=budget))
    request, _ = all_spoken()[0]
    poisoned = replace(request, prompt_token_ids=(*request.prompt_token_ids[:6], 380, 9, 9, 9))
    model.embedding.weight[380] = math.nan  # type: ignore[attr-defined]
    fine = replace(request, key=1)
    found = run(core, [poisoned, fine])
    assert found[0, 0].finish is FinishReason.ERROR
    told = np.frombuffer(found[0, 0].judged, record(3))
    assert len(told) < 6 and np.isfinite(told["logprob"]).all()
    assert found[1, 0].finish is FinishReason.LENGTH and judged(found[1, 0], fine)
    assert core.scheduler.counters.not_a_number == 1


def test_nothing_is_resumed_where_a_prompt_is_judged() -> None:
    request, _ = all_spoken()[0]
    with pytest.raises(RequestError, match="excludes resume_token_ids"):
        build_core(*MODEL, Setup()).scheduler.check(replace(request, resume_token_ids=(5,)))
