"""One test for each defect that users of comparable systems reported, named after where.

What each system got wrong stands in the test's first line; what Quire does instead is asserted.
Defects of several ranks and of captured graphs on a device have their tests where those run.
"""

import ast
import asyncio
import json
import threading
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from support.fake_engine import Builder, Device, FakeEngine
from support.harness import ask, generate, run, serving, settings
from support.simulator import Shape, Simulator
from support.small_engine import Setup, build_core, load_model, model_config
from support.small_engine import run as run_core
from support.toy_device import ToyDevice
from support.traffic import run_episode, run_steps

from quire import engine
from quire.engine.client.async_engine import AsyncEngine
from quire.engine.client.in_thread import ThreadLink
from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError, ModelError, RequestError
from quire.engine.loop.build import build_engine
from quire.engine.loop.core import EngineCore
from quire.engine.model.config import ModelConfig
from quire.engine.model.registry import build_model
from quire.engine.request import FinishReason, GenerationRequest, SamplingParams
from quire.engine.runner.graphs import GraphSizes, captured_sizes
from quire.engine.runner.sampler import Needs
from quire.engine.scheduling.block_pool import BlockPool
from quire.engine.scheduling.plan import StepPlan, StepResult
from quire.engine.weights import loader
from quire.engine.weights.loader import load_checkpoint
from quire.engine.weights.random import fill_random, save_random
from quire.kernels import reference
from quire.service.models import pocket
from quire.service.rpc.served_model import ServedModel
from quire.service.text.detokenizer import Detokenizer
from quire.service.text.tokenizer import load as load_tokenizer
from quire.v1 import inference_pb2 as pb


def request(key: int, prompt: Any, max_tokens: int = 4, **more: Any) -> GenerationRequest:
    return GenerationRequest(key, tuple(prompt), SamplingParams(max_tokens=max_tokens), **more)


def simulate(**shape: Any) -> Simulator:
    """The simulator checks pool, plans, cache content and tokens after every turn."""
    return Simulator(replace(Shape(depth=0, num_blocks=40, max_num_batched_tokens=64), **shape))


def drain(simulator: Simulator) -> None:
    simulator.drain(simulator.work_bound() + 4)


