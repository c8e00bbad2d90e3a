"""The server as a process: ports, health, signals, where its engine runs, the watchdog.

`cli` comes in. Nothing here reads a request's fields or decides who is let in.
"""
