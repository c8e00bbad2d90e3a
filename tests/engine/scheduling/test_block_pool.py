"""The pool: references, the order in which blocks are taken, and the prefix index."""

import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.engine.scheduling.block_pool import NULL_BLOCK, BlockPool


def make(num_blocks: int = 9, block_size: int = 4, **more: object) -> BlockPool:
    return BlockPool(num_blocks, block_size, **more)  # type: ignore[arg-type]


def hashes_of(pool: BlockPool, tokens: list[int], salt: bytes = b"") -> list[bytes]:
    hashes: list[bytes] = []
    pool.prefix_cache.extend_hashes(hashes, salt, tokens, len(tokens) // pool.block_size)
    return hashes


def remember(pool: BlockPool, tokens: list[int], salt: bytes = b"") -> list[int]:
    """A table of computed, registered blocks of these tokens."""
    hashes = hashes_of(pool, tokens, salt)
    table = pool.allocate(len(hashes))
    for index, block in enumerate(table):
        pool.prefix_cache.register([block], hashes, salt, tokens, index)
    return table


def test_the_null_block_is_never_given_out() -> None:
    pool = make(5)
    assert pool.num_usable == pool.num_free == 4
    assert sorted(pool.allocate(4)) == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="1 blocks asked for, 0 free"):
        pool.allocate(1)


def test_a_pool_needs_a_block_beside_the_null_block() -> None:
    with pytest.raises(ValueError, match="num_blocks = 1"):
        make(1)


@pytest.mark.parametrize("size", (1, 2, 3, 4, 16, 64))
def test_blocks_needed_around_each_boundary(size: int) -> None:
    pool = make(block_size=size)
    assert pool.blocks_needed(0) == 0
    for full in (1, 2, 7):
        assert pool.blocks_needed(full * size) == full
        assert pool.blocks_needed(full * size + 1) == full + 1
        assert pool.blocks_needed(full * size - size + 1) == full


def test_a_released_block_is_free_at_once_and_only_once() -> None:
    pool = make()
    table = pool.allocate(3)
    pool.check([table])
    pool.release(table)
    pool.check([])
    with pytest.raises(ValueError, match="is free already"):
        pool.release(table[:1])


def test_tails_are_taken_before_heads_and_older_memories_before_newer() -> None:
    pool = make(7)
    old, new = remember(pool, [1] * 12), remember(pool, [2] * 12)
    pool.release(old)
    pool.release(new)
    assert pool.allocate(6) == [*reversed(old), *reversed(new)]
    assert pool.evictions == 6


def test_blocks_without_memory_are_taken_before_any_memory_is_lost() -> None:
    pool = make(7)
    cached = remember(pool, [1] * 12)
    plain = pool.allocate(3)
    pool.release(cached)
    pool.release(plain)
    assert set(pool.allocate(3)) == set(plain)
    assert pool.evictions == 0
    assert pool.num_cached == 3


def test_a_hit_revives_free_blocks_and_shares_those_in_use() -> None:
    pool = make()
    tokens = list(range(8))
    table = remember(pool, tokens)
    hit = pool.prefix_cache.match(hashes_of(pool, tokens), tokens)
    assert hit == table
    pool.share(hit)
    assert pool.num_shared == 2
    pool.check([table, hit])
    pool.release(table)
    pool.release(hit)
    assert pool.num_free == 8 and pool.num_cached == 2
    assert pool.num_free_among(hit) == 2
    assert pool.has_room(6, hit) and not pool.has_room(7, hit), "a hit takes free blocks too"
    pool.share(pool.prefix_cache.match(hashes_of(pool, tokens), tokens))
    assert pool.num_free == 6 and pool.num_cached == 0
    assert pool.has_room(6, hit) and not pool.has_room(7, hit), "and none that are held"
    pool.check([hit])


