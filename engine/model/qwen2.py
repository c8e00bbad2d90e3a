"""Qwen2 and Qwen2.5, dense (Qwen Team, 2024): biases on q, k and v, no norm of heads."""

from quire.engine.model.spec import AttentionSpec

ATTENTION = AttentionSpec(qkv_bias=True)
