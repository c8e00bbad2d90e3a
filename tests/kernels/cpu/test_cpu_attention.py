"""The CPU's own attention of one-token rows: the twin's, and a row's bits its own."""

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from quire.kernels import reference
from quire.kernels.cpu.library import LibraryUnavailable, cache_directory, load, machine_level
from quire.kernels.cpu.ops import CpuOps

BF16, FP32 = torch.bfloat16, torch.float32
CONTEXTS = [1, 63, 64, 65, 130, 0, 17, 200]
EPS = 1e-6


def _level() -> str | None:
    try:
        return machine_level()
    except LibraryUnavailable:
        return None


pytestmark = pytest.mark.skipif(
    _level() is None or shutil.which("cc") is None, reason="needs AVX2 and a C compiler"
)


@pytest.fixture(scope="module")
def ops() -> CpuOps:
    """From where servers keep it: a compiler takes seconds."""
    level = machine_level()
    return CpuOps(load(level, cache_directory()), level)


class Case:
    """Rows of one new token each, over caches that hold what came before."""

    def __init__(self, dtype: torch.dtype, kv_heads: int, group: int, dim: int, size: int) -> None:
        draw = torch.Generator().manual_seed(dim + group)
        most, rows = -(-max(CONTEXTS) // size), len(CONTEXTS)
        blocks = torch.randperm(rows * most, generator=draw) + 1
        self.tables = blocks.view(rows, most).int()
        self.contexts = torch.tensor(CONTEXTS, dtype=torch.int32)
        shape = (rows * most + 1, kv_heads, size, dim)
        self.caches = [torch.randn(shape, generator=draw) for _ in range(2)]
        self.qkv = torch.randn(rows, (group + 2) * kv_heads * dim, generator=draw).to(dtype)
        self.norms = [(1 + 0.1 * torch.randn(dim, generator=draw)).to(dtype) for _ in range(2)]
        angles = torch.arange(256)[:, None] * 1e4 ** (-torch.arange(0, dim, 2) / dim)
        self.rope = torch.cat((angles.cos(), angles.sin()), dim=1).float()
        self.positions = (self.contexts - 1).clamp(min=0)
        at = self.tables.gather(1, (self.positions // size).long()[:, None])[:, 0].long()
        self.slots = torch.where(self.contexts > 0, at * size + self.positions % size, 0)
        self.scale = dim**-0.5

    def run(self, ops: Any, rows: list[int] | None = None) -> tuple[Tensor, list[Tensor]]:
        """The result of these rows, and what became of the caches."""
        some = torch.arange(len(CONTEXTS)) if rows is None else torch.tensor(rows)
        caches = [cache.clone() for cache in self.caches]
        out = ops.rope_decode_attention(
            *(self.qkv[some], *self.norms, EPS, self.rope, self.positions[some], self.slots[some]),
            *(*caches, self.tables[some], self.contexts[some], self.scale, max(CONTEXTS)),
        )
        return out, caches


CASES = [
    (BF16, 2, 2, 128, 64),
    (FP32, 2, 2, 128, 64),
    (FP32, 1, 16, 16, 16),
    (BF16, 3, 1, 64, 32),
    (FP32, 2, 4, 256, 128),
    (BF16, 2, 5, 80, 16),
]


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


def _near(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 2**-7, "atol": 2e-2} if dtype == BF16 else {"rtol": 1e-4, "atol": 1e-5}


def test_it_is_the_twins(ops: Any, case: Case) -> None:
    (mine, my_caches), (twin, its_caches) = case.run(ops), case.run(reference)
    assert mine.dtype == twin.dtype
    torch.testing.assert_close(mine, twin, **_near(mine.dtype))
    for my_cache, its_cache, before in zip(my_caches, its_caches, case.caches, strict=True):
        torch.testing.assert_close(my_cache[1:], its_cache[1:], **_near(mine.dtype))
        written = (my_cache != before).flatten(1).any(1)[1:]
        assert torch.equal(written, (its_cache != before).flatten(1).any(1)[1:])
    assert not mine[CONTEXTS.index(0)].any()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_rows_bits_are_its_own(ops: Any, case: Case, threads: int) -> None:
    whole, _ = case.run(ops)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for rows in ([0], [4], [7, 1], [3, 2, 6], list(range(len(CONTEXTS)))):
            assert torch.equal(case.run(ops, rows)[0], whole[rows])
    finally:
        torch.set_num_threads(before)


def test_without_norms_it_is_the_twins_too(ops: Any, case: Case) -> None:
    results = []
    for which in (ops, reference):
        caches = [cache.clone() for cache in case.caches]
        q = which.rope_kv_write(case.qkv, case.rope, case.positions, case.slots, *caches)
        results.append((q, *(cache[1:] for cache in caches)))
    for mine, twin in zip(*results, strict=True):
        torch.testing.assert_close(mine, twin, **_near(case.qkv.dtype))


def test_many_tokens_are_written_as_each_alone(ops: Any, case: Case) -> None:
    """As parts of a prompt: q, keys and values have the bits that one token alone gets."""

    def written(some: slice) -> list[Tensor]:
        caches = [cache.clone() for cache in case.caches]
        tokens = (case.positions[some], case.slots[some])
        q = ops.qk_norm_rope_kv_write(case.qkv[some], *case.norms, EPS, case.rope, *tokens, *caches)
        at = case.slots[some]
        size = caches[0].shape[2]
        return [q, *(cache[at // size, :, at % size] for cache in caches)]

    together = written(slice(None))
    for row in range(len(CONTEXTS)):
        if CONTEXTS[row]:  # others share the null slot
            for one, of_all in zip(written(slice(row, row + 1)), together, strict=True):
                assert torch.equal(one[0], of_all[row])


def test_a_prompt_of_one_token_has_the_bits_of_a_decode_row(ops: Any, case: Case) -> None:
    dim = case.caches[0].shape[3]
    q = case.qkv[:, : case.qkv.shape[1] - 2 * case.caches[0].shape[1] * dim]
    q = q.reshape(len(CONTEXTS), -1, dim)
    rows = [row for row, context in enumerate(CONTEXTS) if context]
    decoded = ops.decode_attention(
        q, *case.caches, case.tables, case.contexts, case.scale, max(CONTEXTS)
    )
    prompts = ops.prefill_attention(
        *(q[rows], *case.caches, case.tables[rows], torch.arange(len(rows) + 1).int()),
        *(case.contexts[rows], case.scale, 1, max(CONTEXTS)),
    )
    assert torch.equal(prompts, decoded[rows])


def test_numbers_that_are_not_finite_stay_so(ops: Any, case: Case) -> None:
    q = torch.randn(2, case.caches[0].shape[1], case.caches[0].shape[3])
    caches = [cache.clone() for cache in case.caches]
    caches[1][int(case.tables[4, 0])] = float("nan")
    rows = [4, 6]
    out = ops.decode_attention(
        q, *caches, case.tables[rows], case.contexts[rows], case.scale, max(CONTEXTS)
    )
    assert bool(out[0].isnan().all()) and bool(out[1].isfinite().all())
