"""Masks where a device reads them: made there, held, or from elsewhere."""

import random
from collections.abc import Callable

import numpy as np
import torch

from quire.engine.runner.masks import NO_MASK, MaskTable
from quire.engine.scheduling.plan import Mask

ROWS, WORDS = 4, 3


def made(table: MaskTable, count: int, chance: random.Random) -> list[memoryview]:
    """So many masks, as matchers write them."""
    whole, masks = table.room(count)
    whole[:] = chance.randbytes(4 * WORDS * count)
    return masks


def told(table: MaskTable) -> dict[int, bytes]:
    """Of each row that has one, the mask that a kernel reads."""
    of = enumerate(table.of.tolist())
    return {row: table.words[at].numpy().tobytes() for row, at in of if at >= 0}


def test_whatever_is_held_each_row_has_its_mask() -> None:
    """Rows come, go, and stay out of steps with the mask that they had; others bring their own."""
    chance = random.Random(5)
    table = MaskTable(ROWS, WORDS * 32, torch.device("cpu"))
    held: dict[int, Mask] = {}
    expected: dict[int, bytes] = {}
    for _ in range(300):
        rows = chance.sample(range(ROWS), chance.randrange(1, ROWS + 1))
        for row, mask in zip(rows, made(table, len(rows), chance), strict=True):
            held[row], expected[row] = mask, bytes(mask)
        for row in range(ROWS):
            if chance.random() < 0.1:
                expected[row] = chance.randbytes(4 * WORDS)
                held[row] = chance.choice((bytes, bytearray))(expected[row])
        planned = [row for row in held if chance.random() < 0.8]
        if chance.random() < 0.9:  # now and then no step has masks
            table.put([held[row] if row in planned else NO_MASK for row in range(ROWS)])
            assert told(table) == {row: expected[row] for row in planned}
        assert {row: bytes(mask) for row, mask in held.items()} == expected


def test_nothing_is_written_before_the_sampler_that_reads_it_has_ended() -> None:
    table, chance = MaskTable(ROWS, WORDS * 32, torch.device("cpu")), random.Random(7)
    ways: tuple[Callable[[], object], ...] = (
        lambda: made(table, ROWS, chance),
        lambda: table.put([NO_MASK, chance.randbytes(4 * WORDS)]),
        lambda: table.put([NO_MASK, NO_MASK, *made(table, 1, chance)]),
    )
    for way in (*ways, *ways):
        before, ended = told(table), list[dict[int, bytes]]()
        table.launched(lambda ended=ended: ended.append(told(table)))  # type: ignore[misc]
        way()
        assert ended == [before]


def test_masks_stay_where_they_are_made_and_few_rooms_serve_all_steps() -> None:
    table = MaskTable(ROWS, WORDS * 32, torch.device("cpu"))
    chance, seen = random.Random(6), set()
    masks: list[memoryview] = []
    for _ in range(20):
        masks = made(table, ROWS, chance)
        seen.add(np.frombuffer(masks[0], np.uint8).ctypes.data)
        table.put(masks)
        assert sorted(told(table).values()) == sorted(map(bytes, masks))
    assert len(seen) == 2
    whole, masks = table.room(ROWS + 1)  # more than one step has: they are copied
    assert len(whole) == 4 * WORDS * (ROWS + 1) and len(masks) == ROWS + 1
