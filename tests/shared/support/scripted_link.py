"""A link to an engine that the test itself plays."""

import dataclasses
from collections.abc import Sequence

from support.some_engine import INFO as SOME_ENGINE

from quire.engine.client.link import Receiver
from quire.engine.loop.commands import Command
from quire.engine.loop.loop import Batch
from quire.engine.loop.stats import EngineInfo, EngineStats
from quire.engine.loop.step_times import StepTimes
from quire.engine.request import Output

INFO = dataclasses.replace(SOME_ENGINE, max_model_len=16)


class ScriptedLink:
    """A Link: keeps what is sent, and says what the test has it say."""

    loop_share = 0.5
    own_process = True

    def __init__(self) -> None:
        self.sent: list[Command] = []
        self.flushed = 0  # of those, when that was last asked for

    async def start(self, receiver: Receiver) -> EngineInfo:
        self._receiver = receiver
        return INFO

    def send(self, command: Command) -> None:
        self.sent.append(command)

    def flush(self) -> None:
        self.flushed = len(self.sent)

    def say(self, outputs: Sequence[Output], answers: tuple[bytes | int, ...] = ()) -> None:
        self._receiver.deliver([Batch(list(outputs), EngineStats(), StepTimes(), answers)])

    def busy_since(self) -> float | None:
        return None

    def stack(self) -> str:
        return ""

    def give_up(self) -> None:
        pass

    async def stop(self) -> None:
        pass
