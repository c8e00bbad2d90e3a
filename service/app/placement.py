"""Decides where the server's engine runs: in a process of its own, or on a thread of this one.

With a GPU it gets a process, because there each step's host work competes with the event loop for
the interpreter. On a CPU steps are long, and a second interpreter's memory is not worth it. Ranks
that share a model always get a process, because they must end together with it.

Invariant: the process is started before anything heavy is imported here, so that both sides get
ready at the same time. However the server ends, no process is left behind.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from quire.engine.client.child import Child
from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError
from quire.engine.loop import garbage
from quire.engine.runner import compile_process
from quire.service.settings import Settings

if TYPE_CHECKING:  # with either comes numpy
    from quire.engine.client.link import Link

LinkMaker = Callable[[EngineConfig], "Link"]

_GPU_NODES = ("/dev/nvidiactl", "/dev/dxg")  # the second is Windows' own, under its Linux
_NO_GPU = ("", "-1")  # of CUDA_VISIBLE_DEVICES


@contextlib.contextmanager
def placed(settings: Settings) -> Iterator[LinkMaker]:
    """Within, the way to the engine can be made, once its configuration is known."""
    if not has_own_process(settings):
        yield on_a_thread
        return
    child = Child(program(settings))
    try:
        from quire.engine.client.in_process import ProcessLink  # beside it

        yield lambda config: ProcessLink(config, child)
    finally:
        child.end()


@garbage.put_off()
def on_a_thread(config: EngineConfig) -> "Link":
    """The way to an engine in this process."""
    from quire.engine.client.in_thread import ThreadLink  # with it comes torch
    from quire.engine.startup.build_engine import build_engine
    from quire.service.constraints.grammars import Grammars
    from quire.service.constraints.matcher_batch import THREADS

    return ThreadLink(config, partial(build_engine, matchers=Grammars(THREADS)))


def has_own_process(settings: Settings) -> bool:
    """Whether the engine gets a process. Raises ConfigError where it cannot have one."""
    wanted, ranks = settings.service.engine_process, settings.engine.tensor_parallel_size
    if ranks > 1 and (wanted == "off" or os.name != "posix"):
        why = "engine_process = off" if wanted == "off" else "a system that is not POSIX"
        raise ConfigError(f"tensor_parallel_size = {ranks}: not with {why}")
    if os.name != "posix":
        if wanted == "on":
            raise ConfigError("engine_process = on: needs a POSIX system")
        return False
    if ranks > 1:
        return True
    if wanted != "auto":
        return wanted == "on"
    device = settings.engine.device
    return device == "cuda" or (device == "auto" and sees_gpu(os.environ))


def sees_gpu(environment: Mapping[str, str], nodes: tuple[str, ...] = _GPU_NODES) -> bool:
    """Whether the machine shows an NVIDIA device, told without torch and without waking it."""
    if environment.get("CUDA_VISIBLE_DEVICES", "all") in _NO_GPU:
        return False
    return any(Path(node).exists() for node in nodes)


def program(settings: Settings) -> list[str]:
    """The command line of the engine's process, but for its descriptors."""
    service = settings.service
    engine = settings.engine
    options = json.dumps({name: getattr(engine, name) for name in compile_process.TOLD})
    # -P: the working directory holds no modules of ours.
    command = [sys.executable, "-P", "-m", "quire.service.app.engine_child"]
    return [
        *command,
        service.log_format,
        service.log_level,
        str(engine.ranks_per_node - 1),
        options,
    ]
