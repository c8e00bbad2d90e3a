"""`quire serve` and the server's other commands: flags, the dry run, progress on a terminal.

Loaded by the entry point. It may import everything below; nothing below may import it.
"""
