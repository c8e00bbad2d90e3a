"""Products with weights, the table that chooses among them, and the norms beside them.

The model comes in through `quire.kernels.ops`; `tuning` alone decides which kernel runs.
"""
