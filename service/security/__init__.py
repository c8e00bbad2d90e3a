"""Keys, certificates, and files that change while the server runs.

`app` and `rpc` come in. Nothing here logs a secret.
"""
