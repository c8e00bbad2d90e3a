"""How much fits: device, data type, and the number of cache blocks that memory allows.

Invariant: the number of blocks is computed once, here, from free memory after a profile run (or
taken from `num_blocks`), and both the block pool and the cache tensors are made from it. A budget
that leaves no block is an error with the numbers in it.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from quire.engine.config import MAX_STEP_TOKENS, EngineConfig
from quire.engine.errors import CapacityError, ConfigError
from quire.engine.model.config import ModelConfig
from quire.engine.model.layers.parallel import World
from quire.engine.model.load_config import resolve_max_model_len
from quire.engine.model.registry import build_model
from quire.engine.runner.graphs import FIRST_PROMPTS, MAX_GRAPHS, prompt_sizes
from quire.engine.startup.window_share import WindowShare
from quire.kernels import reference
from quire.kernels.support import NARROW, check_fp8_cache

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
log = logging.getLogger(__name__)

_GIB, _MIB = 1 << 30, 1 << 20
_LAYER_LAUNCHES, _OTHER_LAUNCHES = 9, 32  # kernels of a captured step, at most
_LAUNCH_BYTES = 2048  # that a graph keeps of each
_PROMPT_BYTES = 600 << 20  # that captured prompts of more tokens than the first ones may take
_CPU_FP32_UP_TO = 512  # hidden size up to which fp32 is the faster type on a CPU


@dataclass(frozen=True, slots=True)
class SizingPlan:
    """What a configuration needs, summed over all ranks. Sizes in bytes. num_blocks: without the
    null block; 0 if memory leaves no room for any. memory_bytes: for weights, cache and graphs;
    whole_bytes: the same with gpu_memory_utilization = 1."""

    device: str
    dtype: str
    kv_cache_dtype: str
    max_model_len: int
    weight_bytes: int
    kv_bytes_per_token: int
    block_size: int
    num_blocks: int
    kv_cache_bytes: int
    graph_bytes: int
    memory_bytes: int
    whole_bytes: int
    estimated: bool  # no profile run was made: activations are not counted
    windows: WindowShare | None = None  # of layers with a window; num_blocks is then of the others

    @property
    def num_window_blocks(self) -> int:
        """Blocks of the layers with a window, if other layers see everything; else 0."""
        return 0 if self.windows is None else self.windows.window_blocks(self.num_blocks)

    @property
    def blocks_of_a_sequence(self) -> int:
        """Blocks that one sequence of max_model_len tokens needs."""
        return -(-self.max_model_len // self.block_size)

    @property
    def full_length_sequences(self) -> int:
        """Sequences of max_model_len tokens that the cache holds at once."""
        return self.num_blocks // self.blocks_of_a_sequence

    @property
    def cache_tokens(self) -> int:
        """Tokens that the cache holds."""
        return self.num_blocks * self.block_size

    def bytes_of_blocks(self, num_blocks: int) -> int:
        """Bytes of a cache of num_blocks blocks, the null block included."""
        if self.windows is not None:
            return self.windows.bytes_of(num_blocks)
        return (num_blocks + 1) * self.block_size * self.kv_bytes_per_token

    def blocks_in(self, nbytes: int) -> int:
        """Blocks of the largest cache that takes no more, the null block left out."""
        if self.windows is not None:
            return self.windows.blocks_in(nbytes)
        return nbytes // self.bytes_of_blocks(0) - 1


def shown(num_bytes: int) -> str:
    """A size as people read it."""
    if num_bytes < _GIB // 10:
        return f"{num_bytes / _MIB:.1f} MiB"
    return f"{num_bytes / _GIB:.2f} GiB"


def resolve_device(config: EngineConfig, rank: int = 0) -> torch.device:
    """The device that a rank runs on: a node's n-th rank has its n-th GPU. Raises ConfigError for
    GPUs that do not exist, or with int8, which they cannot run."""
    if config.device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        if config.int8:
            raise ConfigError(
                "quantization = int8: only on the CPU, this machine's device is cuda "
                "(try device = cpu)"
            )
        size, there = config.ranks_per_node, torch.cuda.device_count()
        if size > max(there, 1):
            raise ConfigError(
                f"tensor_parallel_size = {config.tensor_parallel_size}: at most {there} ranks a "
                "node, the CUDA devices of this machine"
            )
        index = rank % size if config.tensor_parallel_size > 1 else torch.cuda.current_device()
        return torch.device("cuda", index)
    if config.device == "cuda":
        raise ConfigError(
            "device = cuda: this machine has no usable CUDA device (try device = cpu)"
        )
    return torch.device("cpu")


def resolve_dtype(config: EngineConfig, model: ModelConfig, device: torch.device) -> torch.dtype:
    """The data type of weights, activations and cache."""
    if config.dtype == "float16" and device.type == "cpu":
        raise ConfigError("dtype = float16: not supported on the CPU (float32, bfloat16)")
    if config.dtype != "auto":
        return _DTYPES[config.dtype]
    if device.type == "cpu":
        return torch.float32 if model.hidden_size <= _CPU_FP32_UP_TO else torch.bfloat16
    stored = _DTYPES.get(model.stored_dtype, torch.bfloat16)
    return torch.bfloat16 if stored is torch.float32 else stored


def resolve_cache_dtype(
    config: EngineConfig, dtype: torch.dtype, device: torch.device
) -> torch.dtype:
    """The data type of keys and values: e4m3 if asked for, else the model's; on a CPU float32,
    because its attention computes in it and would widen a narrower cache in every step. Raises
    ConfigError for a GPU that cannot round to e4m3."""
    if config.fp8_cache:
        try:
            check_fp8_cache(device)
        except ValueError as error:
            raise ConfigError(f"kv_cache_dtype = fp8: {error} (or take auto)") from error
        return NARROW
    return torch.float32 if device.type == "cpu" else dtype


def weight_bytes(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of all ranks' weights. Some are held by more than one rank, and tables are padded.
    Raises ConfigError if this many ranks cannot share the model."""
    size = config.tensor_parallel_size
    if size == 1 and not config.int8:
        return model.weight_bytes(dtype)
    meta = torch.device("meta")
    outline = build_model(
        model, reference, dtype=dtype, device=meta, world=World(0, size), int8=config.int8
    )
    return size * sum(placement.nbytes for placement in outline.placements())


