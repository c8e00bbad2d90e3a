"""An engine that dies, and who hears of it."""

import asyncio
import dataclasses
from typing import Any

from support.patience import PATIENCE
from support.some_engine import INFO as SOME_ENGINE

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.client.link import Receiver
from quire.engine.errors import EngineDeadError
from quire.engine.loop.commands import Command
from quire.engine.loop.core import EngineCore
from quire.engine.loop.loop import Batch
from quire.engine.loop.stats import EngineInfo, EngineStats
from quire.engine.loop.step_times import StepTimes
from quire.engine.request import FinishReason, Output

INFO = dataclasses.replace(SOME_ENGINE, max_model_len=16)


def end(key: int, index: int = 0) -> Output:
    return Output(key, index, token_ids=[5], finish=FinishReason.LENGTH)


def batch(*outputs: Output) -> Batch:
    return Batch(list(outputs), EngineStats(running=1), StepTimes())


def run(test: Any) -> Any:
    return asyncio.run(asyncio.wait_for(test, PATIENCE))


# ------------------------------------------------------------ the asyncio face


class ScriptedLink:
    """A Link whose engine is the test."""

    loop_share = 0.01  # the pacer is slow to wake anybody
    own_process = True

    async def start(self, receiver: Receiver) -> EngineInfo:
        self.deliver, self.died = receiver.deliver, receiver.died
        return INFO

    def send(self, command: Command) -> None: ...

    def flush(self) -> None: ...

    def busy_since(self) -> float | None:
        return None

    def stack(self) -> str:
        return ""

    def give_up(self) -> None: ...

    async def stop(self) -> None: ...


async def dies(_engine: AsyncEngine, link: ScriptedLink) -> None:
    link.died(EngineDeadError("x"))


# ------------------------------------------------------------ the loop and the core


class Lost(Exception):
    """What no engine survives."""


class Built:
    """A BuiltEngine. `asked`: how often its statistics were."""

    info = INFO

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self.asked = 0
        self.lost = False

    def stats(self) -> EngineStats:
        if self.lost:
            raise Lost("a lost device is asked")
        self.asked += 1
        return EngineStats(steps_total=self.asked)

    def stop(self) -> None:
        """Nobody else is to be told."""
