"""One call's way through a fleet, with clock and chance in the test's hands, and no server."""

from collections.abc import Iterable

import grpc
import pytest
from support.fake_replica import delta, finished

from quire.clients import (
    Broken,
    CallError,
    NoReplica,
    Overloaded,
    ReplicaPolicy,
    Resumed,
    RetryPolicy,
    Unavailable,
)
from quire.clients.errors import Details, call_error
from quire.clients.replicas.addresses import Address, Lookup
from quire.clients.replicas.budget import Budget
from quire.clients.replicas.call_failover import CallFailover
from quire.clients.replicas.faults import Kind, kind_of
from quire.clients.replicas.fleet import Fleet
from quire.clients.replicas.shared_state import SharedState
from quire.clients.replicas.stream_failover import Differs, Item, StreamFailover
from quire.v1 import inference_pb2 as pb

Code = grpc.StatusCode
NAMES = ("a:1", "b:1", "c:1", "d:1", "e:1")


def error(
    code: Code = Code.UNAVAILABLE,
    message: str = "Socket closed",
    reason: str = "",
    after: float | None = None,
) -> CallError:
    made = call_error(code, message, None)
    made.details = Details(reason=reason, retry_after=after)
    return made


REFUSED = "failed to connect to all addresses; last error: Connection refused"


class World:
    """SharedState under the test's control. Jitter is none: every draw is the highest."""

    def __init__(self, *names: str, attempts: int = 4, credit: float = 1000, **policy: object):
        self.now = 0.0
        self.policy = ReplicaPolicy(routing="round_robin", **policy)  # type: ignore[arg-type]
        fleet = Fleet("round_robin", clock=self.clock)
        fleet.update(Address(name, name[0], 1) for name in names or NAMES[:3])
        self.shared = SharedState(
            self.policy,
            RetryPolicy(attempts=attempts, first_backoff=1.0, max_backoff=8.0),
            fleet,
            Budget(credit, 0.0, 0.0, self.clock),
            Lookup([], 30.0, clock=self.clock),
            self.clock,
            lambda _low, high: high,
        )

    def clock(self) -> float:
        return self.now

    def failover(self, timeout: float | None = None) -> CallFailover:
        return CallFailover(self.shared, timeout)

    def stream(self, timeout: float | None = None, **sampling: object) -> StreamFailover:
        request = pb.GenerateRequest(text="x", sampling=pb.SamplingParams(**sampling))  # type: ignore[arg-type]
        return StreamFailover(self.shared, request, timeout)


def started(seed: int = 7, fingerprint: str = "f", **more: object) -> pb.GenerateResponse:
    event = pb.Started(seed=seed, model_fingerprint=fingerprint, request_id="r", cached_tokens=9)
    event.MergeFrom(pb.Started(**more))  # type: ignore[arg-type]
    return pb.GenerateResponse(started=event)


def feed(stream: StreamFailover, messages: Iterable[pb.GenerateResponse]) -> list[Item]:
    return [item for message in messages for item in stream.take(message)]


# ------------------------------------------------------------ what an end means


@pytest.mark.parametrize(
    ("ended", "received", "kind"),
    [
        (error(message=REFUSED), False, Kind.ABSENT),
        (error(message="connections to all backends failing; …unhealthy"), False, Kind.ABSENT),
        (error(message=REFUSED), True, Kind.BROKEN),
        (error(), False, Kind.BROKEN),
        (error(message="the engine has stopped", reason="ENGINE_DEAD"), False, Kind.BROKEN),
        (error(message="shutting down", reason="DRAINING"), False, Kind.REFUSED),
        (error(message="shutting down", reason="DRAINING"), True, Kind.BROKEN),
        (error(Code.INTERNAL, "Received RST_STREAM with error code 2"), True, Kind.BROKEN),
        (error(Code.UNKNOWN, "Stream removed"), True, Kind.BROKEN),
        (error(Code.INTERNAL, "a fault", reason="FAULT"), True, Kind.FINAL),
        (error(Code.RESOURCE_EXHAUSTED, "full"), False, Kind.BUSY),
        (error(Code.RESOURCE_EXHAUSTED, "not read"), True, Kind.FINAL),
        (error(Code.UNIMPLEMENTED, "no such service"), False, Kind.REFUSED),
        (error(Code.INVALID_ARGUMENT, "top_p"), False, Kind.FINAL),
        (error(Code.DEADLINE_EXCEEDED, "late"), True, Kind.FINAL),
        (error(Code.CANCELLED, "cancelled by this client"), True, Kind.FINAL),
        (error(Code.CANCELLED, "Stream removed (Channel closed!)"), True, Kind.FINAL),
    ],
)
def test_what_an_end_means(ended: CallError, received: bool, kind: Kind) -> None:
    assert kind_of(ended, received) is kind


