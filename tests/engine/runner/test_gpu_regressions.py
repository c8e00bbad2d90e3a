"""On the GPU: one test for each defect that users of comparable systems reported of such a device.

Overlap, captured graphs, padding. The 64-bit offsets of the cache have their tests with the
kernels; what needs no device stands in tests/regressions.
"""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.benchmark_code import watched

from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.runner import runner as runner_module
from quire.engine.runner.graphs import GraphKey, SamplerKey, StepGraphs
from quire.engine.runner.sampler import Needs, Sampled, Sampler
from quire.engine.runner.staging import Staging
from quire.engine.scheduling.plan import StepPlan

BLOCK_SIZE, MAX_MODEL_LEN = watched.BLOCK_SIZE, watched.MAX_MODEL_LEN
MAX_TOKENS, SHAPE = watched.MAX_TOKENS, watched.SHAPE
WatchedEngine, Way = watched.WatchedEngine, watched.Way
on_stream, requests = watched.on_stream, watched.requests

pytestmark = pytest.mark.gpu

DTYPE = "bfloat16"
GREEDY = SamplingParams(ignore_eos=True)
GRAPHS = ("enforce_eager", False)
AHEAD = Way("graph, overlapped", (GRAPHS, ("overlap", True)), passes=3)
EAGER = Way("eager, plain")
LONG_KERNEL = 20_000_000  # cycles: about 10 ms, many steps' worth


def lone(key: int, length: int, max_tokens: int) -> GenerationRequest:
    """A request whose prompt is its own."""
    prompt = tuple((key * 131 + i * 17) % (SHAPE.vocab_size - 1) + 1 for i in range(length))
    return GenerationRequest(key, prompt, replace(GREEDY, max_tokens=max_tokens, seed=key))


@pytest.fixture(scope="module")
def ahead() -> WatchedEngine:
    """One engine for the tests that leave it as it was; its own log is not used."""
    return WatchedEngine(AHEAD, DTYPE, watch=False)


@pytest.fixture(scope="module")
def eager() -> WatchedEngine:
    """The same without graphs, in the plain loop."""
    return WatchedEngine(EAGER, DTYPE, watch=False)


@pytest.fixture
def cuda() -> torch.device:
    return torch.device("cuda")


def caches(engine: WatchedEngine) -> tuple[torch.Tensor, torch.Tensor]:
    kv = engine.engine.runner._kv
    return kv.k, kv.v


def graphs_of(engine: WatchedEngine) -> StepGraphs:
    graphs = engine.engine.runner._graphs
    assert graphs is not None
    return graphs


# ---------------------------------------------------------------- pinned buffers


def test_mini_sglang_58_staging_buffer_reused_while_its_copy_was_in_flight(
    cuda: torch.device,
) -> None:
    """The host overwrote what the device had still to read. Here the device is kept busy, so that
    no copy can have ended when the host comes round to the same buffer."""
    staging = Staging(cuda, ring=4)
    seen = []
    for turn in range(12):
        if turn % 3 == 0:
            torch.cuda._sleep(LONG_KERNEL)
        staging.begin()
        staging.put("numbers", np.full(1000, turn, np.int32))
        staging.upload()
        seen.append(staging.get("numbers").clone())
    assert [int(t.min()) for t in seen] == [int(t.max()) for t in seen] == list(range(12))


