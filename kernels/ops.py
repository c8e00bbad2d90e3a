"""Every operation of a step as one object: the model and the runner call an `Ops`, nothing else.

Invariant: whatever `select` returns keeps the rules of `reference` (arguments, buffers written,
ties, noise), so the caller never asks which device it runs on. The functions of `reference` are
the documentation of each operation: shapes, dtypes and sources stand there.

Two things hold for every implementation and are the caller's to respect:
    `linear` and the mixing of experts may reuse the storage of their residual for the result, and
    `gelu_new` and `kv_write` that of what a bias is added to: it is not to be read afterwards.
    The Triton operations share one workspace: they run on one stream at a time.
"""

from typing import TYPE_CHECKING, Protocol, TypeGuard, cast

import torch
from torch import Tensor

from quire.kernels.weight import Quantized, RowWeights, Weight

if TYPE_CHECKING:  # needs triton
    from quire.kernels.linear.all_reduce_norm import Mail
    from quire.kernels.linear.row_launch import Room, Sizes


class KernelsUnavailable(RuntimeError):
    """A device was asked for whose kernels cannot be loaded here."""


class Ops(Protocol):
    """The operations of one device. See the function of the same name in `reference`."""

    # Norms, products, activations.
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...

    def silu_mul(self, x: Tensor) -> Tensor: ...

    def layer_norm(
        self, x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, add: Tensor | None = None
    ) -> Tensor: ...

    def gelu_new(self, x: Tensor, bias: Tensor) -> Tensor: ...

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
    ) -> Tensor: ...

    # Rotary embedding, cache, attention.
    def qk_norm_rope_kv_write(
        self,
        qkv: Tensor,
        q_norm: Tensor,
        k_norm: Tensor,
        eps: float,
        cos_sin: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
    ) -> Tensor: ...

    def rope_kv_write(
        self,
        qkv: Tensor,
        cos_sin: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
    ) -> Tensor: ...

    def kv_write(
        self, qkv: Tensor, bias: Tensor, slot_mapping: Tensor, k_cache: Tensor, v_cache: Tensor
    ) -> Tensor: ...

    def decode_attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_tables: Tensor,
        context_lens: Tensor,
        scale: float,
        max_context_len: int,
        *,
        out: Tensor | None = None,
        window: int = 0,
    ) -> Tensor: ...

    def rope_decode_attention(
        self,
        qkv: Tensor,
        q_norm: Tensor,
        k_norm: Tensor,
        eps: float,
        cos_sin: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_tables: Tensor,
        context_lens: Tensor,
        scale: float,
        max_context_len: int,
        *,
        out: Tensor | None = None,
        narrow: bool = False,
    ) -> Tensor | Quantized: ...

    def prefill_attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_tables: Tensor,
        query_start_loc: Tensor,
        context_lens: Tensor,
        scale: float,
        max_query_len: int,
        max_context_len: int,
        *,
        out: Tensor | None = None,
        window: int = 0,
    ) -> Tensor: ...

    def copy_blocks(
        self, k_cache: Tensor, v_cache: Tensor, source: Tensor, target: Tensor
    ) -> None: ...

    # Sampling.
    def apply_penalties(
        self,
        logits: Tensor,
        slots: Tensor,
        prompt_mask: Tensor,
        output_counts: Tensor,
        repetition: Tensor,
        presence: Tensor,
        frequency: Tensor,
    ) -> None: ...

    def mask_stop_tokens(
        self,
        logits: Tensor,
        slots: Tensor,
        positions: Tensor,
        stop_ids: Tensor,
        min_position: Tensor,
    ) -> None: ...

    def add_bias(self, logits: Tensor, rows: Tensor, ids: Tensor, values: Tensor) -> None: ...

    def keep_allowed(self, logits: Tensor, mask_of: Tensor, masks: Tensor) -> None: ...

    def filter_logits(
        self,
        logits: Tensor,
        slots: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
    ) -> None: ...

    def sample(
        self, logits: Tensor, slots: Tensor, positions: Tensor, temperature: Tensor, seeds: Tensor
    ) -> Tensor: ...

    def greedy(self, logits: Tensor) -> Tensor: ...

    def best_of_part(
        self,
        logits: Tensor,
        first: int,
        noise: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor: ...

    def best_of_parts(self, best: Tensor) -> Tensor: ...

    def logprobs(
        self, logits: Tensor, tokens: Tensor, count: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...

    # State on the device.
    def prepare_decode(
        self,
        row_slots: Tensor,
        last_token: Tensor,
        num_computed: Tensor,
        slot_tables: Tensor,
        block_size: int,
        token_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        context_lens: Tensor,
        block_tables: Tensor,
    ) -> None: ...

    def prepare_mixed(
        self,
        row_slots: Tensor,
        query_start_loc: Tensor,
        num_computed: Tensor,
        last_token: Tensor,
        slot_tables: Tensor,
        block_size: int,
        token_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        context_lens: Tensor,
        block_tables: Tensor,
    ) -> None: ...

    def advance(
        self,
        row_slots: Tensor,
        query_lens: Tensor | None,
        num_computed: Tensor,
        sampled_rows: Tensor | None,
        tokens: Tensor,
        last_token: Tensor,
        output_counts: Tensor | None,
    ) -> None: ...


class ExpertOps(Ops, Protocol):
    """The operations of a device that has those of mixtures of experts as well."""

    def route(
        self, x: Tensor, router: Tensor, per_token: int, *, renormalise: bool
    ) -> tuple[Tensor, Tensor]: ...

    def mix_experts(
        self,
        x: Tensor,
        gate_up: Tensor,
        down: Tensor,
        experts: Tensor,
        weights: Tensor,
        *,
        residual: Tensor | None = None,
    ) -> Tensor: ...


class Fp8Ops(Ops, Protocol):
    """The operations of a device that has those of FP8 weights as well."""

    def linear_fp8(
        self,
        x: Tensor | Quantized,
        weight: Weight,
        *,
        norm_weight: Tensor | None = None,
        eps: float = 0.0,
        residual: Tensor | None = None,
        silu: bool = False,
        out_dtype: torch.dtype | None = None,
        narrow: bool = False,
    ) -> Tensor | Quantized: ...


class Fp8ExpertOps(ExpertOps, Fp8Ops, Protocol):
    """The operations of a device that has those of experts with FP8 weights as well."""

    def mix_experts_fp8(
        self,
        x: Tensor,
        gate_up: Weight,
        down: Weight,
        experts: Tensor,
        weights: Tensor,
        *,
        residual: Tensor | None = None,
    ) -> Tensor: ...


class ExpertRowOps(ExpertOps, Protocol):
    """The operations of a device that has a whole mixture of experts for one row as well."""

    def mix_row(
        self,
        x: Tensor,
        norm_weight: Tensor,
        eps: float,
        router: Tensor,
        gate_up: Weight,
        down: Weight,
        per_token: int,
        *,
        renormalise: bool,
    ) -> Tensor | None:
        """See kernels/experts/one_row.py. None: not for these, and nothing was done."""
        ...


class RowOps(Ops, Protocol):
    """The operations of a device that has one row's products between two attentions as one."""

    def row_rooms(
        self, layers: int, sizes: "Sizes", dtype: torch.dtype, device: torch.device
    ) -> "list[Room] | None":
        """What layers of a step need for it; to be asked for before the step's first product.
        None: not for these."""
        ...

    def between_attentions(
        self, attended: Tensor, residual: Tensor, weights: RowWeights, eps: float, room: "Room"
    ) -> tuple[Tensor, Tensor | None]:
        """See kernels/linear/hopper_row.py. Raises RowUnavailable once, where the card's driver
        does not launch it; from then on there are no rooms."""
        ...


class ExchangeOps(Ops, Protocol):
    """The operations of a device whose ranks reach each other's memory as well."""

    def residual_norm(
        self, partial: Tensor, residual: Tensor | None, weight: Tensor, eps: float, mail: "Mail"
    ) -> tuple[Tensor, Tensor]:
        """See kernels/linear/all_reduce_norm.py."""
        ...


def has_exchange(ops: Ops) -> TypeGuard[ExchangeOps]:
    """Whether a device has the operation of ranks that reach each other's memory."""
    return hasattr(ops, "residual_norm")


def has_row(ops: Ops) -> TypeGuard[RowOps]:
    """Whether a device has one row's products between two attentions as one operation."""
    return hasattr(ops, "between_attentions")


def has_experts(ops: Ops) -> TypeGuard[ExpertOps]:
    """Whether a device has the operations of mixtures of experts."""
    return all(hasattr(ops, name) for name in ("route", "mix_experts"))


def has_expert_row(ops: Ops) -> TypeGuard[ExpertRowOps]:
    """Whether a device has the operation of a mixture of experts for one row."""
    return has_experts(ops) and hasattr(ops, "mix_row")


def has_fp8(ops: Ops) -> TypeGuard[Fp8Ops]:
    """Whether a device has the operations of FP8 weights."""
    return hasattr(ops, "linear_fp8")


def has_fp8_experts(ops: Ops) -> TypeGuard[Fp8ExpertOps]:
    """Whether a device has the operations of experts with FP8 weights."""
    return has_experts(ops) and has_fp8(ops) and hasattr(ops, "mix_experts_fp8")


def is_exact(ops: Ops) -> bool:
    """Whether a row's results have the same bits whatever stands beside it."""
    return bool(getattr(ops, "exact", False))


def select(device: torch.device, *, pdl: bool = False, exact: bool = False) -> Ops:
    """The operations for a device: Triton's on CUDA; on the CPU the PyTorch twins, with compiled
    products where there is a compiler (`quire.kernels.cpu`).

    pdl: launch the Triton kernels as programmatic dependents of one another (CUDA, sm_90 and up).
    exact: a row's results have the same bits whatever stands beside it (CUDA).
    Raises KernelsUnavailable for another device, or for CUDA where triton cannot be imported.
    """
    if device.type == "cpu":
        if exact:
            raise KernelsUnavailable("exact=True needs a CUDA device, the device is cpu")
        if pdl:
            raise KernelsUnavailable("pdl=True needs a CUDA device, the device is cpu")
        # A module is a legal implementation of a protocol: its functions are the methods.
        from quire.kernels import reference
        from quire.kernels.cpu.ops import own_ops

        return cast(Ops, own_ops() or reference)
    if device.type != "cuda":
        raise KernelsUnavailable(f"device {device}: no kernels for it, supported are cuda and cpu")
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise KernelsUnavailable(
            f"device {device} needs triton, which cannot be imported: {error}"
        ) from error
    from quire.kernels.triton_ops import TritonOps

    return TritonOps.on(device, pdl=pdl, exact=exact)
