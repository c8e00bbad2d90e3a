"""The inference engine: token ids in, token ids out; never text, never gRPC.

Subpackages, from the top: client, startup, loop, parallel, runner, weights, model, scheduling; all
may import request, config and errors. The service's entry point is `client.async_engine`. Imports
only go down, and to `quire.kernels`.
"""
