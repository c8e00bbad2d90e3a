"""Events of the cached blocks, in order, as plain data for watchers.

Invariant: applied in order to a snapshot, the events give the prefix cache's content, one entry per
block: two blocks with one hash are stored twice and removed one by one. Tails have no hash and no
events. While there are no watchers nothing is recorded (`PrefixCache.log` is None).
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

STORED, REMOVED, CLEARED = range(3)  # what an event says
CHANGES, SNAPSHOT, LOST = range(3)  # what a numbered batch is
MAX_EVENTS = 1 << 16  # that wait for a reader who is slow; then all are dropped


class KvEvent(NamedTuple):
    """One change. Hashes are of 16 bytes; what a kind does not need is empty."""

    kind: int
    block_hash: bytes = b""
    parent: bytes = b""
    """The hash of the block before; empty: the first of its prefix."""
    tokens: bytes = b""
    """The block's token ids, four bytes each, little-endian."""
    salt: bytes = b""
    """Under which the prefix is found."""


class KvEvents(NamedTuple):
    """A batch of events. CHANGES: number `sequence`, one more than the changes before. SNAPSHOT:
    everything that is held once changes number `sequence` are applied, parents before their
    children. LOST: changes up to that number were dropped, and only a snapshot can help."""

    sequence: int
    time: float
    """Seconds since 1970."""
    kind: int
    events: tuple[KvEvent, ...] = ()


class KvLog:
    """Events since they were taken last. Of the engine's thread."""

    def __init__(self) -> None:
        self._events: list[KvEvent] = []

    def stored(self, block_hash: bytes, parent: bytes, tokens: bytes, salt: bytes) -> None:
        """A block can be hit from now on."""
        self._events.append(KvEvent(STORED, block_hash, parent, tokens, salt))

    def removed(self, block_hash: bytes) -> None:
        """A block is forgotten."""
        self._events.append(KvEvent(REMOVED, block_hash))

    def cleared(self) -> None:
        """Everything was forgotten; events not yet taken no longer matter."""
        self._events = [KvEvent(CLEARED)]

    def take(self) -> tuple[KvEvent, ...]:
        """The events since the last call, in order."""
        events, self._events = tuple(self._events), []
        return events


class Known(Protocol):
    """A cache whose content can be watched. log: records events while there are watchers."""

    log: KvLog | None

    def snapshot(self) -> tuple[KvEvent, ...]:
        """One STORED a full block, parents before their children."""
        ...


def joined(first: Sequence[KvEvents], later: Sequence[KvEvents]) -> tuple[KvEvents, ...]:
    """Both in order, the latest snapshot alone; or, where the changes are more than a slow reader
    is owed, that all are lost."""
    both = (*first, *later)
    changes = sum(len(one.events) for one in both if one.kind != SNAPSHOT)
    if changes > MAX_EVENTS:
        return (KvEvents(both[-1].sequence, both[-1].time, LOST),)
    newest = max((i for i, one in enumerate(both) if one.kind == SNAPSHOT), default=-1)
    return tuple(one for i, one in enumerate(both) if one.kind != SNAPSHOT or i == newest)


def parents_first(stored: Sequence[KvEvent]) -> tuple[KvEvent, ...]:
    """The same events, each after its parent's if that is among them."""
    known = {event.block_hash for event in stored}
    children: dict[bytes, list[KvEvent]] = {}
    ready: list[KvEvent] = []
    for event in stored:
        if event.parent in known:
            children.setdefault(event.parent, []).append(event)
        else:
            ready.append(event)
    ordered: list[KvEvent] = []
    while ready:
        event = ready.pop()
        ordered.append(event)
        ready += children.pop(event.block_hash, ())  # once, by the first of several copies
    return tuple(ordered)
