"""Which products of many rows the sm_90 kernel (hopper_tall.py) computes, and the height of its
tiles.

Invariant: as in `tuning.py`, a pure function of sizes that the host knows, so that warm-up launches
what steps will. The bits do not depend on this choice.
"""

from functools import cache

from torch import Tensor

from quire.kernels.support import HOPPER_MULTIPROCESSORS, has_gluon

GROUP_ROWS = 64  # of a tile, that one group of warps sums
COLUMNS = 128  # of a tile
STEP = 64  # of K
SHARES = (1, 2, 3)  # groups a tile: where K is summed in shares
SILU = (2, 3)  # and of gate and up side by side
# Gates and ups [N, K], SiLU behind them, for which it was measured to win: those of Qwen3-0.6B.
_WINS = ((6144, 1024),)
_USED = 0.875  # of the multiprocessors' time, below which the library wins


def groups_of(rows: int, columns: int, among: tuple[int, ...]) -> int:
    """How many groups of rows a tile has, of those `among`, where a last round of tiles that leaves
    multiprocessors idle costs the least. columns: of the result."""
    return min(among, key=lambda groups: _rounds(rows, columns, groups) * (3 * groups + 1))


def takes(x: Tensor, out: Tensor, split: int) -> bool:
    """Whether the kernel computes products of such rows into such a result: for sm_90, in Gluon,
    which is no stable interface, and by descriptors."""
    return (
        has_gluon(x.device)
        and x.dtype == out.dtype
        and x.element_size() == 2
        and x.shape[1] % (split * STEP) == 0
        and out.shape[1] % 8 == 0
    )


def groups_for(n: int, k: int, rows: int, *, silu: bool) -> int | None:
    """How many groups of rows a tile has that computes a product in place of the library; None
    where the library is faster."""
    if not (rows and silu and (n, k) in _WINS):
        return None
    columns = n // 2
    groups = groups_of(rows, columns, SILU)
    whole = HOPPER_MULTIPROCESSORS * _rounds(rows, columns, groups) * groups
    used = rows * columns / (GROUP_ROWS * COLUMNS) / whole
    return groups if used >= _USED else None


@cache
def kernels(rows: int) -> frozenset[tuple[object, ...]]:
    """Names of the kernels that take the library's place at so many rows."""
    found = (groups_for(*shape, rows, silu=True) for shape in _WINS)
    return frozenset(("tall", groups) for groups in found if groups is not None)


def _rounds(rows: int, columns: int, groups: int) -> int:
    """How many tiles a multiprocessor computes, one after another."""
    tiles = -(-rows // (GROUP_ROWS * groups)) * -(-columns // COLUMNS)
    return -(-tiles // HOPPER_MULTIPROCESSORS)
