"""The client's commands, one a file: plain functions that `quire.clients.cli` registers."""

INTERRUPTED = 130  # the exit code after Ctrl-C
