"""What a card gives at most: the rates that floors are counted with.

Invariant: a card that is here is measured, not looked up: cards of one name differ by 2 to 5%, and
an H100's memory is a third slower than an H200's.
"""

import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch
from common import COPY_BYTES, MATMUL_FLOPS, chain_us

_COPIED = 1 << 30  # bytes of one copy, far more than a cache holds
_SIDE = 8192  # of the square product


@dataclass(frozen=True)
class Card:
    """Bytes a second of a large copy (read plus written), and bf16 operations a second."""

    name: str
    copy_bytes: float
    matmul_flops: float

    def fields(self) -> dict[str, Any]:
        """For a result's JSON."""
        return asdict(self)


H200 = Card("NVIDIA H200", COPY_BYTES, MATMUL_FLOPS)


def this_card() -> Card:
    """The rates of the card that is here, measured in about a second; an H200's without one."""
    if not torch.cuda.is_available():
        return H200
    name = torch.cuda.get_device_properties(0).name
    return Card(name, 2 * _COPIED / _copy_seconds(), 2 * _SIDE**3 / _product_seconds())


def _copy_seconds() -> float:
    source = torch.empty(_COPIED, dtype=torch.uint8, device="cuda").random_(255)
    target = torch.empty_like(source)
    return statistics.median(chain_us([lambda: target.copy_(source)] * 8)) / 1e6


def _product_seconds() -> float:
    a, b = (torch.randn(_SIDE, _SIDE, device="cuda").bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    return statistics.median(chain_us([lambda: torch.mm(a, b, out=out)] * 8)) / 1e6
