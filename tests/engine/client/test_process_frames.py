"""What crosses to an engine's process and back is what it was; and a slow parent blocks nobody."""

import mmap
import os
import random
import socket
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.some_engine import INFO

from quire.engine.client import wire
from quire.engine.client.process_main import Channel
from quire.engine.errors import (
    CapacityError,
    ConfigError,
    CorruptStateError,
    ModelError,
    QuireError,
)
from quire.engine.loop import heartbeat
from quire.engine.loop.commands import (
    Abort,
    AskBlockMap,
    Command,
    Finish,
    FlushCache,
    Stop,
    Submit,
    UnwatchBlocks,
    WatchBlocks,
)
from quire.engine.loop.heartbeat import Heartbeat
from quire.engine.loop.loop import Batch
from quire.engine.loop.stats import EngineStats
from quire.engine.loop.step_times import StepTimes
from quire.engine.request import (
    FinishReason,
    GenerationRequest,
    Output,
    Pooling,
    SamplingParams,
    TokenLogprob,
)
from quire.engine.scheduling.kv_events import (
    CHANGES,
    CLEARED,
    SNAPSHOT,
    STORED,
    KvEvent,
    KvEvents,
)

SAMPLING = SamplingParams(
    0.7, 0.9, 40, 0.05, 1.1, 0.2, 0.3, 2**64 - 1, 99, 3, (5, 6), (2,), True, 4
)
REQUEST = GenerationRequest(7, (1, 2, 3), SAMPLING, 2, -5, b"\x00salt", (9,), "a client")
JUDGED = GenerationRequest(9, (1, 2), SAMPLING, prompt_logprobs=0)
POOLED = GenerationRequest(8, (1, 2), SAMPLING, user="one", pooling=Pooling((3, 4)))


def across(message: wire.Message) -> wire.Message:
    """The message as the other side gets it."""
    (got,) = wire.Frames().feed(wire.frame(message))
    return got


@pytest.mark.parametrize(
    "command",
    [
        Submit(REQUEST),
        Submit(POOLED),
        Submit(JUDGED),
        Finish(1, 2, 3),
        Abort(4),
        AskBlockMap(),
        FlushCache(),
        WatchBlocks(),
        UnwatchBlocks(),
        Stop(),
    ],
)
def test_a_command_arrives_as_it_was(command: Command) -> None:
    assert wire.unpack_command(across(wire.pack_command(command))) == command


def test_what_the_engine_is_arrives_as_it_was() -> None:
    assert wire.unpack_info(across(wire.pack_info(INFO))) == INFO


OUTPUTS = [
    Output(1, 0, 2.5, 2.25, [3, 4], 1, 7),
    Output(1, 1, 3.5, started=True, started_at=3.25, cached_tokens=16),
    Output(2, 0, 4.5, 4.5, [9], finish=FinishReason.STOP, stop_token_id=9),
    Output(3, 0, 5.5, finish=FinishReason.ERROR, error_id="abc"),
    Output(4, 0, 5.5, finish=FinishReason.STOP, pooled=b"\x00\x00\x80?"),
    Output(5, 0, 5.5, prompt_logprobs=b"\x00\x00\x80?\x01\x00\x00\x00"),
    Output(4, 0, 5.5, token_ids=[5], logprobs=[TokenLogprob(5, -0.5, 1, ((5, -0.5), (6, -1.0)))]),
]


def test_a_batch_arrives_as_it_was() -> None:
    stats = EngineStats(*range(1, len(EngineStats._fields) + 1))
    times = StepTimes()
    times.histograms["mixed"].observe(0.02, 3)
    event = KvEvent(STORED, b"hash", b"parent", b"\x01\x00\x00\x00", b"salt")
    blocks = (KvEvents(4, 2.5, SNAPSHOT), KvEvents(5, 2.75, CHANGES, (event, KvEvent(CLEARED))))
    batch = Batch(OUTPUTS, stats, times, (3, b"\x01\x02", 0), blocks)
    got = wire.unpack_batch(across(wire.pack_batch(batch)))
    assert got.outputs == OUTPUTS
    assert (got.stats, got.answers) == (stats, (3, b"\x01\x02", 0))
    assert got.blocks == blocks and isinstance(got.blocks[1].events[0], KvEvent)
    assert got.step_times is not None and got.step_times.values() == times.values()
    assert got.step_times.histograms["mixed"].count == 3
    got = wire.unpack_batch(across(wire.pack_batch(Batch(OUTPUTS))))
    assert (got.outputs, got.stats, got.step_times) == (OUTPUTS, None, None)


@pytest.mark.parametrize("kind", [ConfigError, ModelError, CapacityError, QuireError])
def test_a_refusal_keeps_its_class_and_its_words(kind: type[QuireError]) -> None:
    got = wire.unpack_refusal(across(wire.pack_refusal(kind("words = 3: too many"))))
    assert type(got) is kind and str(got) == "words = 3: too many"
    other = wire.unpack_refusal(across(wire.pack_refusal(CorruptStateError("odd"))))
    assert type(other) is QuireError and str(other) == "odd"


