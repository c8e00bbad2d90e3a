"""Who is given a call: loads are bounded, who rests is spared, who goes is let go."""

import logging
from collections import Counter

import pytest

from quire.clients.replicas import fleet as fleet_module
from quire.clients.replicas.addresses import Address, Lookup
from quire.clients.replicas.affinity import REMEMBERED, REMEMBERED_EACH, PromptKeys
from quire.clients.replicas.budget import RetryBudget
from quire.clients.replicas.fleet import BALANCE, FIRST_REST, LONGEST_REST, Fleet, Identity


def address(name: str) -> Address:
    host, _, port = name.partition(":")
    return Address(name, host, int(port))


def key(root: int) -> PromptKeys:
    return PromptKeys(root, (root.to_bytes(8, "little"),))


class World:
    """A fleet under a clock of the test's."""

    def __init__(self, *names: str, routing: str = "prefix") -> None:
        self.now = 100.0
        self.fleet = Fleet(routing, clock=lambda: self.now)
        self.fleet.update(map(address, names))

    def choose(self, keys: PromptKeys | None = None, *avoid: str, **more: Identity) -> str | None:
        chosen = self.fleet.choose(keys, avoid, **more)
        return chosen and chosen.name


def test_servers_take_turns() -> None:
    world = World("a:1", "b:1", "c:1", routing="round_robin")
    assert [world.choose(key(1)) for _ in range(7)] == ["a:1", "b:1", "c:1"] * 2 + ["a:1"]


def test_a_conversation_stays_where_it_is() -> None:
    world = World("a:1", "b:1", "c:1")
    for root in range(20):
        names = set()
        for _ in range(5):
            names.add(world.choose(key(root)))
            world.fleet.leave(str(names.copy().pop()))
        assert len(names) == 1


def test_no_replica_gets_far_above_the_mean() -> None:
    """All calls want the same one."""
    world, counts = World("a:1", "b:1", "c:1", "d:1"), dict.fromkeys("abcd", 0)
    for made in range(1, 101):
        counts[str(world.choose(key(1)))[0]] += 1
        assert max(counts.values()) <= BALANCE * made / 4 + 1
    assert max(counts.values()) > 100 / 4 + 1  # and not spread more than that asks for


def test_a_prompt_that_is_new_makes_none_fuller_than_the_mean_and_one() -> None:
    world, counts = World("a:1", "b:1", "c:1", "d:1"), dict.fromkeys("abcd", 0)
    for made in range(1, 101):
        counts[str(world.choose(key(made)))[0]] += 1
        assert max(counts.values()) <= made / 4 + 1


def test_who_is_pushed_off_stays_where_it_went() -> None:
    """Its blocks are there now."""
    world = World("a:1", "b:1")
    first = world.choose(key(1))
    while (pushed := world.choose(key(1))) == first:
        pass
    for _ in range(10):
        world.fleet.leave(str(first))
    assert world.choose(key(1)) == pushed


def test_only_a_new_prompt_walks_all_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    world, walked = World("a:1", "b:1", "c:1"), []
    monkeypatch.setattr(fleet_module, "score", lambda root, seed: walked.append(seed) or root)
    first = world.choose(key(1))
    assert len(walked) == 3
    world.fleet.leave(str(first))
    assert (world.choose(key(1)), len(walked)) == (first, 3)
    world.choose()
    assert len(walked) == 3


def test_the_mean_is_of_those_that_may_be_asked() -> None:
    world = World("a:1", "b:1", "c:1")
    for _ in range(20):
        assert world.choose(key(1), "b:1", "c:1") == "a:1", "where one is left it has no bound"
    world.fleet.down("a:1", "full", 9.0)
    counts = Counter(world.choose(key(1)) for _ in range(9))
    assert max(counts.values()) <= BALANCE * 9 / 2 + 1, "who rests is not in it"
    world.fleet.update([Address("a:1", "elsewhere", 1), address("b:1"), address("c:1")])
    more = Counter(world.choose(key(1)) for _ in range(12))
    assert min((counts + more).values()) >= 5, "nor are calls of one that was replaced"


