"""Whether a plan fits: all of it into memory, and a request of max_model_len into the cache.

Invariant: a number in a piece of advice is enough by itself, as far as the plan counts; what cannot
help is not named.
"""

import logging
import math
from dataclasses import dataclass

from quire.engine.config import EngineConfig
from quire.engine.startup.sizing import SizingPlan, shown

log = logging.getLogger(__name__)

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Verdict:
    """fits: whether the longest request can run. Where not: why, and the ways to mend it. starts:
    whether the engine starts at all, if only to refuse requests that the cache cannot hold.
    too_large: the weights leave no room for any cache."""

    fits: bool
    reason: str = ""
    advice: tuple[str, ...] = ()
    starts: bool = False
    too_large: bool = False


def judge(config: EngineConfig, plan: SizingPlan) -> Verdict:
    """Whether weights, graphs and cache fit into memory, and the longest request into the cache."""
    rest = _rest(plan)
    if rest < plan.bytes_of_blocks(1):
        reason, advice = _weights_too_large(config, plan), _against_weights(config, plan)
        return Verdict(False, reason, advice, too_large=True)
    if rest < plan.kv_cache_bytes:
        reason = (
            f"the KV cache takes {shown(plan.kv_cache_bytes)}, and {shown(rest)} are left for it"
        )
        return Verdict(False, reason, _against_cache(config, plan))
    return _judge_length(config, plan)


def warn_if_short(config: EngineConfig, plan: SizingPlan) -> None:
    """One line in the log where the cache holds fewer tokens than one request may have."""
    verdict = _judge_length(config, plan)
    if not verdict.fits:
        log.warning("%s; %s", verdict.reason, ", or ".join(verdict.advice))


def _judge_length(config: EngineConfig, plan: SizingPlan) -> Verdict:
    """The verdict on a cache that fits: it need not hold the longest request, but some request."""
    starts = plan.num_blocks > 0
    if plan.full_length_sequences < 1:
        reason = _too_short(plan) if starts else _no_block(plan)
        return Verdict(False, reason, _against_length(config, plan), starts=starts)
    return Verdict(True, starts=True)


def _rest(plan: SizingPlan) -> int:
    """Bytes that are left for the cache."""
    return plan.memory_bytes - plan.weight_bytes - plan.graph_bytes


def _too_short(plan: SizingPlan) -> str:
    return (
        f"the KV cache holds {plan.cache_tokens} tokens, fewer than one request of "
        f"max_model_len = {plan.max_model_len}: longer requests are refused"
    )


def _no_block(plan: SizingPlan) -> str:
    tokens, smallest = plan.block_size, shown(plan.bytes_of_blocks(1))
    return f"the KV cache has no room for a block of {tokens} tokens: the smallest takes {smallest}"


def _weights_too_large(config: EngineConfig, plan: SizingPlan) -> str:
    graphs = f"captured graphs {shown(plan.graph_bytes)}, " if plan.graph_bytes else ""
    share = f" (gpu_memory_utilization = {config.gpu_memory_utilization})"
    return (
        f"the weights take {shown(plan.weight_bytes)}, {graphs}the smallest cache "
        f"{shown(plan.bytes_of_blocks(1))}, of {shown(max(plan.memory_bytes, 0))}"
        + (share if _sized_by_share(config, plan) else "")
    )


def _against_weights(config: EngineConfig, plan: SizingPlan) -> tuple[str, ...]:
    smallest = plan.bytes_of_blocks(1)
    advice = _raise_share(config, plan, smallest - _rest(plan))
    if plan.graph_bytes and plan.weight_bytes + smallest <= plan.memory_bytes:
        advice += ("lower max_num_seqs",)
    return advice + _less_of_a_model(plan)


def _against_cache(config: EngineConfig, plan: SizingPlan) -> tuple[str, ...]:
    """The cache's size was given, and is more than there is."""
    gib = math.floor(_rest(plan) / _GIB * 100) / 100
    most = _rest(plan) if config.num_blocks is not None else int(gib * _GIB)
    blocks = plan.blocks_in(most)
    if blocks < 2:
        return _less_of_a_model(plan)
    option, value = ("num_blocks", blocks) if config.num_blocks is not None else ("cpu_kv_gib", gib)
    advice = f"lower {option} to at most {value}"
    if blocks < plan.blocks_of_a_sequence:
        advice += f" and max_model_len to at most {blocks * plan.block_size}"
    missing = plan.kv_cache_bytes - _rest(plan)  # a CPU's cache stays as large, whatever the dtype
    halves = plan.device != "cpu" or missing <= plan.weight_bytes // 2
    return (advice, *_less_of_a_model(plan, narrower=halves))


def _against_length(config: EngineConfig, plan: SizingPlan) -> tuple[str, ...]:
    needed = plan.bytes_of_blocks(plan.blocks_of_a_sequence)
    advice: list[str] = []
    if plan.num_blocks:
        advice.append(f"lower max_model_len to at most {plan.cache_tokens}")
    if _sized_by_share(config, plan):
        advice.extend(_raise_share(config, plan, needed - plan.kv_cache_bytes))
    elif needed <= _rest(plan) and config.num_blocks is not None:
        advice.append(f"raise num_blocks to at least {plan.blocks_of_a_sequence}")
    elif needed <= _rest(plan):
        gib = (math.floor(needed / _GIB * 100) + 1) / 100
        advice.append(f"raise cpu_kv_gib to at least {gib}")
    return (*advice, *_less_of_a_model(plan, narrower=_sized_by_share(config, plan)))


def what_to_lower(config: EngineConfig, plan: SizingPlan) -> str:
    """The advice where the cache cannot be allocated: the option that made it this large."""
    if config.num_blocks is not None:
        return f"lower num_blocks = {config.num_blocks}"
    if _sized_by_share(config, plan):
        return f"lower gpu_memory_utilization = {config.gpu_memory_utilization}"
    return f"lower cpu_kv_gib = {config.cpu_kv_gib}"


def _sized_by_share(config: EngineConfig, plan: SizingPlan) -> bool:
    """Whether the cache takes what gpu_memory_utilization leaves."""
    return plan.device != "cpu" and config.num_blocks is None


def _raise_share(config: EngineConfig, plan: SizingPlan, more_bytes: int) -> tuple[str, ...]:
    """The advice to raise the GPU's memory share, if it leaves out at least more_bytes."""
    helps = _sized_by_share(config, plan) and more_bytes <= plan.whole_bytes - plan.memory_bytes
    return (f"raise gpu_memory_utilization = {config.gpu_memory_utilization}",) if helps else ()


def _less_of_a_model(plan: SizingPlan, *, narrower: bool = True) -> tuple[str, ...]:
    """narrower: whether half the bytes a weight would help."""
    dtype = ("take dtype = bfloat16",) if narrower and plan.dtype == "float32" else ()
    return (*dtype, "take a smaller model")
