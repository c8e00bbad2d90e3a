"""What a model's answer says: its thoughts, its text, and its calls of tools.

`rpc` and `app` come in. Text goes in and events come out; nothing here knows tokens, gRPC or the
engine.
"""
