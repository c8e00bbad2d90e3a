"""Exercise 3: where does a token lie?

Fill the hole in `slots`. Everything that reads or writes the store goes through this one line of
arithmetic. Look at it with `python course/check.py 3`.
"""


def slots(table: list[int], start: int, count: int, block_size: int) -> list[int]:
    """The slots of `count` tokens of one request, of which the first is the request's token
    `start`.

    table: the blocks that the request holds, in the order of its tokens. The first block_size
    tokens are in block table[0], the next in table[1], and so on.

    Block number b has the slots b * block_size, ..., b * block_size + block_size - 1.
    """
    # ---- your code begins ----
    return [
        table[position // block_size] * block_size + position % block_size
        for position in range(start, start + count)
    ]
    # ---- your code ends ----
