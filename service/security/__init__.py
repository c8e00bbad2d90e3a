"""Keys, certificates, and files that change while the server runs.

Used by `app` and `rpc`. Nothing here logs a secret.
"""
