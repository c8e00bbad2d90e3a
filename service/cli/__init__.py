"""`quire serve` and its sisters: commands, flags, the dry run, progress on a terminal.

The entry point comes in. Everything below may be used here; nothing below may use this.
"""
