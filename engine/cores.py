"""How many cores this process may run on."""

import os


def usable() -> int:
    """All of the machine's, or those that it was bound to."""
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
