"""The server process of the serving benchmark: the engine straight, then the same one served.

The engine is built where it will be served from, on a thread or in a process of its own, and there,
before it is handed to the server, it runs the works straight: its loop driven to the end, every
token made into text, no event loop, no gRPC. What came of it is left in a file.
Speaks JSON lines: says what came of the straight runs and the port; then, asked to `mark`, begins
to count, and asked to `report`, says what was counted.

    python benchmarks/serving_server.py JSON
    python benchmarks/serving_server.py JSON SCRATCH SOCKET MARK      # the engine's process
"""

import asyncio
import json
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parent))

from fake_device import VOCAB_SIZE, FakeBuilder
from serving_vocabulary import save_tokenizer
from serving_work import Work
from thread_times import ThreadTimes

from quire.engine.client import process_main
from quire.engine.client.async_engine import AsyncEngine
from quire.engine.client.child import Child
from quire.engine.client.in_process import ProcessLink
from quire.engine.client.in_thread import ThreadLink
from quire.engine.config import EngineConfig
from quire.engine.loop import garbage
from quire.engine.loop.core import EngineCore
from quire.engine.loop.loop import BuiltEngine, Progress
from quire.engine.loop.step_times import BOUNDS, KINDS, StepTimes
from quire.engine.model.load_config import model_config
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.startup.build_engine import build_engine
from quire.service.app.event_loop import new_event_loop
from quire.service.app.process import _SWITCH_SECONDS
from quire.service.app.server import Server
from quire.service.models.resolve import ResolvedModel
from quire.service.settings import ServiceConfig, Settings
from quire.service.telemetry import logs
from quire.service.text import tokenizer as tokenizers
from quire.service.text.text_stream import TextStream

MAX_MODEL_LEN = 4096


