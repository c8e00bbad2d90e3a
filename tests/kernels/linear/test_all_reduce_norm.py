"""The exchange kernel, with every rank's half of a launch after another: a wait finds all there.

What only several GPUs can show stands in tests/engine/parallel/test_gpu_exchange.py.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.triton
EPS = 1e-6
ROOMS = (3, 8)  # rows: small ones, since the interpreter takes its time for each


@dataclass
class Ranks:
    """Ranks in one process: their inboxes, and each one's way to them."""

    memory: list[Tensor]
    flag: Tensor
    mails: list[Any]

    @classmethod
    def of(cls, size: int, width: int, device: torch.device) -> "Ranks":
        from quire.kernels.linear import all_reduce_norm

        one = 2 * size * ROOMS[0] * width // 2
        two = 4 * ROOMS[1] * width // 2
        words = {"dtype": torch.int32, "device": device}
        memory = [
            torch.full((one + two,), all_reduce_norm.EMPTY.value, **words) for _ in range(size)
        ]
        flag = torch.zeros(1, **words)
        addresses = [part.data_ptr() for part in memory]
        others = [address + one * all_reduce_norm.WORD for address in addresses]

        def mail(rank: int) -> Any:
            new = all_reduce_norm.Inboxes.new
            first = new(rank, ROOMS[0], addresses, flag.data_ptr(), device)
            return all_reduce_norm.Mail(first, new(rank, ROOMS[1], others, flag.data_ptr(), device))

        return cls(memory, flag, [mail(rank) for rank in range(size)])

    def add(self, partials: list[Tensor], residual: Tensor | None, weight: Tensor) -> list[Any]:
        """What each rank gets."""
        from quire.kernels.linear import all_reduce_norm

        found: list[Any] = []
        parts = ["SENDS", "RECEIVES"]
        if len(partials[0]) > ROOMS[0]:
            parts.insert(1, "ADDS_UP")
        for part in parts:
            chosen = {one: one == part for one in parts}
            found = [
                all_reduce_norm.residual_norm(
                    partial, None if residual is None else residual.clone(), weight, EPS, mail,
                    **chosen,
                )
                for partial, mail in zip(partials, self.mails, strict=True)
            ]  # fmt: skip
        return found


def expected(partials: list[Tensor], residual: Tensor | None, weight: Tensor) -> tuple[Any, Any]:
    """In rank order, rounded once; the norm of what was rounded."""
    total = partials[0].float()
    for partial in partials[1:]:
        total = total + partial.float()
    whole = (total if residual is None else residual.float() + total).to(weight.dtype)
    x = whole.float()
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)
    return whole, x * scale * weight.float()


def numbers(*shape: int, dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng).to(device, dtype)


@pytest.mark.parametrize(
    ("size", "rows", "width", "dtype"),
    [
        (2, 3, 24, torch.bfloat16),
        (2, 1, 26, torch.float16),
        (4, 2, 24, torch.bfloat16),
        (4, 6, 8, torch.float16),
        (2, 5, 8, torch.bfloat16),
    ],
)
def test_all_ranks_get_the_sum_in_rank_order_and_its_norm(
    size: int, rows: int, width: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Three times: each half of the inboxes is used again."""
    ranks, like = Ranks.of(size, width, device), {"dtype": dtype, "device": device}
    weight = numbers(width, **like, seed=1)
    for turn in range(3):
        partials = [numbers(rows, width, **like, seed=10 * turn + r) for r in range(size)]
        residual = None if turn == 1 else numbers(rows, width, **like, seed=5 + turn)
        whole, norm = expected(partials, residual, weight)
        for mine, normed in ranks.add(partials, residual, weight):
            assert torch.equal(mine, whole)
            torch.testing.assert_close(normed.float(), norm, rtol=1e-2, atol=1e-3)
    assert all(bool((part == -1).all()) for part in ranks.memory)
    assert ranks.flag.item() == 0


@pytest.mark.parametrize("rows", [1, ROOMS[0] + 1])
def test_the_sum_is_taken_in_rank_order(rows: int, device: torch.device) -> None:
    """In another order what is small would be lost."""
    large = float(2**27)
    ranks, like = Ranks.of(4, 8, device), {"dtype": torch.bfloat16, "device": device}
    partials = [torch.full((rows, 8), x, **like) for x in (large, -large, 0.5, -2.0)]
    for mine, _ in ranks.add(partials, torch.ones(rows, 8, **like), torch.ones(8, **like)):
        assert bool((mine == -0.5).all())


def test_rows_count_for_themselves(device: torch.device) -> None:
    """Steps of other numbers of rows come between: a row's halves go on from where they were."""
    ranks, like = Ranks.of(2, 8, device), {"dtype": torch.bfloat16, "device": device}
    weight = numbers(8, **like, seed=1)
    for turn, rows in enumerate((1, 3, 1, 2, 3, 3)):
        partials = [numbers(rows, 8, **like, seed=10 * turn + r) for r in range(2)]
        whole, _ = expected(partials, None, weight)
        for mine, _ in ranks.add(partials, None, weight):
            assert torch.equal(mine, whole)
    assert ranks.mails[0].one.counts[:4].tolist() == [6, 4, 3, 0]


def test_inboxes_are_as_large_as_the_kernels_take_them_to_be() -> None:
    from quire.kernels.linear import all_reduce_norm

    for size in (2, 4, 8):
        one, two = all_reduce_norm.rooms(size)
        assert all_reduce_norm.inbox_words(size, 24) == (2 * size * one * 12, 2 * two * 12 * 2)
        assert two % size == 0
        assert [all_reduce_norm.kind(rows, size) for rows in (1, one, one + 1)] == [
            "one-shot", "one-shot", "two-shot",
        ]  # fmt: skip


def test_a_number_with_the_bits_of_nothing_is_sent_as_another_nan(device: torch.device) -> None:
    ranks = Ranks.of(2, 8, device)
    nothing = torch.full((1, 4), -1, dtype=torch.int32, device=device).view(torch.bfloat16)
    weight = torch.ones(8, dtype=torch.bfloat16, device=device)
    for mine, normed in ranks.add([nothing, torch.ones_like(nothing)], None, weight):
        assert bool(mine.isnan().all()) and bool(normed.isnan().all())
    assert ranks.flag.item() == 0
