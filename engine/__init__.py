"""The inference engine: token ids in, token ids out; never text, never gRPC.

Wings, from the top: client, loop, parallel, runner, weights, model, scheduling; beside them stands
what all know: request, config, errors. The service comes in through `client.async_engine`. Imports
go down only, and to `quire.kernels`.
"""
