"""What a stream notices of heavy calls beside it: its longest gap between tokens.

A server and the callers, each in a process of its own, over a fake device of 10 ms a step, with the
embedded model's tokenizer and a chat template that shows calls of tools. One stream runs through;
beside it, again and again for some seconds each, calls that cost the server work before a token is
made. Only ratios mean anything: each load's longest gap over that of the same stream with nothing
beside it, measured in turn.

    python benchmarks/neighbours.py --out benchmarks/results/neighbours.json
"""

import argparse
import asyncio
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import grpc
from common import print_table, write_results
from fake_device import FakeBuilder

from quire.engine.client.async_engine import AsyncEngine
from quire.engine.client.in_thread import ThreadLink
from quire.engine.config import EngineConfig
from quire.engine.loop import garbage
from quire.service.app.event_loop import new_event_loop
from quire.service.app.process import _SWITCH_SECONDS
from quire.service.app.server import Server
from quire.service.models import pocket
from quire.service.models.resolve import ResolvedModel
from quire.service.settings import ServiceConfig, Settings
from quire.service.telemetry import logs
from quire.v1 import inference_pb2 as pb
from quire.v1 import inference_pb2_grpc as pb_grpc

STEP_SECONDS = 0.01
MAX_MODEL_LEN = 131_072
TEMPLATE = """\
{%- for message in messages -%}
[{{ message.role }}]
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<call>{{ call.function.name }} {{ call.function.arguments | tojson }}</call>
{%- endfor %}
{% endfor -%}
[assistant]
"""

Load = Callable[[], pb.GenerateRequest]


def tool_turns() -> pb.GenerateRequest:
    """400 calls of a tool and their answers."""
    messages = [pb.ChatMessage(role="user", content="go on")]
    for number in range(400):
        call = pb.ToolCall(id=f"c{number}", name="look_up", arguments_json='{"page": 1}')
        messages.append(pb.ChatMessage(role="assistant", tool_calls=[call]))
        answer = pb.ChatMessage(role="tool", content="nothing", tool_call_id=f"c{number}")
        messages.append(answer)
    return one_token(chat=pb.Chat(messages=messages))


def text(size: int) -> Load:
    """So many bytes of plain words."""
    words = "word and " * (size // 9)
    return lambda: one_token(text=words)


def resume() -> pb.GenerateRequest:
    """A stream of 34 KB that goes on, with 16 stop strings that almost match."""
    stops = ["a" * (255 - number) + "~" for number in range(16)]
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[300]))
    request.resume_token_ids.extend(300 + number % 900 for number in range(17_000))
    request.sampling.max_tokens = 17_001
    request.sampling.stop.extend(stops)
    return request


def one_token(**prompt: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(sampling=pb.SamplingParams(max_tokens=1), **prompt)


LOADS: dict[str, Load | None] = {
    "nothing": None,
    "400 tool turns": tool_turns,
    "4 MB of text": text(4_000_000),
    "0.9 MB of text": text(900_000),
    "34 KB resumed, 16 stops": resume,
}


class Stream:
    """One that runs through, and the times at which its messages came."""

    def __init__(self, stub: Any) -> None:
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[300, 301]))
        request.sampling.max_tokens = 100_000
        request.sampling.ignore_eos = True
        self._call = stub.Generate(request)
        self.times: list[float] = []

    async def read(self) -> None:
        async for _ in self._call:
            self.times.append(time.perf_counter())

    def gaps(self) -> list[float]:
        """Milliseconds between messages so far; begins anew."""
        times, self.times = self.times, self.times[-1:]
        return [(b - a) * 1e3 for a, b in pairwise(times)]

    def cancel(self) -> None:
        self._call.cancel()


def call_again(port: int, load: Load, seconds: float) -> dict[str, int]:
    """Call for so long, one call after another; how the calls ended, by status."""
    ends: dict[str, int] = {}
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        request = load()
        say({})
        limit = time.perf_counter() + seconds
        while time.perf_counter() < limit:
            call = stub.Generate(request)
            with contextlib.suppress(grpc.RpcError):
                for _ in call:
                    pass
            name = call.code().name
            ends[name] = ends.get(name, 0) + 1
    return ends


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


async def beside(stream: Stream, port: int, name: str, seconds: float) -> dict[str, int]:
    """Have a process of its own send a load, and look at the stream meanwhile."""
    if LOADS[name] is None:
        stream.gaps()
        await asyncio.sleep(seconds)
        return {}
    words = [__file__, "--send", name, "--port", str(port), "--seconds", str(seconds)]
    sender = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdout=asyncio.subprocess.PIPE
    )
    assert sender.stdout is not None
    await sender.stdout.readline()
    stream.gaps()
    ends: dict[str, int] = json.loads(await sender.stdout.readline())
    return ends


async def measure(port: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """For each load the longest gaps of all rounds, and how its calls ended."""
    found: dict[str, dict[str, Any]] = {name: {"longest_gap_ms": [], "ends": {}} for name in LOADS}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stream = Stream(pb_grpc.InferenceServiceStub(channel))
        reading = asyncio.create_task(stream.read())
        await asyncio.sleep(1.0)
        for _ in range(rounds):
            for name, row in found.items():
                ends = await beside(stream, port, name, seconds)
                row["longest_gap_ms"].append(max(stream.gaps()))
                for end, count in ends.items():
                    row["ends"][end] = row["ends"].get(end, 0) + count
        stream.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    return [{"load": name, **row} for name, row in found.items()]


async def serve(directory: Path) -> None:
    """Until standard input ends; prints the port."""
    config = EngineConfig(
        max_model_len=MAX_MODEL_LEN, num_blocks=20_000, max_num_batched_tokens=32_768
    )
    engine = AsyncEngine(ThreadLink(config, FakeBuilder(STEP_SECONDS)))
    settings = Settings(config, ServiceConfig(port=0, reflection=False))
    server = Server(settings, ResolvedModel("neighbours", "fake", directory), engine)
    await server.open(MAX_MODEL_LEN)
    await server.load(4096)
    garbage.freeze()
    print(server.port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load, each round")
    parser.add_argument("--out", type=Path, default=None, help="write results as JSON")
    parser.add_argument("--send", choices=LOADS, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        logs.set_up("text", "error")
        sys.setswitchinterval(_SWITCH_SECONDS)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(serve(options.serve))
    elif options.send is not None:
        load = LOADS[options.send]
        assert load is not None
        say(call_again(options.port, load, options.seconds))
    else:
        report(options.rounds, options.seconds, options.out)


def report(rounds: int, seconds: float, out: Path | None) -> None:
    """Measure, print and write."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "model"
        shutil.copytree(pocket.directory(), directory)
        (directory / "chat_template.jinja").write_text(TEMPLATE)
        command = [sys.executable, __file__, "--serve", str(directory)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None and server.stdin is not None
            port = int(server.stdout.readline())
            rows = asyncio.run(measure(port, rounds, seconds))
            server.stdin.close()
    alone = statistics.median(rows[0]["longest_gap_ms"])
    for row in rows:
        row["median_ms"] = statistics.median(row["longest_gap_ms"])
        row["over_nothing"] = row["median_ms"] / alone
    print_table(
        "longest gap of another stream",
        ["beside", "longest gap, ms", "over nothing", "calls"],
        [
            [r["load"], f"{r['median_ms']:.1f}", f"{r['over_nothing']:.2f}", str(r["ends"])]
            for r in rows
        ],
    )
    if out is not None:
        write_results(out, rows)


if __name__ == "__main__":
    main()