def test_a_match_ends_at_the_first_unknown_block() -> None:
    pool = make()
    table = remember(pool, [1] * 4 + [2] * 4)
    for tokens, blocks in (
        ([1] * 4 + [2] * 4, table),
        ([1] * 4 + [3] * 4, table[:1]),
        ([3] * 4 + [2] * 4, []),  # the second block stands for its prefix as well
    ):
        assert pool.prefix_cache.match(hashes_of(pool, tokens), tokens) == blocks


def test_eviction_forgets_the_hash_in_the_same_breath() -> None:
    pool = make(3)
    tokens = [1] * 8
    pool.release(remember(pool, tokens))
    assert len(pool.prefix_cache.match(hashes_of(pool, tokens), tokens)) == 2
    pool.allocate(1)  # the tail
    assert len(pool.prefix_cache.match(hashes_of(pool, tokens), tokens)) == 1
    pool.allocate(1)
    assert pool.prefix_cache.match(hashes_of(pool, tokens), tokens) == []


def test_one_hash_may_name_several_blocks_and_outlives_the_first() -> None:
    pool = make()
    tokens = [5] * 4
    first, second = remember(pool, tokens), remember(pool, tokens)
    assert pool.prefix_cache.duplicates == 1
    pool.check([first, second])
    pool.release(first)
    pool.allocate(7)  # all others: the first is evicted
    assert pool.prefix_cache.match(hashes_of(pool, tokens), tokens) == second


def test_a_salt_and_a_seed_are_part_of_every_hash() -> None:
    pool = make()
    tokens = [1] * 8
    remember(pool, tokens, b"tenant")
    for salt in (b"", b"tenan", b"tenant\0", b"other"):
        assert pool.prefix_cache.match(hashes_of(pool, tokens, salt), tokens) == []
    assert hashes_of(make(), tokens) != hashes_of(make(), tokens), "the seed is random"
    assert hashes_of(make(seed=3), tokens) == hashes_of(make(seed=3), tokens)
    assert hashes_of(make(seed=3), tokens) != hashes_of(make(seed=4), tokens)


def test_tokens_are_compared_on_a_hit() -> None:
    """Even whoever could make two prefixes collide would not be served the other's."""
    pool = make()
    table = remember(pool, [1] * 4)
    pool.release(table)
    assert pool.prefix_cache.match(hashes_of(pool, [1] * 4), [2] * 4) == []


def test_without_caching_nothing_is_remembered() -> None:
    pool = make(enable_caching=False)
    tokens = [1] * 8
    pool.release(remember(pool, tokens))
    assert pool.prefix_cache.match(hashes_of(pool, tokens), tokens) == []
    assert pool.num_cached == 0


def test_a_flush_forgets_what_nobody_holds_and_nothing_else() -> None:
    pool = make()
    held, left = [1] * 8, [2] * 12
    table, gone = remember(pool, held), remember(pool, left)
    pool.release(gone)
    assert (pool.forget_free(), pool.num_cached, pool.evictions) == (3, 0, 0)
    assert pool.prefix_cache.match(hashes_of(pool, left), left) == []
    assert pool.prefix_cache.match(hashes_of(pool, held), held) == table
    assert pool.num_free == 6
    pool.check([table])
    assert pool.forget_free() == 0
    pool.release(table)
    assert pool.forget_free() == 2
    pool.check([])


def test_the_block_map_tells_free_cached_used_and_shared_apart() -> None:
    pool = make(5)
    shared = remember(pool, [1] * 4)
    pool.share(shared)
    used, cached = pool.allocate(1), remember(pool, [2] * 4)
    pool.release(cached)
    by_block = dict(enumerate(pool.block_map(), start=1))
    assert len(by_block) == 4
    assert (by_block[shared[0]], by_block[used[0]], by_block[cached[0]]) == (3, 2, 1)
    assert list(by_block.values()).count(0) == 1


