"""Who is let in: by number, by tokens, by time; bursts, standing queues, and shares."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clock import Clock
from support.full_queue import EXHAUSTED

from quire.service.admission.admission import Admission, Place, Policy
from quire.service.admission.start_rate import StartRate
from quire.service.errors import Refusal


class House:
    """Admission over a pretended engine: `slots` at once, `seconds` each, first come first served
    among clients with the fewest served."""

    def __init__(self, slots: int = 4, seconds: float = 1.0, **policy: Any) -> None:
        self.clock = Clock()
        self.seconds = seconds
        self.slots = slots
        self.queue: list[Place] = []
        self.running: list[tuple[float, Place]] = []
        self.served: dict[str, int] = {}
        self.waits: list[tuple[str, float]] = []
        self.admission = Admission(
            Policy(slots, **policy), lambda: len(self.running), clock=self.clock
        )

    def ask(self, client: str = "a", **options: Any) -> Place:
        place = self.admission.enter(client, **options)
        self.queue.append(place)
        self.served.setdefault(client, 0)
        self.step(0.0)
        return place

    def refused(self, client: str = "a", **options: Any) -> Refusal:
        with pytest.raises(Refusal) as caught:
            self.ask(client, **options)
        assert caught.value.code is EXHAUSTED
        assert caught.value.retry_after is not None
        return caught.value

    def step(self, seconds: float) -> None:
        """Let time pass; end and start what is due."""
        until = self.clock.now + seconds
        while True:
            due = min((end for end, _ in self.running), default=float("inf"))
            if self.queue and len(self.running) < self.slots:
                self._start()
            elif due <= until:
                self.clock.now = max(due, self.clock.now)
                at = min(range(len(self.running)), key=lambda i: self.running[i][0])
                self.running.pop(at)[1].leave()
            else:
                break
        self.clock.now = until

    def _start(self) -> None:
        place = min(self.queue, key=lambda p: (-p.level, self.served[p.client]))
        self.queue.remove(place)
        self.served[place.client] += 1
        self.waits.append((place.client, self.clock.now - place.entered_at))
        self.running.append((self.clock.now + self.seconds, place))
        place.started()

    def learn(self) -> None:
        """Run a full round, so that durations are known."""
        for _ in range(self.slots):
            self.ask("teacher")
        self.step(self.seconds + 0.01)

    def drained(self) -> bool:
        admission = self.admission
        return (
            admission.waiting == admission.waiting_tokens == admission._open == 0
            and not admission._held
            and not admission._queues
            and not admission._in_line
        )


# ------------------------------------------------------------ number and tokens


def test_the_queue_is_full_by_number() -> None:
    house = House(slots=1, max_waiting=2)
    for _ in range(3):
        house.ask()
    refusal = house.refused()
    assert refusal.reason == "QUEUE_FULL"
    assert "2 requests wait, max_waiting = 2" in refusal.message


def test_the_queue_is_full_by_tokens_but_never_for_one_alone() -> None:
    house = House(slots=1, max_waiting_tokens=100)
    house.ask(tokens=500)
    house.ask(tokens=500)  # nobody else waits
    refusal = house.refused(tokens=1)
    assert refusal.reason == "QUEUE_FULL"
    assert "500 tokens wait, this one has 1: max_waiting_tokens = 100" in refusal.message
    house.step(1.0)  # the one that waited has started
    house.ask(tokens=60)
    house.ask(tokens=40)
    house.refused(tokens=1)


# ------------------------------------------------------------ who goes on before who begins


def test_a_full_queue_has_places_for_who_resumes() -> None:
    """Half as many again as may wait, and then it is full for all."""
    house = House(slots=1, max_waiting=4)
    for _ in range(5):
        house.ask()
    house.refused()
    for _ in range(2):
        house.ask(resumes=True)
    assert house.refused(resumes=True).reason == "QUEUE_FULL"
    house.step(100.0)
    assert house.drained()


def test_who_resumes_waits_behind_higher_priorities_and_before_fresh_calls() -> None:
    house = House(slots=1, max_queue_seconds=2.5)
    house.learn()
    for _ in range(3):
        house.ask()
    house.ask(priority=1)
    assert house.refused().reason == "QUEUE_TOO_LONG"
    assert house.refused(priority=1).reason == "QUEUE_TOO_LONG"  # the queue stands now
    house.ask(resumes=True)
    assert house.refused(resumes=True).reason == "QUEUE_TOO_LONG"


# ------------------------------------------------------------ time


def test_the_estimate_is_what_the_wait_turns_out_to_be() -> None:
    house = House(slots=4, seconds=2.0)
    house.learn()
    estimates = []
    for _ in range(20):
        estimates.append(house.admission.estimate("a", 0, house.clock()))
        house.ask()
    house.waits.clear()
    house.step(30.0)
    waited = [0.0] * 4 + [wait for _, wait in house.waits]
    assert estimates[:4] == [0.0] * 4
    for estimate, wait in zip(estimates[4:], waited[4:], strict=True):
        assert abs(estimate - wait) <= 2.0  # within one duration
    assert house.drained()


def test_who_is_refused_before_anything_is_known_is_not_told_to_come_back_at_once() -> None:
    house = House(slots=1, seconds=9.0, max_waiting=1)
    for _ in range(2):
        house.ask()
    assert house.refused().retry_after == 1.0
    house.step(10.0)  # the first has ended
    house.ask()
    assert (house.refused().retry_after or 0) > 5.0


def test_a_deadline_that_cannot_be_kept_is_refused_at_once() -> None:
    house = House(slots=4, seconds=1.0)
    house.learn()
    for _ in range(24):
        house.ask()
    assert 4 < house.admission.estimate("a", 0, house.clock()) < 7
    refusal = house.refused(remaining=2.0)
    assert refusal.reason == "QUEUE_TOO_LONG"
    assert "deadline" in refusal.message
    assert 2 < (refusal.retry_after or 0) < 5
    house.ask(remaining=10.0)
    house.ask()


def test_a_higher_priority_waits_behind_its_equals_alone() -> None:
    house = House(slots=4, seconds=1.0)
    house.learn()
    for _ in range(24):
        house.ask()
    house.refused(remaining=2.0)
    house.ask(remaining=2.0, priority=1)
    house.refused(remaining=2.0, priority=-1)


def test_without_knowledge_nobody_is_refused_for_time() -> None:
    house = House(slots=1)
    for _ in range(50):
        house.ask(remaining=0.001)


def test_the_longest_queue_in_seconds() -> None:
    house = House(slots=4, seconds=1.0, max_queue_seconds=3.0)
    house.learn()
    let_in = 0
    with pytest.raises(Refusal) as caught:
        for _ in range(100):
            house.ask()
            let_in += 1
    assert "max_queue_seconds allows 3 s" in caught.value.message
    assert 12 <= let_in <= 18  # four at once and twelve in three seconds


def test_the_rate_follows_durations_that_change() -> None:
    rate, now = StartRate(0.0), 0.0
    for _ in range(30):
        rate.ended(1.0)
    assert rate.per_second(10, now) == pytest.approx(10.0)
    rate.queue(True, now)
    for _ in range(20):  # and yet only one starts a second
        now += 1.0
        rate.started(now)
    assert 0.9 < (rate.per_second(10, now) or 0) < 1.8
    rate.queue(False, now)
    assert rate.per_second(10, now + 100) == pytest.approx(10.0, rel=0.01)


def test_a_cache_that_is_full_makes_a_queue_whatever_slots_are_free() -> None:
    house = House(slots=4, seconds=1.0, max_queue_seconds=3.0)
    house.learn()
    clock, admission = house.clock, house.admission
    admission.policy = Policy(64, max_queue_seconds=3.0)  # as if there were many more slots
    for _ in range(12):
        house.ask()
    assert admission.estimate("a", 0, clock()) == 0.0
    house.step(0.9)
    assert admission.estimate("a", 0, clock()) > 1.0


# ------------------------------------------------------------ bursts and standing queues


def flood(house: House, rate: float, seconds: float, client: str = "a") -> tuple[int, int]:
    """Even arrivals; returns how many were let in and refused."""
    let_in = refused = 0
    for _ in range(int(rate * seconds)):
        try:
            house.ask(client)
            let_in += 1
        except Refusal:
            refused += 1
        house.step(1 / rate)
    return let_in, refused


def test_a_burst_waits_and_is_served() -> None:
    house = House(slots=8, seconds=1.0)
    house.learn()
    for _ in range(32):  # four seconds of work at once: less than queue_burst_seconds
        house.ask()
    house.step(10.0)
    assert house.drained()


def test_three_times_the_load_gets_full_use_and_no_queue() -> None:
    house = House(slots=32, seconds=1.0)
    house.learn()
    flood(house, 96, 30)  # the burst is let in, then cut
    house.waits.clear()
    let_in, refused = flood(house, 96, 30)
    waits = sorted(wait for _, wait in house.waits)
    assert let_in >= 0.95 * 32 * 30
    assert let_in + refused == 96 * 30
    assert waits[int(0.99 * len(waits))] <= 0.05
    assert house.admission.standing(house.clock())
    flood(house, 16, 12)  # and bursts are let in again once it has been calm
    assert not house.admission.standing(house.clock())


def test_a_queue_that_does_not_end_is_cut_though_it_does_not_grow() -> None:
    house = House(slots=4, seconds=1.0)
    house.learn()
    for _ in range(24):
        house.ask()
    refused = 0
    for _ in range(80):  # as many come as are served
        try:
            house.ask()
        except Refusal as refusal:
            refused += 1
            assert "queue_target_seconds" in refusal.message
            assert (refusal.retry_after or 0) >= 1.0
        house.step(0.25)
    assert refused >= 20
    assert house.admission.waiting <= 1


def test_a_call_of_many_indices_is_not_kept_out_for_ever() -> None:
    """There will never be as many slots free at once as it would fill."""
    house = House(slots=4, seconds=1.0)
    house.learn()
    flood(house, 12, 20)
    assert house.admission.standing(house.clock())
    let_in = 0
    for _ in range(20):
        house.step(0.7)
        try:
            house.admission.enter("many", 16).leave()
            let_in += 1
        except Refusal:
            pass
        flood(house, 12, 0.3)
    assert let_in


# ------------------------------------------------------------ shares


def test_one_client_that_floods_does_not_keep_another_out() -> None:
    house = House(slots=16, seconds=1.0)
    house.learn()
    flood(house, 100, 20, "loud")
    house.waits.clear()
    for _ in range(30):
        house.ask("quiet")  # never refused
        flood(house, 100, 0.5, "loud")
    house.step(5.0)
    quiet = sorted(wait for client, wait in house.waits if client == "quiet")
    assert len(quiet) == 30
    assert quiet[-1] <= house.seconds  # slots may all be freed at the same moment


def test_places_are_shared_when_they_are_scarce() -> None:
    house = House(slots=1, max_waiting=10)
    for _ in range(11):
        house.ask("loud")
    house.refused("loud")
    for _ in range(5):
        house.ask("quiet")
    house.refused("quiet")
    for client in range(40):
        try:
            house.ask(f"other{client}")
        except Refusal:
            break
    assert house.admission.waiting <= 20
    house.refused("one more")


@settings(deadline=None)
@given(st.data())
def test_counts_return_to_zero_whatever_happens(data: st.DataObject) -> None:
    clock = Clock()
    admission = Admission(Policy(3, max_waiting=8, max_waiting_tokens=50), None, clock)
    places: list[Place] = []
    for _ in range(data.draw(st.integers(1, 60))):
        clock.now += data.draw(st.sampled_from([0.0, 0.1, 2.0]))
        action = data.draw(st.sampled_from(["enter", "started", "leave"]))
        if action == "enter":
            try:
                places.append(
                    admission.enter(
                        data.draw(st.sampled_from("abc")),
                        data.draw(st.integers(1, 4)),
                        data.draw(st.integers(-1, 1)),
                        data.draw(st.integers(0, 40)),
                        data.draw(st.sampled_from([None, 0.5])),
                    )
                )
            except Refusal:
                continue
        elif places:
            place = data.draw(st.sampled_from(places))
            place.started() if action == "started" else place.leave()
        assert 0 <= admission.waiting <= 16 + 4
        assert admission.waiting_tokens >= 0
    for place in places:
        place.leave()
        place.leave()
        place.started()
    assert admission.waiting == admission.waiting_tokens == admission._open == 0
    assert not admission._held and not admission._queues and not admission._in_line
