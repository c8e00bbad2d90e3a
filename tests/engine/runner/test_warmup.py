"""What is warm before an engine serves is all that it will ever launch."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.small_engine import Setup, build_core, model_config

from quire.engine.loop.core import EngineCore
from quire.engine.model.config import GPT2, QWEN2, QWEN3, QWEN3_MOE, Experts, Fp8
from quire.engine.model.forward_batch import KVCache
from quire.engine.model.registry import build_model
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.runner.graphs import Key
from quire.engine.runner.warmup import Bounds, WarmStep, names_of, warm_steps
from quire.engine.weights.random import fill_random

pytest.importorskip("triton")
from support.recorded_ops import RecordedOps, recorded

from quire.engine.runner import compile_worker
from quire.kernels.attention.decode_launch import Heads
from quire.kernels.launches import Card, Mixture
from quire.kernels.linear import gemv, tuning
from quire.kernels.support import NARROW

CPU = torch.device("cpu")
SETUP = Setup(
    max_num_seqs=40,
    max_num_batched_tokens=640,
    num_blocks=1200,
    block_size=16,
    max_model_len=700,
    caching=True,
    overlap=True,
)
SHAPE = replace(
    model_config(q_heads=16, kv_heads=8, head_dim=16, layers=1), max_position_embeddings=9000
)


class Kept:
    """Steps kept as closures, where a GPU would keep graphs."""

    def __init__(self) -> None:
        self.steps: dict[Key, Any] = {}
        self.unseen = 0

    def __contains__(self, key: Key) -> bool:
        return key in self.steps

    def replay(self, key: Key) -> Any:
        return self.steps[key]() if key in self.steps else None

    def capture(self, key: Key, step: Any, *, ran: bool = True) -> None:
        self.unseen += not ran
        self.steps[key] = step


EXPERTS = Experts(20, 6, 48, True)  # whose kernels change where no other's do


def bounds(
    setup: Setup = SETUP,
    *,
    qk_norm: bool = True,
    mixture: Mixture | None = None,
    exact: bool = False,
    q_and_kv: tuple[int, int] = (16, 8),
) -> Bounds:
    narrow = setup.cache_dtype == NARROW
    heads = Heads(*q_and_kv, 16, torch.bfloat16, setup.block_size, narrow)
    tokens, longest = setup.max_num_batched_tokens, setup.max_model_len
    return Bounds(setup.max_num_seqs, tokens, longest, heads, Card(), qk_norm, mixture, exact=exact)


def test_ranks_warm_both_kinds_of_exchange() -> None:
    """Small steps take one shot and large ones two; one rank exchanges nothing."""
    size = replace(bounds(), ranks=2)
    names = [names_of(step, size) for step in warm_steps(size)]
    kinds = {name for some in names for name in some if name[0] == "exchange"}
    assert kinds == {("exchange", "one-shot"), ("exchange", "two-shot")}
    assert not any(name[0] == "exchange" for name in names_of(warm_steps(size)[0], bounds()))


def test_a_process_that_compiles_for_ranks_has_an_exchange_to_launch() -> None:
    outline = compile_worker._Outline(4)
    part = torch.empty(3, 8, dtype=torch.bfloat16, device="meta")
    assert outline.gather(part).shape == (4, 3, 8)
    mail = outline.mail_for(part)
    assert mail is not None and (mail.one.size, mail.one.table.shape) == (4, (5,))
    assert outline.mail_for(part.float()) is None


def recorded_core(
    setup: Setup = SETUP,
    *,
    graphs: bool,
    architecture: str = QWEN3,
    fp8: Fp8 | None = None,
    layers: int = 1,
    exact: bool = False,
    both: bool = False,
    head_dim: int = 16,
) -> EngineCore:
    """A model of 16-bit weights over a 16-bit cache, as on a GPU. both: one layer sees all, and one
    a window."""
    ops: Any = RecordedOps(exact=exact)
    experts = EXPERTS if architecture == QWEN3_MOE else None
    shape = replace(SHAPE, architecture=architecture, experts=experts, fp8=fp8, num_layers=layers)
    shape = replace(shape, head_dim=head_dim)
    if architecture == GPT2:
        shape = replace(shape, num_q_heads=3, num_kv_heads=3)  # of 16 dimensions: its width
    if fp8 is not None:
        shape = replace(shape, intermediate_size=128)  # whole blocks of gate and of up
        if experts is not None:
            shape = replace(shape, experts=replace(experts, intermediate_size=128))
    if both:
        shape = replace(shape, num_layers=2, sliding_window=64, full_layers=(0,))
    model = build_model(shape, ops, dtype=torch.bfloat16, device=CPU)
    fill_random(model, 3)
    core = build_core(model, ops, setup)
    runner: Any = core.runner
    dtype = NARROW if setup.cache_dtype == NARROW else torch.bfloat16
    runner._kv = runner._writer._kv = of_dtype(runner._kv, dtype)
    runner._graphs = Kept() if graphs else None
    return core


def of_dtype(kv: KVCache, dtype: torch.dtype) -> KVCache:
    window = None if kv.window is None else of_dtype(kv.window, dtype)
    return KVCache(*(torch.zeros(side.shape, dtype=dtype) for side in (kv.k, kv.v)), window)


def any_sampling(rng: random.Random) -> SamplingParams:
    plain = SamplingParams(max_tokens=rng.choice((1, 2, 5, 12, 30)), seed=rng.randrange(1 << 60))
    hot = replace(plain, temperature=rng.choice((0.5, 1.3)))
    return rng.choice(
        (
            plain,
            hot,
            replace(hot, top_k=rng.choice((1, 40)), top_p=0.9, min_p=0.05),
            replace(plain, repetition_penalty=1.3, presence_penalty=0.2),
            replace(hot, min_tokens=3, eos_token_ids=(7, 9)),
            replace(plain, logprobs=5),
            replace(hot, top_p=0.8, frequency_penalty=0.5, min_tokens=2, logprobs=20),
        )
    )


def any_request(key: int, rng: random.Random) -> GenerationRequest:
    length = rng.choice((1, 2, 3, 7, 9, 16, 17, 33, 120, 300, 650))
    length = max(1, length - rng.randrange(3))
    prompt = tuple(rng.randrange(1, 384) for _ in range(length))
    if rng.random() < 0.3:  # a prefix that others have too
        prompt = (*range(1, 50), *prompt[:9])
    return GenerationRequest(key, prompt, any_sampling(rng), n=rng.choice((1, 1, 1, 3)))


def long_run(core: EngineCore, seed: int, count: int) -> None:
    """Bursts and trickles of requests, to the end."""
    rng = random.Random(seed)
    waiting = [any_request(key, rng) for key in range(count)]
    while waiting or core.scheduler.has_requests:
        for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 12))):
            if waiting:
                core.scheduler.submit(waiting.pop())
        for output in core.step():
            assert output.error_id is None


@pytest.mark.parametrize(
    ("architecture", "graphs", "fp8", "exact"),
    [
        (QWEN3, False, None, False),
        (QWEN3, True, None, False),
        (QWEN2, True, None, False),
        (GPT2, True, None, False),
        (QWEN3_MOE, False, None, False),
        (QWEN3, False, Fp8(made_on_load=True), False),
        (QWEN3, True, None, True),
        pytest.param(QWEN3_MOE, False, Fp8(made_on_load=True), False, marks=pytest.mark.long),
        pytest.param(QWEN3_MOE, True, Fp8(made_on_load=True), True, marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_long_run_launches_nothing_that_was_not_warm(
    architecture: str, graphs: bool, fp8: Fp8 | None, exact: bool, seed: int
) -> None:
    with recorded() as warm:
        core = recorded_core(graphs=graphs, architecture=architecture, fp8=fp8, exact=exact)
        runner: Any = core.runner
        mixture = Mixture(EXPERTS.count, EXPERTS.per_token)
        steps = warm_steps(
            bounds(
                qk_norm=runner._model.qk_norm,
                mixture=mixture if architecture == QWEN3_MOE else None,
                exact=exact,
                q_and_kv=(3, 3) if architecture == GPT2 else (16, 8),
            )
        )
        runner.warm_up(steps, lambda _share: None)
    with recorded() as launched:
        long_run(core, seed, 70)
    assert len(launched) > 25
    assert not launched - warm


def test_every_size_of_step_is_warm() -> None:
    """Steps at random from all that the options allow, also those that no run is likely to meet."""
    with recorded() as warm:
        core = recorded_core(graphs=False)
        core.runner.warm_up(warm_steps(bounds()), lambda _share: None)  # type: ignore[attr-defined]
    rng = random.Random(5)
    runner: Any = core.runner
    with recorded() as launched, torch.inference_mode():
        for _ in range(150):
            decode = rng.choice((0, rng.randrange(41), rng.randrange(16, 26)))
            longer = tuple(
                rng.randrange(1, rng.choice((3, 40, 600))) for _ in range(rng.randrange(4))
            )
            if decode or longer:
                context = rng.choice((max(longer, default=1), 256, 257, 700))
                runner._run_null(WarmStep(decode, longer, max(context, *longer, 1)))
    assert not launched - warm


def test_rows_are_warm_where_one_may_be_as_long_as_a_step() -> None:
    longest = replace(bounds(), max_model_len=9000)
    known = set().union(*(names_of(step, longest) for step in warm_steps(longest)))
    rng = random.Random(5)
    for rows in range(1, 40):
        longer = tuple(rng.randrange(1, rng.choice((3, 40, 600))) for _ in range(rows))
        for decode in (0, rows % 7):
            assert names_of(WarmStep(decode, longer, 9000), longest) <= known


def test_layers_with_a_window_are_warm_where_others_split_their_contexts() -> None:
    """In steps so small that all prompts are split where all is seen; a window never is."""
    setup = replace(SETUP, max_num_seqs=4, max_num_batched_tokens=90, max_model_len=600)
    with recorded() as warm:
        core = recorded_core(setup, graphs=False, architecture=QWEN2, both=True)
        runner: Any = core.runner
        steps = warm_steps(bounds(setup, qk_norm=False))
        runner.warm_up(steps, lambda _share: None)
    sizes = [(), (1,), (9,), (90,), (1, 1), (3, 2, 2), (40, 2), (44, 44), (60, 7, 7, 7)]
    with recorded() as launched, torch.inference_mode():
        for decode, longer in enumerate(sizes):
            step = WarmStep(decode % 4 + (not longer), longer, 600 if decode % 2 else 300)
            runner._run_null(step)
    assert not launched - warm


def test_many_rows_beside_prompts_are_warm_where_alone_they_come_quantized() -> None:
    """Beside prompts one result is of both, so it is written as it is, by another kernel."""
    setup = replace(SETUP, max_num_seqs=96, max_model_len=64, cache_dtype=NARROW, block_size=64)
    most = replace(bounds(setup), heads=Heads(16, 8, 128, torch.bfloat16, 64, narrow=True))
    with recorded() as warm:
        fp8 = Fp8(made_on_load=True)
        runner: Any = recorded_core(setup, graphs=False, fp8=fp8, head_dim=128).runner
        runner.warm_up(warm_steps(most), lambda _share: None)
    with recorded() as launched, torch.inference_mode():
        for longer in ((), (5,)):
            runner._run_null(WarmStep(96, longer, 64))
    assert not launched - warm


@pytest.mark.parametrize(
    ("most", "cache"), ((1, torch.bfloat16), (2, torch.bfloat16), (40, torch.bfloat16), (2, NARROW))
)
def test_what_is_captured_is_warm(most: int, cache: torch.dtype) -> None:
    """Also what it is padded by: one request alone has a row more beside it."""
    # So long that all tokens that are captured fit into one request.
    setup = replace(SETUP, max_num_seqs=most, max_model_len=9000, cache_dtype=cache)
    with recorded() as warm:
        runner: Any = recorded_core(setup, graphs=False).runner
        runner.warm_up(warm_steps(bounds(setup)), lambda _share: None)
    with recorded() as captured:
        runner = recorded_core(setup, graphs=True).runner
        runner.warm_up((), lambda _share: None)
        sizes = runner._sizes  # and what is captured when it is first wanted
        for tokens in sizes.prompt_tokens:
            for bound in sizes.context_bounds:
                runner._capture_null(sizes.mixed(0, 1, tokens, bound))
            runner._capture_null(sizes.best(sizes.mixed(0, 1, tokens, tokens), None, tokens))
    assert captured and not captured - warm


@pytest.mark.parametrize("most", (1, 7, 256))
def test_the_list_is_short_and_within_the_options(most: int) -> None:
    steps = warm_steps(replace(bounds(), max_num_seqs=most, max_num_batched_tokens=8192))
    assert len(steps) < 60
    assert len(set(steps)) == len(steps)
    assert all(step.decode_rows <= most for step in steps)
    assert all(max(step.longer, default=1) <= SETUP.max_model_len for step in steps)


def test_each_number_of_rows_that_the_vector_kernel_takes_is_a_class_of_its_own() -> None:
    classes = [tuning.row_class(rows) for rows in range(1, 400)]
    assert classes[: gemv.MAX_ROWS + 1] == [1, 2, 3, 4, 8]
    assert len(set(classes)) == len(tuning.ROW_BUCKETS) + 2


def test_warm_steps_run_one_layer_of_each_kind_and_launch_what_all_layers_do() -> None:
    """A start does not wait for layers that have nothing left to compile."""
    steps = warm_steps(bounds())
    known: list[set[str]] = []
    for every in (False, True):
        with recorded() as warm:
            core = recorded_core(graphs=False, layers=5)
            runner: Any = core.runner
            ran = layers_that_run(runner._model)
            if every:
                runner._model.distinct_layers = lambda: list(range(5))
            runner.warm_up(steps, lambda _share: None)
        assert set(ran) == (set(range(5)) if every else {0})
        known.append(warm)
    assert known[0] == known[1]
    ran.clear()
    core.scheduler.submit(GenerationRequest(1, (5, 6, 7), SamplingParams(max_tokens=1)))
    with recorded():
        while core.scheduler.has_requests:
            core.step()
    assert ran == list(range(5)), "and then all of them again"


def layers_that_run(model: Any) -> list[int]:
    """The indexes of a model's layers as they run."""
    ran: list[int] = []

    def noted(index: int, layer: Any) -> Any:
        class Noted:
            def __getattr__(self, name: str) -> Any:
                return getattr(layer, name)

            def __call__(self, *arguments: Any) -> Any:
                ran.append(index)
                return layer(*arguments)

        return Noted()

    model.layers = [noted(index, layer) for index, layer in enumerate(model.layers)]
    return ran
