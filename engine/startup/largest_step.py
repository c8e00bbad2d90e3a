"""The memory of the largest step, measured by running it.

Invariant: the number depends on the configuration and the card, not on what threads that load
weights meanwhile hold at that moment. They allocate on streams of their own, so what the step takes
is what this thread's stream has more of; all else is counted before they begin (`Baseline`).
"""

import dataclasses
from dataclasses import dataclass

import torch

from quire.engine.config import EngineConfig
from quire.engine.model.forward_batch import ForwardBatch
from quire.engine.model.registry import Model
from quire.engine.startup import sizing
from quire.engine.startup.kv_cache import allocate_cache


def by_streams() -> bool:
    """Whether torch's allocator tells memory by streams."""
    return torch.cuda.get_allocator_backend() == "native"


@dataclass(frozen=True, slots=True)
class Baseline:
    """Bytes of a GPU that are taken before weights are loaded: by torch, on this thread's stream,
    and by all else: other processes, and this one's context."""

    reserved: int
    own: int
    others: int

    @staticmethod
    def read(device: torch.device) -> "Baseline":
        """As it is now; nothing else may use torch."""
        reserved = torch.cuda.memory_reserved(device)
        return Baseline(reserved, _own_bytes(device), sizing.taken_by_others(device))


@torch.inference_mode()
def peak_bytes(
    config: EngineConfig,
    model: Model,
    dtype: torch.dtype,
    max_model_len: int,
    before: Baseline | None = None,
) -> int:
    """Most bytes that torch has taken in the largest step, over a cache of the null block alone. Of
    each kind of layer two run: the others take what these have left. before: given where other
    threads load weights since then, whose memory does not count. Raises CapacityError."""
    device = model.device
    kv = allocate_cache(model, 1, 1, config.block_size, dtype)
    batch = _largest_step(config, device, max_model_len)
    if kv.window is not None:
        batch = dataclasses.replace(batch, windowed=batch)
    torch.cuda.reset_peak_memory_stats(device)
    sampled = min(config.max_num_seqs, config.step_tokens())
    logits_bytes = 4 * sampled * model.config.vocab_size
    hint = (
        f"lower max_num_batched_tokens = {config.step_tokens()} or max_num_seqs = "
        f"{config.max_num_seqs} (these are the bytes of the logits alone)"
    )
    with sizing.room_for("the largest step", logits_bytes, device, hint):
        layers = [layer for layer in model.distinct_layers() for _ in range(2)]
        logits = model.logits(model.forward(batch, kv, layers), batch.logits_rows)
        logits.clone().sort(dim=-1)
        torch.cuda.synchronize(device)
    if before is None:
        peak = torch.cuda.max_memory_reserved(device)
    else:  # nothing is given back before empty_cache
        peak = before.reserved + _own_bytes(device) - before.own
    del kv, logits
    torch.cuda.empty_cache()
    return peak


def _own_bytes(device: torch.device) -> int:
    """Bytes that torch has reserved on this thread's stream."""
    stream = torch.cuda.current_stream(device).cuda_stream
    segments = torch.cuda.memory_snapshot()
    return sum(one["total_size"] for one in segments if one["stream"] == stream)


def _largest_step(config: EngineConfig, device: torch.device, max_model_len: int) -> ForwardBatch:
    """Prompts as long as may be, max_num_batched_tokens in all, over the null block."""
    tokens = config.step_tokens()
    length = min(tokens, max_model_len)
    rows = -(-tokens // length)
    ends = torch.arange(rows + 1, dtype=torch.int32, device=device).mul_(length).clamp_(max=tokens)
    blocks = -(-max_model_len // config.block_size)
    count = min(config.max_num_seqs, tokens)
    return ForwardBatch(
        token_ids=torch.zeros(tokens, dtype=torch.int32, device=device),
        positions=torch.arange(tokens, dtype=torch.int32, device=device) % length,
        slot_mapping=torch.zeros(tokens, dtype=torch.int64, device=device),
        context_lens=ends.diff(),
        block_tables=torch.zeros(rows, blocks, dtype=torch.int32, device=device),
        prefill_start_loc=ends,
        logits_rows=torch.arange(count, dtype=torch.int64, device=device),
        num_decode_rows=0,
        max_query_len=length,
        max_context_len=length,
    )
