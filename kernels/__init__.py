"""The operations of a step, each a kernel beside its launcher, and each once more in plain PyTorch.

The engine's entry point is `ops` (one object for a device's operations); `launches` tells it which
kernels a step launches. Nothing here knows requests, plans or a configuration.
"""
