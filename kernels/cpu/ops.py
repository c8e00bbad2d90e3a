"""The operations of a CPU: the twins, with products of their own where those can be had."""

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from quire.kernels import reference
from quire.kernels.cpu.library import LibraryUnavailable
from quire.kernels.cpu.products import Products
from quire.kernels.reference.linear import around
from quire.kernels.reference.linear import product as twin_product
from quire.kernels.row_scaled import RowScaled

log = logging.getLogger(__name__)


class CpuOps:
    """An `Ops`: `linear` by compiled products, all else by the twins."""

    def __init__(self, products: Products) -> None:
        self.products = products

    def __getattr__(self, name: str) -> Any:
        if name not in reference.__all__:
            raise AttributeError(name)
        return getattr(reference, name)

    def linear(
        self,
        x: Tensor,
        weight: Tensor | RowScaled,
        *,
        norm_weight: Tensor | None = None,
        eps: float = 0.0,
        residual: Tensor | None = None,
        silu: bool = False,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """As in `reference`, but that a result in out_dtype is rounded to it alone: logits keep
        the sums' fp32, where the twin rounds those of bf16 weights to bf16 first."""
        data = weight.data if isinstance(weight, RowScaled) else weight
        return around(
            self._product if self.products.takes(x, data) else twin_product,
            x,
            weight,
            norm_weight=norm_weight,
            eps=eps,
            residual=residual,
            silu=silu,
            out_dtype=out_dtype,
        )

    def _product(self, x: Tensor, weight: Tensor | RowScaled, dtype: torch.dtype) -> Tensor:
        if isinstance(weight, RowScaled):
            return self.products(x, weight.data, weight.scale, dtype)
        return self.products(x, weight, None, dtype)


@cache
def own_ops() -> CpuOps | None:
    """The compiled operations of this machine; None, said once in the log, if it has none."""
    try:
        products = Products.of_this_machine()
    except LibraryUnavailable as error:
        log.warning("products on the CPU are PyTorch's, which are slower: %s", error)
        return None
    threads = torch.get_num_threads()
    log.info("products on the CPU: compiled for %s, %d threads", products.level, threads)
    return CpuOps(products)