# ------------------------------------------------------------ rounds


def test_each_replica_is_asked_before_anybody_waits() -> None:
    world = World()
    failover, asked, waits = world.failover(), [], []
    with pytest.raises(NoReplica) as caught:
        while True:
            asked.append(failover.begin().address.name)
            waits.append(failover.failed(error(message=REFUSED), received=False))
            world.now += waits[-1]
    assert asked[:3] == ["a:1", "b:1", "c:1"]
    assert [wait for wait in waits if wait] == [1.0, 2.0, 4.0]
    for name in NAMES[:3]:
        assert f"{name}: Connection refused" in str(caught.value)
    assert set(caught.value.faults) == set(NAMES[:3])


def test_an_error_names_each_address_and_its_last_fault() -> None:
    failover = World(attempts=2).failover()
    ends = {
        "a:1": error(message=REFUSED),
        "b:1": error(Code.UNIMPLEMENTED, "unknown service"),
        "c:1": error(message="Failed parsing HTTP/2 (Trying to connect an http1.x server)"),
    }
    with pytest.raises(NoReplica) as caught:
        while True:
            failover.failed(ends[failover.begin().address.name], received=False)
    assert caught.value.faults == {
        "a:1": "Connection refused",
        "b:1": "it speaks gRPC, and not quire.v1",
        "c:1": "what listens there is not gRPC",
    }
    assert "a:1: Connection refused" in str(caught.value)


def test_without_retries_the_first_error_is_the_last() -> None:
    world = World(attempts=1)
    failover, refused = world.failover(), error(message=REFUSED)
    failover.begin()
    with pytest.raises(Unavailable) as caught:
        failover.failed(refused, received=False)
    assert caught.value is refused
    assert {world.failover().begin().address.name for _ in range(4)} == {"b:1", "c:1"}


def test_a_full_replica_is_left_alone_as_long_as_it_asked() -> None:
    world = World("a:1", "b:1")
    failover = world.failover()
    failover.begin()
    assert (
        failover.failed(error(Code.RESOURCE_EXHAUSTED, "full", after=20.0), received=False) == 0.0
    )
    assert failover.begin().address.name == "b:1"
    world.now = 19.0
    assert {world.failover().begin().address.name for _ in range(4)} == {"b:1"}
    world.now = 20.0
    assert {world.failover().begin().address.name for _ in range(4)} == {"a:1", "b:1"}


def test_where_all_are_full_the_caller_hears_when() -> None:
    failover = World("a:1", "b:1", attempts=2).failover()
    full = error(Code.RESOURCE_EXHAUSTED, "queue full", after=20.0)
    with pytest.raises(Overloaded, match=r"a:1: .*queue full; b:1: .*queue full") as caught:
        for _ in range(9):
            failover.begin()
            wait = failover.failed(full, received=False)
            assert wait in (0.0, 21.0)  # its wish, and jitter
    assert caught.value.details.retry_after == 20.0


def test_the_deadline_holds_over_all_of_it() -> None:
    world = World("a:1", attempts=9)
    failover = world.failover(timeout=2.5)
    assert failover.begin().seconds == 2.5
    world.now += failover.failed(error(message=REFUSED), received=False)
    assert failover.begin().seconds == 1.5
    with pytest.raises(Unavailable):  # two seconds more would be too late
        failover.failed(error(message=REFUSED), received=False)


def test_a_call_that_kills_whoever_has_it_has_three() -> None:
    """Also where nothing of it was received, and however often calls may be tried again."""
    world = World(*NAMES, attempts=100)
    failover, asked = world.failover(), []
    with pytest.raises(Broken, match="3 times") as caught:
        while True:
            asked.append(failover.begin().address.name)
            failover.failed(
                error(message="the engine has stopped", reason="ENGINE_DEAD"), received=False
            )
    assert len(asked) == len(set(asked)) == 3
    assert caught.value.often


def test_asking_again_ends_with_the_credit() -> None:
    world = World(credit=2)
    for _ in range(2):
        failover = world.failover()
        failover.begin()
        failover.failed(error(message="draining", reason="DRAINING"), received=False)
        failover.leave()
        world.now += 60.0
    failover = world.failover()
    failover.begin()
    with pytest.raises(NoReplica, match="budget"):
        failover.failed(error(message="draining", reason="DRAINING"), received=False)


# ------------------------------------------------------------ streams


