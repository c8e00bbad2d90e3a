"""What an output must look like: schemas, grammars and choices, as masks of allowed ids.

`rpc` and `app` come in; the engine is given what makes its matchers. This is the one place that
knows llguidance. Nothing here knows gRPC, a prompt, or which steps there are.
"""
