"""How long a test waits for what must come."""

PATIENCE = 300.0
"""Seconds after which a test is stuck. Waited for only where something is broken: a machine that is
busy with other things must not look like a fault."""
