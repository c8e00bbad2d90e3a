"""Sampling: the same tokens as the twins, and the distribution that was asked for."""

import math

import pytest
import torch
from torch import Tensor

from quire.kernels import reference

VOCABS = [5, 1000, 4096, 4097, 9000]


def _logits(rows: int, vocab: int, device: torch.device, scale: float = 3.0) -> Tensor:
    random = torch.Generator().manual_seed(rows * 10_000 + vocab)
    return (torch.randn(rows, vocab, generator=random) * scale).to(device)


def _slots(rows: int, device: torch.device) -> Tensor:
    """Rows in slots of another order, one slot unused."""
    return torch.arange(rows, 0, -1, device=device)


# ---------------------------------------------------------------- greedy


@pytest.mark.triton
@pytest.mark.parametrize("vocab", VOCABS)
def test_greedy(vocab: int, device: torch.device) -> None:
    from quire.kernels.sampling.sampling import greedy

    logits = _logits(3, vocab, device)
    assert torch.equal(greedy(logits), reference.greedy(logits))


@pytest.mark.triton
def test_greedy_takes_the_lowest_of_equals(device: torch.device) -> None:
    from quire.kernels.sampling.sampling import greedy

    logits = torch.zeros(4, 9000, device=device)
    logits[1, [300, 5000, 8999]] = 1.0
    logits[2, [4095, 4096]] = 1.0
    logits[3].fill_(-float("inf"))
    assert greedy(logits).tolist() == [0, 300, 4095, -1]  # nothing finite: no token
    assert reference.greedy(logits).tolist() == [0, 300, 4095, -1]


@pytest.mark.triton
@pytest.mark.parametrize(
    ("where", "value", "filtered"),
    [
        (0, float("nan"), False),
        (4099, float("nan"), True),
        (4099, float("inf"), True),
        (None, float("nan"), True),
        (None, -float("inf"), False),
        (7, -float("inf"), False),
    ],
)
def test_a_row_without_numbers_has_no_token(
    where: int | None, value: float, filtered: bool, device: torch.device
) -> None:
    """One NaN or +inf, or nothing but one value: -1, and as if nothing was for the other rows."""
    from quire.kernels.sampling import filtering, sampling

    logits = _logits(3, 4100, device)
    if where is None:
        logits[1] = value
    else:
        logits[1, where] = value  # of -inf no fault: one id that cannot be
    slots, positions = _slots(3, device), torch.arange(3, device=device)
    temperature = torch.tensor([0.0, 0.7, 0.7, 0.0], device=device)
    seeds = torch.arange(4, device=device)
    if filtered:
        top_k = torch.tensor([0, 50, 50, 9], dtype=torch.int32, device=device)
        top_p, min_p = (torch.full((4,), x, device=device) for x in (0.9, 0.01))
        filtering.filter_logits(logits, slots, temperature, top_k, top_p, min_p)
    drawn = sampling.sample(logits, slots, positions, temperature, seeds)
    best = sampling.greedy(logits)
    assert torch.equal(best, reference.greedy(logits))
    assert torch.equal(drawn, reference.sample(logits, slots, positions, temperature, seeds))
    broken = where is None or value != -float("inf")
    assert (best < 0).tolist() == (drawn < 0).tolist() == [False, broken, False]


@pytest.mark.triton
def test_the_best_of_parts_is_the_best_of_all(device: torch.device) -> None:
    """Parts of several slices and of one; ties lie in two of them, and what is no number in one."""
    from quire.kernels.sampling import sampling

    logits = _logits(6, 9000, device)
    logits[1] = logits[1].round()
    logits[2].fill_(-float("inf"))
    logits[3, 8999] = float("nan")
    logits[4, 4999] = float("inf")
    slots, positions = _slots(6, device), torch.arange(6, device=device)
    temperature = torch.tensor([0.0, 0.7, 0.0, 0.7, 0.7, 0.0, 1.0], device=device)
    noise = slots, positions, temperature, torch.arange(7, device=device)
    greedy, drawn = reference.greedy(logits), reference.sample(logits, *noise)
    for ops in (sampling, reference):
        for around, wanted in ((None, greedy), (noise, drawn)):
            parts = [
                ops.best_of_part(logits[:, begin:end].contiguous(), begin, around)
                for begin, end in ((0, 5000), (5000, 5003), (5003, 9000))
            ]
            assert torch.equal(ops.best_of_parts(torch.cat(parts, 2)), wanted)


@pytest.mark.triton
def test_no_rows(device: torch.device) -> None:
    from quire.kernels.sampling.sampling import greedy

    assert greedy(torch.empty(0, 100, device=device)).shape == (0,)


# ---------------------------------------------------------------- Gumbel-max


