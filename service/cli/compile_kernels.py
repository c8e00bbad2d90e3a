"""`quire compile`: the kernels of a server, compiled before it starts.

Invariant: options are read as `quire serve` reads them, from the same places; flags are there for
those that decide kernels alone. Standard output tells the outcome, standard error how far it is.
"""

import dataclasses
import inspect
import sys
from pathlib import Path

from quire.engine.config import EngineConfig
from quire.engine.errors import CompileError, ConfigError
from quire.engine.runner.compile_orders import DECIDING
from quire.kernels.cards import SUPPORTED
from quire.service.cli.options import config_flag, extra_flag, flag_parameters, model_argument

MAX_JOBS = 256
_RESOLVED = ("revision", "dtype", "exact")  # which decide kernels by what follows from them
EXIT_NOT_ALL = 1


def parameters() -> list[inspect.Parameter]:
    """The command's flags."""
    flags = (*DECIDING, *_RESOLVED)
    others = tuple(o.name for o in dataclasses.fields(EngineConfig) if o.name not in flags)
    cards = ", ".join(SUPPORTED)
    return [
        model_argument(),
        *flag_parameters(EngineConfig, leave_out=others),
        config_flag(),
        extra_flag("gpu", str | None, None, f"The card of the server: {cards}."),
        extra_flag(
            "out",
            Path | None,
            None,
            "Folder for the kernels; default: Triton's cache (TRITON_CACHE_DIR, or "
            "~/.triton/cache).",
        ),
        extra_flag(
            "jobs", int | None, None, "Processes that compile; default: one a core, at most 16."
        ),
    ]


def run(config: EngineConfig, gpu: str | None, out: Path | None, jobs: int | None) -> int:
    """Returns the exit code. Raises QuireError for what cannot be compiled for."""
    if gpu is None:
        raise ConfigError(f"gpu is missing: give --gpu, one of {', '.join(SUPPORTED)}")
    if jobs is not None and not 1 <= jobs <= MAX_JOBS:
        raise ConfigError(f"jobs = {jobs}: must be 1 to {MAX_JOBS}")
    from quire.engine.runner.compile_process import default_processes
    from quire.engine.startup.compile_for_card import compile_for_card
    from quire.service.app.progress import Progress
    from quire.service.models.resolve import resolve

    config = config.replace(model=resolve(config, weights=False).engine_model)
    progress = Progress()
    try:
        outcome = compile_for_card(
            *(config, gpu, out, jobs or default_processes()),
            lambda share: progress("kernels", share),
        )
    except CompileError as error:
        progress.close()
        print(f"quire: {error}", file=sys.stderr)
        return EXIT_NOT_ALL
    progress.close()
    done = f"compiled in {outcome.seconds:.1f} s" if outcome.new else "there already"
    print(f"{outcome.kernels} kernels for {gpu.lower()} were {done}, in {outcome.folder}")
    print(f"a server with the same options finds them with TRITON_CACHE_DIR={outcome.folder}")
    return 0
