"""Experts in Triton against their twins: who is chosen, in which order, and what is made."""

import dataclasses

import pytest
import torch
from torch import Tensor

from quire.kernels import reference
from quire.kernels.experts import tiles
from quire.kernels.experts.tiles import Mix, Tile

pytestmark = pytest.mark.triton

BF16 = torch.bfloat16
NARROW = Tile(16, 32, 2, 4, swap=False)
SMALL = Mix(True, 16, NARROW, dataclasses.replace(NARROW, block_n=32))
SWAPPED = Mix(True, 16, dataclasses.replace(NARROW, swap=True), Tile(32, 16, 2, 4, swap=True))
WAYS = {
    "sorted": SMALL,
    "weights first": SWAPPED,
    "more rows a tile": dataclasses.replace(SMALL, block_m=32),
    "unsorted": dataclasses.replace(SMALL, is_sorted=False),
    "through descriptors": dataclasses.replace(
        SWAPPED,
        gate_up=dataclasses.replace(SWAPPED.gate_up, boxed=True),
        down=dataclasses.replace(SWAPPED.down, boxed=True),
    ),
}


def noise(device: torch.device, *shape: int, dtype: torch.dtype = BF16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(dtype).to(device)


def chosen(rows: int, count: int, per_token: int, seed: int = 0) -> Tensor:
    """Different experts for each token, at random."""
    generator = torch.Generator().manual_seed(seed + rows)
    order = torch.rand(rows, count, generator=generator).argsort(1)
    return order[:, :per_token].contiguous()


# ------------------------------------------------------------ who is chosen


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize(
    ("rows", "width", "count", "per_token"), [(1, 64, 8, 2), (5, 72, 6, 3), (18, 48, 40, 8)]
)
def test_a_router_chooses_as_its_twin(
    rows: int, width: int, count: int, per_token: int, renormalise: bool, device: torch.device
) -> None:
    from quire.kernels.experts.routing import route

    x = noise(device, rows, width, dtype=torch.float32)
    router = noise(device, count, width, dtype=torch.float32) / 4
    experts, weights = route(x, router, per_token, renormalise=renormalise)
    expected, shares = reference.route(x, router, per_token, renormalise=renormalise)
    assert torch.equal(experts, expected) and experts.dtype == torch.int64
    torch.testing.assert_close(weights, shares, rtol=1e-5, atol=1e-7)


def test_of_equal_scores_the_lowest_expert_comes_first(device: torch.device) -> None:
    from quire.kernels.experts.routing import route

    router = torch.zeros(40, 32, dtype=BF16, device=device)
    router[[7, 3]] = noise(device, 32).abs()  # two that are best, and many equal ones behind them
    x = noise(device, 9, 32).abs()
    experts, weights = route(x, router, 5, renormalise=True)
    assert experts.tolist() == [[3, 7, 0, 1, 2]] * 9
    assert torch.equal(weights[:, 0], weights[:, 1]) and torch.equal(weights[:, 2], weights[:, 4])


def test_scores_that_are_no_numbers_choose_different_experts(device: torch.device) -> None:
    """Otherwise two pairs had one place in the order, and another token's would be left empty."""
    from quire.kernels.experts.routing import route

    x, router = noise(device, 4, 32), noise(device, 6, 32)
    expected = reference.route(x, router, 3, renormalise=True)[0]
    x[1] = float("nan")
    x[2, 5] = float("inf")
    experts, weights = route(x, router, 3, renormalise=True)
    assert experts[1].tolist() == [0, 1, 2] and len(set(experts[2].tolist())) == 3
    assert weights[1].isnan().all()
    assert torch.equal(experts[[0, 3]], expected[[0, 3]])


# ------------------------------------------------------------ in which order


def in_order(experts: Tensor, count: int, block_m: int) -> tuple[list[int], list[list[int]]]:
    """The order and the tiles as they are defined."""
    flat = experts.flatten()
    pairs = flat.argsort(stable=True).tolist()
    listed, begin = [], 0
    for expert, number in enumerate(flat.bincount(minlength=count).tolist()):
        for first in range(begin, begin + number, block_m):
            listed.append([expert, first, min(first + block_m, begin + number)])
        begin += number
    return pairs, listed


@pytest.mark.parametrize(
    "experts",
    [
        chosen(1, 8, 3),
        torch.tensor([[4]] * 70),
        torch.tensor([[6, 2], [2, 0], [2, 6]] * 7),
        chosen(64, 8, 3),
        chosen(65, 8, 3),
        chosen(140, 8, 2),
    ],
    ids=["one token", "all to one", "empty ones", "whole chunks", "chunks and one", "chunks"],
)
def test_pairs_are_put_in_order_of_their_experts(experts: Tensor, device: torch.device) -> None:
    from quire.kernels.experts.sorting import sort

    block_m = 16 if len(experts) > 100 else 32

    order = sort(experts.to(device), 7 if experts.max() < 7 else 8, block_m, 48)
    for height, made in ((block_m, order.tiles), (48, order.down_tiles)):
        pairs, listed = in_order(experts, 8, height)
        assert order.pairs.tolist() == pairs
        found = made.T.tolist()
        assert found[: len(listed)] == listed
        assert all(begin == end for _, begin, end in found[len(listed) :])


def test_there_is_room_for_the_tiles_of_any_spread() -> None:
    for spread in ([1] * 8, [17] * 8, [33, 0, 0, 1], [16] * 4, [1, 1, 1, 125], [0, 0, 128, 0]):
        filled = sum(-(-number // 16) for number in spread)
        assert filled <= tiles.most_tiles(sum(spread), len(spread), 16)
    assert tiles.most_tiles(128, 4, 16) == 4 + 124 // 16  # [1, 1, 1, 125] fills them all but one


# ------------------------------------------------------------ what is made


def check_made(mix: Mix, experts: Tensor, device: torch.device, dtype: torch.dtype) -> None:
    from quire.kernels.experts.mixing import run

    width, inner = 72, 40  # borders within blocks of every size
    x = noise(device, len(experts), width, dtype=dtype)
    gate_up = noise(device, 7, 2 * inner, width, dtype=dtype) / 8
    down = noise(device, 7, width, inner, dtype=dtype) / 6
    weights = noise(device, *experts.shape, dtype=torch.float32).abs()
    experts = experts.to(device)
    made = run(mix, x, gate_up, down, experts, weights)
    wide = [one.float() for one in (x, gate_up, down)]
    expected = reference.mix_experts(*wide, experts, weights)
    assert made.dtype == dtype
    size = float(expected.abs().max())
    step = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(made.float(), expected, rtol=step, atol=step * size)


@pytest.mark.parametrize(
    "experts",
    [
        chosen(3, 7, 2),
        torch.tensor([[5]] * 18),
        torch.tensor([[0, 1, 3]] * 17),
    ],
    ids=["few", "all to one", "some to each"],
)
def test_what_is_made_is_what_the_twin_makes(experts: Tensor, device: torch.device) -> None:
    check_made(SMALL, experts, device, BF16)


@pytest.mark.parametrize("way", WAYS)
def test_so_it_is_by_all_tiles(way: str, device: torch.device) -> None:
    repeats = 1 if way == "unsorted" else 6
    check_made(WAYS[way], torch.tensor([[6, 2], [2, 0], [2, 6]] * repeats), device, BF16)


def test_in_fp32_it_is_the_same_to_rounding(device: torch.device) -> None:
    check_made(SMALL, chosen(9, 7, 3), device, torch.float32)


@pytest.mark.parametrize("way", WAYS)
def test_a_token_alone_is_the_same_bits_as_beside_others(way: str, device: torch.device) -> None:
    from quire.kernels.experts.mixing import run

    x, experts = noise(device, 18, 64), chosen(18, 6, 2).to(device)
    gate_up, down = noise(device, 6, 64, 64) / 8, noise(device, 6, 64, 32) / 6
    weights = noise(device, 18, 2, dtype=torch.float32).abs()
    together = run(WAYS[way], x, gate_up, down, experts, weights)
    for token in (0, 17):
        alone = run(
            WAYS["unsorted"],
            *(x[token : token + 1], gate_up, down),
            *(experts[token : token + 1], weights[token : token + 1]),
        )
        assert torch.equal(alone[0], together[token])


def test_the_residual_is_added_in_its_storage(device: torch.device) -> None:
    from quire.kernels.experts.mixing import mix_experts

    x, experts = noise(device, 3, 64), chosen(3, 6, 2).to(device)
    gate_up, down = noise(device, 6, 64, 64) / 8, noise(device, 6, 64, 32) / 6
    weights = noise(device, 3, 2, dtype=torch.float32).abs()
    residual = noise(device, 3, 64, seed=1)
    expected = reference.mix_experts(x, gate_up, down, experts, weights, residual=residual.clone())
    made = mix_experts(x, gate_up, down, experts, weights, residual=residual)
    assert made.data_ptr() == residual.data_ptr()
    torch.testing.assert_close(made, expected, rtol=2e-2, atol=2e-2)


def test_no_rows_make_nothing(device: torch.device) -> None:
    from quire.kernels.experts.mixing import mix_experts
    from quire.kernels.experts.routing import route

    x = noise(device, 0, 64)
    experts, weights = route(x, noise(device, 6, 64), 2, renormalise=True)
    made = mix_experts(x, noise(device, 6, 64, 64), noise(device, 6, 64, 32), experts, weights)
    assert experts.shape == weights.shape == (0, 2) and made.shape == (0, 64)
