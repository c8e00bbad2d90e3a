"""The operations of a step, each a kernel beside its launcher, and each once more in plain PyTorch.

The engine comes in through `ops` (one object for a device's operations), and asks `launches` which
kernels a step takes. Nothing here knows requests, plans or a configuration.
"""
