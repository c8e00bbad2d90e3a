"""The OpenAI API against gRPC: the same calls over both faces of one server, in turn.

A fake device of 10 ms a step, the whole server above it, and clients in a process of their own that
do little more than read. Shares and differences are of one run:

    first token   of one stream, over HTTP less over gRPC: at most 1 ms
    256 streams   tokens a second over HTTP, of those over gRPC: at least 0.75

    python benchmarks/http_vs_grpc.py [--rounds 5] [--profile FILE] [--out FILE]
"""

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

STEP_SECONDS = 0.01
STREAMS = 256
TOKENS = 256
PROMPT = 32
CALLS = 60  # of one token, over each face
MAX_FIRST_MS, LEAST_SHARE = 1.0, 0.75


# ------------------------------------------------------------ the server's process


async def serve(profile: Path | None) -> None:
    """Serve until standard input ends; says the ports. profile: where to write what the event
    loop's thread did."""
    from fake_device import VOCAB_SIZE, FakeBuilder

    from quire.engine.client.async_engine import AsyncEngine
    from quire.engine.client.in_thread import ThreadLink
    from quire.engine.config import EngineConfig
    from quire.engine.loop import garbage
    from quire.service.app.server import Server
    from quire.service.models import pocket
    from quire.service.models.resolve import ResolvedModel
    from quire.service.settings import ServiceConfig, Settings
    from quire.service.telemetry import logs

    logs.set_up("text", "error")
    config = EngineConfig(
        max_num_seqs=STREAMS, max_num_batched_tokens=STREAMS * PROMPT, max_model_len=1024
    )
    settings = Settings(config, ServiceConfig(port=0))
    engine = AsyncEngine(ThreadLink(config, FakeBuilder(STEP_SECONDS)))
    server = Server(settings, ResolvedModel("fake", "fake", pocket.directory()), engine)
    await server.open(1024)
    await server.load(VOCAB_SIZE)
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    await server.open_http([listening])
    garbage.freeze()
    print(json.dumps([server.port, server.http_port]), flush=True)
    watch = cProfile.Profile(time.thread_time)  # others' time is not its own
    if profile is not None:
        watch.enable()
    await asyncio.to_thread(sys.stdin.read)
    if profile is not None:
        watch.disable()
        with profile.open("w") as file:
            pstats.Stats(watch, stream=file).sort_stats("tottime").print_stats(40)
    await server.stop()


# ------------------------------------------------------------ the clients' process


def prompt_of(number: int) -> list[int]:
    """Ids that no other number has."""
    return [1000 + (number * 31 + i) % 2000 for i in range(PROMPT)]


async def over_grpc(stub: Any, number: int, tokens: int) -> float:
    """One call to its end; seconds to its first token."""
    from quire.v1 import inference_pb2 as pb

    sampling = pb.SamplingParams(max_tokens=tokens, ignore_eos=True)
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt_of(number)), sampling=sampling)
    began, first, count = time.monotonic(), 0.0, 0
    async for message in stub.Generate(request):
        if message.HasField("delta"):
            first = first or time.monotonic() - began
            count += len(message.delta.token_ids)
    if count != tokens:
        raise RuntimeError(f"{count} tokens came, not {tokens}")
    return first


