"""What is told of cached blocks: applied in order it gives what the prefix cache holds."""

import random
from collections import Counter
from collections.abc import Iterable

import pytest

from quire.engine.loop.kv_watch import KvWatch
from quire.engine.scheduling.block_pool import BlockPool
from quire.engine.scheduling.kv_events import (
    CHANGES,
    CLEARED,
    LOST,
    MAX_EVENTS,
    REMOVED,
    SNAPSHOT,
    STORED,
    KvEvent,
    KvEvents,
    KvLog,
    joined,
)

BLOCK = 4


def make(num_blocks: int = 9, seed: int | None = 1) -> BlockPool:
    return BlockPool(num_blocks, BLOCK, seed=seed)


def remember(pool: BlockPool, tokens: list[int], salt: bytes = b"") -> list[int]:
    """A table of blocks of these tokens: the known ones shared, the rest computed."""
    hashes: list[bytes] = []
    full = len(tokens) // BLOCK
    pool.prefix_cache.extend_hashes(hashes, salt, tokens, full)
    table = pool.prefix_cache.match(hashes, tokens)
    pool.share(table)
    table += pool.allocate(full - len(table))
    for index, block in enumerate(table):
        pool.prefix_cache.register([block], hashes, salt, tokens, index)
    return table


def applied(told: Iterable[KvEvents]) -> Counter[bytes]:
    """Blocks of each hash, as somebody knows them who only listens."""
    held: Counter[bytes] = Counter()
    for batch in told:
        if batch.kind == SNAPSHOT:
            held.clear()
        for event in batch.events:
            if event.kind == CLEARED:
                held.clear()
            elif event.kind == STORED:
                held[event.block_hash] += 1
            else:
                assert held[event.block_hash] > 0, "removed, and was not there"
                held[event.block_hash] -= 1
    return +held


def held_by(pool: BlockPool) -> Counter[bytes]:
    return Counter(event.block_hash for event in pool.prefix_cache.snapshot())


def test_events_behind_a_snapshot_give_what_the_cache_holds() -> None:
    rng, pool = random.Random(5), make(12)
    watch = KvWatch(pool.prefix_cache, lambda: 7.0)
    tables = [remember(pool, [1] * BLOCK)]
    watch.begin()
    told = list(watch.take())
    for turn in range(400):
        if tables and (rng.random() < 0.5 or pool.num_free < 3):
            pool.release(tables.pop(rng.randrange(len(tables))))
        else:
            salt = rng.choice((b"", b"salt"))
            tokens = [rng.randrange(2) for _ in range(BLOCK)] * rng.randint(1, 3)
            tables.append(remember(pool, tokens, salt))
        if turn == 200:
            pool.forget_all()
        told += watch.take()
        assert applied(told) == held_by(pool)
    pool.check(tables)
    kinds = {event.kind for batch in told for event in batch.events}
    assert kinds == {STORED, REMOVED, CLEARED}
    numbers = [batch.sequence for batch in told]
    assert numbers == list(range(numbers[0], numbers[0] + len(told)))


def test_two_blocks_of_one_hash_are_told_twice() -> None:
    pool = make()
    hashes: list[bytes] = []
    tokens = [1] * BLOCK
    pool.prefix_cache.extend_hashes(hashes, b"", tokens, 1)
    pool.prefix_cache.log = log = KvLog()
    for block in (one := pool.allocate(1)) + pool.allocate(1):
        pool.prefix_cache.register([block], hashes, b"", tokens, 0)
    assert [event.block_hash for event in log.take()] == hashes * 2
    pool.prefix_cache.forget(one[0])
    assert log.take() == (KvEvent(REMOVED, hashes[0]),)
    assert held_by(pool) == {hashes[0]: 1}


def test_an_event_names_tokens_parent_and_salt() -> None:
    pool = make()
    pool.prefix_cache.log = log = KvLog()
    remember(pool, [1, 2, 3, 4, 5, 6, 7, 8, 9], b"salt")  # the last one fills no block
    first, second = log.take()
    assert first.parent == b"" and second.parent == first.block_hash
    assert second.tokens == b"".join(i.to_bytes(4, "little") for i in (5, 6, 7, 8))
    assert first.salt == second.salt == b"salt"


def test_a_snapshot_has_parents_before_their_children() -> None:
    pool = make(30)
    for last in (1, 2, 3):
        remember(pool, [0] * BLOCK + [last] * BLOCK + [9] * BLOCK)
    seen = {b""}
    for event in pool.prefix_cache.snapshot():
        assert event.parent in seen
        seen.add(event.block_hash)
    assert len(seen) == 8


def test_nothing_is_recorded_while_nobody_watches() -> None:
    pool = make()
    watch = KvWatch(pool.prefix_cache, lambda: 7.0)
    remember(pool, [1] * BLOCK)
    assert pool.prefix_cache.log is None and watch.take() == ()
    watch.begin()
    first = watch.take()[-1].sequence
    watch.end()
    remember(pool, [2] * BLOCK)
    assert watch.take() == ()
    watch.begin()
    (snapshot,) = watch.take()
    assert snapshot.kind == SNAPSHOT and len(snapshot.events) == 2
    assert snapshot.sequence > first, "a watcher of before would go on over what it missed"


def test_a_seed_makes_hashes_equal_on_replicas() -> None:
    one, other, foreign = make(seed=5), make(seed=5), make(seed=6)
    for pool in (one, other, foreign):
        remember(pool, [1, 2, 3, 4, 5, 6, 7, 8])
    assert held_by(one) == held_by(other)
    assert not held_by(one) & held_by(foreign)


@pytest.mark.parametrize("excess", (0, 1))
def test_what_waits_for_a_slow_reader_is_bounded(excess: int) -> None:
    removed = KvEvent(REMOVED, b"h")
    first = (KvEvents(4, 0.0, CHANGES, (removed,)),)
    later = (KvEvents(5, 0.5, CHANGES, (removed,) * (MAX_EVENTS - 1 + excess)),)
    if not excess:
        assert joined(first, later) == (*first, *later)
    else:
        assert joined(first, later) == (KvEvents(5, 0.5, LOST),)


def test_of_several_snapshots_that_wait_the_latest_counts() -> None:
    old, new = (KvEvents(n, 0.0, SNAPSHOT, (KvEvent(STORED, b"h"),)) for n in (3, 4))
    change = KvEvents(4, 0.0, CHANGES, (KvEvent(STORED, b"h"),))
    assert joined((old, change), (new,)) == (change, new)
