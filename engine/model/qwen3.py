"""Qwen3, dense (Qwen Team, 2025): each head of q and k has a norm."""

from quire.engine.model.spec import AttentionSpec

ATTENTION = AttentionSpec(qk_norm=True)
