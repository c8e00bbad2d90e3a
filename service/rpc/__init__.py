"""quire.v1 over gRPC: requests checked, answers written, Stats.

`app` registers the servicer. Nothing here listens on a port or knows how the process ends.
"""
