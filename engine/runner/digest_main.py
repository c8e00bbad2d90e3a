"""The program of the process that finds Triton's digest of itself; `early_start` starts it.

    python -m quire.engine.runner.digest_main

Invariant: it says the whole digest, or nothing.
"""

import sys


def main() -> int:
    """Without torch, which takes seconds to load."""
    from triton.runtime import cache

    sys.stdout.write(getattr(cache, "triton_key", str)())
    return 0


if __name__ == "__main__":
    sys.exit(main())
