"""The program of the process that compiles kernels; `compile_process` starts it.

    python -m quire.engine.runner.compile_main

Invariant: what it is to do it reads from standard input (see compile_worker).
"""

import gc
import sys

from quire.engine.runner import early_start


def main() -> int:
    """As compile_worker, of whose imports collections would take a fifth."""
    gc.disable()
    early_start.start_digest()
    from quire.engine.runner import compile_worker

    gc.enable()
    return compile_worker.main()


if __name__ == "__main__":
    sys.exit(main())