def test_a_stream_goes_on_from_what_was_received() -> None:
    world = World(tell_resumed=True)
    stream = world.stream(temperature=1.0)
    attempt, request = stream.begin()
    assert attempt.address.name == "a:1" and not request.resume_token_ids
    items = feed(stream, [started(), delta(0, 1), delta(0, 2)])
    ending = stream.ended(error())
    assert (ending.error, ending.wait) == (None, 1.0)
    world.now += 3.0
    attempt, request = stream.begin()
    assert attempt.address.name == "b:1"
    assert (request.sampling.seed, list(request.resume_token_ids)) == (7, [1, 2])
    assert (request.sampling.temperature, request.request_id) == (1.0, "r")
    items += feed(stream, [started(cached_tokens=3), delta(0, 3)])
    items += feed(stream, [finished(0, 1, pb.FINISH_REASON_STOP, 2)])
    assert stream.ended(None).error is None
    resumed = Resumed("b:1", "a:1", "Socket closed", 2, 1, 3.0)
    assert [i for i in items if isinstance(i, Resumed)] == [resumed]
    messages = [i for i in items if not isinstance(i, Resumed)]
    assert [m.WhichOneof("event") for m in messages] == ["started", *["delta"] * 3, "finished"]
    usage = messages[-1].finished.usage
    assert (usage.completion_tokens, usage.reasoning_tokens, usage.cached_tokens) == (3, 2, 9)


def test_a_prompts_log_probabilities_are_given_once_however_often_it_breaks() -> None:
    """Cut in the midst of them, all begins anew; behind them, nothing more is asked for."""

    def judged(*ids: int, first: int | None = None) -> pb.GenerateResponse:
        told = pb.PromptLogprobs(first_token_id=first)
        told.logprobs.extend(pb.TokenLogprob(token_id=i) for i in ids)
        return pb.GenerateResponse(prompt_logprobs=told)

    world = World()
    request = pb.GenerateRequest(text="x", prompt_logprobs=3)
    stream, found = StreamFailover(world.shared, request, None), []
    attempts = [
        [started(), judged(2, 3, first=1)],
        [started(), judged(2, first=1), judged(3, 4), judged(5)],
        [started(), judged(2, 3, 4, 5, first=1), judged(6), delta(0, 9)],
    ]
    for attempt in attempts:
        _, asked = stream.begin()
        assert asked.prompt_logprobs == 3 and not asked.resume_token_ids
        found += feed(stream, attempt)
        world.now += stream.ended(error()).wait or 0
    told = [item.prompt_logprobs for item in found if isinstance(item, pb.GenerateResponse)]
    assert [i.token_id for one in told for i in one.logprobs] == [2, 3, 4, 5, 6]
    assert [one.first_token_id for one in told if one.HasField("first_token_id")] == [1]
    _, asked = stream.begin()
    assert list(asked.resume_token_ids) == [9] and not asked.HasField("prompt_logprobs")


def test_what_a_server_says_at_its_end_is_dropped_where_the_stream_goes_on() -> None:
    stream = World().stream()
    stream.begin()
    last = delta(0, 2)
    last.delta.closing = True
    cut = finished(0, 2, pb.FINISH_REASON_CANCELLED, 0)
    items = feed(stream, [started(), delta(0, 1), last, cut])
    assert len(items) == 2
    stream.ended(error(message="shutting down", reason="DRAINING"))
    _, request = stream.begin()
    assert list(request.resume_token_ids) == [1]


def test_what_a_server_says_at_its_end_is_given_where_it_does_not() -> None:
    stream = World(resumes=0).stream()
    stream.begin()
    last = delta(0, 2)
    last.delta.closing = True
    cut = finished(0, 2, pb.FINISH_REASON_CANCELLED, 0)
    feed(stream, [started(), last, cut])
    broke = error(message="shutting down", reason="DRAINING")
    ending = stream.ended(broke)
    assert ending.items == (last, cut) and ending.error is broke


def test_an_index_that_ends_gives_what_it_held_back() -> None:
    stream = World().stream()
    stream.begin()
    last = delta(0, 2)
    last.delta.closing = True
    end = finished(0, 2, pb.FINISH_REASON_LENGTH, 0)
    assert feed(stream, [started(), last, end])[1:] == [last, end]


def test_where_all_has_come_a_lost_status_is_nothing() -> None:
    stream = World().stream()
    stream.begin()
    feed(stream, [started(), delta(0, 1), finished(0, 1, pb.FINISH_REASON_STOP, 0)])
    ending = stream.ended(error())
    assert (ending.items, ending.error, ending.wait) == ((), None, None)


