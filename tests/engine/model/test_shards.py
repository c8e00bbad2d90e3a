"""Shards of 2 and 4 ranks put together are the model of one, weight by weight and as a whole."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from support.ranks import as_ranks
from support.single_prompt import all_logits, batch_for, new_cache
from torch import Tensor

from quire.engine.errors import ConfigError
from quire.engine.model.base import CausalModel
from quire.engine.model.config import GPT2, PHI3, QWEN2, QWEN3_MOE, Experts, ModelConfig
from quire.engine.model.forward_batch import ForwardBatch
from quire.engine.model.layers.parallel import World, length, scale_slice
from quire.engine.model.registry import build_model
from quire.engine.runner.sampler import Needs
from quire.engine.weights.checkpoint import Checkpoint
from quire.engine.weights.loader import load_checkpoint
from quire.engine.weights.random import fill_random, save_random
from quire.engine.weights.safetensors_file import StoredTensor
from quire.kernels import reference

CONFIG = ModelConfig(
    architecture="Qwen3ForCausalLM",
    vocab_size=101,  # splits evenly into nothing
    hidden_size=64,
    num_layers=2,
    num_q_heads=8,
    num_kv_heads=2,  # fewer than four ranks
    head_dim=16,
    intermediate_size=96,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    max_position_embeddings=64,
    rope_theta=1e4,
    stored_dtype="float32",
    initializer_range=0.2,
)
PROMPT = [(7 * i) % CONFIG.vocab_size for i in range(1, 20)]


def build(config: ModelConfig, world: World | None = None) -> CausalModel:
    device = torch.device("cpu")
    return build_model(config, reference, dtype=torch.float32, device=device, world=world)


TIED = dataclasses.replace(CONFIG, tie_word_embeddings=True)
BIASED = dataclasses.replace(CONFIG, architecture=QWEN2)
MIXED = dataclasses.replace(CONFIG, architecture=QWEN3_MOE, experts=Experts(5, 2, 24, True, (0,)))
HEADS = {
    f"{heads} heads": dataclasses.replace(TIED if heads > 1 else CONFIG, num_kv_heads=heads)
    for heads in (1, 4, 8)
}
LEARNED = dataclasses.replace(  # learned positions, and q, k and v stored as one matrix
    TIED, architecture=GPT2, num_q_heads=4, num_kv_heads=4
)
MERGED = dataclasses.replace(CONFIG, architecture=PHI3)  # q, k, v of three sizes, gate and up
CONFIGS = {
    "": CONFIG,
    "tied": TIED,
    "biases": BIASED,
    "moe": MIXED,
    "gpt2": LEARNED,
    "phi3": MERGED,
    **HEADS,
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_together_compute_what_one_computes(
    size: int, config: ModelConfig, tmp_path: Path
) -> None:
    save_random(config, tmp_path, seed=2)
    one = build(config)
    load_checkpoint(one, tmp_path)

    def run(world: World) -> Tensor:
        model = build(config, world)
        load_checkpoint(model, tmp_path)
        return all_logits(model, PROMPT)

    logits = as_ranks(size, run)
    expected = all_logits(one, PROMPT)
    assert expected.shape == (len(PROMPT), config.vocab_size)
    for mine in logits:
        assert torch.equal(mine, logits[0])  # or the ranks would sample apart
        assert (mine - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_that_tell_no_more_than_their_best_choose_what_all_logits_choose(size: int) -> None:
    """All logits are negative: the padding of the vocabulary, whose weights are 0, is no choice."""
    hidden = -torch.rand(9, CONFIG.hidden_size, generator=torch.Generator().manual_seed(1))
    slots, temperature = torch.arange(9), torch.linspace(0, 2, 9)
    noise = slots, slots, temperature, 7 * slots

    def run(world: World) -> list[Tensor]:
        head = build(CONFIG, world).head
        head.weight.copy_(torch.arange(len(head.weight))[:, None] * 0.01 + 0.01 * world.rank)
        head.weight[length(head.ids) :] = 0
        logits, part = (head.logits(reference, hidden, None, 0.0, p) for p in (False, True))
        return [
            reference.greedy(logits), head.best(reference, part, None),
            reference.sample(logits, *noise), head.best(reference, part, noise),
        ]  # fmt: skip

    for best, told, drawn, told_drawn in as_ranks(size, run):
        assert torch.equal(best, told) and torch.equal(drawn, told_drawn)
        assert len(set(drawn.tolist())) > 3


def test_what_asks_for_more_than_the_best_needs_all_logits() -> None:
    assert Needs().best_alone and Needs(draws=True).best_alone
    for more in Needs._fields[1:]:
        assert not Needs(draws=True)._replace(**{more: True}).best_alone


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("random", [False, True])
def test_the_parts_of_a_weight_make_the_whole(size: int, random: bool, tmp_path: Path) -> None:
    save_random(CONFIG, tmp_path, seed=2)
    models = [build(CONFIG)] + [build(CONFIG, World(rank, size)) for rank in range(size)]
    for model in models:
        if random:
            fill_random(model, 2)
        else:
            load_checkpoint(model, tmp_path)
    whole, *ranks = ({p.name: p for p in model.placements()} for model in models)
    for name, placement in whole.items():
        seen = torch.zeros(placement.target.shape, dtype=torch.bool)
        for parts in ranks:
            part = parts[name]
            where = (part.rows, part.cols)[: len(part.shape)]
            assert torch.equal(part.target, placement.target[where]), name
            seen[where] = True
        assert seen.all(), name


def test_each_rank_holds_its_share() -> None:
    one = sum(p.target.numel() for p in build(CONFIG).placements())
    for size in (2, 4):
        ranks = [build(CONFIG, World(rank, size)) for rank in range(size)]
        largest = max(sum(p.target.numel() for p in rank.placements()) for rank in ranks)
        assert largest < 1.3 * one / size
        assert all(rank.num_kv_heads == max(1, 2 // size) for rank in ranks)


def test_vocabulary_padding_is_zero_and_belongs_to_the_last() -> None:
    parts = [World(rank, 4).split_vocab(101) for rank in range(4)]
    assert parts == [
        (slice(0, 26), 26),
        (slice(26, 52), 26),
        (slice(52, 78), 26),
        (slice(78, 101), 26),
    ]
    assert World(3, 4).split_vocab(4)[0] == slice(3, 4)
    assert length(World(3, 4).split_vocab(5)[0]) == 0  # two ids a rank: none are left
    model = build(CONFIG, World(3, 4))
    fill_random(model, 0)
    head = next(p for p in model.placements() if p.name == "lm_head.weight")
    padded = head.target.as_strided((26, 64), (64, 1))
    assert not padded[23:].any() and padded[:23].any()


def test_heads_are_split_or_held_by_neighbours() -> None:
    assert [World(r, 2).split_kv_heads(8, "kv") for r in range(2)] == [slice(0, 4), slice(4, 8)]
    assert [World(r, 4).split_kv_heads(2, "kv").start for r in range(4)] == [0, 0, 1, 1]
    assert [World(r, 8).split_kv_heads(1, "kv").start for r in range(8)] == [0] * 8
    assert scale_slice(slice(1, 3), 16) == slice(16, 48)
    # A rank's query heads belong to the key head that it holds.
    for rank in range(4):
        queries = World(rank, 4).split(8, "q")
        assert {head // 4 for head in range(queries.start, queries.stop)} == {rank // 2}


@pytest.mark.parametrize(
    ("changes", "size", "words"),
    [
        ({"num_q_heads": 6}, 4, "= 4: must divide the model's num_attention_heads = 6"),
        ({"num_q_heads": 12, "num_kv_heads": 6}, 4, "= 4: must divide .* num_key_value_heads = 6"),
        ({"num_q_heads": 12, "num_kv_heads": 3}, 4, "= 4: must be a multiple .*heads = 3, or"),
        ({"intermediate_size": 97}, 2, "= 2: must divide the model's intermediate_size = 97"),
    ],
)
def test_what_cannot_be_split_is_refused(changes: dict[str, int], size: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(dataclasses.replace(CONFIG, **changes), World(0, size))


@pytest.mark.parametrize(("rank", "size"), [(0, 0), (2, 2), (-1, 2)])
def test_a_place_that_does_not_exist_is_refused(rank: int, size: int) -> None:
    with pytest.raises(ConfigError, match="must be"):
        World(rank, size)


def test_ranks_that_cannot_exchange_compute_nothing() -> None:
    model = build(CONFIG, World(0, 2))
    fill_random(model, 0)
    with pytest.raises(ConfigError, match="tensor_parallel_size = 2: these ranks have no exchange"):
        all_logits(model, PROMPT)


def test_sums_are_taken_in_rank_order_and_rounded_once() -> None:
    parts = [torch.tensor([[1e8, 1.0]]), torch.tensor([[-1e8, 2**-9]]), torch.tensor([[0.5, -1.0]])]

    def run(world: World, dtype: torch.dtype) -> Tensor:
        return world.add_partials(parts[world.rank].to(dtype), torch.zeros(1, 2, dtype=dtype))

    for mine in as_ranks(3, lambda world: run(world, torch.float32)):
        assert mine.tolist() == [[0.5, 2**-9]]  # in another order 0.5 would be lost
    for mine in as_ranks(3, lambda world: run(world, torch.bfloat16)):
        assert mine.dtype is torch.bfloat16
        assert mine.tolist() == [[0.5, 2**-9]]  # which 1 + 2**-9 has no room for


@pytest.mark.parametrize("size", [2, 4])
def test_each_rank_reads_its_own_bytes_alone(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_random(CONFIG, tmp_path, seed=2)
    real, taken = Checkpoint.read, dict[str, list[tuple[int, int]]]()

    def read(files: Checkpoint, tensor: StoredTensor, start: int, buffer: memoryview) -> None:
        taken.setdefault(tensor.name, []).append((start, start + len(buffer)))
        real(files, tensor, start, buffer)

    monkeypatch.setattr(Checkpoint, "read", read)
    monkeypatch.setattr(Checkpoint, "digest", lambda _: "")
    all_taken: dict[str, list[tuple[int, int]]] = {}
    for rank in range(size):
        taken.clear()
        model = build(CONFIG, World(rank, size))
        load_checkpoint(model, tmp_path)
        for placement in model.placements():
            read_bytes = sum(end - start for start, end in taken[placement.name])
            assert read_bytes == placement.target.numel() * 4, placement.name
            all_taken.setdefault(placement.name, []).extend(taken[placement.name])
    for placement in build(CONFIG).placements():
        ends = sorted(all_taken[placement.name])
        assert ends[0][0] == 0 and ends[-1][1] == placement.target.numel() * 4
        assert all(later[0] <= before[1] for before, later in itertools.pairwise(ends))


# ---------------------------------------------------------------- steps of several rows


def test_decode_rows_beside_a_prompt_are_as_alone() -> None:
    """One step of a one-token row and a longer one gives what two steps give."""
    model = build(CONFIG)
    fill_random(model, 0)
    kv = new_cache(model, 64)

    def row(tokens: list[int], computed: int, first_block: int) -> ForwardBatch:
        alone = batch_for(tokens, computed, kv)
        table = torch.arange(first_block, first_block + 2, dtype=torch.int32)
        blocks = table[(alone.positions // kv.block_size).long()].long()
        slots = blocks * kv.block_size + alone.positions % kv.block_size
        return dataclasses.replace(alone, block_tables=table[None], slot_mapping=slots)

    model.forward(row(PROMPT, 0, 1), kv)
    decode, prompt = row([5], len(PROMPT), 1), row(PROMPT[3:], 0, 3)
    expected = [model.logits(model.forward(alone, kv), None) for alone in (decode, prompt)]
    mixed = ForwardBatch(
        token_ids=torch.cat((decode.token_ids, prompt.token_ids)),
        positions=torch.cat((decode.positions, prompt.positions)),
        slot_mapping=torch.cat((decode.slot_mapping, prompt.slot_mapping)),
        context_lens=torch.cat((decode.context_lens, prompt.context_lens)),
        block_tables=torch.cat((decode.block_tables, prompt.block_tables)),
        prefill_start_loc=prompt.prefill_start_loc,
        logits_rows=torch.tensor([0, len(PROMPT) - 3]),
        num_decode_rows=1,
        max_query_len=prompt.max_query_len,
        max_context_len=decode.max_context_len,
    )
    hidden = model.forward(mixed, kv)
    torch.testing.assert_close(model.logits(hidden, None), torch.cat(expected))
    wanted = torch.cat((expected[0][-1:], expected[1][-1:]))
    torch.testing.assert_close(model.logits(hidden, mixed.logits_rows), wanted)
