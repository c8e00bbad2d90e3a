"""How fast streams are woken, on clocks that the test turns: the same calls, the same order."""

import heapq
import itertools
from collections.abc import Callable
from random import Random

import pytest

from quire.engine.client.pacing import (
    BURST,
    FIRST_AT_ONCE,
    FLOOD_PATIENCE,
    LONGEST_PAUSE,
    LONGEST_QUIET,
    PATIENCE,
    PROCESS_SHARE,
    QUIET,
    SLICE,
    THREAD_SHARE,
    NewCalls,
    Pacer,
)


class Loop:
    """An event loop of its own time. Waking a stream costs CPU time, as its messages would."""

    def __init__(self, cost: float, share: float = THREAD_SHARE) -> None:
        self.cost = cost
        self.now = 0.0
        self.used = 0.0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.calls_come = False
        self.pacer = Pacer(
            self.call_later,
            share,
            lambda: self.calls_come,
            wall=lambda: self.now,
            cpu=lambda: self.used,
        )

    def call_later(self, delay: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now + delay, next(self._order), call))

    def burn(self, seconds: float) -> None:
        self.now += seconds
        self.used += seconds

    def run_until(self, time: float) -> None:
        while self._timers and self._timers[0][0] <= time:
            due, _, call = heapq.heappop(self._timers)
            self.now = max(self.now, due)
            call()
        self.now = max(self.now, time)