async def over_http(streams: Any, number: int, tokens: int) -> float:
    """The same, over a connection that stays."""
    reader, writer = streams
    body = json.dumps(
        {
            "model": "fake",
            "prompt": prompt_of(number),
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    began, first = time.monotonic(), 0.0
    writer.write(head.encode() + body)
    last = b""
    while not last.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
        data = await reader.read(1 << 16)
        if not data:
            raise RuntimeError("the connection ended: " + last.decode(errors="replace"))
        if not first and b'"text":' in data:
            first = time.monotonic() - began
        last = (last + data)[-2048:]
    if f'"completion_tokens":{tokens},'.encode() not in last:
        raise RuntimeError(f"not {tokens} tokens: " + last.decode(errors="replace"))
    return first


async def many(face: str, port: int) -> dict[str, float]:
    """STREAMS calls at once over one face; tokens a second from the first call to the last end."""
    if face == "grpc":
        from quire.v1 import inference_pb2_grpc as pb_grpc

        async with channel_to(port) as channel:
            stub: Any = pb_grpc.InferenceServiceStub(channel)
            await over_grpc(stub, 0, 1)
            calls = [over_grpc(stub, i, TOKENS) for i in range(STREAMS)]
            return await timed(calls)
    found = [await asyncio.open_connection("127.0.0.1", port) for _ in range(STREAMS)]
    await over_http(found[0], 0, 1)
    return await timed([over_http(one, i, TOKENS) for i, one in enumerate(found)])


async def timed(calls: list[Any]) -> dict[str, float]:
    """What all of them came to, together."""
    cpu, began = time.process_time(), time.monotonic()
    firsts = await asyncio.gather(*calls)
    seconds = time.monotonic() - began
    return {
        "rate": len(calls) * TOKENS / seconds,
        "client_cpu": (time.process_time() - cpu) / seconds,
        "first_p50_ms": statistics.median(firsts) * 1e3,
    }


async def first_tokens(port: int, http_port: int) -> dict[str, list[float]]:
    """Milliseconds to the first token of single calls, over each face in turn."""
    from quire.v1 import inference_pb2_grpc as pb_grpc

    found: dict[str, list[float]] = {"grpc": [], "http": []}
    async with channel_to(port) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        streams = await asyncio.open_connection("127.0.0.1", http_port)
        for number in range(CALLS + 3):
            both = await over_grpc(stub, number, 1), await over_http(streams, number, 1)
            if number >= 3:
                for face, seconds in zip(found, both, strict=True):
                    found[face].append(seconds * 1e3)
    return found


def channel_to(port: int) -> Any:
    """Plaintext."""
    import grpc.aio

    return grpc.aio.insecure_channel(f"127.0.0.1:{port}")


# ------------------------------------------------------------ both


@contextmanager
def child(*words: str) -> Iterator["subprocess.Popen[str]"]:
    """This file in another role; ended by the end of its input."""
    command = [sys.executable, __file__, *words]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        with suppress(BrokenPipeError):
            process.stdin.close()  # type: ignore[union-attr]
        process.wait(60)


def client(*words: str) -> Any:
    """What a client's process has to say."""
    done = subprocess.run(
        [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every round of both."""
    faces: dict[str, list[dict[str, float]]] = {"grpc": [], "http": []}
    words = ["--serve", *(["--profile", str(options.profile)] if options.profile else [])]
    with child(*words) as server:
        assert server.stdout is not None
        port, http_port = json.loads(server.stdout.readline())
        firsts = client("--first", str(port), str(http_port))
        for _ in range(options.rounds):
            for face, at in (("grpc", port), ("http", http_port)):
                run = client("--many", face, str(at))
                faces[face].append(run | {"load": os.getloadavg()[0]})
    return {"firsts": firsts, "faces": faces}


def report(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows for the file, and a table."""
    from common import print_table, result_row

    rows, table = [], []
    pairs = zip(found["faces"]["http"], found["faces"]["grpc"], strict=True)
    shares = [http["rate"] / grpc["rate"] for http, grpc in pairs]
    for face, runs in found["faces"].items():
        firsts = found["firsts"][face]
        rates = [run["rate"] for run in runs]
        more = {"runs_all": runs, "streams": STREAMS}
        rows.append(result_row(f"{face}-{STREAMS}", "fake", "quire", rates, "tokens/s", **more))
        rows.append(result_row(f"{face}-first", "fake", "quire", firsts, "ms"))
        rate, first = statistics.median(rates), statistics.median(firsts)
        cpu = statistics.median(run["client_cpu"] for run in runs)
        table.append([face, first, rate, cpu, runs[-1]["load"]])
    columns = ["face", "first token ms", "tokens/s", "client's cpu", "load"]
    print_table(f"one stream, and {STREAMS}", columns, table)
    later = table[1][1] - table[0][1]
    share = statistics.median(shares)
    print(f"first token over HTTP: {later:+.2f} ms (at most {MAX_FIRST_MS})")
    print(f"tokens/s over HTTP: {share:.2f} of gRPC's (at least {LEAST_SHARE})")
    rows[1] |= {"later_ms": later, "most_ms": MAX_FIRST_MS}
    rows[2] |= {"shares": shares, "share": share, "least_share": LEAST_SHARE}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", type=Path, default=None, help="write what the loop did")
    parser.add_argument("--out", type=Path, default=None, help="write results as JSON")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--many", nargs=2, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--first", nargs=2, type=int, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        from quire.service.app.event_loop import new_event_loop
        from quire.service.app.process import _SWITCH_SECONDS

        sys.setswitchinterval(_SWITCH_SECONDS)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(serve(options.profile))
    elif options.many is not None:
        print(json.dumps(asyncio.run(many(options.many[0], int(options.many[1])))))
    elif options.first is not None:
        print(json.dumps(asyncio.run(first_tokens(*options.first))))
    else:
        rows = report(measure(options))
        if options.out is not None:
            from common import write_results

            write_results(options.out, rows)


if __name__ == "__main__":
    main()
