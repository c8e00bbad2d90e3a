"""Top-k, top-p and min-p: the same kept ids as a plain definition, on flat rows and peaks."""

import itertools

import pytest
import torch
from torch import Tensor

from quire.kernels import reference

INF = float("inf")


def _kept(row: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """The definition, in fp64, for one row. Returns the mask of kept ids."""
    x = (row * (torch.tensor(1.0) / (temperature or 1.0))).double()
    order = x.argsort(descending=True, stable=True)
    mask = torch.ones_like(x, dtype=torch.bool)
    if 0 < top_k < len(x):
        mask &= x >= x[order[top_k - 1]]
    if top_p < 1:
        probs = torch.softmax(x.masked_fill(~mask, -INF), -1)
        larger = torch.stack([probs[x > value].sum() for value in x.unique()])
        nucleus = x.unique()[larger < top_p]
        mask &= x >= (nucleus.min() if len(nucleus) else x.max())
    if min_p > 0:
        mask &= x >= x.max() + torch.log(torch.tensor(min_p, dtype=torch.float64))
    return mask


def _rows(kind: str, rows: int, vocab: int) -> Tensor:
    random = torch.Generator().manual_seed(vocab + rows)
    x = torch.randn(rows, vocab, generator=random)
    if kind == "peaked":
        x = x * 6
    elif kind == "ties":
        x = (x * 2).round()
    elif kind == "confident":
        x[:, vocab // 2] = 60.0
    elif kind == "masked":
        x[:, ::2] = -INF
    elif kind == "negative":
        x = x * 3 - 500
    return x


SETTINGS = [  # temperature, top_k, top_p, min_p
    (0.6, 20, 0.95, 0.0),
    (1.0, 0, 0.9, 0.0),
    (0.0, 5, 1.0, 0.0),
    (1.3, 0, 1.0, 0.1),
    (1.0, 0, 1.0, 0.0),
    (1.0, 1, 1.0, 0.0),
    (0.7, 100, 0.5, 0.02),
    (2.0, 10**6, 0.0, 0.0),
    (1.0, 0, 1e-6, 1.0),
]


def _filter(function: object, x: Tensor, settings: list[tuple[float, int, float, float]]) -> Tensor:
    out = x.clone()
    slots = torch.arange(len(settings) - 1, -1, -1, device=x.device)
    temperature, top_k, top_p, min_p = (
        torch.tensor(column, device=x.device)[slots] for column in zip(*settings, strict=True)
    )
    function(out, slots, temperature, top_k.int(), top_p, min_p)  # type: ignore[operator]
    changed = out != x
    assert (out[changed] == -INF).all()
    return out > -INF


def _wanted(x: Tensor, settings: list[tuple[float, int, float, float]]) -> Tensor:
    rows = [_kept(row.cpu(), *setting) for row, setting in zip(x, settings, strict=True)]
    return torch.stack(rows) & (x.cpu() > -INF)


KINDS = ["flat", "peaked", "ties", "confident", "masked", "negative"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab", [1, 7, 300, 3000])
def test_twin_keeps_what_the_definition_keeps(kind: str, vocab: int) -> None:
    x = _rows(kind, len(SETTINGS), vocab)
    assert torch.equal(_filter(reference.filter_logits, x, SETTINGS), _wanted(x, SETTINGS))


def test_twin_without_a_filter_leaves_the_logits_alone() -> None:
    x = _rows("flat", 2, 100)
    assert _filter(reference.filter_logits, x, [(0.5, 0, 1.0, 0.0)] * 2).all()


def test_twin_is_right_where_few_of_the_best_do_not_suffice() -> None:
    """A flat row needs more values than are sorted at first; its neighbours do not."""
    x = _rows("flat", 3, 6000)
    settings = [(1.0, 0, 0.95, 0.0), (1.0, 5, 0.9, 0.0), (1.0, 2500, 0.9, 0.0)]
    kept = _filter(reference.filter_logits, x, settings)
    assert torch.equal(kept, _wanted(x, settings))
    assert kept.sum(-1).tolist()[0] > 2048


# Of several tiles: interpreted, each takes a second.
WIDE = [
    pytest.param(
        kind, 9000, marks=() if kind in ("flat", "confident", "masked") else pytest.mark.long
    )
    for kind in KINDS
]


@pytest.mark.triton
@pytest.mark.parametrize(("kind", "vocab"), [*itertools.product(KINDS, (7, 4096)), *WIDE])
def test_filter_keeps_what_the_twin_keeps(kind: str, vocab: int, device: torch.device) -> None:
    from quire.kernels.sampling.filtering import filter_logits

    x = _rows(kind, len(SETTINGS), vocab).to(device)
    kept = _filter(filter_logits, x, SETTINGS)
    assert torch.equal(kept, _filter(reference.filter_logits, x, SETTINGS))


@pytest.mark.triton
@pytest.mark.parametrize(
    "setting", [(1.0, 7000, 1.0, 0.0), (1.0, 7000, 0.9, 0.0), (1.0, 0, 0.5, 0.0)]
)
def test_rows_with_too_many_candidates_are_searched_whole(
    setting: tuple[float, int, float, float], device: torch.device
) -> None:
    """All equal, or nearly: no interval is small enough to gather."""
    from quire.kernels.sampling.filtering import filter_logits

    random = torch.Generator().manual_seed(3)
    x = torch.zeros(2, 8192)
    x[1] = torch.rand(8192, generator=random) * 1e-3
    kept = _filter(filter_logits, x.to(device), [setting] * 2)
    wanted = _filter(reference.filter_logits, x.to(device), [setting] * 2)
    assert torch.equal(kept[0], wanted[0])
    assert abs(int(kept[1].sum()) - int(wanted[1].sum())) <= 2


@pytest.mark.triton
def test_a_row_does_not_depend_on_its_mates(device: torch.device) -> None:
    from quire.kernels.sampling.filtering import filter_logits

    x = _rows("peaked", 4, 5000).to(device)
    settings = SETTINGS[:4]
    together = _filter(filter_logits, x, settings)
    for row, setting in enumerate(settings):
        alone = _filter(filter_logits, x[row : row + 1].contiguous(), [setting])
        assert torch.equal(alone[0], together[row])


@pytest.mark.gpu
@pytest.mark.triton
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pdl", [False, True])
def test_filter_at_the_models_vocabulary(kind: str, pdl: bool, device: torch.device) -> None:
    from functools import partial

    from quire.kernels.sampling.filtering import filter_logits

    settings = SETTINGS * 28 + [(1.0, 5000, 0.9, 0.0), (1.0, 100_000, 1.0, 0.0)]
    x = _rows(kind, len(settings), 151_936).to(device)
    kept = _filter(partial(filter_logits, pdl=pdl), x, settings)
    wanted = _filter(reference.filter_logits, x, settings)
    # Probabilities are summed in another order: a nucleus may end a value earlier or later.
    differing = (kept != wanted).sum(-1)
    by_mass = torch.tensor([s[2] < 1 for s in settings], device=device)
    if kind != "ties":
        assert (differing[~by_mass] == 0).all()
        assert (differing <= 1 + wanted.sum(-1) // 1000).all()