class StraightRuns:
    """A builder that runs works on the engine before it gives it away."""

    def __init__(self, build: Any, works: list[Work], scratch: Path) -> None:
        self._build, self._works, self._scratch = build, works, scratch

    def __call__(self, config: EngineConfig, progress: Progress) -> BuiltEngine:
        engine: BuiltEngine = self._build(config, progress)
        self._pieces = tokenizers.load(self._scratch, engine.info.vocab_size).text_pieces
        key = 1 << 40  # beyond what the server will give
        results = []
        for work in self._works:
            results.append(self._run(engine.core, work, key))
            key += work.streams * work.turns
        results_file(self._scratch).write_text(json.dumps(results))
        return engine

    def _run(self, core: EngineCore, work: Work, key: int) -> dict[str, Any]:
        requests = []
        for i, ask in enumerate(work.asks()):
            params = SamplingParams(
                temperature=ask.temperature, max_tokens=ask.max_tokens, seed=1, ignore_eos=True
            )
            salt = f"straight/{work.salt}".encode()
            requests.append(GenerationRequest(key + i, ask.prompt, params, cache_salt=salt))
        texts = {r.key: TextStream(self._pieces) for r in requests}
        first, tokens, characters = {}, 0, 0
        threads, steps = ThreadTimes(), core.scheduler.counters.steps
        times = StepsSince(core.step_times)
        start = time.monotonic()
        for at in range(0, len(requests), work.streams):
            began = time.monotonic()
            for request in requests[at : at + work.streams]:
                core.scheduler.submit(request)
            while core.scheduler.has_requests:
                for output in core.step():
                    text = texts[output.key]
                    for token_id in output.token_ids:
                        text.push(token_id)
                    piece = text.end() if output.finish is not None else text.take()
                    if piece is not None:
                        first.setdefault(output.key, output.time - began)
                        tokens += len(piece.ids)
                        characters += len(piece.text)
        seconds = time.monotonic() - start
        wanted = sum(r.sampling.max_tokens for r in requests)
        if tokens != wanted:
            raise RuntimeError(f"{tokens} tokens came, {wanted} were asked for")
        return {
            "seconds": seconds,
            "tokens": tokens,
            "characters": characters,
            "ttft_p50": sorted(first.values())[len(first) // 2],
            "steps": core.scheduler.counters.steps - steps,
            "step_seconds": times.report(core.step_times),
            "engine_cpu": threads.shares().get("quire-engine", 0.0),
        }


def results_file(scratch: Path) -> Path:
    """What came of the straight runs."""
    return scratch / "straight.json"


def builder(job: dict[str, Any], scratch: Path) -> StraightRuns:
    """Of the engine that the job asks for."""
    step_ms = job["step_ms"]
    build = build_engine if step_ms is None else FakeBuilder(step_ms / 1e3)
    return StraightRuns(build, [Work(**plain) for plain in job["straight"]], scratch)


class StepsSince:
    """How long the steps from now on take, by kind."""

    def __init__(self, times: StepTimes) -> None:
        self._before = [list(counts) for counts, _ in times.values()]

    def report(self, times: StepTimes) -> dict[str, dict[str, int]]:
        """How many steps of each kind took up to so many seconds ("inf": longer than any bound)."""
        bounds = [str(bound) for bound in (*BOUNDS, "inf")]
        return {
            kind: {
                b: now - old for b, now, old in zip(bounds, counts, past, strict=True) if now > old
            }
            for kind, (counts, _), past in zip(KINDS, times.values(), self._before, strict=True)
        }


class Counted:
    """What the server did between mark and report."""

    def __init__(self, engine: AsyncEngine, child: Child | None) -> None:
        self._engine = engine
        self._threads = ThreadTimes()
        self._child = None if child is None else ThreadTimes(child.pid)
        self._steps = engine.stats().steps_total
        self._times = StepsSince(engine.step_times() or StepTimes())

    def report(self) -> dict[str, Any]:
        """CPU share of each thread, the engine's process among them, and steps."""
        steps = self._engine.stats().steps_total - self._steps
        cpu = self._threads.shares()
        if self._child is not None:
            cpu |= self._child.shares()
        taken = self._times.report(self._engine.step_times() or StepTimes())
        return {"cpu": cpu, "steps": steps, "step_seconds": taken}


async def main(job: dict[str, Any], scratch: Path, stack: ExitStack) -> None:
    config = EngineConfig(max_model_len=MAX_MODEL_LEN, **job["engine"])
    fake = job["step_ms"] is not None
    vocabulary = VOCAB_SIZE if fake else model_config(config).vocab_size
    save_tokenizer(scratch, vocabulary)
    child = None
    if job["engine_process"]:
        child = Child([sys.executable, __file__, json.dumps(job), str(scratch)])
        stack.callback(child.end)
        engine = AsyncEngine(ProcessLink(config, child))
    else:
        engine = AsyncEngine(ThreadLink(config, builder(job, scratch)))
    settings = Settings(config, ServiceConfig(port=0, reflection=False, max_waiting=1 << 20))
    server = Server(settings, ResolvedModel("benchmark", config.model, scratch), engine)
    await server.open(MAX_MODEL_LEN)
    await server.load(vocabulary)
    say({"port": server.port, "straight": json.loads(results_file(scratch).read_text())})
    garbage.freeze()  # as `quire serve` does
    loop, counted = asyncio.get_running_loop(), Counted(engine, child)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        if line.strip() == "mark":
            counted = Counted(engine, child)
            say({})
        else:
            say(counted.report())
    await server.stop()


def be_the_child(job: dict[str, Any], scratch: Path, connection: int, mark: int) -> NoReturn:
    """The engine's process."""
    threading.current_thread().name = "quire-engine"
    process_main.run(lambda: builder(job, scratch), connection, mark)


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    logs.set_up("text", "info")  # as it runs in production; the benchmark drops what it says
    if sys.argv[2:]:
        be_the_child(json.loads(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
    sys.setswitchinterval(_SWITCH_SECONDS)
    with (
        tempfile.TemporaryDirectory() as scratch_directory,
        ExitStack() as stack,
        asyncio.Runner(loop_factory=new_event_loop) as runner,
    ):
        runner.run(main(json.loads(sys.argv[1]), Path(scratch_directory), stack))
