"""A stream that goes on elsewhere: what was delivered is not delivered again."""

from collections.abc import Iterable

import pytest
from support.failover_world import NAMES, REFUSED, Code, World, error
from support.fake_replica import delta, finished

from quire.clients import (
    Broken,
    NoReplica,
    Resumed,
)
from quire.clients.replicas.stream_failover import Differs, Item, StreamFailover
from quire.v1 import inference_pb2 as pb


def started(seed: int = 7, fingerprint: str = "f", **more: object) -> pb.GenerateResponse:
    event = pb.Started(seed=seed, model_fingerprint=fingerprint, request_id="r", cached_tokens=9)
    event.MergeFrom(pb.Started(**more))  # type: ignore[arg-type]
    return pb.GenerateResponse(started=event)


def closing_delta(index: int, token_id: int) -> pb.GenerateResponse:
    """What a server says at its end, or an index's."""
    message = delta(index, token_id)
    message.delta.closing = True
    return message


def feed(stream: StreamFailover, messages: Iterable[pb.GenerateResponse]) -> list[Item]:
    return [item for message in messages for item in stream.take(message)]


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
    last = closing_delta(0, 2)
    cut = finished(0, 2, pb.FINISH_REASON_CANCELLED, 0)
    items = feed(stream, [started(), delta(0, 1), last, cut])
    assert len(items) == 2
    stream.ended(error(message="shutting down", reason="DRAINING"))
    _, request = stream.begin()
    assert list(request.resume_token_ids) == [1]


def test_what_a_server_says_at_its_end_is_given_where_it_does_not() -> None:
    stream = World(resumes=0).stream()
    stream.begin()
    last = closing_delta(0, 2)
    cut = finished(0, 2, pb.FINISH_REASON_CANCELLED, 0)
    feed(stream, [started(), last, cut])
    broke = error(message="shutting down", reason="DRAINING")
    ending = stream.ended(broke)
    assert ending.items == (last, cut) and ending.error is broke


def test_an_index_that_ends_gives_what_it_held_back() -> None:
    stream = World().stream()
    stream.begin()
    last = closing_delta(0, 2)
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
