"""The server as a process: ports, health, signals, where its engine runs, the watchdog.

Used by `cli`. Nothing here reads a request's fields or decides which calls are admitted.
"""