class Stream:
    """Counts tokens as an engine's stream does: what comes between two wakes goes together."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waits: list[float] = []
        self.messages: list[int] = []
        self.longest_wait = 0.0

    def push(self, *, first: bool = False) -> None:
        self._waits.append(self._loop.now)
        if len(self._waits) == 1:
            self._loop.pacer.add(self, first=first)

    def wake(self) -> None:
        self.messages.append(len(self._waits))
        self.longest_wait = max(self.longest_wait, self._loop.now - self._waits[0])
        self._waits.clear()
        self._loop.burn(self._loop.cost)


def steps(loop: Loop, streams: list[Stream], count: int, seconds: float) -> None:
    """Steps of an engine: a token for each stream every `seconds`."""
    for step in range(1, count + 1):
        for stream in streams:
            stream.push()
        loop.pacer.run()
        loop.run_until(step * seconds)
    loop.run_until(loop.now + 1)


SHARES = pytest.mark.parametrize("share", [THREAD_SHARE, PROCESS_SHARE])


@SHARES
def test_a_lone_stream_gets_each_token_at_once(share: float) -> None:
    loop = Loop(cost=0.0001, share=share)
    stream = Stream(loop)
    steps(loop, [stream], 1000, 0.0007)
    assert stream.messages == [1] * 1000
    assert stream.longest_wait == 0


def test_few_streams_are_not_held_back() -> None:
    loop = Loop(cost=0.00004)
    streams = [Stream(loop) for _ in range(32)]
    steps(loop, streams, 300, 0.01)
    assert all(stream.messages == [1] * 300 for stream in streams)


@SHARES
def test_the_first_words_of_some_streams_wait_for_no_credit(share: float) -> None:
    """Their calls have just used up all there was. Words that are not the first do wait."""
    for first, most_waited in ((True, FIRST_AT_ONCE * 0.0002), (False, PATIENCE)):
        loop = Loop(cost=0.0002, share=share)
        streams = [Stream(loop) for _ in range(FIRST_AT_ONCE)]
        loop.burn(1.0)
        for stream in streams:
            stream.push(first=first)
        loop.pacer.run()
        loop.run_until(loop.now + 1)
        waited = max(stream.longest_wait for stream in streams)
        assert most_waited / 10 < waited <= most_waited
    many = [Stream(loop) for _ in range(4 * FIRST_AT_ONCE)]
    for stream in many:
        stream.push(first=True)
    loop.pacer.run()
    loop.run_until(loop.now + 1)
    assert max(stream.longest_wait for stream in many) > 4 * FIRST_AT_ONCE * 0.0002


@pytest.mark.parametrize(("count", "seconds"), [(256, 0.01), (1000, 0.05), (1000, 0.002)])
def test_many_streams_get_fewer_messages_and_every_token(count: int, seconds: float) -> None:
    loop = Loop(cost=0.00005)
    streams = [Stream(loop) for _ in range(count)]
    steps(loop, streams, 100, seconds)
    assert all(sum(stream.messages) == 100 for stream in streams)
    assert sum(len(stream.messages) for stream in streams) < 0.7 * count * 100
    assert len(loop.pacer) == 0


@SHARES
def test_the_loop_s_share_is_kept_and_used(share: float) -> None:
    loop = Loop(cost=0.00005, share=share)
    streams = [Stream(loop) for _ in range(1000)]
    steps(loop, streams, 200, 0.05)
    slack = BURST + 4 * SLICE * loop.cost  # what is saved up, and spent before the next look
    assert loop.used <= (share * 1.1) * loop.now + slack
    needed = 200 * 1000 * loop.cost  # if each token had its own message
    assert loop.used >= min(0.9 * needed, 0.8 * share * 200 * 0.05)


def test_nothing_waits_for_ever_however_busy_the_loop_is() -> None:
    loop = Loop(cost=0.0)
    streams = [Stream(loop) for _ in range(500)]

    def busy() -> None:
        loop.burn(0.01)  # other calls take all there is
        loop.call_later(0.0, busy)

    busy()
    for stream in streams:
        stream.push()
    loop.pacer.run()
    loop.run_until(10 * PATIENCE)
    assert all(stream.messages == [1] for stream in streams)
    assert max(stream.longest_wait for stream in streams) < 1.5 * PATIENCE


def test_order_is_kept_and_first_words_get_most_places() -> None:
    loop, woken = Loop(cost=0.001), []

    class Named:
        def __init__(self, name: int) -> None:
            self.name = name

        def wake(self) -> None:
            woken.append(self.name)
            loop.burn(loop.cost)

    for name in range(40):
        loop.pacer.add(Named(name), first=False)
    for name in range(100, 104):
        loop.pacer.add(Named(name), first=True)
    loop.pacer.run()
    loop.run_until(5)
    assert [name for name in woken if name < 100] == list(range(40))
    assert [name for name in woken if name >= 100] == list(range(100, 104))
    assert set(range(100, 104)) < set(woken[:8])
    assert 0 in woken[:8]


def test_the_same_clocks_give_the_same_deltas() -> None:
    def once() -> list[list[int]]:
        loop = Loop(cost=0.00005)
        streams = [Stream(loop) for _ in range(300)]
        steps(loop, streams, 50, 0.005)
        return [stream.messages for stream in streams]

    assert once() == once()


def test_an_idle_time_saves_up_no_more_than_a_burst() -> None:
    loop = Loop(cost=0.0005)
    loop.run_until(100)
    streams = [Stream(loop) for _ in range(400)]
    for stream in streams:
        stream.push()
    used = loop.used
    loop.pacer.run()
    loop.run_until(100 + LONGEST_PAUSE / 2)
    assert loop.used - used <= BURST + 4 * SLICE * loop.cost


def test_beside_an_idle_engine_the_streams_have_all_the_time() -> None:
    loop = Loop(cost=0.0005)
    streams = [Stream(loop) for _ in range(400)]
    for stream in streams:
        stream.push()
    loop.pacer.unbounded = True
    loop.pacer.run()
    loop.run_until(1)
    assert max(stream.longest_wait for stream in streams) <= 400 * loop.cost


def test_new_calls_go_before_the_words_of_many_streams_but_not_of_few() -> None:
    loop = Loop(cost=0.00001)
    many, few = [Stream(loop) for _ in range(40)], [Stream(loop) for _ in range(SLICE)]
    loop.calls_come = True
    for stream in few:
        stream.push()
    loop.pacer.run()
    assert all(stream.messages == [1] for stream in few)
    for stream in many:
        stream.push()
    loop.pacer.run()
    loop.run_until(0.1)
    assert not any(stream.messages for stream in many)
    loop.calls_come = False
    loop.run_until(0.1 + 2 * QUIET)
    assert all(stream.messages == [1] for stream in many)


@pytest.mark.parametrize("count", (FIRST_AT_ONCE, FIRST_AT_ONCE + 1))
def test_some_first_words_do_not_wait_for_the_last_call_of_a_burst(count: int) -> None:
    """A slice of them in each moment; later words, and first words of many, do wait."""
    loop = Loop(cost=0.00001)
    first, later = [Stream(loop) for _ in range(count)], [Stream(loop) for _ in range(40)]
    loop.calls_come = True
    for stream in later:
        stream.push()
    for stream in first:
        stream.push(first=True)
    loop.pacer.run()
    loop.run_until(count / SLICE * QUIET)
    assert all(stream.messages for stream in first) == (count == FIRST_AT_ONCE)
    assert not any(stream.messages for stream in later)


def test_words_that_have_waited_long_go_before_calls_without_an_end() -> None:
    loop = Loop(cost=0.00001)
    many = [Stream(loop) for _ in range(40)]
    loop.calls_come = True
    for stream in many:
        stream.push()
    loop.pacer.run()
    loop.run_until(PATIENCE - QUIET)
    assert not any(stream.messages for stream in many)
    loop.run_until(PATIENCE + 2 * QUIET)
    assert all(stream.messages == [1] for stream in many)


def test_a_burst_of_calls_goes_first_for_a_while_and_not_for_ever() -> None:
    loop = Loop(cost=0.0)
    calls = NewCalls[int](loop.call_later, lambda _: None, lambda: loop.now)
    assert not calls.coming()
    first = {}
    for number in range(1000):
        loop.run_until(1.0 + number * QUIET / 2)
        calls.add(number)
        first.setdefault(calls.coming(), loop.now)
    assert first[True] == 1.0
    assert first[False] == pytest.approx(1.0 + PATIENCE, abs=QUIET)
    loop.run_until(loop.now + 2 * QUIET)
    assert not calls.coming()
    calls.add(0)
    assert calls.coming()


def answered(arrivals: list[float]) -> list[list[tuple[float, int]]]:
    """When each of the streams that come then was answered, and together with whom."""
    loop, answers = Loop(cost=0.0), []
    calls = NewCalls[int](
        loop.call_later,
        lambda streams: answers.append([(loop.now, stream) for stream in streams]),
        lambda: loop.now,
    )
    for number, time in enumerate(arrivals):
        loop.run_until(time)
        calls.add(number)
    loop.run_until(10)
    return answers


def test_a_lone_call_is_answered_after_a_moment() -> None:
    ((first,), (second,)) = answered([1.0, 2.0])
    assert first == (pytest.approx(1.0 + QUIET), 0)
    assert second == (pytest.approx(2.0 + QUIET), 1)


def test_a_burst_is_answered_after_its_last_call() -> None:
    arrivals = [1.0 + i * QUIET / 3 for i in range(30)]
    (together,) = answered(arrivals)
    assert [stream for _, stream in together] == list(range(30))
    assert arrivals[-1] + QUIET <= together[0][0] < arrivals[-1] + 2.1 * QUIET


def test_a_call_that_has_ended_is_not_answered_nor_kept() -> None:
    loop, answers = Loop(cost=0.0), list[list[int]]()
    calls = NewCalls[int](loop.call_later, answers.append, lambda: loop.now)
    calls.add(1)
    calls.add(2)
    calls.forget(1)
    calls.forget(3)
    loop.run_until(1)
    calls.forget(2)
    calls.add(4)
    calls.forget(4)
    calls.add(5)
    loop.run_until(2)
    assert answers == [[2], [5]]


def test_a_burst_without_an_end_is_answered_in_time() -> None:
    arrivals = [1.0 + i * QUIET / 3 for i in range(1000)]
    for together in answered(arrivals):
        for time, stream in together:
            assert time - arrivals[stream] <= LONGEST_QUIET + 2 * QUIET


# ------------------------------------------------------------ the bound, whatever the loop is at


def in_a_flood(rate: float, cost: float, seconds: float = 4.0, count: int = 400) -> list[Stream]:
    """Calls come by chance, `rate` a second, each costing the loop 0.1 ms and a first word; beside
    them `count` streams that get a token every 20 ms."""
    chance, loop = Random(3), Loop(cost=cost)
    calls = NewCalls[Stream](loop.call_later, lambda _: None, lambda: loop.now)
    loop.pacer = Pacer(
        loop.call_later,
        THREAD_SHARE,
        calls.coming,
        wall=lambda: loop.now,
        cpu=lambda: loop.used,
    )
    streams = [Stream(loop) for _ in range(count)]
    came: list[Stream] = []

    def call() -> None:
        loop.call_later(chance.expovariate(rate), call)
        loop.burn(0.0001)
        stream = Stream(loop)
        came.append(stream)
        calls.add(stream)
        stream.push(first=True)
        loop.pacer.run()

    call()
    for step in range(1, int(seconds / 0.02)):
        for stream in streams:
            stream.push()
        loop.pacer.run()
        loop.run_until(step * 0.02)
    still = loop.now
    for stream in [*streams, *came]:
        if stream._waits:
            stream.longest_wait = max(stream.longest_wait, still - stream._waits[0])
    return [*streams, *came]


@pytest.mark.parametrize("cost", (0.0, 0.00004))
@pytest.mark.parametrize("rate", (300, 1000, 2000, 4000))
def test_in_a_flood_of_calls_nobody_waits_for_longer_than_is_said(rate: int, cost: float) -> None:
    streams = in_a_flood(rate, cost)
    assert max(stream.longest_wait for stream in streams) <= FLOOD_PATIENCE
    assert min(len(stream.messages) for stream in streams[:400]) >= 4


@pytest.mark.parametrize("turn", (0.001, 0.01, 0.04, 0.1))
@pytest.mark.parametrize("cost", (0.0, 0.0001))
def test_beside_long_turns_of_the_loop_the_wait_is_bounded_by_one_of_them(
    turn: float, cost: float
) -> None:
    """Other work takes the loop for a whole turn, again and again, and all the credit with it."""
    loop = Loop(cost=cost)
    streams = [Stream(loop) for _ in range(600)]

    def busy() -> None:
        loop.burn(turn)
        loop.call_later(0.0, busy)

    busy()
    for step in range(1, 101):
        for stream in streams:
            stream.push()
        loop.pacer.run()
        loop.run_until(step * 0.02)
    loop.run_until(loop.now + 2 * PATIENCE)
    longest = turn + 600 * cost  # a turn of the loop, if it wakes everybody
    assert max(stream.longest_wait for stream in streams) <= PATIENCE + longest
    assert len(loop.pacer) == 0


@pytest.mark.parametrize(("firsts", "seconds", "turn"), [(12, 0.002, 0.0), (4, 0.01, 0.04)])
def test_first_words_without_an_end_do_not_hold_back_the_others(
    firsts: int, seconds: float, turn: float
) -> None:
    """So many come every so often. turn: of other work, which takes the loop and all credit."""
    loop = Loop(cost=0.0001)
    others = [Stream(loop) for _ in range(300)]

    def busy() -> None:
        loop.burn(turn)
        loop.call_later(0.0, busy)

    if turn:
        busy()
    for stream in others:
        stream.push()
    for step in range(1, round(1 / seconds) + 1):
        for _ in range(firsts):
            Stream(loop).push(first=True)
        loop.pacer.run()
        loop.run_until(step * seconds)
    assert all(stream.messages for stream in others)
    assert max(stream.longest_wait for stream in others) <= PATIENCE + 300 * loop.cost + turn


def test_a_long_burst_goes_first_again_only_after_as_much_calm() -> None:
    loop = Loop(cost=0.0)
    calls = NewCalls[int](loop.call_later, lambda _: None, lambda: loop.now)
    chance, held = Random(1), 0
    for number in range(20_000):  # ten seconds of two thousand a second, by chance
        loop.run_until(loop.now + chance.expovariate(2000))
        calls.add(number)
        held += calls.coming()
    assert held < 0.35 * 20_000
    loop.run_until(loop.now + PATIENCE)
    begin = loop.now
    while loop.now < begin + 0.9 * PATIENCE:
        calls.add(0)
        assert calls.coming()
        loop.run_until(loop.now + QUIET / 2)
