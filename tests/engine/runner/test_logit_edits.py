"""logit_bias, allowed_token_ids and banned_token_ids: as numbers, from the request to the token."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.small_engine import Outcome, Setup, build_core, load_model, model_config, run

from quire.engine.client import wire
from quire.engine.loop.commands import Submit
from quire.engine.request import FinishReason, GenerationRequest, SamplingParams
from quire.engine.runner.results import PendingResult
from quire.engine.scheduling.plan import Masks, StepPlan
from quire.kernels import reference

MODEL = load_model(model_config(), seed=7)
PROMPT = (5, 9, 200, 31, 77)
PLAIN = SamplingParams(temperature=0.9, seed=11, max_tokens=24, logprobs=2)
EVEN = tuple(range(0, 384, 2))
EDITS = (
    replace(PLAIN, allowed_token_ids=EVEN),
    replace(PLAIN, banned_token_ids=EVEN, repetition_penalty=1.3, top_k=20),
    replace(PLAIN, allowed_token_ids=EVEN, banned_token_ids=tuple(range(0, 384, 4))),
    replace(PLAIN, logit_bias=((7, 100.0), (350, -100.0)), min_tokens=8, stop_token_ids=(7,)),
    replace(PLAIN, temperature=0.0, logit_bias=((12, 4.0), (90, 3.5), (33, 3.75))),
    PLAIN,
)
# Blocks for about half of them at once, in chunks: some are preempted, and admitted again.
CROWDED = Setup(
    max_num_seqs=6,
    max_num_batched_tokens=12,
    num_blocks=30,
    caching=True,
    overlap=True,
)


def asked(sampling: Sequence[SamplingParams]) -> list[GenerationRequest]:
    return [
        GenerationRequest(key, (*PROMPT, key), params, n=2 if key == 1 else 1)
        for key, params in enumerate(sampling, start=1)
    ]


def alone(request: GenerationRequest) -> dict[tuple[int, int], Outcome]:
    return run(build_core(*MODEL, Setup()), [request])


def test_only_allowed_and_no_banned_ids_are_chosen() -> None:
    first, second, third = (alone(one)[one.key, 0].token_ids for one in asked(EDITS[:3]))
    assert len(first) == len(second) == len(third) == 24
    assert all(token % 2 == 0 for token in first)
    assert all(token % 2 == 1 for token in second)
    assert all(token % 4 == 2 for token in third)


def test_a_bias_is_added_to_a_logit_and_to_no_other() -> None:
    logits = torch.zeros(3, 40)
    rows, ids = torch.tensor([0, 2, 2]), torch.tensor([5, 5, 39])
    reference.add_bias(logits, rows, ids, torch.tensor([1.5, -2.0, 100.0]))
    assert logits.nonzero().tolist() == [[0, 5], [2, 5], [2, 39]]
    assert logits[rows, ids].tolist() == [1.5, -2.0, 100.0]
    favoured = GenerationRequest(1, PROMPT, replace(PLAIN, logit_bias=((7, 100.0),)))
    assert alone(favoured)[1, 0].token_ids == [7] * 24


def test_a_mask_keeps_the_ids_whose_bits_are_set_in_its_row_alone() -> None:
    logits = torch.arange(80.0).reshape(2, 40)
    words = torch.tensor([[1 << 3 | -(1 << 31), 1 << 7]], dtype=torch.int32)
    reference.keep_allowed(logits, torch.tensor([-1, 0], dtype=torch.int32), words)
    assert logits[1].isfinite().nonzero()[:, 0].tolist() == [3, 31, 39]
    assert logits[0].isfinite().all()


def test_a_bias_holds_back_an_end_that_min_tokens_forbids() -> None:
    request = asked(EDITS)[3]
    outcome = alone(request)[request.key, 0]
    assert outcome.finish is FinishReason.STOP
    assert len(outcome.token_ids) == 8 and outcome.token_ids[-1] == 7


@pytest.mark.parametrize("padded", [False, True])
def test_in_a_crowd_each_gets_what_it_gets_alone(padded: bool) -> None:
    requests = [
        replace(one, sampling=replace(one.sampling, logprobs=None)) if padded else one
        for one in asked(EDITS)
    ]
    core = build_core(*MODEL, replace(CROWDED, padded=padded))
    outcomes = run(core, requests)
    for request in requests:
        for at, expected in alone(request).items():
            assert outcomes[at].token_ids == expected.token_ids
            assert outcomes[at].finish is expected.finish
    assert core.scheduler.counters.preemptions > 0


def test_no_step_is_held_up_by_the_sampler_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Words are handed over once a step is launched: many streams had them a step late."""
    core = build_core(*MODEL, Setup(overlap=True))
    execute, fetch = core.runner.execute, PendingResult.fetch
    launching, waited = list[StepPlan](), list[bool]()

    def launch(plan: StepPlan) -> Any:
        launching.append(plan)
        try:
            return execute(plan)
        finally:
            launching.clear()

    def wait(pending: PendingResult) -> list[int]:
        waited.append(bool(launching) and pending._fetched is None)
        return fetch(pending)

    monkeypatch.setattr(core.runner, "execute", launch)
    monkeypatch.setattr(PendingResult, "fetch", wait)
    run(core, asked([replace(EDITS[0], max_tokens=6)]))
    assert waited and not any(waited)


