"""The engine's own loop: commands in, a turn of plan and run, outputs and statistics out.

Here live the core, the loop around it, and what a turn is told and tells. `client` comes in with
commands, `startup` with an engine that is ready. Nothing here knows who asked, or what a token
means.
"""
