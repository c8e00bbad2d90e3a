"""Forks of one process, which compile kernels side by side.

Invariant: each kernel is compiled once, by the fork that has taken its number. Whoever started
the process is told of each by a line of its output (`compile_orders.Compiled`). Forks end with that
process, and with the one that started it. Of torch nothing is needed here.
"""

import gc
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from triton.runtime.cache import get_cache_manager

from quire.engine import lifeline
from quire.engine.runner.compile_orders import Compiled, Word, written
from quire.engine.runner.compile_process import forked
from quire.kernels import offline
from quire.kernels.offline import Kernel

_NUMBER = 2  # bytes
LONGEST = ("_hopper_prefill_kernel", "_hopper_exact_kernel")  # of a large step
SLOWEST = (  # to compile, of all kernels, by names
    *LONGEST,
    "_decode_kernel",
    "_hopper_tall_kernel",
    "_hopper_fp8_kernel",
    "_fp8_hopper_kernel",
    "_whole_kernel",
    "_prefill_kernel",
    "_count_kernel",
    "_place_kernel",
    "_fp8_tile_kernel",
    "_merge_kernel",
    "_finish_kernel",
    "_gather_kernel",
    "_narrow_kernel",
    "_stacked_kernel",
    "_skinny_kernel",
    "_qk_norm_rope_kernel",
    "_best_of_slice",
    "_side_kernel",
    "_gemv_kernel",
)

Tell = Callable[[Word], None]


def compile_in_forks(kernels: Mapping[str, Kernel], forks: int, tell: Tell) -> list[int]:
    """Begin to compile them, the slowest first; the ids of so many processes."""
    in_order = [kernels[name] for name in slowest_first(kernels)]
    pipe = numbers(len(in_order))
    gc.freeze()  # so that no fork copies what it only looks through
    work = partial(_in_fork, partial(compile_some, in_order, pipe, tell))
    ids = [forked(work) for _ in range(min(forks, len(in_order)))]
    os.close(pipe)
    return ids


def wait_for(forks: Iterable[int]) -> bool:
    """Whether each came to its end. From here on this process ends with the one that started it:
    what would see to that is a thread, of which forks have none."""
    lifeline.end_with_parent(sys.stdin)
    ends = [os.waitpid(fork, 0)[1] for fork in forks]
    return not any(ends)


def _in_fork(work: Callable[[], None]) -> None:
    lifeline.end_with_parent(sys.stdin)
    work()


def slowest_first(names: Iterable[str]) -> list[str]:
    """In the order to begin them: of what is begun last, the others wait for all."""
    places = {kernel: place for place, kernel in enumerate(SLOWEST)}
    return sorted(names, key=lambda name: places.get(name.split()[0], len(places)))


def numbers(end: int) -> int:
    """A pipe with the numbers below `end`: whichever process reads one, no other does."""
    out, into = os.pipe()
    os.write(into, b"".join(number.to_bytes(_NUMBER) for number in range(end)))
    os.close(into)
    return out


def compile_some(kernels: Sequence[Kernel], pipe: int, tell: Tell) -> None:
    """Compile those whose numbers this process is the one to read. pipe: see `numbers`."""
    leading = {kernel.signature: kernel for kernel in reversed(kernels)}  # the first of each
    while number := os.read(pipe, _NUMBER):
        kernel = kernels[int.from_bytes(number)]
        compiled = kernel.compiling()
        if leading[kernel.signature] is kernel:
            offline.compile_launcher(compiled)
        tell(Compiled(get_cache_manager(compiled.hash).cache_dir, kernel.name))


def tell(word: Word) -> None:
    """In one write, which other processes' do not come between."""
    os.write(sys.stdout.fileno(), (written(word) + "\n").encode())
