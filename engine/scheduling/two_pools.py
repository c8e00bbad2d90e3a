"""Requests of models whose layers differ: some see all, some a sliding window.

The cache is two: of the layers that see all, which is the `pool` of everybody else, and of those
with a window. A request has a table in each; both name the same tokens in the same columns.

Invariants
- Only the window's pool gets blocks back as they are passed, and only there a prompt has blocks for
  the tokens of planned steps alone: so its table may be the shorter one, and a prompt in chunks may
  have to wait or to preempt others for it.
- A request runs with the blocks that it needs in both pools, or waits; preemption gives both back.
- A block is registered in both caches under one hash, apart, as they are evicted apart. A hit ends
  at the longest place up to which all is known where all is seen, and of which the last window's
  blocks are known in the other.
- A lone request always finishes: see `least_window_blocks`.
"""

from collections.abc import Sequence
from typing import NamedTuple, Unpack

from quire.engine.scheduling.block_pool import NULL_BLOCK, BlockPool
from quire.engine.scheduling.completion import Completion
from quire.engine.scheduling.draft import Draft
from quire.engine.scheduling.kv_events import Known
from quire.engine.scheduling.options import SchedulerOptions
from quire.engine.scheduling.paired_cache import PairedCache
from quire.engine.scheduling.plan import BlockUpdate
from quire.engine.scheduling.request import Request
from quire.engine.scheduling.scheduler import Scheduler
from quire.engine.scheduling.scheduler_state import SchedulerState


