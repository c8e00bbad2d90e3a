"""Between text and token ids: templates, tokenizer, detokenizer, stop strings.

`rpc` comes in. Nothing here knows gRPC, the engine's state or a client.
"""
