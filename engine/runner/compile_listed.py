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
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError
from quire.engine.runner import compile_process, listed
from quire.engine.runner.compile_orders import family, versions
from quire.kernels.cards import OfflineCard

_IMPORTING = 3  # processes that have a core for themselves: the server, its engine, the parent
_MAJOR, _MINOR, _SHARED = 75, 76, 97  # CUdevice_attribute: compute capability, bytes a program
_NAME = 100  # bytes


@dataclass(frozen=True)
class Begun:
    """What a fork compiles. process: its id. names: the read end of a pipe."""

    process: int
    names: int

    def take(self) -> frozenset[str]:
        """The names of its kernels (`offline.name_of`), once it knows them. Once."""
        with os.fdopen(self.names, encoding="utf-8") as names:
            return frozenset(names.read().splitlines())


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


def begin(config: EngineConfig, devices: str) -> Begun | None:
    """Fork it; None where no list has the engine's kernels. devices: CUDA_VISIBLE_DEVICES as the
    engine has it, if it has. Without heavy imports."""
    model = listed.model_of(config)
    if not model:
        return None
    out, into = os.pipe()
    process = os.fork()
    if not process:
        os.close(out)
        _live(model, devices, into)
    os.close(into)
    return Begun(process, out)


def _live(model: str, devices: str, names: int) -> NoReturn:
    try:
        _compile(model, devices, names)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _compile(model: str, devices: str, names: int) -> None:
    answer = _asked(devices)
    from quire.kernels import without_torch

    without_torch.begin()
    from triton import __version__, knobs

    from quire.engine.runner import compile_forks
    from quire.kernels import launch_list, movable_cache, offline, sealed, steady_keys, support

    assert steady_keys, "before any kernel is named"
    folder = compile_process.triton_cache()
    sealed.probe(folder)
    movable_cache.use()  # as the engine does
    knobs.cache.dir = str(folder)
    knobs.compilation.store_binary_only = True
    offline.digest_compiler()
    card = _read_card(answer)
    launches = listed.read(model, card.name) if __version__ in support.HOPPER_TRITON else []
    offline.compile_for(card)
    with offline.noted() as kernels:
        for launch in launches:
            launch_list.launch(launch)
    gc.enable()
    with os.fdopen(names, "w", encoding="utf-8") as told:
        told.write("\n".join(kernels))
    processes = max(1, compile_process.default_processes() - _IMPORTING)
    forks = compile_forks.compile_in_forks(kernels, processes, compile_forks.tell)
    compile_forks.wait_for(forks)


def _asked(devices: str) -> int:
    """What a process will be told by the driver of the first GPU, as JSON; the read end of a
    pipe."""
    out, into = os.pipe()
    if os.fork():
        os.close(into)
        return out
    try:
        if devices:
            os.environ[compile_process.DEVICES] = devices
        else:
            del os.environ[compile_process.DEVICES]
        os.write(into, json.dumps(_ask_driver()).encode())
    finally:
        os._exit(0)


def _ask_driver() -> tuple[str, list[int]]:
    """Name of the first GPU, and what `_MAJOR` and so on stand for. Raises OSError."""
    driver = ctypes.CDLL("libcuda.so.1")
    name, number = ctypes.create_string_buffer(_NAME), ctypes.c_int()
    driver.cuInit(0)
    driver.cuDeviceGetName(name, _NAME, 0)
    numbers = []
    for attribute in (_MAJOR, _MINOR, _SHARED):
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, 0)
        numbers.append(number.value)
    return name.value.decode(), numbers


def _read_card(answer: int) -> OfflineCard:
    """Raises ValueError where the driver has told nothing."""
    with os.fdopen(answer) as told:
        name, (major, minor, shared) = json.load(told)
    return OfflineCard(10 * major + minor, shared, name)
