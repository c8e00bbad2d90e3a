"""Defaults for Ray Serve's environment variables that suit streams of many short messages.

By itself Ray carries each message of a stream between two of its processes by way of its object
store, and between two threads at either end. With these it carries them over gRPC, on the loop
where they are read and written; that takes a quarter of the CPU time.

Invariant: what the caller's environment says of one of them stands.
"""

import os

RAY_DEFAULTS = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",  # lines, written together
    "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # Ray's is 0.1, a thirtieth of a core at rest
}


def set_ray_defaults() -> None:
    """Before Ray is imported, which reads them then; its workers inherit them."""
    for name, value in RAY_DEFAULTS.items():
        os.environ.setdefault(name, value)
