"""A mixture of experts for one row in three launches, against norm, choice and experts apart."""

import pytest
import torch
from torch import Tensor

from quire.kernels import reference
from quire.kernels.weight import Weight

pytestmark = pytest.mark.triton

BF16 = torch.bfloat16


def noise(device: torch.device, *shape: int, dtype: torch.dtype = BF16) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype).to(device)


def narrow(weight: Tensor) -> Weight:
    """Experts in FP8, whose blocks differ in scale."""
    lines = torch.arange(1, weight.shape[1] + 1, device=weight.device)[None, :, None]
    made = [reference.quantize_blocks(one) for one in weight.float() * lines / lines.numel()]
    scales = [one.scale for one in made if one.scale is not None]
    return Weight(torch.stack([one.data for one in made]), torch.stack(scales))


def off(made: Tensor, expected: Tensor) -> float:
    """The distance as a share of what is expected."""
    return float((made - expected).float().norm() / expected.float().norm())


def apart(
    x: Tensor, norm: Tensor, router: Tensor, weights: tuple[Weight, Weight], per_token: int,
    renormalise: bool,
) -> Tensor:  # fmt: skip
    """By the twins, from the same sums of scores."""
    y = reference.rms_norm(x, norm, 1e-6)
    chosen = reference.route(y, router, per_token, renormalise=renormalise)
    if weights[0].scale is None:
        return reference.mix_experts(y, *(one.data for one in weights), *chosen, residual=x)
    return reference.mix_experts_fp8(y, *weights, *chosen, residual=x)


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize(
    ("hidden", "inner", "count", "per_token", "launches"),
    [
        (64, 24, 12, 3, ((8, 1, 2), (16, 1, 3))),
        pytest.param(200, 40, 16, 2, ((4, 1, 2), (1, 2, 5)), marks=pytest.mark.long),
        pytest.param(256, 96, 8, 8, ((8, 2, 1), (4, 2, 1)), marks=pytest.mark.long),
    ],
)
def test_one_row_is_what_norm_choice_and_experts_make_of_it(
    hidden: int, inner: int, count: int, per_token: int,
    launches: tuple[tuple[int, int, int], ...], renormalise: bool, device: torch.device,
) -> None:  # fmt: skip
    """At sizes of no whole chunk, and turns that go past the end."""
    from quire.kernels.experts.one_row import Launch, OneRow, mix_row

    x, norm = noise(device, 1, hidden), noise(device, hidden).abs()
    router = noise(device, count, hidden) * hidden**-0.5
    gate_up = noise(device, count, 2 * inner, hidden) * hidden**-0.5
    down = noise(device, count, hidden, inner) * inner**-0.5
    weights = Weight(gate_up), Weight(down)
    expected = apart(x, norm, router, weights, per_token, renormalise)
    how = OneRow(*(Launch(*one) for one in launches))
    made = mix_row(how, x, norm, 1e-6, router, *weights, per_token, renormalise=renormalise)
    assert made.data_ptr() == x.data_ptr()
    assert off(made, expected) < 0.01


@pytest.mark.parametrize(
    ("hidden", "inner", "turns"),
    [(256, 128, 7), pytest.param(208, 256, 30, marks=pytest.mark.long)],
)
def test_one_row_of_fp8_weights_too(
    hidden: int, inner: int, turns: int, device: torch.device
) -> None:
    from quire.kernels.experts.one_row import Launch, OneRow, mix_row

    x, norm = noise(device, 1, hidden), noise(device, hidden).abs()
    router = noise(device, 6, hidden) * hidden**-0.5
    weights = (
        narrow(noise(device, 6, 2 * inner, hidden) * hidden**-0.5),
        narrow(noise(device, 6, hidden, inner) * inner**-0.5),
    )
    expected = apart(x, norm, router, weights, 3, True)
    how = OneRow(Launch(16, 1, turns), Launch(16, 1, turns))
    made = mix_row(how, x, norm, 1e-6, router, *weights, 3, renormalise=True)
    assert off(made, expected) < 0.01


def test_of_equal_scores_the_lowest_expert_is_taken(device: torch.device) -> None:
    """Of both signs of zero as well. What an expert makes names it."""
    from quire.kernels.experts.one_row import Launch, OneRow, mix_row

    x = noise(device, 1, 64).abs()
    router = torch.zeros(40, 64, dtype=BF16, device=device)
    router[[7, 3]] = x
    router[1] = -router[1]  # no numbers but zeros, of the other sign
    gate_up = noise(device, 40, 16, 64) / 8
    down = noise(device, 40, 64, 8)
    weights, norm = (Weight(gate_up), Weight(down)), torch.ones(64, dtype=BF16, device=device)
    expected = apart(x, norm, router, weights, 5, False)
    how = OneRow(Launch(8, 1, 1), Launch(16, 1, 4))
    made = mix_row(how, x, norm, 1e-6, router, *weights, 5, renormalise=False)
    assert off(made, expected) < 0.01


def test_scores_that_are_no_numbers_read_no_other_memory(device: torch.device) -> None:
    """Different experts are taken all the same, and what they make is no number."""
    from quire.kernels.experts.one_row import Launch, OneRow, mix_row

    weights = Weight(noise(device, 6, 16, 64)), Weight(noise(device, 6, 64, 8))
    x = torch.full((1, 64), float("nan"), dtype=BF16, device=device)
    how = OneRow(Launch(8, 1, 1), Launch(16, 1, 4))
    norm, router = noise(device, 64), noise(device, 6, 64)
    made = mix_row(how, x, norm, 1e-6, router, *weights, 3, renormalise=True)
    assert bool(made.isnan().all())


@pytest.mark.parametrize(
    ("hidden", "inner", "taken"),
    [(2048, 768, True), (4096, 1536, True), (2048, 760, False), (2056, 768, False)],
)
@pytest.mark.parametrize("fp8", [False, True])
def test_what_one_row_takes(hidden: int, inner: int, taken: bool, fp8: bool) -> None:
    """The published sizes; what it does not take, `ops.mix_row` declines, as exact mode does."""
    from quire.kernels.experts.one_row import choose

    how = choose(BF16, (hidden, inner), 8, narrow=fp8)
    assert (how is not None) == (taken or (inner == 760 and not fp8))
    assert choose(torch.float32, (hidden, inner), 8, narrow=fp8) is None
    if how is not None:
        for launch, lines in ((how.gate_up, 8 * inner), (how.down, hidden)):
            programs = -(-lines // (launch.block_n * launch.turns))
            assert programs * launch.warps <= 132 * 16 and 128 % launch.block_n == 0


@pytest.mark.parametrize(("rows", "exact"), [(2, False), (1, True)])
def test_many_rows_and_exact_mode_are_declined(
    rows: int, exact: bool, device: torch.device
) -> None:
    from quire.kernels.triton_ops import TritonOps

    weights = Weight(noise(device, 6, 16, 64)), Weight(noise(device, 6, 64, 8))
    x, norm, router = noise(device, rows, 64), noise(device, 64), noise(device, 6, 64)
    around = x, norm, 1e-6, router, *weights, 2
    assert TritonOps.on(device, exact=exact).mix_row(*around, renormalise=True) is None
    assert TritonOps.on(device).mix_row(x[:1], *around[1:], renormalise=True) is not None
