"""Between text and token ids: templates, tokenizer, detokenizer, stop strings.

Used by `rpc`. Nothing here knows gRPC, the engine's state or a client.
"""
