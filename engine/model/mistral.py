"""Mistral (Jiang et al., 2023): as Llama, and every layer sees a sliding window."""

from quire.engine.model.spec import AttentionSpec

ATTENTION = AttentionSpec()