def test_mini_sglang_67_result_buffer_reused_before_it_was_read(
    ahead: WatchedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same on the way back: with a device that lags behind, tokens are the usual ones."""
    specs = requests(8, GREEDY)
    expected = ahead.serve(specs).tokens
    runner = ahead.engine.runner
    execute = runner.execute

    def slow(plan: StepPlan) -> Any:
        torch.cuda._sleep(LONG_KERNEL // 10)
        return execute(plan)

    monkeypatch.setattr(runner, "execute", slow)
    assert ahead.serve(specs).tokens == expected


@pytest.mark.parametrize("large", (1, 3000, 200_000))
def test_uploads_keep_their_addresses_beside_any_other(cuda: torch.device, large: int) -> None:
    """A graph reads the head of the upload where it was at capture, whatever is sent behind it."""
    staging = Staging(cuda, capacity=1 << 12)
    staging.begin()
    staging.put("head", np.arange(100, dtype=np.int32))
    staging.upload()
    captured = staging.get("head")
    for turn in range(6):
        staging.begin()
        head = np.arange(100, dtype=np.int32) + turn
        behind = np.arange(large, dtype=np.int64) * turn
        staging.put("head", head)
        staging.put("behind", behind)
        staging.upload()
        assert captured.tolist() == head.tolist()
        assert staging.get("head").data_ptr() == captured.data_ptr()
        assert np.array_equal(staging.get("behind").cpu().numpy(), behind)


def test_mixed_graph_beside_many_admissions(
    ahead: WatchedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight requests admitted by a captured step send more than the fixed buffer holds."""
    specs = [lone(key, 12 + key, MAX_TOKENS) for key in range(1, 9)]
    expected = ahead.serve(specs).tokens
    monkeypatch.setattr(runner_module, "fixed_bytes", lambda _max_num_seqs, _prompt_tokens: 1 << 12)
    served = WatchedEngine(AHEAD, DTYPE, watch=False).serve(specs)
    assert served.eager_steps == 0, "every step of the last pass is a replay"
    assert served.tokens == expected


# ---------------------------------------------------------------- block tables


@pytest.mark.parametrize("over", (-1, 0, 1))
def test_nano_vllm_106_block_table_of_the_graph_one_column_too_narrow(over: int) -> None:
    """The last block of the longest request had no column in the captured table."""
    longest = 5 * BLOCK_SIZE + over
    length = ("max_model_len", longest)
    specs = [lone(1, longest - MAX_TOKENS, MAX_TOKENS), lone(2, 3, MAX_TOKENS)]
    wide, narrow = (
        WatchedEngine(Way("alone", (GRAPHS, *more), alone=True, passes=3), DTYPE, watch=False)
        for more in ((), (length,))
    )
    served = narrow.serve(specs)
    state = narrow.engine.runner._state
    assert state.block_tables.shape[1] == -(-longest // BLOCK_SIZE)
    assert served.graph_steps >= 2 * (MAX_TOKENS - 1)
    assert served.tokens == wide.serve(specs).tokens
    assert len(served.tokens[1]) == MAX_TOKENS


def test_nano_vllm_258_stale_columns_of_a_former_request(ahead: WatchedEngine) -> None:
    """A short request in a slot whose table still named a long one's blocks read them. Here those
    blocks, and all others, are poisoned before it comes."""
    short = [lone(3, 7, MAX_TOKENS)]
    expected = ahead.serve(short).tokens
    ahead.serve([lone(key, 200, 40) for key in range(10, 18)])
    tables = ahead.engine.runner._state.block_tables
    assert (tables[:-1, 8:14] > 0).all(), "every slot names blocks far behind the short one's"
    for cache in caches(ahead):
        cache.fill_(torch.nan)
    assert ahead.serve(short).tokens == expected
    for cache in caches(ahead):
        cache.zero_()


# ---------------------------------------------------------------- padding


@pytest.mark.parametrize("kind", ("decode", "mixed"))
@pytest.mark.parametrize("params", (GREEDY, replace(GREEDY, temperature=0.8)))
def test_vllm_40047_nan_of_padded_rows_leaked(kind: str, params: SamplingParams) -> None:
    """Padding rows are made to compute NaN from end to end, over a cache full of NaN."""
    way = Way(kind, (GRAPHS, ("max_num_seqs", 8)), apart=2 if kind == "mixed" else 0, passes=4)
    engine = WatchedEngine(way, DTYPE, watch=True)
    specs = requests(5, params)
    expected = engine.serve(specs)
    used = {token for tokens in expected.tokens.values() for token in tokens}
    poison = next(token for token in range(SHAPE.vocab_size) if token not in used)
    state = engine.engine.runner._state
    embedding = engine.engine.runner._model.embedding.weight  # type: ignore[attr-defined]
    with on_stream(engine._stream):
        # Padding rows decode the null slot's token, or are given id 0, which no prompt holds.
        embedding[0] = torch.nan
        embedding[poison] = torch.nan
        for cache in caches(engine):
            cache.fill_(torch.nan)
            cache[:, 0] = 0
    assert 0 not in used
    execute = engine.engine.runner.execute

    def poisoned(plan: StepPlan) -> Any:
        state.last_token[state.null_slot] = poison
        return execute(plan)

    engine.engine.runner.execute = poisoned  # type: ignore[method-assign]
    served = engine.serve(specs)
    assert served.eager_steps <= (1 if kind == "decode" else 0)
    assert served.tokens == expected.tokens
    for key, logits in served.logits.items():
        assert torch.equal(logits, expected.logits[key])
    assert 0 <= int(state.last_token[state.null_slot]) < SHAPE.vocab_size
    assert int(state.num_computed[state.null_slot]) == 0
    first = caches(engine)[0][:, 0, :, 0]
    assert torch.isnan(first).all(), "the null block shows that NaN was computed"


def test_minivllm_padded_rows_wrote_through_stale_slot_mappings(
    ahead: WatchedEngine,
) -> None:
    """After a full batch, five rows in a graph of eight: what they do not own keeps its bits."""
    ahead.serve(requests(8, GREEDY))
    for cache in caches(ahead):
        cache.fill_(7.0)
    specs = requests(5, GREEDY)
    core, owned = ahead.engine.core, {0}
    with on_stream(ahead._stream):
        for spec in specs:
            core.scheduler.submit(spec)
        while core.scheduler.has_requests:
            core.step()
            for request in core.scheduler.unfinished():
                owned.update(request.block_table)
    assert len(owned) >= 6
    others = [block for block in range(caches(ahead)[0].shape[1]) if block not in owned]
    for cache in caches(ahead):
        assert (cache[:, others] == 7.0).all()
        assert not (cache[:, sorted(owned - {0})] == 7.0).all()
        cache.zero_()


@pytest.mark.parametrize("rows", (1, 2, 3, 5, 8))
def test_vllm_57355_every_batch_up_to_the_largest_replays(ahead: WatchedEngine, rows: int) -> None:
    """max_num_seqs was not a captured size, so the fullest step ran eagerly."""
    served = ahead.serve(requests(rows, GREEDY))
    assert served.graph_steps >= MAX_TOKENS - 1
    assert served.eager_steps <= 1


# ---------------------------------------------------------------- capture that fails


class Syncing(Sampler):
    """Reads the device in the middle of a step of four rows, which no capture allows."""

    def __call__(self, logits: torch.Tensor, *more: Any) -> Sampled:
        if len(logits) == 4:
            logits[0, 0].item()
        return super().__call__(logits, *more)


def _of_captures(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the graphs themselves have said; what they take is another module's to tell."""
    return [r.getMessage() for r in caplog.records if r.name == StepGraphs.__module__]


def test_failed_capture_falls_back_with_one_warning(
    eager: WatchedEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A step that cannot be captured runs eagerly for ever after, and said so once, with its batch
    size; the graphs around it are whole."""
    specs = [lone(key, 80, MAX_TOKENS) for key in range(1, 5)]
    expected = eager.serve(specs).tokens
    monkeypatch.setattr(watched, "Sampler", Syncing)
    with caplog.at_level(logging.WARNING, logger=StepGraphs.__module__):
        engine = WatchedEngine(AHEAD, DTYPE, watch=False)
        at_start = _of_captures(caplog)
        served = engine.serve(specs)
        said = _of_captures(caplog)
    assert served.tokens == expected
    assert (served.graph_steps, served.eager_steps) == (1, MAX_TOKENS - 1), "the prompts' alone"
    assert at_start and all("batch size 4 failed" in message for message in at_start)
    kept = [key for key in graphs_of(engine)._graphs if graphs_of(engine)._graphs[key] is None]
    assert len(said) == len(kept), "one warning a step, at its first capture alone"
    assert all("runs eagerly" in message for message in said)
    others = engine.serve(specs[:2])
    assert others.graph_steps >= MAX_TOKENS - 1


def test_capture_that_raises_leaves_the_device_usable(
    ahead: WatchedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """After a capture that broke off, the stream captures and computes as before."""
    graphs = StepGraphs()
    key = GraphKey(3, 0, 0, 256, Needs())
    values = torch.ones(4, device="cuda")

    def broken() -> Sampled:
        raise RuntimeError("no room\nfor details")

    def whole() -> Sampled:
        return Sampled(values.add_(1).long())

    with (
        on_stream(ahead._stream),
        caplog.at_level(logging.WARNING, logger=StepGraphs.__module__),
    ):
        graphs.capture(key, broken)
        assert key in graphs
        assert graphs.replay(key) is None
        other = key._replace(decode_rows=4)
        graphs.capture(other, whole)
        sampled = graphs.replay(other)
        assert sampled is not None
        assert sampled.tokens.tolist() == [2, 2, 2, 2]
    (record,) = caplog.records
    assert record.getMessage() == (
        "capturing the step of batch size 3 failed, it runs eagerly: no room"
    )


def test_longest_request_through_every_bound_is_eager(ahead: WatchedEngine) -> None:
    """To the last position that the model length allows, one row, by replays."""
    spec = [lone(5, MAX_MODEL_LEN - 100, 100)]
    served = ahead.serve(spec)
    assert served.graph_steps >= 99
    assert len(served.tokens[5]) == 100


# ---------------------------------------------------------------- masks


def test_captured_samplers_read_the_masks_of_each_step(ahead: WatchedEngine) -> None:
    """Rows that may draw few ids, each its own, beside rows that may draw any."""
    specs, allowed = [], {}
    for spec in requests(12, replace(GREEDY, temperature=1.0)):
        if spec.key % 3:
            allowed[spec.key] = tuple(range(spec.key, SHAPE.vocab_size, 64 + spec.key))
            sampling = replace(spec.sampling, allowed_token_ids=allowed[spec.key])
            spec = replace(spec, sampling=sampling)
        specs.append(spec)
    tokens = ahead.serve(specs).tokens
    kept = [key for key in graphs_of(ahead)._graphs if isinstance(key, SamplerKey)]
    assert any(key.needs.masks for key in kept)
    for key, ids in allowed.items():
        assert len(tokens[key]) == MAX_TOKENS and set(tokens[key]) <= set(ids)
    assert all(len(set(tokens[key])) > 1 for key in tokens)
