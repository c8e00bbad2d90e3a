"""What tests of layers with a window share: a longer prompt, and a cache that loses blocks."""

from quire.engine.request import SamplingParams
from quire.engine.scheduling.block_pool import BlockPool

WINDOW, BLOCK = 11, 4  # of the small models, in tokens
GREEDY = SamplingParams(max_tokens=40)
PROMPT = tuple((7 * i * i + 3) % 380 + 1 for i in range(40))


def forget(pool: BlockPool, block: int) -> None:
    """Take what a block holds out of the cache, as if it had been given to another."""
    pool.prefix_cache.forget(block)
    pool.num_cached -= 1
    pool._states[block] = 0
