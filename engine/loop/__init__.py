"""The engine's own loop: commands in, a turn of plan and run, outputs and statistics out.

Here live the core, the loop around it, what puts an engine together, and how much memory it may
take. `client` comes in with commands. Nothing here knows who asked, or what a token means.
"""
