"""New calls go before the words of many streams, for a bounded time."""

from random import Random

import pytest
from support.paced_streams import Loop, Stream

from quire.engine.client.pacing import (
    FIRST_AT_ONCE,
    FLOOD_PATIENCE,
    PATIENCE,
    QUIET,
    SLICE,
    THREAD_SHARE,
    TOGETHER,
    NewCalls,
    Pacer,
)


@pytest.mark.parametrize("count", (1, SLICE, 40))
def test_new_calls_go_before_the_words_of_streams(count: int) -> None:
    loop = Loop(cost=0.00001)
    streams = [Stream(loop) for _ in range(count)]
    loop.calls_come = True
    for stream in streams:
        stream.push()
    loop.pacer.run()
    loop.run_until(0.1)
    assert not any(stream.messages for stream in streams)
    loop.calls_come = False
    loop.run_until(0.1 + 2 * QUIET)
    assert all(stream.messages == [1] for stream in streams)


def test_a_lone_call_goes_before_nobody() -> None:
    loop = Loop(cost=0.0)
    calls = NewCalls[int](loop.call_later, lambda _: None, lambda: loop.now)
    for number in range(10):
        loop.run_until(1.0 + number * TOGETHER)
        calls.add(number)
        assert not calls.coming()


def test_calls_one_after_another_are_no_burst() -> None:
    """Each has ended when the next one comes; then one comes beside another."""
    loop = Loop(cost=0.0)
    calls = NewCalls[int](loop.call_later, lambda _: None, lambda: loop.now)
    for number in range(10):
        loop.run_until(1.0 + number * TOGETHER / 4)
        calls.add(number)
        assert not calls.coming()
        calls.forget(number)
    calls.add(10)
    calls.add(11)
    assert calls.coming()
    calls.forget(10)
    assert calls.coming()


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
        if number:  # alone it is no burst yet
            first.setdefault(calls.coming(), loop.now)
    assert first[True] == 1.0 + QUIET / 2
    assert first[False] == pytest.approx(1.0 + PATIENCE, abs=QUIET)
    loop.run_until(loop.now + 3 * QUIET)
    assert not calls.coming()
    calls.add(0)
    assert calls.coming()


@pytest.mark.parametrize("gap", (0.6, 0.9, 1.05, 1.15, 1.5, 2.5, 4.0))
def test_calls_that_come_evenly_and_for_ever_do_not_hold_up_a_lone_stream(gap: float) -> None:
    """gap: between two calls, of QUIET. Pauses just above it are no calm that a burst follows."""
    loop = Loop(cost=0.0)
    calls = NewCalls[int](loop.call_later, lambda _: None, lambda: loop.now)
    loop.pacer = Pacer(loop.call_later, THREAD_SHARE, calls.coming, lambda: loop.now, lambda: 0.0)

    def call() -> None:
        calls.add(0)
        loop.call_later(gap * QUIET, call)

    call()
    loop.run_until(2 * PATIENCE)  # the beginning is a burst
    stream, last = Stream(loop), loop.now
    while loop.now < last + PATIENCE:
        stream.push()
        loop.pacer.run()
        loop.run_until(loop.now + 0.01)
    assert stream.longest_wait < 3 * QUIET


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
    calls.add(0)
    while loop.now < begin + 0.9 * PATIENCE:
        calls.add(0)
        assert calls.coming()
        loop.run_until(loop.now + QUIET / 2)
