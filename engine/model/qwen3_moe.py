"""Qwen3-MoE (Qwen Team, 2025): Qwen3's attention, and experts in place of most layers' MLP."""

from quire.engine.model.spec import AttentionSpec

ATTENTION = AttentionSpec(qk_norm=True)
