"""The storm: a server over a faulty device, clients that do everything wrong, and the books.

Invariant held to after each wave, when nothing is open: every accepted call has one terminal record
and every living client a status; Stats' counters add up; all blocks are back; no object of a call
outlives it; a fixed request has its fixed answer.
"""

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
import torch
from support import programs
from support.fake_engine import EOS, Device, Pending
from support.harness import Running, ask, generate, serving

from quire.engine.scheduling.plan import StepPlan, StepResult
from quire.v1 import inference_pb2 as pb

CLIENT = Path(__file__).with_name("storm_client.py")
PARALLEL = 24  # calls of one client process at a time
MORTAL = 4  # one client process in so many is killed
LOOKS = 20
SETTLE = 60.0  # seconds in which everything open must come to its end
# What a call is made of: none may be left when none is open.
OURS = {
    "quire.engine.request": {"GenerationRequest", "Output"},
    "quire.engine.scheduling.plan": {"StepPlan"},
    "quire.engine.scheduling.request": {"Request"},
    "quire.engine.client.stream": {"Stream"},
    "quire.service.rpc.call_admission": {"Call"},
    "quire.service.rpc.responses": {"CallOutput", "IndexState"},
    "quire.service.text.text_stream": {"TextStream"},
    "quire.service.rpc.validation": {"Accepted"},
}
GRPC = {"grpc._cython.cygrpc": {"_ServicerContext", "RPCState"}}


class Poison(list[int]):
    """Tokens of one row that cannot even be looked at."""

    def __iter__(self) -> Any:
        raise RuntimeError("an injected fault of one request")


class FaultyDevice(Device):
    """Fails launches, steps and single rows, runs out of memory, and stalls, by its own dice."""

    def __init__(self, seed: int) -> None:
        super().__init__(step_seconds=0.001)
        self.calm = True
        self.injected: Counter[str] = Counter()
        self._chance = random.Random(seed)

    def strikes(self, fault: str, share: float) -> bool:
        """Whether this fault comes now."""
        if self.calm or self._chance.random() >= share:
            return False
        self.injected[fault] += 1
        return True

    def execute(self, plan: StepPlan) -> "FaultyPending":
        if self.strikes("launch", 0.002):
            raise RuntimeError("an injected fault of a launch")
        return FaultyPending(self, plan)


class FaultyPending(Pending):
    def __init__(self, device: FaultyDevice, plan: StepPlan) -> None:
        super().__init__(device, plan)
        self._faulty = device

    def wait(self) -> StepResult:
        device = self._faulty
        if device.strikes("stall", 0.002):
            time.sleep(0.05)
        result = super().wait()
        if device.strikes("step", 0.003):
            raise RuntimeError("an injected fault of a step")
        if device.strikes("memory", 0.001):
            raise torch.OutOfMemoryError("an injected want of memory")
        for row, tokens in enumerate(result.tokens):
            if device.strikes("row", 0.0004):
                result.tokens[row] = Poison(tokens)
            elif device.strikes("token", 0.0004):
                result.tokens[row] = [-1]  # no token: what turns it into a message fails
        return result


