"""A seeded source of choices.

Invariant: everything is derived from `random.Random.random()` and `getrandbits`, whose sequences
Python keeps from version to version; the same seed words give the same choices everywhere.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """Choices from a seed; `Draw(0, "train", 7)` and `Draw(0, "train", 8)` are unrelated."""

    def __init__(self, *seed: int | str) -> None:
        text = "\0".join(str(part) for part in seed)
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        self._uniform = random.Random(int.from_bytes(digest, "little")).random

    def below(self, limit: int) -> int:
        """An integer in [0, limit)."""
        return int(self._uniform() * limit)

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + int(self._uniform() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        return self._uniform() < probability

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self._uniform() * len(items))]

    def picks(self, items: Sequence[T], count: int) -> list[T]:
        """`count` items, with repetition."""
        uniform, size = self._uniform, len(items)
        return [items[int(uniform() * size)] for _ in range(count)]

    def distinct(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different positions of `items`, in random order."""
        chosen: dict[int, None] = {}
        while len(chosen) < count:
            chosen[self.below(len(items))] = None
        return [items[index] for index in chosen]

    def weighted(self, items: Sequence[tuple[T, float]]) -> T:
        """One item of (item, weight) pairs."""
        left = self._uniform() * sum(weight for _, weight in items)
        for item, weight in items:
            left -= weight
            if left < 0:
                return item
        return items[-1][0]
