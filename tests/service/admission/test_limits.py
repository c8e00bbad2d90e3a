"""Rates and streams of one client, by a clock that the tests turn."""

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clock import Clock
from support.fake_engine import Device
from support.harness import ask, first, generate, read, run, serving

from quire.service.admission.rate_limits import ClientLimits, Limits, Throttle, TokenBucket
from quire.service.errors import Refusal


def refusal_of(limits: ClientLimits, client: str = "a") -> Refusal:
    with pytest.raises(Refusal) as caught:
        limits.enter(client)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    return caught.value


def test_a_burst_then_the_rate_and_the_refusal_says_when() -> None:
    clock = Clock()
    limits = ClientLimits(Limits(requests=2.0, burst_seconds=2.0), clock)
    for _ in range(4):
        limits.enter("a")
    refusal = refusal_of(limits)
    assert refusal.reason == "RATE_LIMITED"
    assert refusal.retry_after == pytest.approx(0.5)
    assert "rate_limit_requests = 2" in refusal.message
    limits.enter("b")  # another client has its own
    clock.now += 0.5
    limits.enter("a")
    refusal_of(limits)


def test_a_call_larger_than_the_burst_gets_in_and_is_paid_off() -> None:
    clock = Clock()
    limits = ClientLimits(Limits(tokens=10.0, burst_seconds=1.0), clock)
    limits.enter("a").take(100)
    late = limits.enter("a")
    with pytest.raises(Refusal) as caught:
        late.take(1)
    assert caught.value.retry_after == pytest.approx(9.0)
    clock.now += 9.1
    late.take(1)


def test_what_was_not_made_is_given_back_once() -> None:
    clock = Clock()
    limits = ClientLimits(Limits(tokens=10.0, burst_seconds=10.0), clock)
    permit = limits.enter("a")
    permit.take(1000)
    permit.end(50)
    permit.end(50)
    following = limits.enter("a")
    following.take(1)  # 100 - 50 left
    following.end(1)
    limits.enter("a").take(48)
    last = limits.enter("a")
    last.take(5)  # 1 was left
    with pytest.raises(Refusal):
        limits.enter("a").take(1)


def test_streams_are_counted_and_come_back() -> None:
    limits = ClientLimits(Limits(streams=2), Clock())
    one, _ = limits.enter("a"), limits.enter("a")
    refusal = refusal_of(limits)
    assert refusal.reason == "TOO_MANY_STREAMS"
    assert "max_streams_per_client = 2" in refusal.message
    limits.enter("b")
    one.end(0)
    one.end(0)
    limits.enter("a")
    refusal_of(limits)


def test_without_limits_nothing_is_kept() -> None:
    limits = ClientLimits(Limits(), Clock())
    for i in range(100):
        limits.enter(str(i)).take(1 << 40)
    assert len(limits) == 0


def test_a_pace_answers_at_once_then_in_turn_then_not() -> None:
    clock = Clock()
    throttle = Throttle(rate=2.0, burst=3.0, patience=1.0, clock=clock)
    assert [throttle.turn("a") for _ in range(3)] == [(0.0, True)] * 3
    assert [throttle.turn("a") for _ in range(2)] == [(0.5, True), (1.0, True)]
    assert [throttle.turn("a") for _ in range(2)] == [(1.5, False)] * 2  # which takes nothing
    assert throttle.turn("b") == (0.0, True)  # another client has its own
    clock.now += 0.5
    assert throttle.turn("a") == (1.0, True)


def test_a_pace_slows_down_whoever_asks_again_at_once() -> None:
    clock = Clock()
    throttle = Throttle(rate=2.0, burst=3.0, patience=1.0, clock=clock)
    for _ in range(23):
        wait, has_one = throttle.turn("a")
        assert has_one
        clock.now += wait
    assert clock.now == pytest.approx(1010.0)  # 20 at 2 a second


def test_a_pace_forgets_who_has_not_asked_for_long() -> None:
    clock = Clock()
    throttle = Throttle(rate=1.0, burst=2.0, patience=1.0, clock=clock)
    for i in range(20_000):
        throttle.turn(str(i))
        clock.now += 0.1
    assert len(throttle) < 2500


def test_clients_that_owe_nothing_are_forgotten() -> None:
    clock = Clock()
    limits = ClientLimits(Limits(requests=1.0, burst_seconds=1.0, streams=9), clock)
    stays = limits.enter("stays")
    for i in range(20_000):
        limits.enter(str(i)).end(0)
        clock.now += 0.1
    assert len(limits) < 2500
    for _ in range(8):
        clock.now += 1.0
        limits.enter("stays")
    assert refusal_of(limits, "stays").reason == "TOO_MANY_STREAMS"  # it was never forgotten
    stays.end(0)


@settings(deadline=None)
@given(
    rate=st.floats(0.1, 100),
    burst=st.floats(1, 50),
    waits=st.lists(st.floats(0, 3), min_size=1, max_size=60),
)
def test_a_bucket_never_gives_more_than_burst_and_rate(
    rate: float, burst: float, waits: list[float]
) -> None:
    bucket, now, given_out = TokenBucket(rate, burst, 0.0), 0.0, 0
    for wait in waits:
        now += wait
        while bucket.wait(1.0, now) == 0:
            bucket.take(1.0, now)
            given_out += 1
        assert given_out <= burst + rate * now + 1e-6
        bucket.level(now + bucket.wait(1.0, now) + 1e-6)
    assert given_out >= int(burst)


def test_over_the_wire_each_limit_refuses_with_its_reason() -> None:
    async def test() -> None:
        device = Device()
        async with serving(device, max_streams_per_client=1) as running:
            device.hold()
            open_call = running.stub.Generate(ask([300, 301], max_tokens=2))
            await open_call.initial_metadata()
            answer = await generate(running, ask([300]))
            assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert answer.trailing["grpc-retry-pushback-ms"] == "1000"
            device.release()
            await first(open_call)
            assert (await read(open_call)).code is grpc.StatusCode.OK
            assert (await generate(running, ask([300]))).code is grpc.StatusCode.OK

    run(test)


def test_a_refused_prompt_gives_its_stream_back_and_costs_a_request() -> None:
    async def test() -> None:
        limits = {
            "max_streams_per_client": 1,
            "rate_limit_requests": 1e-3,
            "rate_limit_burst_seconds": 2000.0,
        }
        async with serving(**limits) as running:
            bad = await generate(running, ask([300], max_tokens=1 << 20))
            assert bad.code is grpc.StatusCode.INVALID_ARGUMENT
            assert (await generate(running, ask([300]))).code is grpc.StatusCode.OK
            assert "rate_limit_requests" in (await generate(running, ask([300]))).details

    run(test)


def test_tokens_over_the_wire_count_what_was_made_not_what_was_asked() -> None:
    async def test() -> None:
        async with serving(rate_limit_tokens=1e-3, rate_limit_burst_seconds=22_000.0) as running:
            for _ in range(4):  # there are 22; each call takes 1003 and gives 996 back
                answer = await generate(running, ask([300, 301, 302], max_tokens=1000))
                assert answer.code is grpc.StatusCode.OK
                assert answer.finished[0].usage.completion_tokens == 4
            refused = await generate(running, ask([300]))
            assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "rate_limit_tokens" in refused.details

    run(test)
