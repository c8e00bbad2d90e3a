"""Parses a model's answer into thoughts, text, and tool calls.

Used by `rpc` and `app`. Text goes in and events come out; nothing here knows tokens, gRPC or the
engine.
"""
