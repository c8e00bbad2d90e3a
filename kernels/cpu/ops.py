"""The operations of a CPU: the twins, with products of their own where those can be had."""

import logging
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from quire.kernels import reference
from quire.kernels.cpu.library import LibraryUnavailable
from quire.kernels.cpu.products import Products
from quire.kernels.reference.linear import around

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
        weight: Tensor,
        *,
        norm_weight: Tensor | None = None,
        eps: float = 0.0,
        residual: Tensor | None = None,
        silu: bool = False,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """As in `reference`, but that a result in out_dtype is rounded to it alone: logits keep
        the sums' fp32, where the twin rounds them to x's dtype first."""
        if not self.products.takes(x, weight):
            return reference.linear(
                x,
                weight,
                norm_weight=norm_weight,
                eps=eps,
                residual=residual,
                silu=silu,
                out_dtype=out_dtype,
            )
        bare = not silu and residual is None
        dtype = out_dtype if bare and out_dtype is not None else x.dtype
        y = around(
            partial(self._product, dtype),
            x,
            weight,
            norm_weight=norm_weight,
            eps=eps,
            residual=residual,
            silu=silu,
        )
        return y if out_dtype is None else y.to(out_dtype)

    def _product(self, dtype: torch.dtype, x: Tensor, weight: Tensor) -> Tensor:
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
