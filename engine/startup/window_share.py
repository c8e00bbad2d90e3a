"""How the cache's memory is divided where some layers see everything and others a window.

Invariant: the number of blocks of layers with a window follows from that of the other layers, on
every rank alike. Both grow by what requests of max_model_len need of each; blocks for what steps in
flight hold beyond their windows are added once.
"""

from bisect import bisect_right
from dataclasses import dataclass

from quire.engine.config import EngineConfig
from quire.engine.model.config import ModelConfig
from quire.engine.model.load_config import resolve_max_model_len
from quire.engine.scheduling.two_pools import least_window_blocks, steady_window_blocks

_STEPS_AHEAD = 2  # steps whose tokens are planned, and have passed no block yet


@dataclass(frozen=True, slots=True)
class WindowShare:
    """window: in tokens. step_tokens: tokens of one request in one step. passing: blocks that steps
    in flight compute. of_a_sequence: blocks of max_model_len tokens. full_bytes, window_bytes:
    bytes of one block in all layers of a kind, on all ranks."""

    window: int
    block_size: int
    step_tokens: int
    passing: int
    of_a_sequence: int
    full_bytes: int
    window_bytes: int

    @classmethod
    def of(
        cls, config: EngineConfig, model: ModelConfig, bytes_per_token: int
    ) -> "WindowShare | None":
        """None where all layers are alike. bytes_per_token: in all layers, on all ranks."""
        if not model.full_layers or model.sliding_window is None:
            return None
        longest, size = resolve_max_model_len(config, model), config.block_size
        layer = bytes_per_token // model.num_layers * size
        return cls(
            window=model.sliding_window,
            block_size=size,
            step_tokens=min(config.step_tokens(), longest),
            passing=_STEPS_AHEAD * -(-config.step_tokens() // size),
            of_a_sequence=-(-longest // size),
            full_bytes=layer * len(model.full_layers),
            window_bytes=layer * model.window_layers,
        )

    def window_blocks(self, num_blocks: int) -> int:
        """Blocks of the layers with a window beside num_blocks of the others, without the null
        blocks."""
        steady = min(steady_window_blocks(self.window, self.block_size), self.of_a_sequence)
        wanted = -(-num_blocks * steady // self.of_a_sequence) + self.passing
        least = least_window_blocks(self.window, self.block_size, self.step_tokens, num_blocks)
        return min(max(wanted, least), num_blocks)  # whatever is held there is held here too

    def bytes_of(self, num_blocks: int) -> int:
        """Both caches, the null blocks included."""
        windowed = self.window_blocks(num_blocks) + 1
        return (num_blocks + 1) * self.full_bytes + windowed * self.window_bytes

    def blocks_in(self, nbytes: int) -> int:
        """The most blocks of the layers that see all, -1 if there is not even room for none."""
        most = range(max(nbytes, 0) // self.full_bytes + 1)
        return bisect_right(most, nbytes, key=self.bytes_of) - 1
