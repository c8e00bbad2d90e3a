"""How long a test waits for what must come."""

import os

PATIENCE = float(os.environ.get("TESTS_PATIENCE", "300"))
"""Seconds after which a test is stuck. Waited for only where something is broken: a machine that is
busy with other things must not look like a fault. Who puts faults in on purpose sets it lower."""
