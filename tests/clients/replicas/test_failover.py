"""One call's way through a fleet, with clock and chance in the test's hands, and no server."""

import pytest
from support.failover_world import NAMES, REFUSED, Code, World, error

from quire.clients import (
    Broken,
    CallError,
    NoReplica,
    Overloaded,
    Unavailable,
)
from quire.clients.replicas.faults import Kind, kind_of

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
