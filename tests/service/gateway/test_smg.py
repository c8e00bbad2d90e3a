"""smg itself in front of two servers: OpenAI's client, unmodified, through a gateway that routes by
what each server says of its cache. Runs where the package smg is installed."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from support import programs
from support.free_ports import free_ports
from support.patience import PATIENCE
from support.server_process import Process, environment, process

from quire.service.models import pocket
from quire.v1 import inference_pb2 as pb
from quire.v1 import inference_pb2_grpc as pb_grpc

SMG = Path(sys.executable).with_name("smg")
pytestmark = pytest.mark.skipif(not SMG.exists(), reason="the package smg is not installed")
CONVERSATIONS, TURNS = 6, 4


@dataclass
class Worker:
    process: Process
    address: str
    gateway: str

    def stats(self) -> pb.StatsResponse:
        with grpc.insecure_channel(self.address) as channel:
            stub = pb_grpc.InferenceServiceStub(channel)
            answer: pb.StatsResponse = stub.Stats(pb.StatsRequest(), timeout=PATIENCE)
            return answer

    def until(self, holds: Any) -> pb.StatsResponse:
        """Stats, once something holds."""
        end = time.monotonic() + PATIENCE
        while not holds(stats := self.stats()):
            assert time.monotonic() < end, stats
            time.sleep(0.02)
        return stats


@dataclass
class Fleet:
    url: str
    workers: list[Worker]

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)


def worker(held: ExitStack) -> Worker:
    running = held.enter_context(
        process("--gateway-port", "0", "--block-size", "16", "--prefix-cache-seed", "1")
    )
    address = running.address()
    line = running.wait_for("vLLM's engine service on")
    return Worker(running, address, line.rsplit(" on ", 1)[1].strip())


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with ExitStack() as held:
        workers = [worker(held) for _ in range(2)]
        port, metrics = free_ports(2)
        words = [str(SMG), "launch", "--host", "127.0.0.1", "--port", str(port)]
        words += ["--worker-urls", *(f"grpc://{one.gateway}" for one in workers)]
        words += ["--model-path", str(pocket.directory()), "--policy", "cache_aware"]
        words += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics)]
        words += ["--health-check-interval-secs", "1"]
        running = programs.start(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
        )
        held.callback(running.wait)
        held.callback(running.kill)
        url = f"http://127.0.0.1:{port}"
        wait_for_workers(running, url, len(workers))
        yield Fleet(url, workers)


def wait_for_workers(running: Any, url: str, count: int) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        assert running.poll() is None, "the gateway has ended"
        try:
            with urllib.request.urlopen(f"{url}/workers", timeout=5) as answer:
                listed = json.load(answer)["workers"]
            if sum(one.get("is_healthy", False) for one in listed) == count:
                return
        except OSError:
            pass
        assert time.monotonic() < end, "the gateway does not find its workers"
        time.sleep(0.1)


def test_the_client_streams_what_a_server_says_itself(fleet: Fleet) -> None:
    asked = [{"role": "user", "content": "What is Quire?"}]
    with grpc.insecure_channel(fleet.workers[0].address) as channel:
        request = pb.GenerateRequest(sampling=pb.SamplingParams(temperature=0, max_tokens=24))
        request.chat.messages.add(role="user", content="What is Quire?")
        events = pb_grpc.InferenceServiceStub(channel).Generate(request, timeout=PATIENCE)
        said = "".join(event.delta.text for event in events)
    with fleet.client() as client:
        chunks = list(
            client.chat.completions.create(
                model="pocket", messages=asked, temperature=0, max_tokens=24, stream=True
            )
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == said and len(chunks) > 5
        whole = client.chat.completions.create(
            model="pocket", messages=asked, temperature=0, max_tokens=24
        )
        assert whole.choices[0].message.content == said
        assert whole.usage is not None and whole.usage.completion_tokens <= 24


def test_a_client_that_leaves_ends_the_call_on_its_server(fleet: Fleet) -> None:
    before = sum(one.stats().requests.finished_cancelled for one in fleet.workers)
    with fleet.client() as client:
        stream = client.completions.create(
            model="pocket",
            prompt="Once",
            max_tokens=900,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(iter(stream))
        stream.close()
    idle = [
        one.until(lambda stats: stats.requests.running == stats.requests.waiting == 0)
        for one in fleet.workers
    ]
    assert sum(stats.requests.finished_cancelled for stats in idle) == before + 1


def test_conversations_stay_where_their_blocks_are(fleet: Fleet) -> None:
    messages: list[list[dict[str, str]]] = [
        [{"role": "user", "content": f"Number {i} asks: what can {'you ' * 12}do?"}]
        for i in range(CONVERSATIONS)
    ]
    asked = found = kept = 0
    with fleet.client() as client:
        for turn in range(TURNS):
            for talk in messages:
                answer = client.chat.completions.create(
                    model="pocket",
                    messages=talk,  # type: ignore[arg-type]
                    temperature=0,
                    max_tokens=16,
                )
                said = answer.choices[0].message.content or ""
                usage = answer.usage
                assert usage is not None and usage.prompt_tokens_details is not None
                cached = usage.prompt_tokens_details.cached_tokens or 0
                asked, found = asked + usage.prompt_tokens, found + cached
                kept += bool(turn) and cached > usage.prompt_tokens // 2
                talk += [
                    {"role": "assistant", "content": said},
                    {"role": "user", "content": "And what else can you tell me of that?"},
                ]
    used = [one.stats().tokens.prompt for one in fleet.workers]
    print(f"the policy's hit share: {found / asked:.3f}; prompt tokens of each server: {used}")
    assert kept >= 0.9 * CONVERSATIONS * (TURNS - 1)


def test_a_server_that_is_killed_is_left_out(fleet: Fleet) -> None:
    fleet.workers[1].process.process.kill()
    with fleet.client() as client:
        for i in range(12):
            answer = client.chat.completions.create(
                model="pocket", messages=[{"role": "user", "content": f"{i}"}], max_tokens=4
            )
            assert answer.usage is not None and answer.usage.completion_tokens > 0
