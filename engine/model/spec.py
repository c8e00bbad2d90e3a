"""The attention of an architecture's layers, as its file describes it. Needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Grouped-query attention with rotary positions.

    qk_norm: each head of q and k has an RMSNorm before it is rotated. qkv_bias: the products for
    q, k and v have biases; the one after attention never has. merged: a checkpoint stores q, k and
    v as one matrix (qkv_proj), and the MLP's gate and up as one (gate_up_proj).
    """

    qk_norm: bool = False
    qkv_bias: bool = False
    merged: bool = False