@settings(deadline=None)
@given(st.lists(st.integers(0, 5000), max_size=8), st.integers(0, 2**32))
def test_frames_come_whole_however_the_bytes_are_cut(sizes: list[int], seed: int) -> None:
    messages: list[wire.Message] = [("kind", bytes(size), size) for size in sizes]
    data = b"".join(wire.frame(message) for message in messages)
    frames, got, at, chance = wire.Frames(), [], 0, random.Random(seed)
    while at < len(data):
        cut = chance.choice((1, 3, 4, 5, 700, 20_000))
        got += frames.feed(data[at : at + cut])
        at += cut
    assert got == messages


def read_all(parent: socket.socket, channel: Channel) -> list[Batch]:
    """What a parent finds that reads at last, until nothing more comes."""
    parent.setblocking(False)
    frames, batches = wire.Frames(), list[Batch]()
    while True:
        channel.take(wait=False)  # as the loop does once a turn
        try:
            data = parent.recv(1 << 20)
        except BlockingIOError:
            return batches
        batches += [wire.unpack_batch(message) for message in frames.feed(data)]


def test_a_parent_that_does_not_read_gets_all_of_it_joined_at_last() -> None:
    parent, ours = socket.socketpair()
    with parent, ours:
        channel, steps, keys = Channel(ours), 3001, range(1, 17)
        for step in range(steps):  # would block for ever if it could
            outputs = [Output(key, 0, float(step), float(step), [step]) for key in keys]
            stats = EngineStats(steps_total=step) if step % 2 else None
            answers = {1000: (b"map", 5), steps - 2: (7,), steps - 1: (b"later",)}.get(step, ())
            blocks = (KvEvents(step, 0.0, CHANGES, (KvEvent(CLEARED),)),)
            channel.publish(Batch(outputs, stats, StepTimes() if stats else None, answers, blocks))
        batches = read_all(parent, channel)
    assert len(batches) < steps / 2
    for key in keys:
        said = [output for batch in batches for output in batch.outputs if output.key == key]
        assert [t for output in said for t in output.token_ids] == list(range(steps))
        assert all(output.first_token_at == output.token_ids[0] for output in said)
        assert all(output.time == output.token_ids[-1] for output in said)
    assert batches[-1].stats is not None and batches[-1].stats.steps_total == steps - 2
    assert batches[-1].step_times is not None
    told = [answer for batch in batches for answer in batch.answers]
    assert told == [b"map", 5, 7, b"later"]
    assert [one.sequence for batch in batches for one in batch.blocks] == list(range(steps))
    assert max(len(batch.outputs) for batch in batches) == len(keys)


def test_last_words_come_after_all_others() -> None:
    parent, ours = socket.socketpair()
    with parent, ours:
        channel, published = Channel(ours), 0
        while channel._late is None:
            outputs = [Output(key, 0, token_ids=[1] * 50) for key in range(200)]
            channel.publish(Batch(outputs, EngineStats(), StepTimes()))
            published += 50
        parent.setblocking(True)
        reader = socket_reader(parent)
        first = next(reader)  # makes room: the rest can be sent
        channel.close((wire.DIED, "id"))
        ours.close()
        *rest, last = reader
    batches = [wire.unpack_batch(message) for message in (first, *rest)]
    said = [output for batch in batches for output in batch.outputs if output.key == 7]
    assert sum(len(output.token_ids) for output in said) == published
    assert last == (wire.DIED, "id")


def socket_reader(parent: socket.socket) -> Iterator[wire.Message]:
    frames = wire.Frames()
    while data := parent.recv(1 << 22):
        yield from frames.feed(data)


def test_joined_outputs_keep_when_they_started_and_their_first_token() -> None:
    first = Output(1, 0, started=True)
    first.stamp(1.0)
    for now, token in ((2.0, 10), (3.0, 11), (4.0, 12)):
        later = Output(1, 0, token_ids=[token])
        later.stamp(now)
        first.join(later)
    assert (first.started_at, first.first_token_at, first.time) == (1.0, 2.0, 4.0)
    tokens = Output(1, 0, token_ids=[1])
    tokens.stamp(5.0)
    tokens.join(first)
    assert (tokens.first_token_at, tokens.time, tokens.token_ids) == (5.0, 4.0, [1, 10, 11, 12])


def test_a_mark_in_shared_memory_is_one_mark() -> None:
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), heartbeat.SIZE)
        ends = [memoryview(mmap.mmap(file.fileno(), heartbeat.SIZE)) for _ in range(2)]
        theirs, ours = Heartbeat(ends[0]), Heartbeat(ends[1])
        assert ours.since is None
        theirs.begin()
        assert ours.since is not None and ours.since == theirs.since
        theirs.end()
        assert ours.since is None