def test_a_large_fleet_remembers_more_prompts() -> None:
    fleet = Fleet()
    fleet.update([Address(f"r{i}:1", f"r{i}", 1) for i in range(REMEMBERED // REMEMBERED_EACH + 1)])
    first = fleet.choose(key(0))
    for root in range(1, REMEMBERED + 1):
        fleet._memory.note(key(root), "r0:1")
    assert first is not None and fleet._memory.recall(key(0)) == first.name


def test_one_that_is_down_rests_longer_each_time_and_comes_back() -> None:
    world = World("a:1", "b:1", routing="round_robin")
    world.fleet.down("a:1", "gone")
    assert {world.choose() for _ in range(4)} == {"b:1"}
    world.now += FIRST_REST
    assert {world.choose() for _ in range(2)} == {"a:1", "b:1"}
    for _ in range(10):
        world.fleet.down("a:1", "gone")
    world.now += LONGEST_REST - 0.01
    assert {world.choose() for _ in range(2)} == {"b:1"}
    world.now += 0.02
    assert {world.choose() for _ in range(2)} == {"a:1", "b:1"}
    world.fleet.up("a:1")
    assert world.fleet.faults() == {"a:1": "", "b:1": ""}


def test_who_asks_for_time_is_given_it() -> None:
    world = World("a:1", "b:1", routing="round_robin")
    world.fleet.down("a:1", "full", 60.0)
    world.now += 59.0
    assert {world.choose() for _ in range(4)} == {"b:1"}


def test_where_all_rest_the_one_that_wakes_first_is_asked() -> None:
    world = World("a:1", "b:1")
    world.fleet.down("a:1", "gone", 1.0)
    world.fleet.down("b:1", "gone", 2.0)
    assert world.choose(key(1)) == "a:1"
    assert world.choose(key(1), "a:1") == "b:1"
    assert world.choose(key(1), "a:1", "b:1") is None


def test_a_stream_goes_on_only_at_its_like() -> None:
    world = World("a:1", "b:1", "c:1")
    world.fleet.set_identity("a:1", Identity("old", "cpu"))
    world.fleet.set_identity("b:1", Identity("new", "gpu"))
    new = Identity("new")
    assert {world.choose(key(i), like=new) for i in range(20)} == {"b:1", "c:1"}
    world.fleet.set_identity("c:1", Identity("new", "cpu"))
    assert {world.choose(key(i), like=Identity("new", "cpu")) for i in range(20)} == {"c:1"}
    world.fleet.down("a:1", "gone", lost=True)  # another program may come up there
    world.now += LONGEST_REST
    assert "a:1" in {world.choose(key(i), like=new) for i in range(40)}


def test_different_models_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World("a:1", "b:1")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            world.fleet.set_identity("a:1", Identity("f1"))
            world.fleet.set_identity("b:1", Identity("f2"))
    assert [r.getMessage() for r in caplog.records] == [
        "replicas serve different models: a:1 f1, b:1 f2"
    ]


def test_one_that_has_gone_ends_with_its_last_call() -> None:
    world = World("a:1", "b:1")
    assert world.choose(None, "b:1") == "a:1"
    world.fleet.update([address("b:1"), address("c:1")])
    assert {world.choose(key(i)) for i in range(20)} == {"b:1", "c:1"}
    assert world.fleet.take_gone() == []
    world.fleet.leave("a:1")
    assert world.fleet.take_gone() == ["a:1"]
    assert world.fleet.take_gone() == []


# ------------------------------------------------------------ names


class Names:
    """A resolver and a clock under the test's control; look-ups run at once."""

    def __init__(self, **known: list[str]) -> None:
        self.known, self.now, self.asked = known, 0.0, 0

    def resolve(self, host: str, _port: int) -> list[str]:
        self.asked += 1
        if host not in self.known:
            raise OSError("no such name")
        return self.known[host]

    def lookup(self, *hosts: str) -> Lookup:
        return Lookup(
            [(host, 5) for host in hosts],
            30.0,
            resolver=self.resolve,
            clock=lambda: self.now,
            spawn=lambda work: work(),
        )


def shown(lookup: Lookup) -> list[str]:
    return [one.name for one in lookup.addresses()]


def test_a_name_of_several_is_several_replicas() -> None:
    names = Names(fleet=["10.0.0.1", "10.0.0.2"], alone=["10.0.0.9"])
    lookup = names.lookup("fleet", "alone", "127.0.0.1", "fleet")
    assert shown(lookup) == ["10.0.0.1:5", "10.0.0.2:5", "alone:5", "127.0.0.1:5"]
    assert lookup.addresses()[0].tls_name == "fleet"
    assert lookup.addresses()[2] == Address("alone:5", "alone", 5)


def test_a_name_nobody_knows_is_a_replica_that_answers_nobody() -> None:
    names = Names(fleet=["10.0.0.1", "10.0.0.2"])
    lookup = names.lookup("fleet", "unknown")
    assert shown(lookup) == ["10.0.0.1:5", "10.0.0.2:5", "unknown:5"]
    del names.known["fleet"]  # what was known stays
    assert shown(lookup) == ["10.0.0.1:5", "10.0.0.2:5", "unknown:5"]


def test_names_are_looked_up_again() -> None:
    names = Names(fleet=["10.0.0.1", "10.0.0.2"])
    lookup, fleet = names.lookup("fleet"), Fleet(clock=lambda: names.now)
    fleet.update(lookup.addresses())
    names.known["fleet"] = ["10.0.0.2", "10.0.0.3"]
    names.now = 29.0
    lookup.refresh(fleet.update)
    assert set(fleet.faults()) == {"10.0.0.1:5", "10.0.0.2:5"}
    names.now = 30.0
    lookup.refresh(fleet.update)
    assert set(fleet.faults()) == {"10.0.0.2:5", "10.0.0.3:5"}


def test_a_loss_makes_the_look_up_due_but_not_at_every_call() -> None:
    names = Names(fleet=["10.0.0.1", "10.0.0.2"])
    lookup, fleet = names.lookup("fleet"), Fleet(clock=lambda: names.now)
    for now, asked in ((0.5, 0), (1.0, 1), (1.5, 1), (2.0, 2)):
        names.now = now
        lookup.lost()
        lookup.refresh(fleet.update)
        assert names.asked == asked


def test_literal_addresses_are_never_looked_up() -> None:
    names = Names()
    lookup = names.lookup("127.0.0.1", "::1", "localhost")
    assert shown(lookup) == ["127.0.0.1:5", "[::1]:5", "localhost:5"]
    names.now = 1e6
    lookup.refresh(lambda _found: pytest.fail("looked up"))
    assert not names.asked


# ------------------------------------------------------------ credit


def test_asking_again_is_paid_for() -> None:
    now = [0.0]
    budget = RetryBudget(3, 0.5, 2.0, clock=lambda: now[0])
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
    budget.call_began()
    assert not budget.take()
    budget.call_began()
    assert budget.take()
    now[0] += 1.0
    assert [budget.take() for _ in range(3)] == [True, True, False]
    now[0] += 1e6
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
