"""Which products of many rows take the kernel of sm_90, told without a GPU."""

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton")

from quire.kernels import launches, support
from quire.kernels.attention.decode_launch import Heads
from quire.kernels.linear import check, tall_launch, tuning
from quire.kernels.linear.tall_launch import SHARES, groups_for, groups_of, takes
from quire.kernels.padding import library_rows

BF16, FP32 = torch.bfloat16, torch.float32
COLUMNS = 1024  # of 0.6B's o and down
GATE_UP = 6144, 1024


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("triton.__version__", support.HOPPER_TRITON[0])
    yield
    support.assume((9, 0), support.HOPPER_SHARED, support.HOME_CARD)


def taken(
    k: int = 2048,
    n: int = 1024,
    split: int = 4,
    *,
    dtype: torch.dtype = BF16,
    out_dtype: torch.dtype = BF16,
    device: str = "meta",
) -> bool:
    x = torch.empty(3, k, dtype=dtype, device=device)
    return takes(x, torch.empty(3, n, dtype=out_dtype, device=device), split)


def test_16_bits_in_whole_steps_on_sm_90_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken() and taken(k=64, split=1)
    assert not taken(device="cpu")
    assert not taken(out_dtype=FP32) and not taken(dtype=FP32, out_dtype=FP32)
    assert not taken(k=2048 + 64) and not taken(n=1020)
    support.assume((10, 0), support.HOPPER_SHARED, "another")
    assert not taken()
    support.assume((9, 0), support.HOPPER_SHARED, support.HOME_CARD)
    monkeypatch.setattr("triton.__version__", "3.5.0")
    assert not taken()


def test_tiles_are_as_high_as_fills_the_multiprocessors() -> None:
    """The heights that were fastest on an H200."""
    best = {512: 1, 1024: 1, 1536: 2, 2048: 2, 3000: 3, 4096: 2, 6144: 3, 8192: 2}
    assert {rows: groups_of(rows, COLUMNS, SHARES) for rows in best} == best
    gates = {1024: None, 1536: None, 2048: 3, 3000: 3, 4096: 3, 8192: 3}
    assert {rows: groups_for(*GATE_UP, rows, silu=True) for rows in gates} == gates


def test_the_library_keeps_what_it_was_not_measured_to_lose() -> None:
    assert groups_for(4096, 1024, 3000, silu=False) is None
    assert groups_for(*GATE_UP, 3000, silu=False) is None
    assert groups_for(24_576, 4096, 3000, silu=True) is None
    few = range(tuning.ROW_BUCKETS[-1] + 1)  # which warm-up tells apart by buckets alone
    assert not any(tall_launch.kernels(rows) for rows in few)


def test_warm_up_tells_a_step_that_launches_them() -> None:
    step = launches.StepSize(0, (3000,), 4096)
    heads = Heads(16, 8, 128, BF16, 64)
    told = {("tall", 3)}
    assert told <= launches.of_model(step, heads, launches.Card())
    assert not told & launches.of_model(step, heads, launches.Card(hopper=False))


@pytest.mark.parametrize("most", (600, 1024, 2048, 2500, 4096, 8192, 8448))
def test_exact_modes_check_launches_every_height_that_steps_do(most: int) -> None:
    """Else a step would compile one."""
    compared = {rows for _, sample in check.samples(most) for rows in sample}
    orders = {size: o for card in tuning.tables() for size, o in tuning.exact_table(card).items()}
    for n in {n for (n, _), order in orders.items() if order.split > 1}:
        heights = {groups_of(rows, n, SHARES) for rows in range(513, most + 1)}
        assert heights == {groups_of(rows, n, SHARES) for rows in compared if rows > 512}, n


def test_exact_mode_asks_the_library_for_no_rows_at_which_another_was_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The check compares what is launched at the numbers that the library's rows are padded to."""
    hopper_tall = pytest.importorskip("quire.kernels.linear.hopper_tall")
    from quire.kernels.linear import linear, norms

    asked: dict[str, set[int]] = {"ours": set(), "library": set()}
    monkeypatch.setattr(norms, "silu_mul", lambda y, **_: asked["library"].add(len(y)) or y)

    def noted(x: torch.Tensor, *_args: object, **_options: object) -> None:
        asked["ours"].add(library_rows(len(x)))

    monkeypatch.setattr(hopper_tall, "tall", noted)
    weight = torch.empty(GATE_UP, dtype=BF16, device="meta")
    for rows in range(257, 9000, 7):
        x = torch.empty(rows, GATE_UP[1], dtype=BF16, device="meta")
        linear.run(tuning.Library(), x, weight, silu=True, apart=True)
    assert asked["ours"] and asked["library"]
    assert not asked["ours"] & asked["library"]


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "pdl"), [(BF16, True), (torch.float16, False)])
@pytest.mark.parametrize(("rows", "n", "k"), [(1, 272, 512), (777, 1024, 1024), (3000, 1024, 3072)])
def test_gpu_the_kernel_of_sm_90_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, rows: int, n: int, k: int, dtype: torch.dtype, pdl: bool
) -> None:
    """Every kind and height against tall.py's kernel and SiLU apart."""
    from quire.kernels.linear import norms, tall

    generator = torch.Generator("cuda").manual_seed(rows + k)
    x, weight, before = (
        torch.randn(*size, dtype=dtype, device="cuda", generator=generator)
        for size in ((rows, k), (n, k), (rows, n))
    )
    if not takes(x, before, 4):
        pytest.skip("another card, or another Triton, than hopper_tall.py is for")
    from quire.kernels.linear import hopper_tall

    monkeypatch.setattr(tall, "takes", lambda *_: False)
    tiles = {"block_m": 128, "block_n": 128, "block_k": 64, "stages": 4, "warps": 8}

    def twin(split: int, residual: torch.Tensor | None) -> torch.Tensor:
        out = torch.empty_like(before)
        tall.tall(x, weight, out, **tiles, split=split, residual=residual, apart=True)
        return out

    plain, shares, gated = twin(1, None), twin(4, before), norms.silu_mul(twin(1, None))
    for groups in SHARES:
        found = before.clone()
        hopper_tall.tall(x, weight, found, groups, split=4, residual=found, pdl=pdl)
        assert torch.equal(found, shares), groups
        hopper_tall.tall(x, weight, found, groups, pdl=pdl)
        assert torch.equal(found, plain), groups
    for groups in tall_launch.SILU:
        found = torch.empty_like(gated)
        hopper_tall.tall(x, weight, found, groups, silu=True, pdl=pdl)
        assert torch.equal(found, gated), groups
