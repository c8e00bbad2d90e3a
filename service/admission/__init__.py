"""Queue admission: which calls may wait, how long, and how much one client may have.

Used by `rpc`. Nothing here knows text or tensors.
"""
