"""Every kernel again in plain PyTorch: the CPU path, and the oracle of the Triton kernels.

Invariant: a function here and its Triton twin take the same arguments, write the same buffers and
keep the same rules (ties go to the lowest id, softmax and norms in fp32, noise keyed by seed,
position and vocabulary id), so that either may stand in for the other.

Shapes used throughout:
    T tokens of R rows (a row is one request's part of a step), L rows that sample a token
    S slots (persistent places of requests on the device; the last one is the null slot)
    caches: [num_blocks, kv_heads, block_size, head_dim]; block 0 is the null block
    slot_mapping: [T] int64, block * block_size + offset, where a token's key and value are written
"""

from quire.kernels.reference.attention import (
    decode_attention,
    kv_write,
    prefill_attention,
    qk_norm_rope_kv_write,
    rope_decode_attention,
    rope_kv_write,
)
from quire.kernels.reference.experts import mix_experts, mix_experts_fp8, route
from quire.kernels.reference.fp8 import linear_fp8, quantize_blocks
from quire.kernels.reference.linear import (
    gelu_new,
    layer_norm,
    linear,
    rms_norm,
    silu_mul,
)
from quire.kernels.reference.sampling import (
    add_bias,
    apply_penalties,
    best_of_part,
    best_of_parts,
    exponential_noise,
    filter_logits,
    greedy,
    keep_allowed,
    logprobs,
    mask_stop_tokens,
    sample,
)
from quire.kernels.reference.state import (
    advance,
    copy_blocks,
    prepare_decode,
    prepare_mixed,
)

__all__ = [
    "add_bias",
    "advance",
    "apply_penalties",
    "best_of_part",
    "best_of_parts",
    "copy_blocks",
    "decode_attention",
    "exponential_noise",
    "filter_logits",
    "gelu_new",
    "greedy",
    "keep_allowed",
    "kv_write",
    "layer_norm",
    "linear",
    "linear_fp8",
    "logprobs",
    "mask_stop_tokens",
    "mix_experts",
    "mix_experts_fp8",
    "prefill_attention",
    "prepare_decode",
    "prepare_mixed",
    "qk_norm_rope_kv_write",
    "quantize_blocks",
    "rms_norm",
    "rope_decode_attention",
    "rope_kv_write",
    "route",
    "sample",
    "silu_mul",
]