def steady_window_blocks(window: int, block_size: int) -> int:
    """The most blocks of a window that a request holds while it grows by a token a step, with the
    one that its next token may begin."""
    return -(-window // block_size) + 1


def least_window_blocks(window: int, block_size: int, step_tokens: int, num_blocks: int) -> int:
    """Blocks that the window's pool must have for a lone request to finish.

    They hold what a step of step_tokens tokens sees, and two more: one for a hit that begins within
    a block, and one for a window that does. Never more than num_blocks, which full attention needs.
    """
    return min((window + step_tokens - 3) // block_size + 3, num_blocks)


class CachedPrefix(NamedTuple):
    """The cached prefix of a request: the first blocks of both tables, its length in tokens, and
    the blocks from which to copy the next column."""

    full: Sequence[int]
    windowed: Sequence[int]
    computed: int
    sources: tuple[int, int] | None = None


class TwoPoolState(SchedulerState):
    """The state of requests that hold blocks of two pools."""

    def __init__(self, pool: BlockPool, window_pool: BlockPool, max_num_seqs: int) -> None:
        super().__init__(pool, max_num_seqs)
        self.window_pool = window_pool

    def admit_prefix(self, request: Request, prefix: CachedPrefix) -> None:
        """See `admit`; `prefix` is shared in both pools."""
        self.window_pool.share(prefix.windowed)
        self.admit(request, prefix.full, prefix.computed)
        blocks = prefix.windowed
        request.num_passed_blocks = next((i for i, b in enumerate(blocks) if b), len(blocks))

    def _register_tail(self, request: Request) -> None:
        super()._register_tail(request)
        cache, applied = self.window_pool.prefix_cache, request.num_applied_tokens
        full, rest = divmod(applied, self.pool.block_size)
        if rest and cache.enabled:
            salt, hashes = request.spec.cache_salt, request.block_hashes
            table, known = request.window_table, request.token_ids
            cache.register_tail(table[full], hashes, salt, known, applied)

    def _vacate(self, request: Request) -> None:
        self.window_pool.release(request.window_table)
        request.window_table = []
        request.num_passed_blocks = 0
        super()._vacate(request)


class TwoPoolCompletion(Completion):
    """Registers full blocks in both caches, and releases those that the window has passed."""

    def __init__(self, state: TwoPoolState, window: int) -> None:
        super().__init__(state, window)
        self._window_pool = state.window_pool

    def _register_full_blocks(self, request: Request) -> None:
        first = request.num_registered_blocks
        super()._register_full_blocks(request)
        full, salt = request.num_registered_blocks, request.spec.cache_salt
        blocks, hashes = request.window_table[first:full], request.block_hashes
        self._window_pool.prefix_cache.register(blocks, hashes, salt, request.token_ids, first)

    def _windowed(self, request: Request) -> tuple[BlockPool, list[int]]:
        return self._window_pool, request.window_table


class TwoPoolScheduler(Scheduler):
    """Plans steps over two pools, whose caches have one seed."""

    def __init__(
        self,
        pool: BlockPool,
        window_pool: BlockPool,
        *,
        window: int,
        **options: Unpack[SchedulerOptions],
    ) -> None:
        """window: tokens that each token sees, itself among them, in the layers of window_pool.
        Raises ValueError for a pool in which a lone request might not finish."""
        super().__init__(pool, **options)
        tokens = min(options["max_num_batched_tokens"], options["max_model_len"])
        least = least_window_blocks(window, pool.block_size, tokens, pool.num_usable)
        if window_pool.num_usable < least:
            raise ValueError(f"{window_pool.num_usable} blocks of windows: at least {least}")
        self.window_pool = window_pool
        self._reach = window
        self._steady = steady_window_blocks(window, pool.block_size)
        self._both = TwoPoolState(pool, window_pool, self.max_num_seqs)
        self.state = self._both
        self.completion = TwoPoolCompletion(self._both, window)
        self.counters = self.state.counters
        self._shares = self.state.waiting.shares
        self._known = PairedCache(pool.prefix_cache, window_pool.prefix_cache)

    @property
    def pools(self) -> tuple[BlockPool, ...]:
        return self.pool, self.window_pool

    @property
    def known(self) -> Known:
        return self._known

    # ------------------------------------------------------------ planning

    def _release_held(self, draft: Draft) -> None:
        super()._release_held(draft)
        if draft.window_held:
            self.window_pool.release(draft.window_held)

    def _secure_blocks(self, request: Request, count: int, draft: Draft) -> bool:
        columns = self.pool.blocks_needed(request.num_computed_tokens + count)
        needed = max(columns - len(request.block_table), 0)
        windowed = columns - len(request.window_table)
        if needed == 0 and windowed <= 0:
            return True

        def enough() -> bool:
            return self.pool.num_free >= needed and self.window_pool.num_free >= windowed

        if not self._make_room(request, enough, draft):
            return False
        self._extend_table(request, self.pool.allocate(needed), draft)
        self._extend_window(request, self.window_pool.allocate(windowed), draft)
        return True

    def _extend_window(self, request: Request, blocks: Sequence[int], draft: Draft) -> None:
        column = len(request.window_table)
        request.window_table.extend(blocks)
        request.peak_blocks = max(request.peak_blocks, request.num_held_blocks)
        draft.window_updates.extend(
            BlockUpdate(request.slot, column + i, block) for i, block in enumerate(blocks)
        )

    # ------------------------------------------------------------ admission

    def _admit_one(self, request: Request, draft: Draft) -> bool:
        fork = self._fork_source(request)
        prefix = self._find(request) if fork is None else self._forked(request, fork)
        if not self._fits(request, prefix, draft):
            draft.starved = True
            return False
        if fork is None and not request.prompt_logprobs_left:
            prefix = self._hold_partials(request, prefix, draft)
        fresh, windowed = self._fresh(request, prefix, draft)
        if request.cached_tokens < 0:
            self._start(request, prefix.computed, fork)
        self._both.admit_prefix(request, prefix)
        draft.admitted.append(request.admission_row())
        self._extend_table(request, prefix.full, draft)
        self._extend_table(request, self.pool.allocate(fresh), draft)
        self._extend_window(request, prefix.windowed, draft)
        self._extend_window(request, self.window_pool.allocate(windowed), draft)
        if prefix.sources is not None:
            column = len(prefix.full)
            source, window_source = prefix.sources
            draft.copies.append((source, request.block_table[column]))
            draft.window_copies.append((window_source, request.window_table[column]))
        self._add_row(request, min(request.remaining, draft.budget), draft)
        return True

    def _fork_source(self, request: Request) -> Request | None:
        leader = super()._fork_source(request)
        if leader is None or not leader.holds_window(self._reach, self.pool.block_size):
            return None
        return leader

    def _forked(self, request: Request, fork: Request) -> CachedPrefix:
        computed = request.num_prompt_tokens - 1
        column = computed // self.pool.block_size
        full, windowed = fork.block_table, fork.window_table
        sources = full[column], windowed[column]
        return CachedPrefix(full[:column], windowed[:column], computed, sources)

    def _find(self, request: Request) -> CachedPrefix:
        """The prefix known to both caches, leaving a token to compute."""
        full = self._find_prefix(request)
        hashes, cache = request.block_hashes[: len(full)], self.window_pool.prefix_cache
        windowed = cache.match(hashes, request.token_ids, self._reach - 1)
        columns = len(windowed)
        return CachedPrefix(full[:columns], windowed, columns * self.pool.block_size)

    def _hold_partials(self, request: Request, prefix: CachedPrefix, draft: Draft) -> CachedPrefix:
        """The same plus a block of each pool from which to copy the tokens that follow, held until
        the plan is made; unchanged if there are none, or no blocks to spare."""
        where = request.block_hashes, request.spec.cache_salt, request.token_ids, len(prefix.full)
        match = self.pool.prefix_cache.match_partial(*where)
        other = self.window_pool.prefix_cache.match_partial(*where)
        if match is None or other is None:
            return prefix
        more = min(match.num_tokens, other.num_tokens)
        sources = match.block, other.block
        grown = prefix._replace(computed=prefix.computed + more, sources=sources)
        if not self._fits(request, grown, draft):
            return prefix
        self.pool.share(sources[:1])
        self.window_pool.share(sources[1:])
        draft.held.append(match.block)
        draft.window_held.append(other.block)
        self.counters.partial_copies += 1
        return grown

    def _fresh(self, request: Request, prefix: CachedPrefix, draft: Draft) -> tuple[int, int]:
        """Blocks to take in each pool: for all that is known, and for the tokens of this step."""
        end = prefix.computed + min(request.remaining - prefix.computed, draft.budget)
        needed, columns = self.pool.blocks_needed, len(prefix.full)
        return needed(request.num_tokens) - columns, needed(end) - columns

    def _fits(self, request: Request, prefix: CachedPrefix, draft: Draft) -> bool:
        """Whether both pools have room; in the window's pool, also for the blocks that the request
        will hold later."""
        fresh, windowed = self._fresh(request, prefix, draft)
        shared = sum(block != NULL_BLOCK for block in prefix.windowed)
        steady = min(self.pool.blocks_needed(request.num_tokens), self._steady)
        held, window_held = prefix.sources or (NULL_BLOCK, NULL_BLOCK)
        full = [*prefix.full, held]
        return self._has_room(self.pool, full, fresh) and self._has_room(
            self.window_pool, [*prefix.windowed, window_held], max(windowed, steady - shared)
        )

    def _has_room(self, pool: BlockPool, shared: Sequence[int], fresh: int) -> bool:
        reserve = min(len(self.state.running), pool.num_usable // 64)
        return pool.has_room(fresh + reserve, shared)
