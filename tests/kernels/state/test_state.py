"""State kernels: the same buffers as the twins, to the last integer."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from quire.kernels import reference

BLOCK = 16


@dataclasses.dataclass
class Slots:
    """Slots whose block tables cover `width` blocks each; the last is the null slot."""

    last_token: Tensor
    num_computed: Tensor
    tables: Tensor

    @classmethod
    def of(cls, computed: list[int], width: int, device: torch.device) -> "Slots":
        slots = len(computed) + 1
        random = torch.Generator().manual_seed(slots)
        tables = torch.randint(1, 10_000, (slots, width), generator=random, dtype=torch.int32)
        tables[-1] = 0
        return cls(
            torch.arange(100, 100 + slots, dtype=torch.int32).to(device),
            torch.tensor([*computed, 0], dtype=torch.int32).to(device),
            tables.to(device),
        )


def _outputs(tokens: int, rows: int, width: int, device: torch.device) -> dict[str, Tensor]:
    def new(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.full(shape, -7, dtype=dtype, device=device)

    return {
        "token_ids": new(tokens),
        "positions": new(tokens),
        "slot_mapping": new(tokens, dtype=torch.int64),
        "context_lens": new(rows),
        "block_tables": new(rows, width),
    }


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def _prepare_decode(module: Any, slots: Slots, rows: Tensor, device: torch.device) -> Any:
    out = _outputs(len(rows), len(rows), slots.tables.shape[1], device)
    module.prepare_decode(rows, slots.last_token, slots.num_computed, slots.tables, BLOCK, **out)
    return out


@pytest.mark.triton
@pytest.mark.parametrize("width", [3, 256, 300])
def test_prepare_decode(width: int, device: torch.device) -> None:
    from quire.kernels.state import state

    slots = Slots.of([0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - 1], width, device)
    rows = torch.tensor([5, 2, 6, 0, 3, 6, 4], dtype=torch.int32, device=device)
    out = _prepare_decode(state, slots, rows, device)
    _same(_prepare_decode(reference, slots, rows, device), out)
    assert out["context_lens"].tolist() == [3 * BLOCK, BLOCK, 1, 1, BLOCK + 1, 1, BLOCK + 2]
    # Padding rows write into the null block.
    assert out["slot_mapping"][2].item() == 0


@pytest.mark.triton
def test_tables_may_be_parts_of_wider_ones(device: torch.device) -> None:
    from quire.kernels.state import state

    slots = Slots.of([5, 20], 8, device)
    wide = torch.cat((slots.tables, torch.full_like(slots.tables, 9)), 1)
    rows = torch.tensor([1, 0], dtype=torch.int32, device=device)
    out = _outputs(2, 2, 8, device)
    target = torch.full((2, 16), -7, dtype=torch.int32, device=device)
    out["block_tables"] = target[:, :8]
    state.prepare_decode(rows, slots.last_token, slots.num_computed, wide[:, :8], BLOCK, **out)
    _same(_prepare_decode(reference, slots, rows, device), out)
    assert (target[:, 8:] == -7).all()


def _prepare_mixed(
    module: Any, slots: Slots, rows: Tensor, lens: list[int], device: torch.device
) -> dict[str, Tensor]:
    starts = torch.tensor([0, *lens], dtype=torch.int32).cumsum(0).to(torch.int32).to(device)
    out = _outputs(sum(lens), len(lens), slots.tables.shape[1], device)
    ids = torch.arange(sum(lens), dtype=torch.int32, device=device)
    out["token_ids"].copy_(torch.where(ids % 5 == 0, -1, ids))
    module.prepare_mixed(
        rows, starts, slots.num_computed, slots.last_token, slots.tables, BLOCK, **out
    )
    return out


@pytest.mark.triton
@pytest.mark.parametrize("lens", [[1, 1, 1, 1], [1, 40, 0, 3], [16, 15, 17, 1], [600, 1, 513, 0]])
def test_prepare_mixed(lens: list[int], device: torch.device) -> None:
    from quire.kernels.state import state

    slots = Slots.of([0, 7, BLOCK, 2 * BLOCK - 1], 48, device)
    rows = torch.tensor([2, 0, 3, 1], dtype=torch.int32, device=device)
    out = _prepare_mixed(state, slots, rows, lens, device)
    _same(_prepare_mixed(reference, slots, rows, lens, device), out)
    assert out["token_ids"].min() >= 0


def _advance(
    module: Any,
    computed: list[int],
    rows: list[int],
    lens: list[int] | None,
    sampled: list[int] | None,
    count: bool,
    device: torch.device,
) -> tuple[Tensor, ...]:
    slots = Slots.of(computed, 1, device)
    vocab = 50
    counts = torch.zeros(len(computed) + 1, vocab, dtype=torch.int32, device=device)
    samples = len(rows if sampled is None else sampled)
    tokens = (torch.arange(samples, device=device) * 7 + 3) % vocab
    module.advance(
        torch.tensor(rows, dtype=torch.int32, device=device),
        None if lens is None else torch.tensor(lens, dtype=torch.int32, device=device),
        slots.num_computed,
        None if sampled is None else torch.tensor(sampled, dtype=torch.int64, device=device),
        tokens,
        slots.last_token,
        counts if count else None,
    )
    # Padding rows race for the null slot's token, which nobody reads.
    return slots.num_computed, slots.last_token[:-1], counts


@pytest.mark.triton
@pytest.mark.parametrize("count", [False, True])
@pytest.mark.parametrize(
    ("lens", "sampled"),
    [(None, None), ([5, 1, 1, 1], [1]), ([5, 0, 2, 1], [0, 3, 1]), ([1, 1, 1, 1], [])],
)
def test_advance(
    lens: list[int] | None, sampled: list[int] | None, count: bool, device: torch.device
) -> None:
    from quire.kernels.state import state

    arguments = ([0, 9, 30, 4], [3, 0, 4, 1], lens, sampled, count, device)
    for one, other in zip(
        _advance(state, *arguments), _advance(reference, *arguments), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.triton
@pytest.mark.parametrize("module_name", ["twin", "triton"])
def test_the_null_slot_stays_where_it_is(module_name: str, device: torch.device) -> None:
    from quire.kernels.state import state

    module = reference if module_name == "twin" else state
    computed, _, _ = _advance(module, [2, 3], [2, 0, 2], None, None, True, device)
    assert computed.tolist() == [3, 3, 0]


@pytest.mark.triton
def test_more_rows_than_one_program_advances(device: torch.device) -> None:
    from quire.kernels.state import state

    arguments = (list(range(300)), list(range(299, -1, -1)), None, None, True, device)
    for one, other in zip(
        _advance(state, *arguments), _advance(reference, *arguments), strict=True
    ):
        assert torch.equal(one, other)
