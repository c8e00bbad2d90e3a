"""The client's commands, one a file: plain functions that `quire.clients.cli` registers."""
