"""The engine's options: read once, validated once, frozen.

Invariant: an EngineConfig that exists is valid as far as that can be checked without the model and
the device. The rest is checked where those are known, and raised as ConfigError too. Where values
come from (flags, environment, TOML) is up to the service.
"""

import contextlib
import dataclasses
import ipaddress
from dataclasses import dataclass, field
from typing import Any

from quire.engine.errors import ConfigError

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
QUANTIZATIONS = ("auto", "fp8", "int8")
EXACT = ("auto", "on", "off")
KV_CACHE_DTYPES = ("auto", "fp8")
BLOCK_SIZES = (16, 32, 64, 128, 256)
MAX_RANKS = 64
MAX_SEQS = 32_768  # so that a padded step, of rows and short prompts, is within
MAX_STEP_TOKENS = 65_535  # the second dimension of a kernel's grid
_STEP_TOKENS = 8192
_CPU_STEP_TOKENS = 512  # as many tokens a second as larger steps, and streams wait for no more
_MAX_SECONDS = 86_400
_MAX_GIB = 1 << 20
_MAX_INT32 = 2**31 - 1  # positions and blocks are counted in it


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Options of the engine; the field's metadata holds the help text of each."""

    model: str = _option("pocket", "directory, Hub id, `pocket`, or random:SHAPE (random:0.6B)")
    revision: str | None = _option(None, "revision of a Hub id")
    max_num_seqs: int = _option(256, "most requests in one step")
    max_num_batched_tokens: int | None = _option(
        None,
        f"most tokens in one step, which every stream waits for; default: {_STEP_TOKENS}, on a CPU "
        f"{_CPU_STEP_TOKENS}, or max_num_seqs if that is more",
    )
    max_model_len: int | None = _option(
        None, "most tokens of a request, prompt and output together; default: the model's own"
    )
    block_size: int = _option(64, "tokens per cache block: 16, 32, 64, 128 or 256")
    num_blocks: int | None = _option(
        None, "number of cache blocks; default: what free memory allows"
    )
    gpu_memory_utilization: float = _option(0.9, "share of GPU memory to use")
    cpu_kv_gib: float = _option(1.0, "GiB of KV cache on the CPU")
    tensor_parallel_size: int = _option(
        1, "processes that share the model, over all nodes, each with its own GPU (if any)"
    )
    nnodes: int = _option(1, "machines that share the model, with the same number of ranks each")
    node_rank: int = _option(0, "index of this machine among them; node 0 serves")
    master_addr: str | None = _option(
        None, "node 0's address in the nodes' network; it listens there until all have joined"
    )
    master_port: int | None = _option(None, "port of node 0 at that address")
    join_secret_file: str | None = _option(
        None, "file with the secret that all nodes share; default: the value of QUIRE_JOIN_SECRET"
    )
    join_seconds: float = _option(300.0, "how long to wait for all nodes to join, in seconds")
    enforce_eager: bool = _option(False, "do not use CUDA graphs")
    enable_prefix_caching: bool = _option(True, "reuse cached blocks of prompts that begin alike")
    prefix_cache_seed: int | None = _option(
        None,
        "hash seed of the prefix cache; give all replicas the same; default: random",
    )
    overlap: bool = _option(True, "plan the next step while the current one runs")
    two_phase: bool = _option(False, "run prefill and decode rows in separate steps")
    dtype: str = _option(
        "auto",
        "type of weights and activations: auto (16 bits; float32 for small models on a CPU), "
        "float32, bfloat16 or float16",
    )
    kv_cache_dtype: str = _option(
        "auto",
        "type of the KV cache: auto (as dtype; float32 on a CPU) or fp8 (e4m3 without a scale, "
        "half the size of 16 bits; on GPUs of compute capability 8.9 or newer, and on a CPU)",
    )
    quantization: str = _option(
        "auto",
        "auto: keep weights as stored; fp8: convert them to FP8 while loading; int8: convert them "
        "to int8 with one scale per row (CPU only)",
    )
    exact: str = _option(
        "auto",
        "on: results are the same, bit for bit, under any load (GPUs, no int8 weights); auto: on "
        "where that costs at most 3%; off",
    )
    device: str = _option("auto", "auto, cpu or cuda")
    seed: int = _option(0, "seed of random weights")

    def __post_init__(self) -> None:
        _at_least("max_num_seqs", self.max_num_seqs, 1)
        _at_most("max_num_seqs", self.max_num_seqs, MAX_SEQS)
        if self.max_num_batched_tokens is not None:
            _at_least("max_num_batched_tokens", self.max_num_batched_tokens, self.max_num_seqs)
            _at_most("max_num_batched_tokens", self.max_num_batched_tokens, MAX_STEP_TOKENS)
        if self.max_model_len is not None:
            _at_least("max_model_len", self.max_model_len, 2)
            _at_most("max_model_len", self.max_model_len, _MAX_INT32)
        if self.num_blocks is not None:
            _at_least("num_blocks", self.num_blocks, 2)
            _at_most("num_blocks", self.num_blocks, _MAX_INT32 - 1)  # and the null block
        _one_of("block_size", self.block_size, BLOCK_SIZES)
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("device", self.device, DEVICES)
        _one_of("kv_cache_dtype", self.kv_cache_dtype, KV_CACHE_DTYPES)
        _one_of("quantization", self.quantization, QUANTIZATIONS)
        _one_of("exact", self.exact, EXACT)
        if self.int8:
            self._check_int8()
        _at_least("tensor_parallel_size", self.tensor_parallel_size, 1)
        _at_most("tensor_parallel_size", self.tensor_parallel_size, MAX_RANKS)
        self._check_nodes()
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(
                f"gpu_memory_utilization = {self.gpu_memory_utilization}: "
                "must be above 0 and at most 1"
            )
        if not 0 < self.cpu_kv_gib <= _MAX_GIB:  # false for a NaN too
            raise ConfigError(
                f"cpu_kv_gib = {self.cpu_kv_gib}: must be above 0 and at most {_MAX_GIB}"
            )
        if not self.model:
            raise ConfigError("model is empty: give a directory, a Hub id, pocket or random:SHAPE")

    def step_tokens(self, *, cpu: bool = False) -> int:
        """Most tokens in one step, of a GPU or a CPU."""
        if self.max_num_batched_tokens is not None:
            return self.max_num_batched_tokens
        return max(_CPU_STEP_TOKENS if cpu else _STEP_TOKENS, self.max_num_seqs)

    @property
    def int8(self) -> bool:
        """Whether matrices are kept as int8 rows."""
        return self.quantization == "int8"

    @property
    def fp8_cache(self) -> bool:
        """Whether keys and values are kept as e4m3."""
        return self.kv_cache_dtype == "fp8"

    @property
    def ranks_per_node(self) -> int:
        """Ranks of each machine."""
        return self.tensor_parallel_size // self.nnodes

    def _check_nodes(self) -> None:
        _at_least("nnodes", self.nnodes, 1)
        if self.tensor_parallel_size % self.nnodes:
            raise ConfigError(
                f"nnodes = {self.nnodes}: must divide tensor_parallel_size = "
                f"{self.tensor_parallel_size}"
            )
        _at_least("node_rank", self.node_rank, 0)
        _at_most("node_rank", self.node_rank, self.nnodes - 1)
        if not 0 < self.join_seconds <= _MAX_SECONDS:  # false for a NaN too
            raise ConfigError(
                f"join_seconds = {self.join_seconds}: must be above 0 and at most {_MAX_SECONDS}"
            )
        for name in ("master_addr", "master_port"):
            if self.nnodes > 1 and getattr(self, name) is None:
                raise ConfigError(f"nnodes = {self.nnodes}: needs {name}")
        for name in ("master_addr", "master_port", "join_secret_file"):
            if self.nnodes == 1 and getattr(self, name) is not None:
                raise ConfigError(f"{name} = {getattr(self, name)}: needs nnodes above 1")
        if self.master_addr is not None:
            _check_host("master_addr", self.master_addr)
        if self.master_port is not None:
            _at_least("master_port", self.master_port, 1)
            _at_most("master_port", self.master_port, 65_535)

    def _check_int8(self) -> None:
        if self.device == "cuda":
            raise ConfigError("quantization = int8: only on the CPU, not with device = cuda")
        if self.tensor_parallel_size > 1:
            raise ConfigError(
                "quantization = int8: only with tensor_parallel_size = 1, "
                f"it is {self.tensor_parallel_size}"
            )

    def replace(self, **changes: Any) -> "EngineConfig":
        """A copy with some options changed, validated again."""
        return dataclasses.replace(self, **changes)


def _check_host(name: str, host: str) -> None:
    """Must be the address of one interface, or a name that can be resolved."""
    try:
        host.encode("idna")
    except UnicodeError:
        host = ""
    if not host.strip():
        raise ConfigError(f"{name} is neither an address nor a host name: give node 0's address")
    with contextlib.suppress(ValueError):  # a name
        if ipaddress.ip_address(host).is_unspecified:
            raise ConfigError(f"{name} = {host}: must be the address of one interface, not of all")


def _at_least(name: str, value: int, limit: int) -> None:
    if value < limit:
        reason = " (max_num_seqs)" if name == "max_num_batched_tokens" else ""
        raise ConfigError(f"{name} = {value}: must be at least {limit}{reason}")


def _at_most(name: str, value: int, limit: int) -> None:
    if value > limit:
        raise ConfigError(f"{name} = {value}: must be at most {limit}")


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        choices = ", ".join(str(a) for a in allowed)
        raise ConfigError(f"{name} = {value!r}: supported: {choices}")
