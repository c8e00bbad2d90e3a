"""`quire serve` over a fake device with one fault, as a process of its own.

    python faulty_server.py PLACE FAULT [WATCHDOG_SECONDS WATCHDOG_EXIT_SECONDS]

PLACE is where the engine runs: thread or process. FAULT strikes in the third step: none; hangs (the
step never ends); grabs (it never ends, and holds the interpreter's lock all the while); lost (the
device is).
"""

import ctypes
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from support.fake_engine import Builder, Device, DeviceLost, Pending
from support.patience import PATIENT

from quire.engine.client import process_main
from quire.engine.client.child import Child
from quire.engine.client.in_process import ProcessLink
from quire.engine.client.link import Link
from quire.engine.config import EngineConfig
from quire.engine.scheduling.plan import StepPlan, StepResult
from quire.service.settings import ServiceConfig, Settings
from quire.service.telemetry import logs

STRIKES = 3
SLOTS = 64


class Struck(Pending):
    """A step that may be the one."""

    def __init__(self, device: Device, plan: StepPlan, fault: str) -> None:
        super().__init__(device, plan)
        self._steps = device
        self._fault = fault

    def wait(self) -> StepResult:
        result = super().wait()
        if self._steps.steps >= STRIKES:
            if self._fault == "hangs":
                threading.Event().wait()
            elif self._fault == "grabs":
                lock_twice()
            elif self._fault == "lost":
                raise DeviceLost("the device has left")
        return result


def lock_twice() -> None:
    """Never returns, whatever signals come, and keeps the interpreter's lock."""
    mutex, held = ctypes.create_string_buffer(128), ctypes.PyDLL(None)
    held.pthread_mutex_lock(mutex)
    held.pthread_mutex_lock(mutex)


class FaultyDevice(Device):
    """Every step of it may be struck."""

    def __init__(self, fault: str) -> None:
        super().__init__(step_seconds=0.005)
        self._fault = fault

    def execute(self, plan: StepPlan) -> Struck:
        return Struck(self, plan, self._fault)


def on_a_thread(fault: str) -> Callable[[EngineConfig], Link]:
    from quire.engine.client.in_thread import ThreadLink  # with it comes torch

    return lambda config: ThreadLink(config, Builder(FaultyDevice(fault)))


def in_a_process(fault: str) -> Callable[[EngineConfig], Link]:
    child = Child([sys.executable, __file__, "child", fault])
    return lambda config: ProcessLink(config, child)


def be_the_child(fault: str, connection: str, mark: str) -> NoReturn:
    logs.set_up("text", "info")
    builder = Builder(FaultyDevice(fault))
    process_main.run(lambda: builder, int(connection), int(mark), logs.flush)


def main(place: str, fault: str, *words: str) -> NoReturn:
    from quire.service.app import process, server  # seconds that the child has no need of

    bounds = [float(word) for word in words] or [0.0, 0.0]
    if fault != "none":
        server._ENGINE_STOP = 0.5
    service = ServiceConfig(
        http_port=0,
        port=0,
        drain_seconds=0.5,
        watchdog_seconds=bounds[0],
        watchdog_exit_seconds=bounds[1],
        **PATIENT,
    )
    settings = Settings(EngineConfig(block_size=16, num_blocks=512, max_num_seqs=SLOTS), service)
    make_link = {"thread": on_a_thread, "process": in_a_process}[place](fault)
    process.leave(process.serve_forever(settings, make_link))


if __name__ == "__main__":
    if sys.argv[1] == "child":
        be_the_child(*sys.argv[2:])
    main(*sys.argv[1:])
