"""A fork that compiles what a list says an engine launches, while its parent imports torch.

Invariant: only the list's kernels are compiled, as launches on the machine's first GPU would ask
for them, and only into the folder where Triton keeps them anyway. Whatever keeps that from being
done (another version of Triton, no list, no driver, no room) leaves all to the parent. The fork is
done before torch would be imported, so it has a placeholder for it; the driver is asked by a
process of its own, since a process that compiles has nothing to do with a GPU.
"""

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError
from quire.engine.runner import compile_process, listed
from quire.engine.runner.compile_orders import family, versions
from quire.kernels.cards import OfflineCard

_NICENESS = 10  # what others import goes first
_LIMIT = 10.0  # seconds for a list's names to be told, of which all but the driver takes one
_CHUNK = 1 << 16  # bytes
_MAJOR, _MINOR, _SHARED = 75, 76, 97  # CUdevice_attribute: compute capability, bytes a program
_NAME = 100  # bytes


@dataclass(frozen=True)
class ListFork:
    """What compiles from a list. process: its id. told: the read end of a pipe."""

    process: int
    told: int

    def names(self, cache: str) -> frozenset[str]:
        """The names of its kernels (`offline.name_of`), once it knows them. Once. cache: where they
        are wanted; if that is elsewhere, or it takes too long, it is ended, and has none."""
        told = b""
        with os.fdopen(self.told, "rb", buffering=0) as pipe:
            until = time.monotonic() + _LIMIT
            while select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
                if not (part := pipe.read(_CHUNK)):
                    break
                told += part
            else:
                told = b""
        if told and cache == str(compile_process.triton_cache()):
            return frozenset(told.decode().splitlines())
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)
        return frozenset()

    def came_to_its_end(self) -> bool:
        """Waits for it."""
        return os.waitpid(self.process, 0)[1] == 0


def on_this_machine(config: EngineConfig) -> EngineConfig:
    """The same, but that a model of the Hub is named by its folder here, where it has one."""
    if "/" not in config.model or Path(config.model).exists():
        return config
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(config.model, "config.json", revision=config.revision)
    except (ImportError, OSError, ValueError):
        return config
    return config.replace(model=str(Path(found).parent)) if isinstance(found, str) else config


def were_compiled(config: EngineConfig) -> bool:
    """Whether an engine has left kernels for others of these options, as far as can be told before
    the card is known; or, of a model whose configuration is not, any kernels."""
    lists = compile_process.LISTS
    with contextlib.suppress(ConfigError, OSError):
        lists = lists.replace("*", f"{family(config, versions())}-*")
    return next(compile_process.triton_cache().glob(lists), None) is not None


def begin(config: EngineConfig, devices: str) -> ListFork | None:
    """Fork it; None where no list has the engine's kernels. devices: CUDA_VISIBLE_DEVICES as the
    engine has it, if it has. Without heavy imports."""
    model = listed.model_of(config)
    if not model:
        return None
    out, into = os.pipe()
    process = compile_process.forked(partial(_compile, model, devices, into))
    os.close(into)
    return ListFork(process, out)


def _compile(model: str, devices: str, names: int) -> None:
    asker, answer = _ask_in_a_process(devices, names)
    from quire.kernels import without_torch

    without_torch.begin()
    from triton import __version__, knobs

    from quire.engine.runner import compile_forks
    from quire.kernels import launch_list, movable_cache, offline, sealed, steady_keys, support

    assert steady_keys, "before any kernel is named"
    card = _read_card(asker, answer)
    launches = listed.read(model, card.name) if __version__ in support.HOPPER_TRITON else []
    if not launches:
        return
    folder = compile_process.triton_cache()
    sealed.probe(folder)
    movable_cache.use()  # as the engine does
    knobs.cache.dir = str(folder)
    knobs.compilation.store_binary_only = True
    offline.digest_compiler()
    offline.compile_for(card)
    with offline.noted() as kernels:
        for one in launches:
            launch_list.launch(one)
    gc.enable()
    with os.fdopen(names, "w", encoding="utf-8") as told:
        told.write("\n".join(kernels))
    os.nice(_NICENESS)
    processes = compile_process.default_processes()
    if not compile_forks.wait_for(
        compile_forks.compile_in_forks(kernels, processes, compile_forks.tell)
    ):
        raise RuntimeError("not all kernels of the list could be compiled")


def _ask_in_a_process(devices: str, names: int) -> tuple[int, int]:
    """The id of a process that asks the driver of the first GPU, and the read end of a pipe for
    what it is told, as JSON. names: a descriptor that is not that process's."""
    out, into = os.pipe()
    process = compile_process.forked(partial(_ask, devices, into, names))
    os.close(into)
    return process, out


def _ask(devices: str, into: int, names: int) -> None:
    os.close(names)
    os.dup2(into, sys.stdout.fileno())  # which others wait for the end of
    os.environ.pop(compile_process.DEVICES, None)
    if devices:
        os.environ[compile_process.DEVICES] = devices
    os.write(sys.stdout.fileno(), json.dumps(_ask_driver()).encode())


def _ask_driver() -> tuple[str, list[int]]:
    """Name of the first GPU, and what `_MAJOR` and so on stand for. Raises OSError."""
    driver = ctypes.CDLL("libcuda.so.1")
    name, number = ctypes.create_string_buffer(_NAME), ctypes.c_int()

    def call(function: str, *arguments: Any) -> None:
        if code := getattr(driver, function)(*arguments):
            raise OSError(f"{function}: {code}")

    call("cuInit", 0)
    call("cuDeviceGetName", name, _NAME, 0)
    numbers = []
    for attribute in (_MAJOR, _MINOR, _SHARED):
        call("cuDeviceGetAttribute", ctypes.byref(number), attribute, 0)
        numbers.append(number.value)
    return name.value.decode(), numbers


def _read_card(asker: int, answer: int) -> OfflineCard:
    """Raises ValueError where the driver has told nothing."""
    with os.fdopen(answer) as told:
        text = told.read()
    os.waitpid(asker, 0)
    name, (major, minor, shared) = json.loads(text)
    return OfflineCard(10 * major + minor, shared, name)