@pytest.mark.triton
@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_sample_draws_what_the_twin_draws(
    vocab: int, dtype: torch.dtype, device: torch.device
) -> None:
    from quire.kernels.sampling.sampling import sample

    rows = 6
    logits = _logits(rows, vocab, device)
    slots = _slots(rows, device).to(dtype)
    positions = torch.tensor([0, 1, 7, 40_000, 2**30, 12], dtype=dtype, device=device)
    temperature = torch.tensor([9.0, 1.0, 0.0, 0.3, 2.0, 1.0, 0.6], device=device)
    seeds = torch.tensor([0, 1, -1, 2**62, -(2**63), 2**31, 77], device=device)
    arguments = (logits, slots, positions, temperature, seeds)
    assert torch.equal(sample(*arguments), reference.sample(*arguments))


@pytest.mark.triton
def test_the_noise_is_the_twins(device: torch.device) -> None:
    """With equal logits only the noise decides: a hash that differs would be seen at once."""
    from quire.kernels.sampling.sampling import sample

    rows, vocab = 16, 4096
    logits = torch.zeros(rows, vocab, device=device)
    slots = torch.arange(rows, device=device)
    seeds = torch.randint(-(2**62), 2**62, (rows,), device=device)
    ones = torch.ones(rows, device=device)
    arguments = (logits, slots, slots * 31, ones, seeds)
    assert torch.equal(sample(*arguments), reference.sample(*arguments))


def test_batch_mates_change_nothing() -> None:
    cpu = torch.device("cpu")
    logits, slots = _logits(5, 300, cpu), torch.arange(5)
    temperature, seeds = torch.tensor([0.7, 0.0, 1.0, 1.0, 0.2]), torch.arange(5) * 1234
    positions = torch.arange(5) + 100
    together = reference.sample(logits, slots, positions, temperature, seeds)
    for row in range(5):
        at = slice(row, row + 1)
        alone = reference.sample(logits[at], slots[at], positions[at], temperature, seeds)
        assert alone.item() == together[row].item()


def test_noise_for_few_ids_is_the_noise_for_all() -> None:
    logits = _logits(4, 2000, torch.device("cpu"))
    kept = logits.masked_fill(logits < 8.0, -float("inf"))
    assert 0 < int((kept > -float("inf")).sum()) < kept.numel() // 4
    slots, seeds = torch.arange(4), torch.arange(4) + 9
    dense = kept.clone()
    dense -= reference.exponential_noise(seeds, slots, 2000).log_()
    tokens = reference.sample(kept, slots, slots, torch.ones(4), seeds)
    assert torch.equal(tokens, dense.argmax(-1))


def test_noise_is_exponential_and_never_zero() -> None:
    noise = reference.exponential_noise(torch.arange(64) * 7919, torch.arange(64), 20_000)
    assert noise.min() > 0
    assert noise.isfinite().all()
    count = noise.numel()
    assert abs(noise.mean().item() - 1) < 5 / math.sqrt(count)
    for bound in (1e-4, 1e-2, 0.1, 1.0, 4.0):
        wanted = 1 - math.exp(-bound)
        share = (noise < bound).double().mean().item()
        assert abs(share - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / count)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_sampled_frequencies_follow_the_softmax(temperature: float) -> None:
    """Chi-square over 20,000 draws with fixed seeds; the bound is the 99.99% quantile, 15 d.f."""
    draws, vocab = 20_000, 16
    one = _logits(1, vocab, torch.device("cpu"), scale=1.0)
    slots = torch.zeros(draws, dtype=torch.int64)
    for keyed_by_position in (False, True):
        counter = torch.arange(draws)
        per_slot = torch.full((draws,), temperature)
        if keyed_by_position:
            tokens = reference.sample(
                one.expand(draws, -1), slots, counter, per_slot, torch.tensor([42])
            )
        else:
            tokens = reference.sample(
                one.expand(draws, -1),
                counter,
                slots,
                per_slot,
                counter * 0x9E3779B97F4A7C15 % 2**62,
            )
        wanted = torch.softmax(one[0] / temperature, -1) * draws
        counts = torch.bincount(tokens, minlength=vocab)
        assert ((counts - wanted) ** 2 / wanted).sum().item() < 44.3


# ---------------------------------------------------------------- penalties, stop ids, logprobs


def _penalties(rows: int, vocab: int, device: torch.device) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(1)
    slots = rows + 1
    prompt = torch.rand(slots, vocab, generator=random) < 0.3
    counts = torch.randint(0, 4, (slots, vocab), generator=random, dtype=torch.int32)
    repetition = torch.linspace(1.0, 1.5, slots)
    presence = torch.linspace(0.0, 1.0, slots)
    frequency = torch.linspace(-0.5, 0.5, slots)
    return tuple(t.to(device) for t in (prompt, counts, repetition, presence, frequency))


@pytest.mark.triton
@pytest.mark.parametrize("vocab", VOCABS)
def test_penalties(vocab: int, device: torch.device) -> None:
    from quire.kernels.sampling.sampling import apply_penalties

    logits = _logits(3, vocab, device)
    state = _penalties(3, vocab, device)
    wanted, actual = logits.clone(), logits.clone()
    reference.apply_penalties(wanted, _slots(3, device), *state)
    apply_penalties(actual, _slots(3, device), *state)
    assert torch.allclose(actual, wanted, rtol=1e-6, atol=1e-6)
    assert not torch.equal(actual, logits)


