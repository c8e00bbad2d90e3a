"""Mixtures of experts: who takes which, rows put in order of experts, and the grouped products.

The model comes in through `quire.kernels.ops`; `tiles` alone decides how products are launched.
Nothing here reads anything back from the device: grids follow from the numbers of rows alone.
"""
