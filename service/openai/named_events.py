"""Server-sent events with names, as the newer APIs send them."""

import json

encode = json.JSONEncoder(separators=(",", ":")).encode


def written(name: str, data: bytes) -> bytes:
    """One event. data: a line."""
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