@pytest.mark.triton
def test_neutral_penalties_change_nothing(device: torch.device) -> None:
    from quire.kernels.sampling.sampling import apply_penalties

    logits = _logits(2, 700, device)
    prompt, counts, *_ = _penalties(2, 700, device)
    one, zero = torch.ones(3, device=device), torch.zeros(3, device=device)
    for function in (apply_penalties, reference.apply_penalties):
        changed = logits.clone()
        function(changed, _slots(2, device), prompt, counts, one, zero, zero)
        assert torch.equal(changed, logits)


def test_penalties_by_hand() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 1.0]])
    prompt = torch.tensor([[True, True, False, False]])
    counts = torch.tensor([[0, 0, 3, 0]], dtype=torch.int32)
    reference.apply_penalties(
        logits,
        torch.tensor([0]),
        prompt,
        counts,
        torch.tensor([2.0]),
        torch.tensor([0.25]),
        torch.tensor([0.5]),
    )
    assert logits.tolist() == [[1.0, -4.0, 0.5 - 1.5 - 0.25, 1.0]]


@pytest.mark.triton
@pytest.mark.parametrize("width", [1, 3, 8])
def test_stop_tokens_are_masked_until_their_position(width: int, device: torch.device) -> None:
    from quire.kernels.sampling.sampling import mask_stop_tokens

    slots = torch.tensor([2, 0, 1], device=device)
    stop = torch.full((3, width), -1, dtype=torch.int32, device=device)
    stop[0, 0], stop[1, 0], stop[2, -1] = 0, 7, 19
    positions = torch.tensor([4, 5, 6], device=device)
    first = torch.tensor([6, 6, 5], device=device)
    logits = torch.zeros(3, 20, device=device)
    wanted = logits.clone()
    reference.mask_stop_tokens(wanted, slots, positions, stop, first)
    mask_stop_tokens(logits, slots, positions, stop, first)
    assert torch.equal(logits, wanted)
    assert (logits == -float("inf")).nonzero().tolist() == [[0, 19], [1, 0]]


@pytest.mark.triton
@pytest.mark.parametrize("vocab", [31, 96, 5000])
def test_of_rows_with_a_mask_only_its_ids_are_left(vocab: int, device: torch.device) -> None:
    from quire.kernels.sampling.sampling import keep_allowed

    masks = torch.randint(-(1 << 31), 1 << 31, (4, -(-vocab // 32)), dtype=torch.int32)
    mask_of = torch.tensor([2, -1, 0, 0, -1], dtype=torch.int32)
    logits = _logits(5, vocab, torch.device("cpu"))
    found, wanted = logits.to(device), logits.clone()
    reference.keep_allowed(wanted, mask_of, masks)
    keep_allowed(found, mask_of.to(device), masks.to(device))
    assert torch.equal(found.cpu(), wanted)
    assert torch.equal(wanted[[1, 4]], logits[[1, 4]]) and bool(wanted[[0, 2, 3]].isinf().any())


def test_logprobs_rank_and_order() -> None:
    logits = _logits(3, 50, torch.device("cpu"))
    tokens = torch.tensor([3, 40, 11])
    chosen, rank, ids, values = reference.logprobs(logits, tokens, 5)
    wanted = torch.log_softmax(logits.double(), -1)
    assert torch.allclose(chosen.double(), wanted[torch.arange(3), tokens], atol=1e-5)
    assert torch.allclose(values.double(), wanted.gather(1, ids), atol=1e-5)
    order = wanted.argsort(-1, descending=True)
    assert torch.equal(ids, order[:, :5])
    assert torch.equal(rank, (order == tokens[:, None]).nonzero()[:, 1] + 1)


# ---------------------------------------------------------------- sizes of the models


@pytest.mark.gpu
@pytest.mark.triton
@pytest.mark.parametrize("rows", [1, 64, 256])
@pytest.mark.parametrize("pdl", [False, True])
def test_sampling_at_the_models_vocabulary(rows: int, pdl: bool, device: torch.device) -> None:
    from quire.kernels.sampling.sampling import greedy, sample

    logits = _logits(rows, 151_936, device)
    assert torch.equal(greedy(logits, pdl=pdl), reference.greedy(logits))
    slots = _slots(rows, device)
    temperature = torch.full((rows + 1,), 0.6, device=device)
    seeds = torch.arange(rows + 1, device=device) * 998_244_353
    arguments = (logits, slots, slots + 500, temperature, seeds)
    same = sample(*arguments, pdl=pdl) == reference.sample(*arguments)
    # The noise agrees but for its last bits: a near tie may fall the other way, once in a while.
    assert same.double().mean() > 0.99
