"""Events of the cached blocks in the foreign contract's batches.

Invariant: a snapshot's chunks carry consecutive numbers that end at the number it was taken at,
begin with a clearing, and list parents before their children; changes carry their own numbers.
Hashes there have 64 bits: the first eight bytes of ours. A block's salt is included if it differs
from the salt of the subscriber's own prompts: so a gateway counts only on blocks that its requests
can hit.
"""

import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from quire.engine.scheduling.kv_events import (
    CLEARED,
    REMOVED,
    SNAPSHOT,
    STORED,
    KvEvent,
    KvEvents,
)
from quire.service.gateway.protos import Protos

CHUNK_BLOCKS = 512
_HASH = struct.Struct("<q")


class KvStream:
    """The stream of one subscriber."""

    def __init__(self, protos: Protos, block_size: int, salt: bytes) -> None:
        """salt: of the subscriber's own prompts."""
        self._common = protos.common
        self._block_size = block_size
        self._salt = salt
        self._ids = itertools.count(1)

    def messages(self, batch: KvEvents) -> Iterator[Any]:
        """The messages of one batch."""
        if batch.kind == SNAPSHOT:
            yield from self._snapshot(batch)
        else:
            yield self._batch(batch, batch.sequence, self._events(batch.events))

    def _snapshot(self, batch: KvEvents) -> Iterator[Any]:
        stored = batch.events
        count = max(1, -(-len(stored) // CHUNK_BLOCKS))
        for index in range(count):
            part = stored[index * CHUNK_BLOCKS : (index + 1) * CHUNK_BLOCKS]
            events = list(self._events(part, numbered=False))
            if index == 0:
                cleared = self._common.KvCacheEvent(cleared=self._common.KvCacheCleared())
                events.insert(0, cleared)
            message = self._batch(batch, batch.sequence - count + 1 + index, events)
            message.snapshot.index = index
            message.snapshot.count = count
            message.snapshot.blocks = len(stored)
            yield message

    def _batch(self, batch: KvEvents, number: int, events: Any) -> Any:
        return self._common.KvEventBatch(
            sequence_number=number, timestamp=batch.time, events=events, dp_rank=0
        )

    def _events(self, events: Sequence[KvEvent], *, numbered: bool = True) -> Iterator[Any]:
        """Each run of the same kind as one: blocks that follow one another, or that went."""
        for run in _runs(events):
            event = self._common.KvCacheEvent(event_id=next(self._ids) if numbered else 0)
            if run[0].kind == STORED:
                self._store(event.stored, run)
            elif run[0].kind == REMOVED:
                event.removed.block_hashes.extend(_short(one.block_hash) for one in run)
                event.removed.tier = self._common.KV_CACHE_TIER_DEVICE
            else:
                event.cleared.SetInParent()
            yield event

    def _store(self, stored: Any, run: Sequence[KvEvent]) -> None:
        first = run[0]
        if first.parent:
            stored.parent_block_hash = _short(first.parent)
        stored.tier = self._common.KV_CACHE_TIER_DEVICE
        if first.salt != self._salt:
            stored.cache_salt = first.salt.hex()
        for one in run:
            stored.blocks.add(
                block_hash=_short(one.block_hash),
                token_ids=struct.unpack(f"<{len(one.tokens) // 4}I", one.tokens),
                block_size=self._block_size,
            )


def _runs(events: Sequence[KvEvent]) -> Iterator[list[KvEvent]]:
    run: list[KvEvent] = []
    for event in events:
        if run and not _continues(run[-1], event):
            yield run
            run = []
        run.append(event)
    if run:
        yield run


def _continues(before: KvEvent, event: KvEvent) -> bool:
    if event.kind != before.kind or event.kind == CLEARED:
        return False
    if event.kind == REMOVED:
        return True
    return event.parent == before.block_hash and event.salt == before.salt


def _short(block_hash: bytes) -> int:
    number: int = _HASH.unpack_from(block_hash)[0]
    return number
