"""Which launches of prefill attention take the kernel of sm_90, told without a GPU."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from quire.kernels import launches, support
from quire.kernels.attention import exact_prefill
from quire.kernels.attention.decode_launch import Heads
from quire.kernels.attention.prefill_launch import (
    GROUPS,
    PrefillLaunch,
    choose_tiles,
    for_hopper,
    plan_launches,
)

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
WHOLE = PrefillLaunch(choose_tiles(128, BF16), 1, 1 << 30)


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("triton.__version__", support.HOPPER_TRITON[0])
    support.assume((9, 0), support.HOPPER_SHARED, support.HOME_CARD)
    yield
    support.assume((9, 0), support.HOPPER_SHARED, support.HOME_CARD)


def taken(
    launch: PrefillLaunch = WHOLE,
    *,
    dim: int = 128,
    dtype: torch.dtype = BF16,
    cache: torch.dtype | None = None,
    block_size: int = 64,
    window: int = 0,
    device: str = "meta",
) -> bool:
    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    q = empty(3, 16, dim, dtype=dtype)
    return for_hopper(launch, q, empty(2, 8, block_size, dim, dtype=cache or dtype), window)


def test_whole_contexts_of_16_bits_take_it() -> None:
    assert taken() and taken(dtype=FP16) and taken(dim=64) and taken(block_size=256)


def test_exact_mode_has_one_in_bfloat16() -> None:
    launch = replace(WHOLE, tiles=exact_prefill.choose_tiles(128, BF16))
    cache = torch.empty(2, 8, 64, 128, dtype=BF16, device="meta")
    for dtype, cached in ((BF16, BF16), (FP16, FP16), (BF16, support.NARROW)):
        q = torch.empty(3, 16, 128, dtype=dtype, device="meta")
        wanted = (dtype, cached) == (BF16, BF16)
        assert exact_prefill._for_hopper(launch, q, cache.to(cached)) == wanted
        assert not exact_prefill._for_hopper(replace(launch, split=64), q, cache.to(cached))


def test_what_else_takes_the_kernel_of_every_card() -> None:
    assert not taken(dtype=FP32)
    assert not taken(cache=support.NARROW)
    assert not any(taken(dim=dim) for dim in (16, 32, 96, 256))
    assert not any(taken(block_size=size) for size in (16, 32))
    assert not taken(window=4096)
    assert not taken(device="cpu")
    assert not taken(replace(WHOLE, split=256))
    for tiles in (replace(WHOLE.tiles, queries=16, tma=False), replace(WHOLE.tiles, num_warps=8)):
        assert not taken(replace(WHOLE, tiles=tiles))


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (10, 0), (12, 0)])
def test_other_cards_do_not(capability: tuple[int, int]) -> None:
    support.assume(capability, support.HOPPER_SHARED, "another")
    assert not taken()


@pytest.mark.parametrize("version", ["3.4.0", "3.5.1", "3.6.1", "3.8.0", "3.6.0+git", "unknown"])
def test_other_versions_of_triton_do_not(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("triton.__version__", version)
    assert not taken()


@pytest.mark.parametrize(
    ("tokens", "rows", "group", "grouped"),
    [
        (3000, 1, 2, True),
        (2048, 1, 2, False),  # a device not filled
        (2048, 1, 4, True),
        (8192, 8, 2, True),
        (4800, 16, 2, False),  # rows that do not fill their tiles
        (3100, 101, 2, False),
    ],
)
def test_long_rows_share_their_keys_among_groups(
    tokens: int, rows: int, group: int, grouped: bool
) -> None:
    plan = plan_launches(tokens, rows, 8, group, tokens, 8192, WHOLE.tiles, None)
    assert plan[0].groups == (GROUPS if grouped else 1)
    assert all(launch.groups == 1 for launch in plan[1:])


def test_only_the_tiles_of_its_kernel_are_grouped() -> None:
    """Exact mode's have a stage more, and wide heads other warps."""
    for tiles in (replace(WHOLE.tiles, num_stages=3), choose_tiles(256, BF16)):
        plan = plan_launches(8192, 1, 8, 2, 8192, 8192, tiles, None)
        assert [launch.groups for launch in plan] == [1]


def test_warm_up_tells_steps_of_one_group_and_of_three() -> None:
    heads = Heads(16, 8, 128, BF16, 64)
    few, many = (
        launches.of_model(launches.StepSize(0, (tokens,), 4096), heads, launches.Card())
        for tokens in (2048, 3000)
    )
    one, three = (("prefill", "sum", WHOLE.tiles, groups, WHOLE.split) for groups in (1, GROUPS))
    assert one in few - many and three in many - few
