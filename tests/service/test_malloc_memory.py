"""What large work has freed goes back to the system, and not too often."""

import ctypes
import os
import subprocess
import sys
import threading
from typing import Any

import pytest
from support.harness import run
from support.patience import PATIENCE

from quire.service import malloc_memory
from quire.service.constraints.deep_threads import DeepThreads
from quire.service.text.workers import LARGE_BYTES, PromptWorkers


class Libc:
    def __init__(self) -> None:
        self.trims = 0

    def malloc_trim(self, kept: int) -> int:
        self.trims += 1
        return kept


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is Linux's")
def test_it_is_asked_for_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    libc, now = Libc(), [100.0]
    later: list[float] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: libc)
    monkeypatch.setattr(malloc_memory.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(malloc_memory, "_next", 0.0)
    monkeypatch.setattr(malloc_memory, "_waiting", False)
    monkeypatch.setattr(malloc_memory, "_later", later.append)
    for _ in range(3):
        malloc_memory.give_back()
        now[0] += 1.0
    assert (libc.trims, later) == (1, [malloc_memory.PAUSE - 1])  # what came since goes back then
    now[0] += malloc_memory.PAUSE
    malloc_memory._due()
    assert libc.trims == 2
    malloc_memory.give_back()
    assert (libc.trims, later) == (2, [malloc_memory.PAUSE - 1, malloc_memory.PAUSE])
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())  # another malloc
    now[0] += malloc_memory.PAUSE
    malloc_memory.give_back()


def test_it_is_asked_for_behind_large_prompts_and_behind_grammars(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    large_done = threading.Event()

    def give_back() -> None:
        asked.append(threading.current_thread().name.rpartition("-")[0])
        large_done.set()

    monkeypatch.setattr(malloc_memory, "give_back", give_back)

    async def prompts(*sizes: int) -> None:
        workers = PromptWorkers()
        for size in sizes:
            await workers.run(lambda _wanted: None, size=size)
        workers.close()

    run(lambda: prompts(LARGE_BYTES, 1))
    assert not asked
    run(lambda: prompts(LARGE_BYTES + 1))
    assert large_done.wait(PATIENCE)
    assert asked == ["quire-prompts"]
    large_done.clear()
    result: Any = DeepThreads().run(lambda: "compiled")
    assert result == "compiled" and large_done.wait(PATIENCE)
    assert asked == ["quire-prompts", "quire"]


ARENAS = """
import ctypes, os, sys, threading
from quire.service import malloc_memory
malloc_memory.few_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
held = threading.Barrier(7)
def work():
    libc.malloc(5000)
    held.wait()
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
held.wait()
reader, writer = os.pipe()
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(writer, b"w"))
libc.malloc_info(0, out)
libc.fclose(out)
print(os.read(reader, 1 << 20).count(b"<heap nr="))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="glibc's malloc")
def test_threads_share_few_arenas() -> None:
    clean = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    for environment, expected in (
        (clean, malloc_memory.ARENAS),
        (clean | {"MALLOC_ARENA_MAX": "5"}, 5),
    ):
        ran = subprocess.run(
            [sys.executable, "-c", ARENAS], env=environment, capture_output=True, check=True
        )
        assert int(ran.stdout) == expected
