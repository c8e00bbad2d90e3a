"""Phi-3 and Phi-4, dense (Abdin et al., 2024): as Llama, but a checkpoint stores q, k and v as one
matrix, and gate and up as one."""

from quire.engine.model.spec import AttentionSpec

ATTENTION = AttentionSpec(merged=True)
