"""Matchers of outputs that repeat a cycle of ids, and an engine under them."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

from support.small_engine import Setup, build_core, load_model, model_config

from quire.engine.errors import ConstraintError, RequestError
from quire.engine.loop.core import EngineCore
from quire.engine.request import (
    Constraint,
    FinishReason,
    GenerationRequest,
    Output,
    SamplingParams,
    Vocabulary,
)
from quire.engine.scheduling.matching import BeginWork, Mask, Room, Step, one_by_one

MODEL = load_model(model_config(), seed=3)


PARAMS = SamplingParams(temperature=1.0, max_tokens=20, eos_token_ids=(1,))


PATIENCE = 20.0


class Cycle:
    """Ids whose remainder by three goes round; may end after six; exhausted at `limit` tokens."""

    def __init__(self, limit: int = 1000, count: int = 0) -> None:
        self.limit, self.count = limit, count

    def mask(self) -> bytearray:
        mask = bytearray(48)
        if self.count < 12:
            for i in range(3 + self.count % 3, 384, 3):
                mask[i >> 3] |= 1 << (i & 7)
        return mask

    def accept(self, token_id: int) -> None:
        if token_id % 3 != self.count % 3:
            raise ConstraintError(f"{token_id} after {self.count}")
        self.count += 1
        if self.count == self.limit:
            raise ConstraintError("exhausted")

    def may_end(self) -> bool:
        return self.count >= 6

    def copy(self) -> "Cycle":
        return Cycle(self.limit, self.count)


class Cycles:
    """Implements Matchers. `open`: compiling waits for it."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        pass

    def get_ready(self) -> bool:
        return False

    def set_concurrent_work(self, begin: BeginWork) -> None:
        pass

    def write_to(self, room: Room) -> None:
        pass

    def advance(self, steps: Sequence[Step]) -> list[Mask | Exception]:
        return one_by_one(steps)

    def compile(self, constraint: Constraint) -> Cycle:
        assert self.open.wait(PATIENCE)
        if not constraint.text.isdigit():
            raise RequestError("constraint", "not a number")
        return Cycle(int(constraint.text))


class Slow(Cycles):
    """Its masks come when the work beside them is done."""

    def set_concurrent_work(self, begin: BeginWork) -> None:
        self.begin = begin

    def advance(self, steps: Sequence[Step]) -> list[Mask | Exception]:
        self.begin()()
        return one_by_one(steps)


def engine(setup: Setup, matchers: Cycles | None = None) -> EngineCore:
    core = build_core(*MODEL, setup)
    made = matchers or Cycles()
    return EngineCore(core.scheduler, core.runner, overlap=setup.overlap, matchers=made)


def asked(key: int, limit: str = "1000", **more: int) -> GenerationRequest:
    params = replace(PARAMS, seed=key)
    return GenerationRequest(
        key, (5, 6, 7, key + 9), params, constraint=Constraint("cycle", limit), **more
    )


def outputs(core: EngineCore) -> Iterator[Output]:
    for _ in range(4000):
        if not core.has_requests:
            return
        yield from core.step()
    raise AssertionError("it does not end")


Answers = dict[tuple[int, int], tuple[list[int], FinishReason | None]]


def run(core: EngineCore, requests: list[GenerationRequest]) -> Answers:
    found: dict[tuple[int, int], list[Output]] = {}
    for request in requests:
        for output in core.submit(request):
            found.setdefault((output.key, output.index), []).append(output)
    for output in outputs(core):
        found.setdefault((output.key, output.index), []).append(output)
    return {
        at: ([token for one in said for token in one.token_ids], said[-1].finish)
        for at, said in found.items()
    }
