"""The program of the process that compiles kernels; `compile_process` starts it.

    python -m quire.engine.runner.compile_main [OPTIONS DEVICES]

Invariant: what it is to do it reads from standard input (see compile_worker). OPTIONS, an
EngineConfig's as JSON, and DEVICES say what may be begun before that (see compile_listed), or that
not even torch is imported before that.
"""

import gc
import json
import sys

from quire.engine import lifeline
from quire.engine.config import EngineConfig
from quire.engine.runner import compile_listed, early_start


def main() -> int:
    """As compile_worker, of whose imports collections would take a fifth."""
    lifeline.be_killed_with_parent()
    gc.disable()
    line, begun = "", None
    if sys.argv[1:]:
        options, devices = sys.argv[1:]
        config = compile_listed.on_this_machine(EngineConfig(**json.loads(options)))
        if not compile_listed.were_compiled(config):
            begun = compile_listed.begin(config, devices)
        elif not (line := sys.stdin.readline()):  # there is nothing to do, by all that is known
            return 0
    early_start.start_digest()
    from quire.engine.runner import compile_worker

    gc.enable()
    return compile_worker.main(line, begun)


if __name__ == "__main__":
    sys.exit(main())
