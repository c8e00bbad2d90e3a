"""The course's small engine gives transformers' tokens and Quire's, one by one."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from mini.chance import Chance, keep
from mini.config import Config
from mini.engine import Engine
from mini.layers import attention
from mini.memory import generate, generate_forgetful
from mini.model import Model
from mini.paged import by_row, vectorised
from mini.prefix import RememberingPool
from mini.scheduler import Request
from mini.tiles import Meter, flash, standard
from support import hf_models
from support.small_engine import Setup, WatchedOps, build_core, run
from transformers import PreTrainedModel

from quire.engine.model.config import ModelConfig
from quire.engine.model.registry import build_model
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.weights.loader import load_checkpoint
from quire.kernels import reference
from quire.service.models import pocket

COURSE = Path(__file__).resolve().parents[2] / "course"
MAX_TOKENS, BLOCK = 24, 4
MAX_LINES = 1000


@dataclass(frozen=True)
class Answers:
    """What transformers says to each of some prompts, and where the model lies."""

    directory: Path
    prompts: list[list[int]]
    theirs: list[list[int]]


def _prompts(vocab: int) -> list[list[int]]:
    """Random ones of many lengths; the last two begin with all of the first."""
    generator = torch.Generator().manual_seed(5)

    def some(count: int) -> list[int]:
        return torch.randint(3, vocab, (count,), generator=generator).tolist()

    first = some(4 * BLOCK + 1)
    return [first, some(1), some(7), some(40), first + some(5), first[:-1] + some(9)]


@pytest.fixture(
    scope="module",
    params=[None, hf_models.SHAPES[1], hf_models.SHAPES[3]],
    ids=["Pocket", "random, groups of 2", "random, groups of 8"],
)
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    directory = pocket.directory()
    if request.param is not None:
        directory = tmp_path_factory.mktemp("random")
        hf_models.save(request.param, directory)
    model = hf_models.load(directory, torch.float32)
    prompts = _prompts(model.config.vocab_size)
    mini = Model.read(directory)
    theirs = []
    for prompt in prompts:
        ours = generate(mini, prompt, MAX_TOKENS)
        theirs.append(_best_after_each(model, prompt, ours))
        ended = [token in mini.config.eos_token_ids for token in theirs[-1]]
        assert not any(ended[:-1]) and (ended[-1] or len(ended) == MAX_TOKENS)
    return Answers(directory, prompts, theirs)


@torch.inference_mode()
def _best_after_each(model: PreTrainedModel, prompt: list[int], tokens: list[int]) -> list[int]:
    """What transformers takes for the best before each of these tokens: where that is the token,
    every time, it is what its slow generation would give."""
    logits = model(torch.tensor([prompt + tokens[:-1]])).logits[0]
    return logits[len(prompt) - 1 :].argmax(-1).tolist()


def test_with_and_without_a_cache_it_says_what_transformers_says(answers: Answers) -> None:
    model = Model.read(answers.directory)
    assert [generate(model, prompt, MAX_TOKENS) for prompt in answers.prompts] == answers.theirs
    short = answers.prompts[1]
    assert generate_forgetful(model, short, MAX_TOKENS) == answers.theirs[1]


@pytest.mark.parametrize(
    ("num_blocks", "budget"), [(200, 256), (20, 6)], ids=["all at once", "chunked, preempted"]
)
def test_the_engine_says_what_transformers_says(
    answers: Answers, num_blocks: int, budget: int
) -> None:
    engine = Engine(
        Model.read(answers.directory), num_blocks=num_blocks, block_size=BLOCK, budget=budget
    )
    done = engine.generate(answers.prompts, MAX_TOKENS)
    assert [request.output for request in done] == answers.theirs
    assert max(sum(step) for step in engine.steps) <= budget
    again = engine.generate(answers.prompts[:1], MAX_TOKENS)
    assert again[0].output == answers.theirs[0]
    assert engine.pool.num_free == num_blocks
    if num_blocks == 20:
        assert sum(request.preemptions for request in done) > 0
        assert engine.pool.evictions > 0
    else:
        assert again[0].cached == 4 * BLOCK


def test_quire_says_the_same(answers: Answers) -> None:
    config = ModelConfig.from_directory(answers.directory)
    ops = WatchedOps()
    model = build_model(config, ops, dtype=torch.float32, device=torch.device("cpu"))  # type: ignore[arg-type]
    load_checkpoint(model, answers.directory)
    setup = Setup(max_num_seqs=8, block_size=BLOCK, num_blocks=200, caching=True)
    core = build_core(model, ops, setup)
    sampling = SamplingParams(
        max_tokens=MAX_TOKENS, temperature=0.0, eos_token_ids=config.eos_token_ids
    )
    specs = [
        GenerationRequest(key, tuple(prompt), sampling)
        for key, prompt in enumerate(answers.prompts)
    ]
    outcomes = run(core, specs)
    assert [outcomes[key, 0].token_ids for key in range(len(specs))] == answers.theirs


def test_what_is_kept_to_draw_from_is_what_quire_keeps() -> None:
    generator = torch.Generator().manual_seed(2)
    for temperature, top_k, top_p in ((1.0, 0, 0.9), (0.5, 12, 1.0), (2.0, 40, 0.7), (1.3, 0, 1.0)):
        logits = 3 * torch.randn(300, generator=generator)
        theirs = logits[None].clone()
        slots, each = torch.zeros(1, dtype=torch.int32), torch.tensor([temperature])
        k, p = torch.tensor([top_k], dtype=torch.int32), torch.tensor([top_p])
        reference.filter_logits(theirs, slots, each, k, p, torch.zeros(1))
        assert (keep(logits / temperature, top_k, top_p) > -torch.inf).equal(theirs[0] > -torch.inf)


def test_tokens_are_drawn_as_often_as_their_chances_say() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    for temperature in (0.5, 1.0, 2.0):
        chance = Chance(temperature, seed=9)
        drawn = torch.tensor([chance.draw(logits, place) for place in range(4000)])
        shares = torch.bincount(drawn, minlength=5) / 4000
        assert (shares - (logits / temperature).softmax(0)).abs().max() < 0.03
    assert Chance(0.0).draw(logits, 3) == 2
    assert {Chance(1.0, top_k=1, seed=seed).draw(logits, 3) for seed in range(20)} == {2}


def test_what_is_drawn_does_not_depend_on_the_company() -> None:
    model = Model.read(pocket.directory())
    prompts = _prompts(model.config.vocab_size)

    def drawn(**options: int) -> list[list[int]]:
        engine = Engine(model, block_size=BLOCK, **options)
        requests = [
            Request(tuple(prompt), 12, chance=Chance(1.2, top_p=0.95, seed=seed))
            for seed, prompt in enumerate(prompts)
        ]
        for request in requests:
            engine.scheduler.submit(request)
        while engine.step():
            pass
        preempted.append(sum(request.preemptions for request in requests))
        return [request.output for request in requests]

    preempted: list[int] = []
    alone = drawn(num_blocks=200, max_running=1)
    assert drawn(num_blocks=200) == alone
    assert drawn(num_blocks=20, budget=6) == alone
    assert preempted[:2] == [0, 0] and preempted[2] > 0


def test_the_same_words_behind_other_words_are_not_found() -> None:
    pool = RememberingPool(8, BLOCK)
    table: list[int] = []
    pool.grow(table, 8)
    pool.remember(table, [1, 2, 3, 4, 5, 6, 7, 8])
    assert pool.find([1, 2, 3, 4, 5, 6, 7, 8, 9]) == table
    assert pool.find([5, 6, 7, 8, 9]) == []
    assert pool.find([9, 2, 3, 4, 5, 6, 7, 8, 9]) == []


def test_a_prompt_that_is_known_whole_leaves_a_token_over() -> None:
    engine = Engine(Model.read(pocket.directory()), block_size=BLOCK)
    prompt = [7, 8, 9, 10, 11, 12, 13, 14]
    first, again = (engine.generate([prompt], 3)[0] for _ in range(2))
    assert (first.cached, again.cached) == (0, BLOCK)
    assert again.output == first.output


@pytest.mark.parametrize(
    ("policy", "kept"), [("lru", [True, False]), ("fifo", [False, True]), ("none", [False, False])]
)
def test_who_is_forgotten_first_is_the_policys(policy: str, kept: list[bool]) -> None:
    """Two texts fill the pool, the first is used once more, a third one needs room."""
    pool = RememberingPool(2, BLOCK, policy)

    def visit(tokens: list[int]) -> bool:
        table: list[int] = []
        pool.share(table, pool.find([*tokens, 0]))
        found = bool(table)
        pool.grow(table, BLOCK)
        pool.remember(table, tokens)
        pool.give_back(table)
        return found

    first, second, third = [1] * BLOCK, [2] * BLOCK, [3] * BLOCK
    for text in (first, second, first, third):
        visit(text)
    assert [bool(pool.find([*text, 0])) for text in (first, second)] == kept
    with pytest.raises(ValueError, match="policy = 'mru'"):
        RememberingPool(2, BLOCK, "mru")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "llama"),
        ("attention_bias", True),
        ("use_sliding_window", True),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e6}),
    ],
)
def test_a_model_that_it_would_compute_wrongly_is_refused(
    tmp_path: Path, field: str, value: object
) -> None:
    raw = json.loads((pocket.directory() / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**raw, field: value}))
    with pytest.raises(ValueError, match="this engine knows"):
        Config.read(tmp_path)


@pytest.mark.parametrize(("prompt", "max_tokens"), [([], 1), ([5], 0), ([5] * 30, 3)])
def test_a_request_that_could_never_run_is_refused(prompt: list[int], max_tokens: int) -> None:
    engine = Engine(Model.read(pocket.directory()), num_blocks=8, block_size=BLOCK)
    with pytest.raises(ValueError, match="max_tokens"):
        engine.generate([prompt], max_tokens)


@pytest.mark.parametrize(("length", "tile"), [(16, 16), (64, 16), (96, 32)])
def test_attention_in_tiles_is_attention(length: int, tile: int) -> None:
    generator = torch.Generator().manual_seed(length)
    q, k, v = (3 * torch.randn(length, 8, generator=generator) for _ in range(3))
    right = attention(q[:, None], k[:, None], v[:, None])[:, 0]
    plain, tiled = Meter(), Meter()
    assert torch.allclose(standard(q, k, v, plain), right, atol=1e-5)
    assert torch.allclose(flash(q, k, v, tile, tiled), right, atol=1e-5)
    assert (plain.between, tiled.between) == (2 * length * length, 0)


def test_one_token_a_row_over_pages_is_the_same_by_row_and_at_once() -> None:
    generator = torch.Generator().manual_seed(3)
    keys, values = (torch.randn(64, 2, 8, generator=generator) for _ in range(2))
    tables, contexts = [[9, 2], [4, 15, 7, 0], [3]], [6, 14, 1]
    q = torch.randn(3, 6, 8, generator=generator)
    one = by_row(q, keys, values, tables, contexts, BLOCK)
    assert torch.allclose(vectorised(q, keys, values, tables, contexts, BLOCK), one, atol=1e-6)
    store = keys.clone(), values.clone()
    unused = [slot for slot in range(64) if slot // BLOCK not in {9, 2, 4, 15, 7, 0, 3}]
    for cache in store:
        cache[unused] = torch.nan
    assert torch.equal(vectorised(q, *store, tables, contexts, BLOCK).isnan(), one.isnan())


def test_it_stays_small() -> None:
    lines = sum(
        len(path.read_text(encoding="utf-8").splitlines()) for path in COURSE.glob("mini/*.py")
    )
    assert lines <= MAX_LINES