def hashes_of(pool: BlockPool, tokens: list[int], salt: bytes = b"") -> list[bytes]:
    hashes: list[bytes] = []
    pool.prefix_cache.extend_hashes(hashes, salt, tokens, len(tokens) // pool.block_size)
    return hashes


# ================================================================ prefix cache and block pool


@pytest.mark.parametrize("length", (4, 8, 12))
def test_nano_vllm_114_prompt_wholly_cached(length: int) -> None:
    """A prompt that lay wholly in the cache gave query length 0 and a crash."""
    simulator = simulate()
    for key in (1, 2):
        simulator.submit(request(key, [1] * length))
        simulator.launch()
        (row,) = simulator.in_flight[-1][0].rows
        computed = 0 if key == 1 else length - 1
        assert (row.start, row.num_tokens) == (computed, length - computed)
        drain(simulator)


def test_nano_vllm_153_reallocated_block_kept_its_hash() -> None:
    """A block taken for something else kept its old hash and served the wrong content."""
    simulator = simulate(num_blocks=4)
    simulator.submit(request(1, [1] * 9, 1))
    drain(simulator)
    simulator.submit(request(2, [2] * 9, 1))  # takes all blocks, the first one's among them
    drain(simulator)
    simulator.submit(request(3, [1] * 9, 1))
    drain(simulator)
    assert simulator.tally.hits == 0
    assert simulator.pool.evictions > 0


def test_nano_vllm_208_prefix_that_no_step_has_computed_yet() -> None:
    """Two requests of one step shared blocks that this very step was to fill, and the second
    registration overwrote the first."""
    simulator = simulate()
    for key in (1, 2):
        simulator.submit(request(key, [1] * 9, 8))
    simulator.launch()
    assert [row.start for row in simulator.in_flight[-1][0].rows] == [0, 0]
    assert simulator.pool.num_shared == 0
    simulator.apply()
    assert simulator.pool.prefix_cache.duplicates == 2, "one hash names both"
    simulator.abort(1)  # the first one's blocks go; the second one's are as good
    simulator.submit(request(3, [1] * 9, 2))
    drain(simulator)
    assert simulator.tally.hits == 1


def test_nano_vllm_207_counts_from_before_a_hit_after_preemption() -> None:
    """Counts taken before `allocate` gave an IndexError when a preempted request came back to a
    prefix of its own that was still cached."""
    simulator = simulate(num_blocks=11, max_num_seqs=3)
    for key in (1, 2, 3):
        simulator.submit(request(key, [key] * 11, 14))
    back_on_a_hit = 0
    while simulator.open:
        simulator.launch()
        if simulator.in_flight:
            plan = simulator.in_flight[-1][0]
            by_slot = {r.slot: r for r in simulator.requests_of(plan).values()}
            back_on_a_hit += sum(
                by_slot[one.slot].preemptions > 0 and one.num_computed > 0 for one in plan.admitted
            )
            simulator.apply()
    assert back_on_a_hit > 0
    simulator._check_empty()


@pytest.mark.parametrize("size", (1, 2, 3, 4, 5, 16))
def test_nano_vllm_30_block_boundary(size: int) -> None:
    """`len % block_size == 1` was read as a bug again and again: a block is taken when the first
    token that needs it is computed, not before and not after."""
    simulator = simulate(block_size=size, num_blocks=90, max_model_len=80)
    simulator.submit(request(1, [1] * (2 * size - 1), 2 * size + 3))
    (running,) = simulator.scheduler.unfinished()
    while simulator.open:
        simulator.launch()
        assert len(running.block_table) == -(-running.num_computed_tokens // size)
        simulator.apply()


def test_minivllm_70_reference_counts_under_traffic() -> None:
    """A reference count of 0 at allocation, an off by one, and `[-0:]` that is the whole list."""
    pool = BlockPool(4, 2)
    table = pool.allocate(1)
    pool.check([table])
    pool.share(table)
    pool.check([table, table])
    pool.release([])
    pool.check([table, table])
    tally, _ = run_steps(1500, first_seed=7000)  # `check` after each step
    assert tally.preemptions and tally.hits and tally.evictions


def test_minivllm_53_more_blocks_counted_than_the_cache_has() -> None:
    """The block manager's number and the tensor's were computed apart."""
    config = EngineConfig(
        model="random:tiny", device="cpu", num_blocks=13, max_num_seqs=2, max_model_len=64
    )
    built = build_engine(config, lambda _stage, _share: None)
    pool, kv = built.core.scheduler.pool, built.runner._kv
    assert pool.num_blocks == kv.num_blocks == kv.v.shape[1]
    assert max(pool.allocate(pool.num_free)) == kv.num_blocks - 1
    assert built.info.num_blocks == pool.num_usable


def test_minivllm_98_hit_whose_cache_prefill_ignored() -> None:
    """Blocks were shared, but prefill ignored what they held and positions began at 0."""
    model, ops = load_model(model_config(), seed=1)
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=2)
    specs = [replace(request(1, [5 + i % 7 for i in range(22)]), sampling=params)]
    off = run_core(build_core(model, ops, Setup()), specs)[1, 0]
    core = build_core(model, ops, Setup(caching=True))
    cold, hot = (run_core(core, specs)[1, 0] for _ in range(2))
    assert (cold.cached_tokens, hot.cached_tokens) == (0, 21)
    assert off.token_ids == cold.token_ids == hot.token_ids
    assert len(set(off.token_ids)) > 3


def test_vllm_11829_collisions_across_tenants() -> None:
    """64-bit hashes with a seed anyone knew, the same for all tenants."""
    pool, other = BlockPool(9, 4), BlockPool(9, 4)
    tokens = [1, 2, 3, 4]
    (block_hash,) = hashes_of(pool, tokens, b"a")
    assert len(block_hash) == 16
    assert hashes_of(other, tokens, b"a") != [block_hash], "the seed is each process's own"
    assert hashes_of(pool, tokens, b"b") != [block_hash], "the salt is each tenant's own"
    pool.prefix_cache.register(pool.allocate(1)[:1], [block_hash], b"a", tokens, 0)
    assert pool.prefix_cache.match([block_hash], [9, 9, 9, 9]) == [], "tokens are compared on a hit"
    assert len(pool.prefix_cache.match([block_hash], tokens)) == 1


def test_tgi_2489_blocks_freed_before_prefill_served_as_a_prefix() -> None:
    """An aborted request's blocks went back as a known prefix though nothing was in them."""
    for leave in ("abort", "fail"):
        simulator = simulate(max_num_batched_tokens=8, depth=1)
        simulator.submit(request(1, [1] * 30))
        simulator.launch()  # the first chunk alone, and it is not applied
        if leave == "abort":
            simulator.abort(1)
            simulator.apply()
        else:
            simulator.fail(0)
        simulator.submit(request(2, [1] * 30))
        drain(simulator)  # the device would tell a hit on what was never written
        assert simulator.tally.hits == 0


def test_mini_sglang_149_check_that_checks_nothing() -> None:
    """The integrity check was a no-op."""
    pool = BlockPool(5, 2)
    table = pool.allocate(2)
    pool.prefix_cache.register(table[:1], hashes_of(pool, [1, 1]), b"", [1, 1], 0)
    for tables in ([], [table, table], [table[:1]], [table, [4]], [[0], table]):
        with pytest.raises(AssertionError):
            pool.check(tables)
    pool.check([table])


# ================================================================ scheduling


def test_nano_vllm_274_lone_sequence_exhausts_the_cache() -> None:
    """It ended in an assert, or in a deadlock: refused at submission instead, else it finishes."""
    simulator = simulate(num_blocks=4, block_size=4)
    with pytest.raises(RequestError, match="cache"):
        simulator.submit(request(1, [1] * 6, 8))
    simulator.submit(request(2, [1] * 6, 7))  # 12 tokens in 3 blocks; the last needs no place
    drain(simulator)
    assert simulator.records[2, 0].ended is FinishReason.LENGTH


def test_minivllm_6_sequence_lost_on_preemption() -> None:
    """A loop without end, and a sequence that nobody knew any more."""
    simulator = simulate(num_blocks=11, max_num_seqs=4)
    for key in range(1, 7):
        simulator.submit(request(key, [key] * 10, 12))
    drain(simulator)
    assert simulator.total().preemptions > 0
    assert [r.ended for r in simulator.records.values()] == [FinishReason.LENGTH] * 6


def test_vllm_23347_planned_in_this_step_and_preempted() -> None:
    """A request that already had its row in the step was preempted for a later one."""
    waited = 0
    for length in range(5, 13):
        simulator = simulate(num_blocks=9, max_num_seqs=2, max_num_batched_tokens=12)
        simulator.submit(request(1, [1] * 12, 1, client="a"))
        simulator.submit(request(2, [2] * length, 20, client="a"))
        simulator.submit(request(3, [3] * 9, 20, client="b"))  # goes first: b has had less
        drawn: set[int] = set()
        while simulator.open:
            simulator.launch()  # looks at each row of the plan: running, and of today's epoch
            drawn = {row.key for row in simulator.in_flight[-1][0].rows}
            running = {r.key: r for r in simulator.scheduler.roster.running}
            if drawn == {2} and 3 in running:
                waited += 1  # the last admitted is planned, and no block is left for the other
                assert running[3].admission < running[2].admission
                assert simulator.pool.num_free == 0
            simulator.apply()
        simulator._check_empty()
    assert waited > 0


def test_vllm_39734_request_larger_than_the_cache_blocks_the_queue() -> None:
    """It waited for ever, and everybody behind it: an error before any state instead."""
    simulator = simulate(num_blocks=4, block_size=4)
    with pytest.raises(RequestError) as caught:
        simulator.submit(request(1, [1] * 20, 4))
    assert caught.value.field == "max_tokens"
    assert not simulator.scheduler.has_requests
    simulator.submit(request(2, [1], 2))
    drain(simulator)


def test_nano_vllm_decodes_wait_for_a_chunked_prompt() -> None:
    """While a long prompt was computed in chunks, nobody else's next token was."""
    simulator = simulate(max_num_batched_tokens=6)
    simulator.submit(request(1, [1], 12))
    simulator.turn()
    simulator.submit(request(2, [2] * 30, 1))
    chunks = 0
    while (2, 0) in simulator.open:
        before = len(simulator.records[1, 0].tokens)
        simulator.turn()
        chunks += 1
        assert len(simulator.records[1, 0].tokens) == before + 1
    assert chunks == 6
    drain(simulator)


def test_mini_sglang_over_long_prompt_leaves_its_client_waiting() -> None:
    """It was logged and dropped. Here the refusal reaches the client, and names both numbers."""

    async def test() -> None:
        async with serving(engine={"max_model_len": 64}) as running:
            answer = await generate(running, ask([300] * 60, max_tokens=10))
            assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
            assert "60" in answer.details and "64" in answer.details
            assert (await generate(running, ask([300] * 20))).code is grpc.StatusCode.OK

    run(test)


def test_gllm_jitter_in_admission() -> None:
    """Random jitter made ranks decide differently: no clock and no chance enters a decision."""
    for seed in (31, 32, 33):
        first, second = (run_episode(seed, turns=80, log=True) for _ in range(2))
        assert first.log == second.log
    folder = Path(str(engine.__file__)).parent
    for file in (folder / "request.py", *(folder / "scheduling").glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        imported |= {
            str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
        }
        # (an error's id is drawn, with `secrets`; it decides nothing)
        assert not imported & {"time", "random", "uuid", "datetime", "os", "numpy"}


# ================================================================ overlap and graphs


class ToyRunner:
    """The toy device as the loop's runner: results are known when somebody waits for them."""

    def __init__(self, device: ToyDevice) -> None:
        self._device = device

    def execute(self, plan: StepPlan) -> "ToyRunner":
        self._last = StepResult(self._device.execute(plan))
        result = ToyRunner(self._device)
        result._last = self._last
        return result

    def wait(self) -> StepResult:
        return self._last

    def reset(self) -> None:
        """Nothing is kept between steps."""

    def is_fatal(self, error: Exception) -> bool:
        return isinstance(error, AssertionError)


@pytest.mark.parametrize("when", range(8))
def test_mini_sglang_111_abort_of_a_request_in_the_step_in_flight(when: int) -> None:
    """Its blocks were freed at once, and again when the step came back."""
    simulator = simulate(num_blocks=12, depth=1)
    core = EngineCore(simulator.scheduler, ToyRunner(simulator.device), overlap=True)
    for key in (1, 2, 3):
        simulator.submit(request(key, [key] * 7, 9))
    for turn in range(60):
        if turn == when:
            (aborted,) = simulator.scheduler.roster.by_key[2]
            held, free = list(aborted.block_table), simulator.pool.num_free
            assert turn == 0 or (aborted.in_flight and held)
            simulator.abort(2)
            assert aborted.block_table == held and simulator.pool.num_free == free
        simulator._hear(core.step())
        known = list(simulator.scheduler.unfinished())
        known += [r for flight in simulator.scheduler.completion.in_flight for r in flight.requests]
        simulator.pool.check({id(r): r.block_table for r in known}.values())
    assert not simulator.open
    assert simulator.pool.num_free == simulator.pool.num_usable


@pytest.mark.parametrize("most", (1, 2, 3, 7, 8, 9, 31, 64, 100, 250, 256, 257, 300, 511, 1000))
def test_vllm_57355_max_num_seqs_was_no_captured_size(most: int) -> None:
    """The fullest step was the one that ran without a graph."""
    sizes = captured_sizes(most)
    assert sizes[-1] == most
    assert sizes == sorted(set(sizes))
    keys = GraphSizes(most, 4096, ())
    for rows in range(1, most + 1):
        covering = keys.decode(rows, 100, Needs()).decode_rows
        assert rows <= covering <= most and covering in sizes


@pytest.mark.parametrize("over", (-1, 0, 1))
def test_vllm_10903_longest_length_not_divisible_by_the_block_size(over: int) -> None:
    """The last block was one too few, or its table one column too narrow."""
    longest = 32 + over
    config = EngineConfig(
        model="random:tiny", device="cpu", max_num_seqs=2, max_model_len=longest, num_blocks=12
    )
    specs = [request(key, range(key, longest - 4), 4 + key) for key in (1, 2)]
    narrow, wide = (
        run_core(build_engine(chosen, lambda _stage, _share: None).core, specs)
        for chosen in (config.replace(block_size=16), config.replace(block_size=64))
    )
    for key in (1, 2):
        assert len(narrow[key, 0].token_ids) == 4 + key
        assert narrow[key, 0].token_ids == wide[key, 0].token_ids
    core = build_engine(config, lambda _stage, _share: None).core
    with pytest.raises(RequestError, match=f"max_model_len = {longest}"):
        core.scheduler.submit(request(3, range(1, longest - 4), 6))


def test_mini_sglang_56_padding_wasted_by_coarse_captured_sizes() -> None:
    """17% of all rows were padding. Measured for batches of every size up to 256."""
    sizes = captured_sizes(256)
    covering = [next(size for size in sizes if size >= rows) for rows in range(1, 257)]
    waste = sum(size - rows for rows, size in enumerate(covering, 1)) / sum(covering)
    assert waste < 0.06
    assert max(size / rows for rows, size in enumerate(covering, 1) if rows >= 8) < 1.8


# ================================================================ sampling and loading


def test_mini_sglang_88_unseeded_sampling_differs_between_ranks() -> None:
    """Noise came from a generator with a state. It is a function of seed, position and id: batch
    mates, their order and what was drawn before change nothing."""
    torch.manual_seed(0)
    logits = torch.randn(6, 500)
    slots = torch.arange(6, dtype=torch.int32)
    positions = torch.tensor([3, 9, 3, 4, 100, 7], dtype=torch.int32)
    temperature = torch.full((6,), 0.8)
    seeds = torch.tensor([1, 1, 2, 3, 3, -4])
    together = reference.sample(logits, slots, positions, temperature, seeds)
    for order in ([0], [3], [5, 0], [4, 3, 2, 1, 0], [2, 5, 1]):
        torch.manual_seed(order[0])
        drawn = reference.sample(logits[order], slots[order], positions[order], temperature, seeds)
        assert drawn.tolist() == together[order].tolist()
    whole = reference.exponential_noise(seeds, positions, 500)
    assert torch.equal(reference.exponential_noise(seeds, positions, 200), whole[:, :200])
    assert len(set(whole[:, 0].tolist())) == 6


def test_mini_sglang_93_out_of_memory_while_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole checkpoint stood in memory beside the model: here one buffer of fixed size does."""
    config = save_random(model_config(), tmp_path, seed=4)
    monkeypatch.setattr(loader, "CHUNK_BYTES", 4096)
    buffers: list[int] = []
    init = loader._Buffer.__init__

    def count(self: Any, nbytes: int, *, pinned: bool) -> None:
        buffers.append(nbytes)
        init(self, nbytes, pinned=pinned)

    monkeypatch.setattr(loader._Buffer, "__init__", count)
    cpu = torch.device("cpu")
    loaded, made = (
        build_model(config, reference, dtype=torch.float32, device=cpu) for _ in range(2)
    )
    load_checkpoint(loaded, tmp_path)
    fill_random(made, 4)
    assert sum(buffers) <= 4096 < config.weight_bytes(torch.float32) // 50
    for ours, theirs in zip(loaded.placements(), made.placements(), strict=True):
        assert torch.equal(ours.target, theirs.target)


def _rewrite(directory: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _load(directory: Path) -> None:
    config = ModelConfig.from_directory(directory)
    cpu = torch.device("cpu")
    load_checkpoint(build_model(config, reference, dtype=torch.float32, device=cpu), directory)


@pytest.mark.parametrize(
    ("change", "named"),
    (
        (lambda t: t.pop("model.norm.weight"), r"model\.norm\.weight is missing"),
        (lambda t: t.update(extra=torch.zeros(2)), "extra is not a weight of the model"),
        (
            lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}),
            "lm_head.weight differs from model.embed_tokens.weight",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(7)}),
            r"model\.norm\.weight has the shape \[7\]",
        ),
    ),
)
def test_nano_vllm_69_wrong_weights_gave_garbage(tmp_path: Path, change: Any, named: str) -> None:
    """A missing or unexpected weight was passed over in silence, and nonsense was generated."""
    save_random(model_config(), tmp_path)
    _load(tmp_path)
    _rewrite(tmp_path, change)
    with pytest.raises(ModelError, match=named):
        _load(tmp_path)


def test_vllm_6758_tied_head_stored_twice(tmp_path: Path) -> None:
    """It is taken where it is the same; another kind of model, or no model at all, is refused."""
    save_random(model_config(), tmp_path)
    _rewrite(
        tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    )
    _load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"architectures": ["MambaForCausalLM"], "model_type": "mamba"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="amba"):
        _load(tmp_path)
    with pytest.raises(ConfigError, match="nowhere"):
        ModelConfig.from_directory(tmp_path / "nowhere")


# ================================================================ text and protocol


def test_exo_1691_character_split_across_tokens() -> None:
    """Half a character was sent as U+FFFD. It is held back until it is whole, or never will be."""
    whole = "é日👍"
    pieces = [bytes([byte]) for byte in whole.encode()]
    detokenizer = Detokenizer(pieces)
    texts = [detokenizer.push(index) for index in range(len(pieces))]
    assert [text for text in texts if text] == list(whole)
    cut = Detokenizer(pieces)
    assert "".join(cut.push(index) for index in range(len(pieces) - 1)) == "é日"
    assert cut.flush() == "\ufffd"


def test_mlx_vlm_309_only_one_eos_id_honoured(tmp_path: Path) -> None:
    """Generation ran past the others: the ids of all three files end it."""
    save_random("tiny", tmp_path)
    for name, ids in (("config.json", 5), ("generation_config.json", [6, 7])):
        path = tmp_path / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": ids}))
    config = ModelConfig.from_directory(tmp_path)
    assert config.eos_token_ids == (5, 6, 7)
    tokenizer = replace(load_tokenizer(pocket.directory(), 4096), eos_token_ids=(9,))
    info = replace(_fake_info(), eos_token_ids=config.eos_token_ids)
    union = ServedModel("m", info, tokenizer, None).eos_token_ids
    assert union == (5, 6, 7, 9)
    params = SamplingParams(eos_token_ids=union, stop_token_ids=(8,))
    assert params.ending_ids == {5, 6, 7, 8, 9}
    assert replace(params, ignore_eos=True).ending_ids == {8}


def _fake_info() -> Any:
    return FakeEngine(settings().engine, Device()).info


def test_vllm_28172_usage_counted_by_encoding_the_text_again() -> None:
    """ "ab" is one token to a tokenizer and was two to the model: ids are counted, not text."""

    async def test() -> None:
        tokenizer = load_tokenizer(pocket.directory(), 4096)
        text = "the 日本 👍"
        ids = [i for char in text for i in tokenizer.encode(char, add_special_tokens=False)]
        again = tokenizer.encode(text, add_special_tokens=False)
        assert len(ids) not in (len(again), len(text))
        async with serving() as running:
            answer = await generate(running, ask(ids, max_tokens=len(ids)))
            assert answer.text() == text
            assert answer.ids() == ids
            usage = answer.finished[0].usage
            assert usage.prompt_tokens == usage.completion_tokens == len(ids)

    run(test)


def test_smg_2426_stale_or_repeated_abort() -> None:
    """The second terminal event broke the tables: the first one wins, the rest are nothing."""
    simulator = simulate(depth=1)
    simulator.abort(99)
    simulator.finish(99, 0, 0)
    for key in (1, 2):
        simulator.submit(request(key, [key] * 5, 3))
    for _ in range(3):
        simulator.turn()
    for _ in range(3):
        simulator.abort(1)
        simulator.scheduler.finish(1, 0, 0)
    drain(simulator)
    for key in (1, 2):
        simulator.abort(key)
        simulator.scheduler.finish(key, 0, 0)
    assert simulator.scheduler.drain_outputs() == []
    assert simulator.records[1, 0].ended is FinishReason.CANCELLED
    assert simulator.records[2, 0].ended is FinishReason.LENGTH


def test_sglang_omni_2077_two_threads_touched_the_tables() -> None:
    """Aborts changed the tables from the server's thread while a step was being planned."""
    touched: dict[str, set[int]] = {}

    def watch(target: Any, names: tuple[str, ...]) -> None:
        for name in names:
            method = getattr(target, name)

            def called(*args: Any, _name: str = name, _method: Any = method, **more: Any) -> Any:
                touched.setdefault(_name, set()).add(threading.get_ident())
                return _method(*args, **more)

            setattr(target, name, called)

    class Watched(Builder):
        def __call__(self, config: Any, progress: Any) -> FakeEngine:
            built = super().__call__(config, progress)
            scheduler = built.core.scheduler
            watch(scheduler, ("submit", "abort", "finish", "schedule", "apply"))
            watch(scheduler.pool, ("allocate", "release", "share", "block_map"))
            return built

    async def test() -> None:
        device = Device()
        subject = AsyncEngine(ThreadLink(settings().engine, Watched(device)))
        await subject.start()
        for ending in ("leave", "finish", "wait"):
            device.hold()  # so that nothing ends by itself before it is ended here
            spec = request(subject.new_key(), (7,) * 20, 8)
            async with aclosing(subject.generate(spec)) as stream:
                async for _ in stream:
                    if ending == "leave":
                        break
                    if ending == "finish":
                        subject.finish(spec.key, 0, 0)
                    device.release()
            device.release()
            await subject.block_map()
        await subject.stop()

    run(test)
    for name in ("submit", "abort", "finish", "schedule", "apply", "release", "block_map"):
        assert name in touched
    threads = set().union(*touched.values())
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_smg_proto_zero_not_told_from_unset() -> None:
    """`top_p = 0` looked like nothing: every scalar for which the two differ is optional."""
    fields = pb.SamplingParams.DESCRIPTOR.fields_by_name
    for name in (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "seed",
        "n",
        "max_tokens",
        "min_tokens",
        "logprobs",
    ):
        assert fields[name].has_presence, name
        params = pb.SamplingParams()
        setattr(params, name, 0)
        assert pb.SamplingParams.FromString(params.SerializeToString()).HasField(name)
        assert not pb.SamplingParams().HasField(name)

    async def test() -> None:
        async with serving() as running:
            assert (await generate(running, ask([300]))).code is grpc.StatusCode.OK
            for name in ("top_p", "max_tokens", "n"):
                answer = await generate(running, ask([300], **{name: 0}))
                assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
                assert f"sampling.{name}" in answer.violations

    run(test)


def test_nanovllm_voxcpm_37_disconnect_killed_the_server() -> None:
    """Writing to a client that had gone raised, and the whole server ended."""

    async def test() -> None:
        device = Device()
        async with serving(device) as running:
            device.hold()
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{running.server.port}")
            method = channel.unary_stream(
                "/quire.v1.InferenceService/Generate",
                request_serializer=pb.GenerateRequest.SerializeToString,
                response_deserializer=pb.GenerateResponse.FromString,
            )
            gone = method(ask([300] * 8, max_tokens=200, ignore_eos=True))
            stays = asyncio.create_task(generate(running, ask([301, 302], max_tokens=3)))
            await running.until(lambda stats: stats.requests.accepted == 2)
            gone.cancel()
            await channel.close()
            device.release()
            assert (await stays).code is grpc.StatusCode.OK
            stats = await running.idle()
            assert stats.requests.finished_cancelled == 1
            assert (await generate(running, ask([303]))).code is grpc.StatusCode.OK

    run(test)
