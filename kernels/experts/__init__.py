"""Mixtures of experts: routing, sorting of rows by expert, and the grouped products.

Used by the model through `quire.kernels.ops`; only `tiles` decides how products are launched.
Nothing here reads anything back from the device: grids follow from the numbers of rows.
"""
