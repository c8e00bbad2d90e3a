"""How long a test waits for what must come."""

import os

PATIENCE = float(os.environ.get("TESTS_PATIENCE", "300"))
"""Seconds after which a test is stuck. Waited for only where something is broken: a machine that is
busy with other things must not look like a fault. Who puts faults in on purpose sets it lower."""

PATIENT = {"queue_burst_seconds": 86400.0, "max_queue_seconds": 86400.0}
"""Options of a server: a slow machine must not look like a full one to tests of other things."""
