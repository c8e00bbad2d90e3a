"""Constraints on outputs: schemas, grammars and choices, as masks of allowed ids.

Used by `rpc` and `app`; the engine is given the builder of its matchers. This is the only place
that knows llguidance. Nothing here knows gRPC, a prompt, or the engine's steps.
"""
