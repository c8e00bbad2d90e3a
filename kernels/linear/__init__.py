"""Products with weights, the table that chooses among them, and the norms beside them.

Used by the model through `quire.kernels.ops`; only `tuning` decides which kernel runs.
"""