def kv_bytes_per_token(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values on all ranks. With fewer heads than ranks, some ranks
    hold the same heads."""
    size, heads = config.tensor_parallel_size, model.num_kv_heads
    return model.kv_bytes_per_token(dtype) // heads * max(heads, size)


def cache_blocks(
    config: EngineConfig, model: ModelConfig, dtype: torch.dtype, budget: int, what: str
) -> int:
    """Blocks, the null block included, that `budget` bytes hold; `what` explains the budget."""
    if config.num_blocks is not None:
        return config.num_blocks + 1
    per_token = kv_bytes_per_token(config, model, dtype)
    block_bytes = per_token * config.block_size
    windows = WindowShare.of(config, model, per_token)
    blocks = max(budget, 0) // block_bytes if windows is None else windows.blocks_in(budget) + 1
    if blocks < 2:
        raise CapacityError(
            f"no room for the KV cache: {what} leaves {budget / _GIB:.2f} GiB, "
            f"and a block of {config.block_size} tokens takes {block_bytes / _GIB:.4f} GiB"
        )
    return blocks


def check_grids(config: EngineConfig, model: ModelConfig) -> None:
    """Raises ConfigError for a step of more tiles than a kernel's grid has room for.

    Attention over prompts takes, at worst, a tile for as many tokens as the query heads of a group
    fit into 16 rows, and one more for each row.
    """
    tokens_a_tile = max(1, 16 // (model.num_q_heads // model.num_kv_heads))
    most = (MAX_STEP_TOKENS - config.max_num_seqs) * tokens_a_tile
    if config.step_tokens() > most:
        raise ConfigError(
            f"max_num_batched_tokens = {config.step_tokens()}: must be at most {most} "
            f"with max_num_seqs = {config.max_num_seqs} and this model's heads"
        )


def graph_bytes(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> int:
    """An upper estimate of the memory of captured graphs, beyond what an eager step takes.

    Graphs share one pool, so the largest captured step counts once: its tokens between two layers.
    The largest sampler counts too: logits, their copy for log-probabilities, and its temporaries.
    Each graph also holds its launches.
    """
    if config.enforce_eager:
        return 0
    rows = config.max_num_seqs
    tokens = rows + max(captured_prompts(config, model, dtype), default=0)
    step = tokens * _token_bytes(model, dtype) + 3 * rows * model.vocab_size * 4
    launches = MAX_GRAPHS * (model.num_layers * _LAYER_LAUNCHES + _OTHER_LAUNCHES)
    return step + launches * _LAUNCH_BYTES


def captured_prompts(
    config: EngineConfig, model: ModelConfig, dtype: torch.dtype
) -> tuple[int, ...]:
    """The numbers of prompt tokens whose steps are captured. Steps are captured as far as launches
    bound them; in a large model they do so less, and capturing takes more memory."""
    longest = resolve_max_model_len(config, model)
    sizes = prompt_sizes(longest, config.step_tokens())
    most = max(FIRST_PROMPTS[-1], _PROMPT_BYTES // _token_bytes(model, dtype))
    return tuple(size for size in sizes if size <= most)


def _token_bytes(model: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes that one token takes between two layers."""
    heads = model.num_q_heads + 2 * model.num_kv_heads
    width = 3 * model.hidden_size + 3 * model.intermediate_size + 2 * heads * model.head_dim
    return width * dtype.itemsize


def verify_graphs(taken: int, reserved: int) -> None:
    """Log the memory that capture took, with a warning if it is more than was reserved."""
    text = "captured graphs take %.2f GiB of the %.2f GiB kept for them"
    if taken > reserved:
        text += ": lower gpu_memory_utilization or max_num_seqs if memory runs out"
    log.log(
        logging.WARNING if taken > reserved else logging.INFO, text, taken / _GIB, reserved / _GIB
    )


def gpu_budget(
    config: EngineConfig,
    device: torch.device,
    peak_bytes: int,
    graphs: int = 0,
    others: int | None = None,
) -> tuple[int, str]:
    """Bytes left for the cache on a GPU when `peak_bytes` is the most that a step has taken,
    `graphs` is kept for captured ones, and `others` have taken theirs (None: what they have now);
    of several ranks, which are alike, on all their GPUs."""
    total, others_now = _gpu_memory(device)
    others = others_now if others is None else others
    size = config.tensor_parallel_size
    budget = int(total * config.gpu_memory_utilization) - others - peak_bytes - graphs
    what = (
        f"gpu_memory_utilization = {config.gpu_memory_utilization} of {total / _GIB:.1f} GiB, "
        f"less {peak_bytes / _GIB:.1f} GiB for weights and the largest step, "
        f"less {graphs / _GIB:.1f} GiB for captured graphs, "
        f"less {others / _GIB:.1f} GiB of others," + (f" on {size} GPUs," if size > 1 else "")
    )
    return size * budget, what


def _gpu_memory(device: torch.device) -> tuple[int, int]:
    """Bytes that a GPU has, and bytes that other processes have taken of them."""
    free, total = torch.cuda.mem_get_info(device)
    return total, max(total - free - torch.cuda.memory_reserved(device), 0)


def taken_by_others(device: torch.device) -> int:
    """Bytes of a GPU that other processes have taken."""
    return _gpu_memory(device)[1]


def total_memory(device: torch.device) -> int:
    """Bytes that the device has; of a CPU, the machine's."""
    if device.type == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(torch.cuda.get_device_properties(device).total_memory)


@contextmanager
def room_for(what: str, nbytes: int, device: torch.device, hint: str) -> Iterator[None]:
    """Raises CapacityError in place of torch's or numpy's own error, with the size and what is
    free."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        kinds = (torch.OutOfMemoryError, MemoryError)
        if not isinstance(error, kinds) and "allocate memory" not in str(error):
            raise
        free = ""
        if device.type == "cuda":
            left, total = torch.cuda.mem_get_info(device)
            free = f", and {left / _GIB:.2f} of {total / _GIB:.2f} GiB are free"
        raise CapacityError(
            f"out of memory for {what}: {nbytes / _GIB:.2f} GiB are needed{free}; {hint}"
        ) from error


def cpu_budget(config: EngineConfig) -> tuple[int, str]:
    """Bytes for the cache on the CPU, of all ranks together."""
    return int(config.cpu_kv_gib * _GIB), f"cpu_kv_gib = {config.cpu_kv_gib}"


def plan(config: EngineConfig, model: ModelConfig) -> SizingPlan:
    """What a configuration needs, without loading anything (a dry run). Raises ConfigError."""
    device = resolve_device(config)
    dtype = resolve_dtype(config, model, device)
    if device.type == "cuda":
        check_grids(config, model)
        weights = weight_bytes(config, model, dtype) // config.tensor_parallel_size
        budget, what = gpu_budget(config, device, weights, graph_bytes(config, model, dtype))
    else:
        budget, what = cpu_budget(config)
    try:
        cache_dtype = resolve_cache_dtype(config, dtype, device)
        blocks = cache_blocks(config, model, cache_dtype, budget, what)
    except CapacityError:
        blocks = 1  # the null block, that no request can have
    return plan_of(config, model, device, dtype, blocks - 1, estimated=device.type == "cuda")


def plan_of(
    config: EngineConfig,
    model: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    num_blocks: int,
    *,
    estimated: bool = False,
) -> SizingPlan:
    """What a configuration needs with a cache of num_blocks, without the null block."""
    cache_dtype = resolve_cache_dtype(config, dtype, device)
    per_token = kv_bytes_per_token(config, model, cache_dtype)
    gpu, size = device.type == "cuda", config.tensor_parallel_size
    machines = 0 if gpu else config.nnodes * total_memory(device)
    # A number of blocks that was given heeds no share.
    share = config.gpu_memory_utilization if config.num_blocks is None else 1.0
    windows = WindowShare.of(config, model, per_token)
    cache = (num_blocks + 1) * config.block_size * per_token
    return SizingPlan(
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        kv_cache_dtype=str(cache_dtype).removeprefix("torch."),
        max_model_len=resolve_max_model_len(config, model),
        weight_bytes=weight_bytes(config, model, dtype),
        kv_bytes_per_token=per_token,
        block_size=config.block_size,
        num_blocks=num_blocks,
        kv_cache_bytes=cache if windows is None else windows.bytes_of(num_blocks),
        graph_bytes=size * graph_bytes(config, model, dtype) if gpu else 0,
        memory_bytes=size * _memory_for(device, share) if gpu else machines,
        whole_bytes=size * _memory_for(device, 1.0) if gpu else machines,
        estimated=estimated,
        windows=windows,
    )


def _memory_for(device: torch.device, share: float) -> int:
    """Bytes of a GPU for this process, if it may take this share of them with all others."""
    total, others = _gpu_memory(device)
    return int(total * share) - others
