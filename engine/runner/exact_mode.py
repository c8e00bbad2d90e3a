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
from quire.kernels.weight import Weight

if TYPE_CHECKING:  # needs triton, which a machine without a GPU may lack
    from quire.kernels.linear.check import Fusion
    from quire.kernels.linear.exact import ExactProducts
    from quire.kernels.triton_ops import TritonOps

log = logging.getLogger(__name__)

MAX_COST = 0.03  # up to which `auto` is on
_TYPES = (torch.bfloat16, torch.float16)


def is_wanted(
    config: EngineConfig, shape: ModelConfig, dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether the engine is to be exact, as far as that is known before kernels are launched.
    Raises ConfigError if `exact = on` is impossible."""
    if config.exact == "off":
        return False
    if device.type == "cpu":
        return _without(config, "a CPU has no exact kernels")
    if config.tensor_parallel_size > 1:
        return _without(
            config,
            f"tensor_parallel_size = {config.tensor_parallel_size}: how ranks add up, and norm "
            "what they have added, depends on the number of rows",
        )
    products = products_of(shape, dtype)
    reason = _refusal(shape, products, dtype)
    if reason is not None:
        return _without(config, reason)
    if config.exact == "on":
        return True
    from quire.kernels.linear import exact

    card = card_name(device)
    for one in products:
        if one.weight.scale is not None or one.weight.data.ndim > 2:
            kind = "experts" if one.weight.scale is None else "FP8 weights"
            return _without(config, f"{one.module}: no table tells what {kind} cost on {card}")
    cost = exact.cost(Counter(_size(one) for one in products), _size(products[-1]), card)
    if cost.worst > MAX_COST:
        return _without(config, f"products would take up to {cost.worst:.1%} longer on {card}")
    if not cost.whole:
        return _without(config, f"no table tells all that it costs on {card}")
    return True


def operations(device: torch.device, *, pdl: bool, exact: bool) -> Ops:
    """A device's operations. exact: as `is_wanted` says. Raises ConfigError where it has none."""
    try:
        return select(device, pdl=pdl, exact=exact)
    except KernelsUnavailable as error:
        raise ConfigError(str(error)) from error


def products_of(
    shape: ModelConfig, dtype: torch.dtype, world: World | None = None
) -> list[Product]:
    """The products of a rank's step, without memory for their weights."""
    ops = cast(Ops, reference)
    model = build_model(shape, ops, dtype=dtype, device=torch.device("meta"), world=world)
    return model.products()


def verify(config: EngineConfig, model: CausalModel, ops: Ops) -> None:
    """Compare the bits of all launches of Triton's operations. Afterwards `ops` is exact; with
    `exact = auto` it may have been switched off. Raises ConfigError if `on` is impossible."""
    ops = cast("TritonOps", ops)
    assert ops.products is not None
    module = _differing(config, model, ops.products)
    if module is not None:
        ops.products.give_up()
        _without(config, f"{module}: no launch has the same bits for all rows")
    if model.device.type == "cuda":
        torch.cuda.empty_cache()


def _differing(config: EngineConfig, model: CausalModel, products: "ExactProducts") -> str | None:
    """The name of a weight whose launches differ and for which there is no replacement; or None."""
    from quire.kernels.linear.check import Fusion

    tokens = max(config.step_tokens(), config.max_num_seqs + PROMPT_TOKENS[-1])  # padded
    rows = most_rows(config.max_num_seqs)
    several = [one for one in model.products() if one.weight.data.ndim > 2]
    for one in {one.kind: one for one in reversed(model.products())}.values():
        fusion = Fusion(
            rows if one.sampled else tokens, one.norm, one.residual, one.silu, one.out_dtype
        )
        if one.weight.data.ndim == 2 and not _keeps(one, fusion, model.dtype, products):
            return one.module
    pairs = zip(several[::2], several[1::2], strict=True)  # gates and ups, downs
    for gate_up, down in {one.kind: (one, other) for one, other in pairs}.values():
        if not _mixes(gate_up.weight, down.weight, tokens, model):
            return gate_up.module
    return None


def _mixes(gate_up: Weight, down: Weight, tokens: int, model: CausalModel) -> bool:
    """Whether a layer of experts gives a row the same bits beside any other rows."""
    from quire.kernels.experts import check

    experts = model.config.experts
    assert experts is not None
    mixture = check.Mixture(experts.per_token, experts.norm_topk_prob)
    return check.differs(gate_up, down, mixture, tokens, model.dtype) is None


def _keeps(one: Product, fusion: "Fusion", dtype: torch.dtype, products: "ExactProducts") -> bool:
    """Whether the product has one order of sums, without what of the library has another."""
    from quire.kernels.linear import check, fp8_check

    if one.weight.is_fp8:
        return fp8_check.differs(one.weight.data, fusion, dtype) is None
    for found in check.check(one.weight.data, fusion, products):
        if not found.kept:
            return False
        joins = getattr(found.variant, "joins", False)
        log.warning(
            "exact: %s: the library's products of up to %d rows have other bits, as at %d: %s",
            *(one.module, min(found.bucket, fusion.most), found.rows),
            "residuals are added apart" if joins else "tiles take their place",
        )
    return True


def _refusal(shape: ModelConfig, products: list[Product], dtype: torch.dtype) -> str | None:
    """Why the model cannot be exact, with a weight's name; None where nothing speaks against it."""
    if shape.sliding_window is not None:
        return f"{products[0].module}: attention within a window has no exact kernel"
    for one in products:
        if dtype not in _TYPES:
            return f"{one.module}: {dtype} has no exact kernel (bfloat16 and float16 have)"
        if not one.weight.is_fp8 and one.weight.data.dtype != dtype:
            return f"{one.module}: {one.weight.data.dtype} weights have no exact kernel"
    return None


def _size(product: Product) -> tuple[int, int]:
    n, k = product.weight.data.shape
    return n, k


def _without(config: EngineConfig, reason: str) -> bool:
    if config.exact == "on":
        raise ConfigError(f"exact = on: {reason}")
    log.info("exact = auto: off: %s", reason)
    return False