def test_who_looks_at_results_a_step_late_gets_the_same() -> None:
    """Other ranks launch a sampler before they wait for the one before it."""
    setup = Setup(overlap=True, padded=True)
    core, follower = build_core(*MODEL, setup), build_core(*MODEL, setup).runner
    steps: list[tuple[PendingResult, PendingResult]] = []

    class Leading:
        def __init__(self, runner: Any) -> None:
            self._runner = runner

        def execute(self, plan: StepPlan) -> PendingResult | None:
            return self._launched(self._runner.execute(plan), follower.execute(plan))

        def sample(self, masks: Masks) -> PendingResult | None:
            return self._launched(self._runner.sample(masks), follower.sample(masks))

        def _launched(self, mine: Any, other: Any) -> PendingResult | None:
            if mine is not None:
                steps.append((mine, other))
                steps[max(len(steps) - 2, 0)][1].wait()
            return mine

    core.runner = Leading(core.runner)  # type: ignore[assignment]
    run(core, asked([replace(one, logprobs=None, max_tokens=6) for one in EDITS[:3]]))
    assert all(mine.fetch() == other.fetch() for mine, other in steps)


def test_a_slot_forgets_what_the_request_before_asked_for() -> None:
    """Seen where another row of the step has a bias, or a mask: else nobody looks at them."""
    for one, other in (EDITS[0], EDITS[1]), (EDITS[3], EDITS[4]):
        edited, plain, beside = asked([one, PLAIN, other])
        core = build_core(*MODEL, Setup(max_num_seqs=2))
        run(core, [edited])
        found = run(core, [plain, beside])[plain.key, 0]
        assert found.token_ids == alone(plain)[plain.key, 0].token_ids


def test_logprobs_are_of_the_raw_logits() -> None:
    def said(params: SamplingParams) -> list[tuple[int, float]]:
        core = build_core(*MODEL, Setup())
        core.scheduler.submit(GenerationRequest(1, PROMPT, params))
        found = []
        while core.scheduler.has_requests:
            for output in core.step():
                found += [one for logprob in output.logprobs or () for one in logprob.top]
        return found

    forced = replace(PLAIN, temperature=0.0, max_tokens=1)
    assert said(forced) == said(replace(forced, allowed_token_ids=(3, 4)))


def test_a_request_resumed_gets_the_rest_of_what_it_got() -> None:
    for request in asked(EDITS):
        request = replace(request, n=1)
        whole = alone(request)[request.key, 0].token_ids
        for cut in (1, len(whole) // 2):
            rest = alone(replace(request, resume_token_ids=tuple(whole[:cut])))
            assert whole[:cut] + rest[request.key, 0].token_ids == whole


def test_they_cross_to_another_process_as_they_are() -> None:
    for request in asked(EDITS):
        (message,) = wire.Frames().feed(wire.frame(wire.pack_command(Submit(request))))
        assert wire.unpack_command(message) == Submit(request)
