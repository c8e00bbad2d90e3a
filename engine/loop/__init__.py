"""The engine's loop: commands in, a turn of plan, run and apply, outputs and statistics out.

Contains the core, the loop around it, and a turn's commands and batches. Used by `client`, which
sends commands, and by `startup`, which builds the engine. Nothing here knows who sent a request, or
what a token means.
"""
