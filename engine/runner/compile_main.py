"""The program of the process that compiles kernels; `compile_process` starts it.

    python -m quire.engine.runner.compile_main [OPTIONS DEVICES]

Invariant: what it is to do it reads from standard input (see compile_worker). OPTIONS and DEVICES
say what may be begun before that (see compile_listed).
"""

import gc
import sys

from quire.engine.runner import compile_listed, early_start


def main() -> int:
    """As compile_worker, of whose imports collections would take a fifth."""
    gc.disable()
    begun = compile_listed.begin(*sys.argv[1:]) if sys.argv[1:] else None
    early_start.start_digest()
    from quire.engine.runner import compile_worker

    gc.enable()
    return compile_worker.main(begun)


if __name__ == "__main__":
    sys.exit(main())