def test_a_block_map_is_one_copy_whatever_the_number_of_blocks() -> None:
    """It is made by the engine's thread, which has steps to plan."""

    def lines(num_blocks: int) -> int:
        pool, count = make(num_blocks), 0

        def trace(_frame: Any, event: str, _arg: Any) -> Any:
            nonlocal count
            count += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            states = pool.block_map()
        finally:
            sys.settrace(before)
        assert len(states) == num_blocks - 1
        return count

    assert lines(65_536) == lines(16) < 10


def _mistake_a_state(pool: BlockPool, table: list[int]) -> None:
    pool._states[table[0]] = 0


def _break_reference(pool: BlockPool, table: list[int]) -> None:
    pool._ref_counts[table[0]] += 1


def _free_a_held_block(pool: BlockPool, table: list[int]) -> None:
    pool._free[table[0]] = None


def _lose_a_free_block(pool: BlockPool, _table: list[int]) -> None:
    pool._free.popitem()


def _hold_the_null_block(_pool: BlockPool, table: list[int]) -> None:
    table[0] = NULL_BLOCK


def _double_a_block(_pool: BlockPool, table: list[int]) -> None:
    table[0] = table[1]


def _lose_a_hash(pool: BlockPool, table: list[int]) -> None:
    del pool.prefix_cache._hash_of[table[0]]


def _misname_a_block(pool: BlockPool, table: list[int]) -> None:
    pool.prefix_cache._hash_of[table[0]] = b"wrong"


def _miscount_shared(pool: BlockPool, _table: list[int]) -> None:
    pool.num_shared += 1


def _miscount_cached(pool: BlockPool, _table: list[int]) -> None:
    pool.num_cached += 1


@pytest.mark.parametrize(
    "damage",
    (
        _break_reference,
        _free_a_held_block,
        _lose_a_free_block,
        _hold_the_null_block,
        _double_a_block,
        _lose_a_hash,
        _misname_a_block,
        _miscount_shared,
        _miscount_cached,
        _mistake_a_state,
    ),
)
def test_check_sees_every_kind_of_damage(damage: object) -> None:
    """An integrity check that cannot fail is worse than none."""
    pool = make()
    table = remember(pool, [1] * 12)
    pool.check([table])
    damage(pool, table)  # type: ignore[operator]
    with pytest.raises(AssertionError):
        pool.check([table])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_order_of_calls_keeps_the_invariant(data: st.DataObject) -> None:
    """Tables come, share, grow and go. Content is tracked: a match never finds other tokens."""
    size = data.draw(st.integers(1, 3))
    pool = make(data.draw(st.integers(2, 12)), size)
    tables: list[tuple[list[int], list[int]]] = []  # blocks and their tokens
    content: dict[int, tuple[int, ...]] = {}  # of each block, its whole prefix
    for _ in range(data.draw(st.integers(1, 40))):
        action = data.draw(st.sampled_from(("come", "come", "go")))
        if action == "come":
            tokens = data.draw(st.lists(st.integers(0, 1), min_size=size, max_size=6 * size))
            hashes = hashes_of(pool, tokens)
            shared = pool.prefix_cache.match(hashes, tokens)
            for index, block in enumerate(shared):
                assert content[block] == tuple(tokens[: (index + 1) * size])
            fresh = len(hashes) - len(shared)
            if fresh + pool.num_free_among(shared) > pool.num_free:
                continue
            pool.share(shared)
            table = shared + pool.allocate(fresh)
            for index in range(len(shared), len(hashes)):
                content[table[index]] = tuple(tokens[: (index + 1) * size])
                pool.prefix_cache.register([table[index]], hashes, b"", tokens, index)
            tables.append((table, tokens))
        elif tables:
            table, _ = tables.pop(data.draw(st.integers(0, len(tables) - 1)))
            pool.release(table)
        pool.check([table for table, _ in tables])
    for table, _ in tables:
        pool.release(table)
    pool.check([])
    assert pool.num_free == pool.num_usable