class Records(logging.Handler):
    """The terminal records, by request id, and the faults that the log knows."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: Counter[str] = Counter()
        self.faults = 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "request ended":
            self.ended[record.fields["request_id"]] += 1  # type: ignore[attr-defined]
        elif record.levelno >= logging.ERROR:
            self.faults += 1


@dataclass
class Sample:
    """After one wave: calls so far, resident bytes."""

    calls: int
    resident: int


@dataclass
class Report:
    """What the storm has seen, and what was wrong."""

    calls: int = 0
    killed: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    stats: pb.StatsResponse = field(default_factory=pb.StatsResponse)
    seconds: float = 0.0

    @property
    def slope(self) -> float:
        """Bytes of resident memory a call, over the last half: least squares."""
        half = self.samples[len(self.samples) // 2 :]
        if len(half) < 3:
            return 0.0
        x = sum(s.calls for s in half) / len(half)
        y = sum(s.resident for s in half) / len(half)
        spread = sum((s.calls - x) ** 2 for s in half)
        return sum((s.calls - x) * (s.resident - y) for s in half) / spread


class Storm:
    """One run over one server."""

    def __init__(self, running: Running, device: FaultyDevice, seed: int) -> None:
        self.report = Report()
        self._running = running
        self._device = device
        self._seed = seed
        self._chance = random.Random(seed)
        self._records = Records()
        self._known: set[str] = set()  # request ids that living clients saw accepted
        self._received = 0
        self._clients = 0
        self._fixed = 0
        self._accepted = 0  # calls with a terminal record
        self._ready: Counter[str] = Counter()

    async def run(self, calls: int, wave: int, after_wave: Callable[[Report], None]) -> Report:
        """So many calls of living clients, in waves."""
        log = logging.getLogger("quire")
        level, propagate = log.level, log.propagate
        log.addHandler(self._records)
        log.setLevel(logging.INFO)
        log.propagate = False
        began = time.monotonic()
        try:
            await self._fixed_request()
            # gRPC has some there at all times, for calls to come; a test before this one may have
            # left some of ours.
            self._ready = objects_of_calls(OURS | GRPC)
            while self.report.calls < calls:
                await self._wave(min(wave, calls - self.report.calls))
                after_wave(self.report)
        finally:
            log.removeHandler(self._records)
            log.setLevel(level)
            log.propagate = propagate
            self.report.seconds = time.monotonic() - began
            self.report.injected = self._device.injected
        return self.report

    async def _wave(self, calls: int) -> None:
        self._device.calm = False
        share = -(-calls // (MORTAL - 1))
        await asyncio.gather(
            *(self._client(min(share, calls - at)) for at in range(0, calls, share)),
            self._mortal(share),
        )
        self.report.calls += calls
        self._device.calm = True
        await self._settle()

    # ------------------------------------------------------------ clients

    def _spawn(self, calls: int) -> "programs.Forked | subprocess.Popen[Any]":
        self._clients += 1
        return programs.start(
            [
                *(sys.executable, CLIENT, f"127.0.0.1:{self._running.server.port}"),
                *(str(self._seed * 10_000 + self._clients), str(calls), str(PARALLEL)),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )

    async def _client(self, calls: int) -> None:
        """One that lives: each of its calls has had a status."""
        process = self._spawn(calls)
        said, _ = await asyncio.to_thread(process.communicate)
        if process.returncode:
            self._complain(f"a client ended with {process.returncode}")
            return
        tally = json.loads(said.splitlines()[-1])
        self.report.codes.update(tally["codes"])
        self.report.kinds.update(tally["kinds"])
        self._known.update(tally["accepted"])
        self._received += tally["received"]
        for wrong in tally["wrong"]:
            self._complain(wrong)

    async def _mortal(self, calls: int) -> None:
        """One that is killed in mid-work, its streams open."""
        process = self._spawn(calls)
        assert process.stdout is not None
        for _ in range(self._chance.randint(1, max(calls // 2, 1))):
            await asyncio.to_thread(process.stdout.readline)
        process.kill()
        await asyncio.to_thread(process.communicate)
        self.report.killed += 1

    # ------------------------------------------------------------ the books

    def _complain(self, wrong: str) -> None:
        self.report.wrong.append(f"after {self.report.calls} calls: {wrong}")

    def _demand(self, holds: bool, wrong: str) -> None:
        if not holds:
            self._complain(wrong)

    async def _settle(self) -> None:
        """Everything must come to its end by itself; then everything must be in order."""
        ledger = self._running.server.ledger
        try:
            async with asyncio.timeout(SETTLE):
                await self._running.idle()
                while ledger.open:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            self._complain(f"{ledger.open} completions still open after {SETTLE:g} s")
            return
        stats = await self._fixed_request()
        self._check_counters(stats)
        self._check_records()
        self._check_pool()
        await self._check_objects()
        self.report.samples.append(Sample(self.report.calls, resident()))

    async def _fixed_request(self) -> pb.StatsResponse:
        """It has its fixed answer. Returns Stats when it has ended."""
        answer = await generate(self._running, ask([300, 301, 302], seed=7, request_id="fixed"))
        fixed = answer.code is grpc.StatusCode.OK and answer.ids() == [300, 301, 302, EOS]
        self._demand(fixed, f"the fixed request's answer: {answer.code.name} {answer.ids()}")
        self._records.ended.pop("fixed", None)
        self._fixed += 1
        self.report.stats = await self._running.idle()
        return self.report.stats

    def _check_counters(self, stats: pb.StatsResponse) -> None:
        requests, tokens, ledger = stats.requests, stats.tokens, self._running.server.ledger
        ends = requests.finished_stop + requests.finished_length
        ends += requests.finished_cancelled + requests.finished_error
        self._demand(requests.accepted == ends, f"{requests.accepted} accepted, {ends} ended")
        told = tokens.delivered + tokens.discarded
        self._demand(tokens.generated >= told, f"{tokens.generated} tokens made, {told} told of")
        got, sent = self._received, tokens.delivered
        self._demand(sent >= got, f"{sent} tokens delivered, {got} received")
        rpcs = {code: n for (method, code), n in ledger.rpcs.items() if method == "Generate"}
        self._accepted += sum(self._records.ended.values())
        calls, refused = self._accepted, sum(requests.refused.values())
        early = sum(rpcs.values()) - refused - calls - self._fixed
        gone = rpcs.get("CANCELLED", 0) + rpcs.get("DEADLINE_EXCEEDED", 0)
        self._demand(
            0 <= early <= gone, f"{rpcs} calls: {refused} refused, {calls} accepted, {early} else"
        )
        started = sum(stats.queue_time_seconds.counts)
        self._demand(started <= requests.accepted, f"{started} of {requests.accepted} started")
        first = sum(stats.time_to_first_token_seconds.counts)
        self._demand(first <= started, f"{first} first tokens of {started} that started")

    def _check_records(self) -> None:
        twice = [name for name, count in self._records.ended.items() if count > 1]
        self._demand(not twice, f"more than one terminal record: {twice[:5]}")
        none = self._known - self._records.ended.keys()
        self._demand(not none, f"accepted, and no terminal record: {sorted(none)[:5]}")
        self._known.clear()  # or these books would be the memory that grows
        self._records.ended.clear()

    def _check_pool(self) -> None:
        builder = self._running.builder
        assert builder is not None and builder.built is not None
        try:
            builder.built.core.scheduler.pool.check([])
        except AssertionError as error:
            self._complain(f"the block pool: {error}")

    async def _check_objects(self) -> None:
        for _ in range(LOOKS):  # the call of Stats itself may just be ending
            left = objects_of_calls(OURS | GRPC) - self._ready
            if not left:
                return
            await asyncio.sleep(0.05)
        self._demand(not left, f"objects that outlive their calls: {dict(left)}")


def resident() -> int:
    """Bytes of this process, once the allocator has given back what nobody uses: what a burst left
    free inside it comes and goes by megabytes, and is no growth."""
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def objects_of_calls(parts: dict[str, set[str]]) -> Counter[str]:
    """How many there are now of these parts, by name."""
    gc.collect()
    return Counter(
        type(o).__name__
        for o in gc.get_objects()
        if type(o).__name__ in parts.get(type(o).__module__, ())
    )


async def storm(
    calls: int,
    wave: int,
    seed: int,
    after_wave: Callable[[Report], None] = lambda _report: None,
) -> Report:
    """A server, a storm over it, and the report."""
    device = FaultyDevice(seed)
    small = {"max_num_seqs": 48, "num_blocks": 160, "max_num_batched_tokens": 256}
    async with serving(device, engine=small, max_waiting=64, max_priority=1) as running:
        return await Storm(running, device, seed).run(calls, wave, after_wave)
