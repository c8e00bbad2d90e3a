"""Who may wait, how long, and how much one client may have.

`rpc` comes in. Nothing here knows gRPC, text or tensors.
"""
