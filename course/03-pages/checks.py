"""What exercise 3 is held against: tables whose blocks lie anywhere, and rows that begin
anywhere."""

from types import ModuleType

from checking import attempt, judge

IN_A_ROW = (
    "you count on from the first block: a request's blocks lie anywhere in the store, so each "
    "token has to be looked up in the table"
)
FROM_ZERO = (
    "your rows begin at the request's first token: in a step that goes on with a request the "
    "tokens before `start` are stored already, and you would write over them"
)
SWAPPED = (
    "you take the block by position % block_size and the place in it by position // block_size: "
    "it is the other way round, since neighbours share a block"
)
BLOCKS_OF_ONE = (
    "you add the place in the block to the block's number: block b begins at slot b * block_size"
)
ONE_BLOCK = (
    "you look up the block once, for the first token: a row may go on into the next block, and "
    "each token has to be looked up"
)


def check(exercise: ModuleType) -> None:
    """Raises NotYet."""
    for table, start, count, size in (
        ([5, 8, 1, 4], 0, 3, 4),
        ([7, 2, 9, 11], 5, 6, 4),
        ([7, 2, 9, 11], 0, 10, 4),
        ([3, 1, 4, 0], 11, 1, 3),
        ([8, 0, 6, 2], 0, 4, 1),
    ):
        case = f"table {table}, {count} tokens from {start} on, blocks of {size}"
        got = attempt(exercise.slots, list(table), start, count, size)
        positions = range(start, start + count)
        right = [table[p // size] * size + p % size for p in positions]
        judge(got, right, _suspects(table, positions, size), case)


def _suspects(table: list[int], positions: range, size: int) -> list[tuple[list[int], str]]:
    """What misconceptions lead to. No table is shorter than a block, so none runs past its end."""
    once = table[positions.start // size] * size
    first = once + positions.start % size
    return [
        ([table[0] * size + p for p in positions], IN_A_ROW),
        ([table[p // size] * size + p % size for p in range(len(positions))], FROM_ZERO),
        ([table[p % size] * size + p // size for p in positions], SWAPPED),
        ([table[p // size] + p % size for p in positions], BLOCKS_OF_ONE),
        ([once + p % size for p in positions], ONE_BLOCK),
        ([first + i for i in range(len(positions))], ONE_BLOCK),
    ]
