"""Llama 2 and 3 (Touvron et al., 2023; Llama Team, 2024): neither norms of heads nor biases.

Llama 3.1 and later scale their rotary frequencies, see `layers/rotary.py`.
"""

from quire.engine.model.spec import AttentionSpec

ATTENTION = AttentionSpec()
