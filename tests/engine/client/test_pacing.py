"""How fast streams are woken, on clocks that the test turns: the same calls, the same order."""

import pytest
from support.paced_streams import Loop, Stream

from quire.engine.client.pacing import (
    BURST,
    FIRST_AT_ONCE,
    LONGEST_PAUSE,
    LONGEST_QUIET,
    PATIENCE,
    PROCESS_SHARE,
    QUIET,
    SLICE,
    THREAD_SHARE,
    NewCalls,
)


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
