"""`quire serve` over a fake device with one fault, as a process of its own.

    python faulty_server.py FAULT [WATCHDOG_SECONDS WATCHDOG_EXIT_SECONDS]

FAULT strikes in the third step: none; hangs (the step never ends); grabs (it never ends, and holds
the interpreter's lock all the while); lost (the device is).
"""

import ctypes
import sys
import threading

from fake_engine import Builder, Device, DeviceLost, Pending

from quire.engine.config import EngineConfig
from quire.engine.plan import StepPlan, StepResult
from quire.engine.thread_link import ThreadLink
from quire.service import process, server
from quire.service.settings import ServiceConfig, Settings

STRIKES = 3


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
                ctypes.PyDLL(None).sleep(600)
            elif self._fault == "lost":
                raise DeviceLost("the device has left")
        return result


class FaultyDevice(Device):
    """Every step of it may be struck."""

    def __init__(self, fault: str) -> None:
        super().__init__(step_seconds=0.005)
        self._fault = fault

    def execute(self, plan: StepPlan) -> Struck:
        return Struck(self, plan, self._fault)


def main() -> int:
    fault, bounds = sys.argv[1], [float(word) for word in sys.argv[2:]] or [0.0, 0.0]
    device = FaultyDevice(fault)

    def make_link(config: EngineConfig) -> ThreadLink:
        return ThreadLink(config, Builder(device))

    server._ENGINE_STOP = 0.5
    service = ServiceConfig(
        port=0,
        drain_seconds=0.5,
        watchdog_seconds=bounds[0],
        watchdog_exit_seconds=bounds[1],
    )
    settings = Settings(EngineConfig(block_size=16, num_blocks=512), service)
    return process.serve_forever(settings, make_link)


if __name__ == "__main__":
    sys.exit(main())
