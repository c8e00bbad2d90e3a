"""The engine's side of a gateway that speaks vLLM's contract: `vllm.grpc.engine.VllmEngine`, as the
package smg-grpc-proto has it.

Only `app` comes in, and only where a port is asked for: the package is optional, and is imported
by `protos` alone. What is asked becomes a call of `rpc`'s servicer; nothing here admits, samples or
knows the engine's requests. Media and KV transfer are refused by name; methods that are not here
are UNIMPLEMENTED.
"""
