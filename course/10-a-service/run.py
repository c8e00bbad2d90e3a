"""Chapter 10's figures: slow readers and too many callers, on a clock of ticks."""

from collections import deque
from dataclasses import dataclass
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

TOKENS = 300  # of a stream; the engine makes one a tick
READERS = (1, 3, 10)  # ticks that a reader takes for a message
TICKS, SERVICE, PATIENCE = 2000, 10, 60  # a run; ticks an answer takes; ticks a caller waits
LOADS = (0.5, 0.9, 1.1, 1.5, 2.0)  # callers in the time of an answer


def queued(reader: int) -> tuple[int, int]:
    """A message a token, kept until it is read: the longest queue, and the last tick."""
    queue: deque[int] = deque()
    longest = read = tick = 0
    while read < TOKENS:
        if tick < TOKENS:
            queue.append(1)
        longest = max(longest, len(queue))
        if tick % reader == reader - 1 and queue:
            read += queue.popleft()
        tick += 1
    return longest, tick


def joined(reader: int) -> tuple[int, int, int]:
    """What is not read yet is joined: one message waits at most. The third number: messages."""
    waiting = read = tick = messages = longest = 0
    while read < TOKENS:
        waiting += tick < TOKENS
        longest = max(longest, min(waiting, 1))
        if tick % reader == reader - 1 and waiting:
            read, waiting, messages = read + waiting, 0, messages + 1
        tick += 1
    return longest, tick, messages


@dataclass
class Door:
    """What became of those who came."""

    came: int = 0
    in_time: int = 0
    too_late: int = 0
    refused: int = 0


def serve(load: float, bounded: bool) -> Door:
    """One answer at a time, first come, first served. A caller leaves after PATIENCE ticks, and
    nobody tells the server: it answers all the same. bounded: who could not be answered in time is
    refused at once."""
    door, free, credit = Door(), 0, 0.0
    for tick in range(TICKS):
        credit += load / SERVICE
        while credit >= 1:
            credit -= 1
            door.came += 1
            done = max(free, tick) + SERVICE
            if bounded and done - tick > PATIENCE:
                door.refused += 1
                continue
            free = done
            if done - tick <= PATIENCE:
                door.in_time += 1
            else:
                door.too_late += 1
    return door


def figures() -> dict[str, Any]:
    """Counts alone."""
    streams = []
    for reader in READERS:
        longest, last = queued(reader)
        one, end, messages = joined(reader)
        streams.append([reader, longest, last, one, end, messages])
    doors = {
        name: [vars(serve(load, bounded)) for load in LOADS]
        for name, bounded in (("open", False), ("bounded", True))
    }
    return {
        "table": [
            ["ticks a message", "queued at most", "last word", "joined: at most", "last word",
             "messages"],
            *streams,
        ],
        "doors": doors,
    }  # fmt: skip


def draw(found: dict[str, Any]) -> Figure:
    """Left: messages that wait for a slow reader. Right: who is answered in time."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    rows = found["table"][1:]
    places = range(len(rows))
    left.bar(
        [p - 0.2 for p in places], [row[1] for row in rows], 0.4, color="#d9480f", label="queued"
    )
    left.bar(
        [p + 0.2 for p in places], [row[3] for row in rows], 0.4, color="#0b6e99", label="joined"
    )
    left.set_xticks(places, [str(row[0]) for row in rows])
    left.set(xlabel="ticks a reader takes for a message", ylabel="messages that wait, at most")
    left.set_title("A slow reader")
    left.legend()
    for name, colour in (("open", "#d9480f"), ("bounded", "#0b6e99")):
        share = [100 * one["in_time"] / one["came"] for one in found["doors"][name]]
        right.plot(LOADS, share, "o-", color=colour, label=name)
    right.set(xlabel="load: callers in the time of an answer", ylabel="% answered in time", ylim=0)
    right.set_title("Too many callers")
    right.legend()
    return figure
