"""Who is admitted next: as the slow twin says, at a cost that hardly grows with who waits."""

import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.slow_queue import SlowQueue
from support.traffic import run_episode

from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.scheduling import client_queue, rising_heap, shares, waiting_queue
from quire.engine.scheduling.request import Request, Status
from quire.engine.scheduling.rising_heap import RisingHeap
from quire.engine.scheduling.waiting_queue import HEAD_START, WaitingQueue

MODULES = (client_queue, rising_heap, shares, waiting_queue)
FILES = {str(Path(m.__file__ or "")) for m in MODULES}
ONE = SamplingParams(max_tokens=1)


def arrival(
    number: int, client: str, priority: int = 0, user: str = "", *, resumes: bool = False
) -> Request:
    spec = GenerationRequest(
        key=number,
        prompt_token_ids=(1,),
        sampling=ONE,
        priority=priority,
        client=client,
        user=user,
        resume_token_ids=(5,) if resumes else (),
    )
    return Request(spec, 0, number)


# ------------------------------------------------------------ the same decisions


class Side:
    """One queue, and its own copy of every request."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue
        self.waiting: dict[int, Request] = {}
        self.running: dict[int, Request] = {}

    def arrive(
        self, number: int, whose: tuple[str, str], priority: int, followers: int, resumes: bool
    ) -> None:
        client, user = whose
        numbers = range(number, number + followers + 1)
        leader, *rest = (arrival(i, client, priority, user, resumes=resumes) for i in numbers)
        for request in (leader, *rest):
            self.queue.enter(client, user)
            self.waiting[request.arrival] = request
        self.queue.push(leader)
        for request in rest:
            self.queue.hold(leader, request)

    def admit(self) -> int | None:
        head = self.queue.head()
        if head is None:
            return None
        self.queue.take(head)
        self.running[head.arrival] = self.waiting.pop(head.arrival)
        return int(head.arrival)

    def charge(self, number: int, tokens: int) -> None:
        spec = self.running[number].spec
        self.queue.shares.charge(spec.client, tokens, spec.user)

    def preempt(self, number: int) -> None:
        self.waiting[number] = self.running.pop(number)
        self.queue.push(self.waiting[number])

    def release(self, number: int) -> None:
        self.queue.release(self.running[number])

    def end(self, number: int) -> None:
        waits = number in self.waiting
        request = (self.waiting if waits else self.running).pop(number)
        request.status = Status.FINISHED
        if waits:
            self.queue.forget(request)
        self.queue.release(request)
        self.queue.leave(request.spec.client, request.spec.user)


def drive(chance: Random, turns: int, clients: int, priorities: int, users: int = 1) -> None:
    """Any order of what a scheduler does; after each the heads, counters and lengths agree."""
    fast, slow = sides = Side(WaitingQueue()), Side(SlowQueue())
    number = 1

    def both(name: str, *values: Any) -> None:
        first, second = (getattr(side, name)(*values) for side in sides)
        assert first == second

    for _ in range(turns):
        what = chance.choice(("arrive", "arrive", "admit", "admit", "charge", "other"))
        running, everybody = sorted(fast.running), sorted({*fast.running, *fast.waiting})
        if what == "arrive":
            followers = chance.choice((0, 0, 1, 2))
            whose = f"c{chance.randrange(clients)}", f"u{chance.randrange(users)}"
            resumes = not followers and chance.random() < 0.25
            both("arrive", number, whose, chance.randrange(priorities), followers, resumes)
            number += followers + 1
        elif what == "admit":
            both("admit")
        elif what == "charge" and running:
            both("charge", chance.choice(running), chance.choice((1, 1, 40, HEAD_START)))
        elif what == "other" and everybody:
            name = chance.choice(("preempt", "release", "end", "end"))
            known = everybody if name == "end" else running
            if known:
                both(name, chance.choice(known))
        heads = [side.queue.head() for side in sides]
        assert [h and h.arrival for h in heads[:1]] == [h and h.arrival for h in heads[1:]]
        assert len(fast.queue) == len(slow.queue) == len(fast.waiting)
        assert fast.waiting or not (fast.queue._oldest or fast.queue._ranked), "the gone are kept"
        assert fast.queue.shares.served == slow.queue.shares.served
        assert {r.priority for r in fast.running.values()} == {
            r.priority for r in slow.running.values()
        }


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1 << 30),
    clients=st.sampled_from((1, 2, 5, 40)),
    priorities=st.integers(1, 3),
    users=st.sampled_from((1, 2, 7)),
)
def test_the_queue_decides_as_its_slow_twin(
    seed: int, clients: int, priorities: int, users: int
) -> None:
    drive(Random(seed), 150, clients, priorities, users)


def test_the_queue_decides_as_its_slow_twin_over_a_long_life() -> None:
    """Long enough that dead entries are swept out, of requests and of clients."""
    drive(Random(7), 2000, 150, 2)
    drive(Random(8), 2000, 3, 2, users=150)


def test_users_share_what_their_client_gets_and_nobody_gets_more_by_naming_them() -> None:
    """alice names ten users, bob none: of 40 admissions each gets half, and a user of alice's that
    asks once is not behind another that asks for much."""
    queue, number = WaitingQueue(), 0

    def come(client: str, user: str, count: int) -> None:
        nonlocal number
        for _ in range(count):
            number += 1
            queue.enter(client, user)
            queue.push(arrival(number, client, user=user))

    come("alice", "greedy", 60)
    come("bob", "", 60)
    for user in range(10):
        come("alice", f"modest{user}", 1)
    got: list[tuple[str, str]] = []
    for _ in range(40):
        head = queue.head()
        assert head is not None
        queue.take(head)
        got.append((head.spec.client, head.spec.user))
        queue.shares.charge(*got[-1][:1], 10, got[-1][1])
    by_client = [client for client, _ in got]
    assert abs(by_client.count("alice") - by_client.count("bob")) <= 40 // waiting_queue.AGEING
    first = [user for client, user in got if client == "alice"][:14]
    assert len({user for user in first if user.startswith("modest")}) == 10


def test_whole_engines_plan_the_same_over_either_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = range(300, 312)
    fast = [run_episode(seed, turns=120, log=True).log for seed in seeds]
    monkeypatch.setattr("quire.engine.scheduling.scheduler_state.WaitingQueue", SlowQueue)
    monkeypatch.setattr("support.simulator.Simulator.check", lambda _self: None)  # looks into heaps
    monkeypatch.setattr("support.simulator.Simulator._check_empty", lambda _self: None)
    assert [run_episode(seed, turns=120, log=True).log for seed in seeds] == fast


# ------------------------------------------------------------ who goes on before who begins


def admitted(queue: WaitingQueue, *requests: Request) -> list[int]:
    """The order in which they go, each served HEAD_START tokens when it does."""
    for request in requests:
        queue.enter(request.spec.client)
        queue.push(request)
    order = []
    while (head := queue.head()) is not None:
        queue.take(head)
        queue.shares.charge(head.spec.client, HEAD_START)
        order.append(head.arrival)
    return order


def test_a_request_that_resumes_goes_before_fresh_ones_of_its_priority() -> None:
    resumed = arrival(3, "a", resumes=True)
    order = admitted(WaitingQueue(), arrival(1, "a"), arrival(2, "a", 1), resumed, arrival(4, "a"))
    assert order == [2, 3, 1, 4]
    other = arrival(3, "b", resumes=True)
    assert admitted(WaitingQueue(), arrival(1, "a"), arrival(2, "a"), other)[0] == 3


def test_who_says_that_all_is_resumed_gains_a_bounded_start() -> None:
    """Two of its requests go first, then shares decide as ever."""
    resumed = [arrival(number, "a", resumes=True) for number in range(11, 15)]
    fresh = [arrival(number, "b") for number in range(1, 5)]
    order = admitted(WaitingQueue(), *fresh, *resumed)
    assert order[:5] == [11, 1, 12, 2, 13]


# ------------------------------------------------------------ what it costs


class Counted(int):
    """A number of tokens that counts how often any of them is compared."""

    comparisons = 0

    def __lt__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) < int(other)

    def __gt__(self, other: int) -> bool:
        return Counted.__lt__(Counted(other), self)

    def __eq__(self, other: object) -> bool:
        Counted.comparisons += 1
        return int(self) == other

    __hash__ = int.__hash__

    def __add__(self, other: int) -> "Counted":
        return Counted(int(self) + other)

    __radd__ = __add__


def operations(work: Callable[[], None]) -> int:
    """Lines of the queue's own code that run, and comparisons of shares within the library's."""
    lines = 0

    def trace(frame: FrameType, event: str, _arg: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename not in FILES:
            return None
        lines += event == "line"
        return trace

    Counted.comparisons = 0
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return lines + Counted.comparisons


def test_a_client_comes_forward_where_its_first_leaves_to_an_earlier_of_another_user() -> None:
    queue = WaitingQueue()

    def come(number: int, client: str, user: str) -> Request:
        request = arrival(number, client, user=user)
        queue.enter(client, user)
        queue.push(request)
        return request

    queue.take(come(1, "c", "served"))
    late = come(10, "c", "new")
    queue.shares.charge("c", 10, "served")
    other, early = come(7, "d", ""), come(5, "c", "served")
    assert queue.shares.served == {"c": 10, "d": 10}
    assert queue.head() is other  # of c, the one that came last is first
    late.status = Status.FINISHED
    queue.forget(late)
    queue.leave("c", "new")
    assert queue.head() is early


def crowd(clients: int, requests: int = 2048, *, users: int = 1) -> WaitingQueue:
    queue = WaitingQueue()
    for number in range(requests):
        client, user = f"c{number % clients}", f"u{number % users}"
        queue.enter(client, user)
        queue.push(arrival(number, client, user=user))
        queue.shares.charge(client, Counted(0), user)
    return queue


def admissions(queue: WaitingQueue, count: int = 256) -> None:
    for _ in range(count):
        head = queue.head()
        assert head is not None
        queue.take(head)
        queue.shares.charge(head.spec.client, Counted(100), head.spec.user)


@pytest.mark.parametrize("users", [False, True], ids=["clients", "users"])
def test_admissions_cost_little_more_with_a_thousand_than_with_one(users: bool) -> None:
    one, many = crowd(1), crowd(1, users=1024) if users else crowd(1024)
    alone = operations(lambda: admissions(one))
    assert operations(lambda: admissions(many)) < 4 * alone
    assert operations(lambda: admissions(many)) < 4 * alone, "nor do charges pile up"


def test_coming_and_going_cost_little_more_with_a_thousand_clients_than_with_one() -> None:
    def visits(queue: WaitingQueue) -> None:
        for number in range(256):
            request = arrival(10_000 + number, f"visitor{number}", user="u0")
            queue.enter(request.spec.client, "u0")
            queue.shares.charge(request.spec.client, Counted(1), "u0")
            queue.push(request)
            request.status = Status.FINISHED
            queue.forget(request)
            queue.leave(request.spec.client, "u0")

    one, many = crowd(1), crowd(1024)
    alone = operations(lambda: visits(one))
    assert operations(lambda: visits(many)) < 4 * alone


# ------------------------------------------------------------ the heap beneath


HEAP_STEPS = st.tuples(
    st.sampled_from(("offer", "rise", "leave", "vanish")), st.integers(0, 7), st.integers(0, 20)
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(steps=st.integers(1, 60).flatmap(lambda n: st.lists(HEAP_STEPS, min_size=n, max_size=n)))
def test_the_first_is_the_least_however_ranks_rise(steps: list[tuple[str, int, int]]) -> None:
    ranks: dict[int, int] = {}
    heap: RisingHeap[int] = RisingHeap(ranks.get)
    for what, item, rank in steps:
        if what == "offer":
            ranks[item] = rank
            heap.offer(item)
        elif what == "rise" and item in ranks:
            ranks[item] += rank
        elif what == "leave":
            ranks.pop(item, None)
            heap.discard(item)
        elif what == "vanish":
            ranks.pop(item, None)
        first = heap.first()
        assert (first is None) == (not ranks)
        if first is not None:
            assert ranks[first] == min(ranks.values())
        assert len(heap) <= 3 * 8 + 65
