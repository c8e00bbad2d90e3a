"""A heap of items whose ranks may rise without notice.

Invariant: each item that was offered and not discarded has one valid entry, whose rank is never
above the item's current one. So the first entry that is up to date is the minimum; entries before
it are corrected when they reach the top. Each rise costs at most one such correction, in time
logarithmic in the number of items.
"""

import heapq
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T", bound=Hashable)

_SLACK = 64  # entries that may be dead however few items there are


class RisingHeap(Generic[T]):
    """Items by rank. An item whose rank has fallen must be offered again."""

    def __init__(self, rank_of: Callable[[T], Any]) -> None:
        """rank_of: an item's rank now, comparable with all others'; None: it has left."""
        self._rank_of = rank_of
        self._entries: list[tuple[Any, T]] = []
        self._counts: dict[T, Any] = {}  # of each item, the rank of the entry that counts

    def __len__(self) -> int:
        """Entries held, dead ones included."""
        return len(self._entries)

    def offer(self, item: T) -> None:
        """Add an item, or note that its rank has fallen; no effect if neither is the case."""
        rank = self._rank_of(item)
        if item in self._counts and self._counts[item] <= rank:
            return
        self._counts[item] = rank
        heapq.heappush(self._entries, (rank, item))
        if len(self._entries) > 2 * len(self._counts) + _SLACK:
            self._entries = [(counts, item) for item, counts in self._counts.items()]
            heapq.heapify(self._entries)

    def discard(self, item: T) -> None:
        """The item has left; nothing if it was not here."""
        self._counts.pop(item, None)

    def first(self) -> T | None:
        """The item of the least rank, left where it is; None if there is none."""
        entries, counts = self._entries, self._counts
        while entries:
            noted, item = entries[0]
            if item not in counts or counts[item] != noted:
                heapq.heappop(entries)
                continue
            rank = self._rank_of(item)
            if rank is None:
                heapq.heappop(entries)
                del counts[item]
            elif rank == noted:
                return item
            else:
                counts[item] = rank
                heapq.heapreplace(entries, (rank, item))
        return None
