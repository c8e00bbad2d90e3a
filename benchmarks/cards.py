"""What a card gives at most: the rates that floors are counted with.

Invariant: a card that is here is measured, not looked up: cards of one name differ by 2 to 5%, and
an H100's memory is a third slower than an H200's.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from common import COPY_BYTES, FP8_FLOPS, MATMUL_FLOPS, chain_us

_COPIED = 1 << 30  # bytes of one copy, far more than a cache holds
_SIDE = 8192  # of the square product


@dataclass(frozen=True)
class Card:
    """Bytes a second of large memory traffic (copied: read plus written; or read alone, whichever
    is faster on the card), and operations a second in bf16 and in e4m3 (0: it has none)."""

    name: str
    copy_bytes: float
    matmul_flops: float
    fp8_flops: float = 0.0

    def fields(self) -> dict[str, Any]:
        """For a result's JSON."""
        return asdict(self)


H200 = Card("NVIDIA H200", COPY_BYTES, MATMUL_FLOPS, FP8_FLOPS)


def this_card() -> Card:
    """The rates of the card that is here, measured in about a second; an H200's without one."""
    if not torch.cuda.is_available():
        return H200
    name = torch.cuda.get_device_properties(0).name
    rates = [2 * _SIDE**3 / _seconds(call) for call in (_product(), *_fp8_products())]
    return Card(name, _memory_rate(), *rates)


def _memory_rate() -> float:
    source = torch.randn(_COPIED // 4, device="cuda")
    target = torch.empty_like(source)
    row = source.view(-1, 1 << 14)
    sums = torch.empty(row.shape[0], device="cuda")
    copied = (lambda: target.copy_(source), lambda: torch.mul(source, 2.0, out=target))
    rates = [2 * _COPIED / _seconds(call) for call in copied]
    return max(*rates, _COPIED / _seconds(lambda: torch.sum(row, dim=1, out=sums)))


def _product() -> Callable[[], object]:
    a, b = (torch.randn(_SIDE, _SIDE, device="cuda").bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def _fp8_products() -> list[Callable[[], object]]:
    """The large product in e4m3, one scale for each operand; none where the card has no e4m3."""
    if torch.cuda.get_device_capability() < (8, 9):
        return []
    a, b = (torch.randn(_SIDE, _SIDE, device="cuda").to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device="cuda")
    return [
        lambda: torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
    ]


def _seconds(call: Callable[[], object]) -> float:
    return statistics.median(chain_us([call] * 8)) / 1e6
