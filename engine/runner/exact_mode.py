"""Exact mode: whether an engine computes each row's bits as if the row were alone.

Invariant: where it is on, every launch that a step may choose for a product of the model has been
compared on the card at hand (`verify`); attention, norms, head and sampler have one order each by
construction. `on` is refused, by a weight's name, where a weight has no exact kernel; `auto` is on
where the card's own table says that it costs little, and says in one line why it is off.
"""

import logging
from collections import Counter
from typing import TYPE_CHECKING, cast

import torch

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError
from quire.engine.model.base import CausalModel
from quire.engine.model.config import ModelConfig
from quire.engine.model.layers.parallel import World
from quire.engine.model.product import Product
from quire.engine.model.registry import build_model
from quire.engine.runner.graphs import PROMPT_TOKENS, most_rows
from quire.kernels import reference
from quire.kernels.ops import KernelsUnavailable, Ops, select
from quire.kernels.support import card_name

if TYPE_CHECKING:  # needs triton, which a machine without a GPU may lack
    from quire.kernels.triton_ops import TritonOps

log = logging.getLogger(__name__)

MOST_COST = 0.03  # up to which `auto` is on
_TYPES = (torch.bfloat16, torch.float16)


def is_wanted(
    config: EngineConfig,
    shape: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    world: World | None = None,
) -> bool:
    """Whether the engine is to be exact, as far as it can be told before kernels are launched.
    Raises ConfigError where `exact = on` cannot be."""
    if config.exact == "off":
        return False
    if device.type != "cuda":
        return _without(config, "a CPU has no exact kernels")
    if config.tensor_parallel_size > 1:
        return _without(
            config,
            f"tensor_parallel_size = {config.tensor_parallel_size}: how ranks add up, and norm "
            "what they have added, depends on the number of rows",
        )
    products = products_of(shape, dtype, world)
    reason = _refusal(shape, products, dtype)
    if reason is not None:
        return _without(config, reason)
    if config.exact == "on":
        return True
    from quire.kernels.linear import exact

    card = card_name(device)
    cost = exact.cost(Counter(_size(one) for one in products), _size(products[-1]), card)
    if cost.worst > MOST_COST:
        return _without(config, f"products would take up to {cost.worst:.1%} longer on {card}")
    if not cost.whole:
        return _without(config, f"no table tells all that it costs on {card}")
    return True


def operations(
    config: EngineConfig,
    shape: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    world: World,
    *,
    pdl: bool,
) -> Ops:
    """A device's operations, exact where that is wanted. Raises ConfigError where it has none."""
    exact = is_wanted(config, shape, dtype, device, world)
    try:
        return select(device, pdl=pdl, exact=exact)
    except KernelsUnavailable as error:
        raise ConfigError(str(error)) from error


def products_of(shape: ModelConfig, dtype: torch.dtype, world: World | None) -> list[Product]:
    """The products of a rank's step, without memory for their weights."""
    ops = cast(Ops, reference)
    model = build_model(shape, ops, dtype=dtype, device=torch.device("meta"), world=world)
    return model.products()


def verify(config: EngineConfig, model: CausalModel, ops: Ops) -> None:
    """Compare the bits of all launches of Triton's operations; afterwards `ops` is exact, or with
    `exact = auto` it is not any more. Raises ConfigError where `on` cannot be."""
    from quire.kernels.linear import check

    ops = cast("TritonOps", ops)
    assert ops.products is not None
    tokens = max(config.max_num_batched_tokens, config.max_num_seqs + PROMPT_TOKENS[-1])  # padded
    rows = most_rows(config.max_num_seqs)
    for product in {one.kind: one for one in reversed(model.products())}.values():
        around = check.Around(
            rows if product.sampled else tokens,
            product.norm,
            product.residual,
            product.silu,
            product.out_dtype,
        )
        for found in check.check(product.weight.data, around, ops.products):
            if not found.kept:
                ops.products.give_up()
                _without(config, f"{product.module}: no launch has the same bits for all rows")
                return
            joins = getattr(found.variant, "joins", False)
            log.warning(
                "exact: %s: the library's products of up to %d rows have other bits, as at %d: %s",
                *(product.module, min(found.bucket, around.most), found.rows),
                "residuals are added apart" if joins else "tiles take their place",
            )
    if model.device.type == "cuda":
        torch.cuda.empty_cache()


def _refusal(shape: ModelConfig, products: list[Product], dtype: torch.dtype) -> str | None:
    """Why the model cannot be exact, with a weight's name; None where nothing speaks against it."""
    if shape.sliding_window is not None:
        return f"{products[0].module}: attention within a window has no exact kernel"
    for one in products:
        if dtype not in _TYPES:
            return f"{one.module}: {dtype} has no exact kernel (bfloat16 and float16 have)"
        if one.weight.scale is not None:
            return f"{one.module}: FP8 weights have no exact kernel"
        if one.weight.data.ndim != 2:
            return f"{one.module}: mixtures of experts have no exact kernel"
    return None


def _size(product: Product) -> tuple[int, int]:
    n, k = product.weight.data.shape
    return n, k


def _without(config: EngineConfig, reason: str) -> bool:
    if config.exact == "on":
        raise ConfigError(f"exact = on: {reason}")
    log.info("exact = auto: off: %s", reason)
    return False