def test_two_resumes_and_no_more() -> None:
    stream = World(*NAMES, attempts=100).stream()
    for attempt in range(3):
        stream.begin()
        feed(stream, [started(), delta(0, attempt + 1)])
        ending = stream.ended(error())
        assert (ending.wait is None) == (attempt == 2)
    assert isinstance(ending.error, Broken) and ending.error.often
    assert set(ending.error.faults) == {"a:1", "b:1", "c:1"}


def test_refusals_on_the_way_are_no_breaks() -> None:
    world = World(*NAMES)
    stream = world.stream()
    stream.begin()
    feed(stream, [started()])
    world.now += stream.ended(error()).wait or 0.0
    for _ in range(3):
        stream.begin()
        assert stream.ended(error(message="draining", reason="DRAINING")).wait == 0.0
    attempt, _ = stream.begin()
    assert attempt.address.name == "e:1"


def test_several_completions_are_not_resumed_and_say_so() -> None:
    stream = World().stream(n=2)
    stream.begin()
    feed(stream, [started(), delta(1, 1)])
    ending = stream.ended(error())
    assert isinstance(ending.error, Broken)
    assert "n = 2, and only n = 1 can be resumed" in str(ending.error)


def test_several_completions_of_which_nothing_came_are_asked_again() -> None:
    stream = World().stream(n=2)
    stream.begin()
    assert stream.ended(error()).wait is not None


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"fingerprint": "g"}, "serves g, and not f"),
        ({"prompt_tokens": 6}, "read 6 prompt tokens, and not 0"),
    ],
)
def test_models_are_never_mixed(other: dict[str, object], says: str) -> None:
    """And the error says who serves what."""
    world = World("a:1", "b:1", attempts=2)
    stream = world.stream()
    stream.begin()
    feed(stream, [started(), delta(0, 1)])
    stream.ended(error())
    attempt, _ = stream.begin()
    assert attempt.address.name == "b:1"
    with pytest.raises(Differs):
        stream.take(started(**other))  # type: ignore[arg-type]
    ending = None
    for _ in range(5):
        attempt, _ = stream.begin()
        assert attempt.address.name == "a:1"
        ending = stream.ended(error(message=REFUSED))
        if ending.error:
            break
        world.now += ending.wait or 0.0
    assert ending is not None and isinstance(ending.error, NoReplica)
    assert ending.error.faults == {"a:1": "Connection refused", "b:1": says}


def test_a_replica_that_is_known_to_serve_another_thing_is_said_to() -> None:
    world = World("a:1", "b:1", attempts=2)
    for fingerprint in ("f", "g"):  # what calls before have told
        earlier = world.stream()
        earlier.begin()
        feed(earlier, [started(fingerprint=fingerprint)])
        earlier.close()
    stream = world.stream()
    assert stream.begin()[0].address.name == "a:1"
    feed(stream, [started(), delta(0, 1)])
    ending = stream.ended(error())
    while ending.error is None:
        world.now += ending.wait or 0.0
        assert stream.begin()[0].address.name == "a:1"
        ending = stream.ended(error(message=REFUSED))
    assert isinstance(ending.error, NoReplica)
    assert ending.error.faults == {"a:1": "Connection refused", "b:1": "serves g"}
    assert "the call broke, and no replica is left that serves f" in str(ending.error)


def test_numerics_matter_where_exactness_was_asked_for() -> None:
    for exact in (False, True):
        stream = World("a:1", "b:1", exact=exact).stream()
        stream.begin()
        feed(stream, [started(numerics="H100")])
        stream.ended(error())
        stream.begin()
        if exact:
            with pytest.raises(Differs):
                stream.take(started(numerics="H200"))
        else:
            assert stream.take(started(numerics="H200")) == []


def test_a_resume_that_is_refused_says_who_refused_it() -> None:
    stream = World().stream()
    stream.begin()
    feed(stream, [started(), delta(0, 1)])
    stream.ended(error())
    stream.begin()
    ending = stream.ended(error(Code.INVALID_ARGUMENT, "resume_token_ids: too many"))
    assert isinstance(ending.error, Broken)
    assert "broke at a:1 (Socket closed), and b:1 refuses" in str(ending.error)
    assert "resume_token_ids: too many" in str(ending.error)


def test_an_open_call_is_counted_until_it_is_left() -> None:
    world = World("a:1", "b:1")
    streams = [world.stream() for _ in range(4)]
    for stream in streams:
        stream.begin()
    fleet = world.shared.fleet
    assert {name: one.open for name, one in fleet._replicas.items()} == {"a:1": 2, "b:1": 2}
    for stream in streams:
        stream.close()
        stream.close()
    assert {name: one.open for name, one in fleet._replicas.items()} == {"a:1": 0, "b:1": 0}
