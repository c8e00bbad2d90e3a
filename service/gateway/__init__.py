"""The engine's side of a gateway that speaks vLLM's contract: `vllm.grpc.engine.VllmEngine`, as the
package smg-grpc-proto has it.

Only used by `app`, and only where a port is configured: the package is optional, and only imported
by `protos`. A request becomes a call of `rpc`'s servicer; nothing here admits, samples or knows the
engine's requests. Media and KV transfer are refused by name; methods that are not here are
UNIMPLEMENTED.
"""
