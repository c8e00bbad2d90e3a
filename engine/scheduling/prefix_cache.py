"""The prefix cache's index: hashes of full blocks, and the tokens in them.

Invariant: everything indexed has been computed by steps that were applied. Only full blocks have a
hash; a block has at most one hash, a hash may name several blocks. The last, partly filled block of
a request that has ended is a *tail*: it is indexed by the prefix before it and its valid tokens,
without a hash. Full blocks are shared; from a block that matches only in part the beginning is
copied (`match_partial`), because the rest of it belongs to another request.

Hashes are chained 128-bit xxh3: the root is H(seed, salt), a block's is H(parent, its tokens), so a
hash identifies a whole prefix. The seed is random per process unless fixed, and tokens are compared
on a hit, so that nobody can plant or guess somebody else's prefix.
"""

import secrets
import struct
from bisect import bisect_left, insort
from collections.abc import Container, Iterable, KeysView, Sequence
from typing import NamedTuple

import xxhash

from quire.engine.scheduling.kv_events import STORED, KvEvent, KvLog, parents_first
from quire.engine.scheduling.token_bytes import packed

_TOKEN_BYTES = 4


class PartialMatch(NamedTuple):
    """A block whose first `num_tokens` tokens match."""

    block: int
    num_tokens: int


class PrefixCache:
    """The index from prefixes to blocks. The pool knows whether a block is free or held."""

    def __init__(self, block_size: int, enabled: bool = True, seed: int | None = None) -> None:
        self.block_size = block_size
        self.enabled = enabled
        self.log: KvLog | None = None  # set while there are watchers
        self.duplicates = 0  # blocks registered under a hash that already named another one
        self._seed = (
            secrets.token_bytes(16) if seed is None else struct.pack("<Q", seed % (1 << 64))
        )
        self._hash_of: dict[int, bytes] = {}  # full blocks alone; tails have none
        self._tokens_of: dict[int, bytes] = {}
        self._parent_of: dict[int, bytes] = {}
        self._salt_of: dict[int, bytes] = {}  # of full blocks
        self._blocks_of: dict[bytes, dict[int, None]] = {}
        # The blocks that follow each parent, sorted by tokens: neighbours are the most alike.
        self._children: dict[bytes, list[tuple[bytes, int]]] = {}

    @property
    def known_blocks(self) -> KeysView[int]:
        """Blocks whose content can be hit; a live view."""
        return self._tokens_of.keys()

    def __contains__(self, block: int) -> bool:
        """Whether the block's content can be hit."""
        return block in self._tokens_of

    def blocks(self) -> tuple[int, ...]:
        """All blocks that can be hit."""
        return tuple(self._tokens_of)

    def hashes(self) -> Iterable[bytes]:
        """The hashes of all full blocks that can be hit, each once."""
        return self._hash_of.values()

    # ------------------------------------------------------------ hashes

    def root_hash(self, salt: bytes) -> bytes:
        """The parent of every first block under one salt."""
        return xxhash.xxh3_128_digest(self._seed + struct.pack("<I", len(salt)) + salt)

    def extend_hashes(
        self, hashes: list[bytes], salt: bytes, token_ids: Sequence[int], num_blocks: int
    ) -> None:
        """Append to `hashes` until it covers the first num_blocks full blocks of token_ids."""
        if len(hashes) >= num_blocks:
            return
        parent = hashes[-1] if hashes else self.root_hash(salt)
        digest = xxhash.xxh3_128_digest
        for tokens in self._pack(token_ids, len(hashes), num_blocks):
            parent = digest(parent + tokens)
            hashes.append(parent)

    def hash_known(
        self, hashes: list[bytes], salt: bytes, token_ids: Sequence[int], num_blocks: int
    ) -> None:
        """Like extend_hashes, but hashes only the first block if that one is not cached: the other
        hashes are not needed before the step that computes them is launched."""
        self.extend_hashes(hashes, salt, token_ids, min(num_blocks, 1))
        if num_blocks and hashes[0] in self._blocks_of:
            self.extend_hashes(hashes, salt, token_ids, num_blocks)

    def _pack(self, token_ids: Sequence[int], first: int, end: int) -> list[bytes]:
        """The tokens of blocks first to end - 1, packed at once, which is faster than per block."""
        whole = packed(token_ids[first * self.block_size : end * self.block_size])
        width = self.block_size * _TOKEN_BYTES
        return [whole[begin : begin + width] for begin in range(0, len(whole), width)]

    def _parent(self, hashes: Sequence[bytes], salt: bytes, index: int) -> bytes:
        return hashes[index - 1] if index else self.root_hash(salt)

    # ------------------------------------------------------------ blocks

    def match(
        self, hashes: Sequence[bytes], token_ids: Sequence[int], reach: int | None = None
    ) -> list[int]:
        """Cached blocks of the longest known prefix, at most len(hashes); no reference is taken.
        reach: how many tokens before itself a token sees; None: all."""
        found: list[int] = []
        if reach is not None and self.enabled:
            return self._match_window(hashes, token_ids, reach)
        for block_hash in hashes if self.enabled else ():
            blocks = self._blocks_of.get(block_hash)
            if not blocks:
                break
            found.append(next(iter(blocks)))
        if not found:
            return found
        known = b"".join([self._tokens_of[block] for block in found])
        wanted = packed(token_ids[: len(found) * self.block_size])
        if known != wanted:  # a hash collision
            del found[_num_equal(known, wanted) // self.block_size :]
        return found

    def _match_window(
        self, hashes: Sequence[bytes], token_ids: Sequence[int], reach: int
    ) -> list[int]:
        """The longest prefix whose last `reach` tokens lie in cached blocks. The blocks before
        those are given as 0."""
        needed = -(-reach // self.block_size)
        found: list[int] = []
        best, run = 0, 0
        packed = self._pack(token_ids, 0, len(hashes))
        for index, (block_hash, tokens) in enumerate(zip(hashes, packed, strict=True)):
            block = next(iter(self._blocks_of.get(block_hash, ())), 0)
            known = block and self._tokens_of[block] == tokens
            found.append(block if known else 0)
            run = run + 1 if known else 0
            if run >= min(needed, index + 1):
                best = index + 1
        first = max(best - needed, 0)
        return [*[0] * first, *found[first:best]]

    def match_partial(
        self, hashes: Sequence[bytes], salt: bytes, token_ids: Sequence[int], index: int
    ) -> PartialMatch | None:
        """The block, full or a tail, that follows the same prefix and shares the most leading
        tokens with block `index` of token_ids; None if no block shares any. No reference is taken.
        The last of token_ids does not count: it is left to compute.

        hashes: at least `index` of those of token_ids. Blocks that follow one prefix are sorted by
        their tokens, so the best match is a neighbour of the insertion point: the one before it if
        both match equally.
        """
        if not self.enabled:
            return None
        children = self._children.get(self._parent(hashes, salt, index))
        if children is None:
            return None
        begin, last = index * self.block_size, len(token_ids) - 1
        wanted = packed(token_ids[begin : min(begin + self.block_size, last)])
        place = bisect_left(children, (wanted, 0))
        best = PartialMatch(0, 0)
        for tokens, block in children[max(place - 1, 0) : place + 1]:
            equal = _num_equal(tokens, wanted)
            if equal > best.num_tokens:
                best = PartialMatch(block, equal)
        return best if best.num_tokens else None

    def register(
        self,
        blocks: Sequence[int],
        hashes: Sequence[bytes],
        salt: bytes,
        token_ids: Sequence[int],
        first: int,
    ) -> None:
        """Index full, computed blocks under their prefixes' hashes, while some table holds them.

        first: index of the first of them in token_ids' blocks and hashes; the others follow.
        """
        if not self.enabled:
            return
        parent = self._parent(hashes, salt, first)
        packed = self._pack(token_ids, first, first + len(blocks))
        for index, (block, tokens) in enumerate(zip(blocks, packed, strict=True), first):
            if block not in self._tokens_of:
                self._name(block, hashes[index], salt)
                self._add(block, parent, tokens)
                if self.log is not None:
                    before = hashes[index - 1] if index else b""
                    self.log.stored(hashes[index], before, tokens, salt)
            parent = hashes[index]

    def _name(self, block: int, block_hash: bytes, salt: bytes) -> None:
        named = self._blocks_of.setdefault(block_hash, {})
        self.duplicates += bool(named)
        named[block] = None
        self._hash_of[block] = block_hash
        self._salt_of[block] = salt

    def register_tail(
        self,
        block: int,
        hashes: Sequence[bytes],
        salt: bytes,
        token_ids: Sequence[int],
        num_tokens: int,
    ) -> None:
        """Index a block that is not full, while some table holds it: it has the last of the first
        num_tokens tokens, all computed.

        hashes: of the full blocks before it. Does nothing if another block after the same prefix
        begins with the same tokens.
        """
        if not self.enabled or block in self._tokens_of:
            return
        index = num_tokens // self.block_size
        tokens = packed(token_ids[index * self.block_size : num_tokens])
        parent = self._parent(hashes, salt, index)
        children = self._children.get(parent, [])
        place = bisect_left(children, (tokens, 0))
        if place == len(children) or not children[place][0].startswith(tokens):
            self._add(block, parent, tokens)

    def _add(self, block: int, parent: bytes, tokens: bytes) -> None:
        self._tokens_of[block] = tokens
        self._parent_of[block] = parent
        children = self._children.get(parent)
        if children is None:
            self._children[parent] = [(tokens, block)]
        else:
            insort(children, (tokens, block))

    def forget(self, block: int) -> None:
        """Remove a block from the index; the only place that does. KeyError if it is not there."""
        tokens, parent = self._tokens_of.pop(block), self._parent_of.pop(block)
        children = self._children[parent]
        del children[bisect_left(children, (tokens, block))]
        if not children:
            del self._children[parent]
        block_hash = self._hash_of.pop(block, None)
        if block_hash is None:
            return
        del self._salt_of[block]
        if self.log is not None:
            self.log.removed(block_hash)
        named = self._blocks_of[block_hash]
        del named[block]
        if not named:
            del self._blocks_of[block_hash]

    def snapshot(self) -> tuple[KvEvent, ...]:
        """One STORED event per full block, parents before their children."""
        roots: dict[bytes, bytes] = {}
        stored = []
        for block, block_hash in self._hash_of.items():
            salt, parent = self._salt_of[block], self._parent_of[block]
            root = roots.get(salt) or roots.setdefault(salt, self.root_hash(salt))
            before = b"" if parent == root else parent
            stored.append(KvEvent(STORED, block_hash, before, self._tokens_of[block], salt))
        return parents_first(stored)

    # ------------------------------------------------------------ integrity

    def count_among(self, free: Container[int]) -> int:
        """How many of these blocks can be hit."""
        return sum(1 for block in self._tokens_of if block in free)

    def check(self) -> None:
        """Raise AssertionError unless hashes, tokens and blocks agree."""
        size = self.block_size * _TOKEN_BYTES
        full = {b for b, tokens in self._tokens_of.items() if len(tokens) == size}
        assert self._hash_of.keys() == full, "a full block has no hash, or another has one"
        named = {(b, h) for h, blocks in self._blocks_of.items() for b in blocks}
        assert named == set(self._hash_of.items()), "index and blocks disagree"
        assert self._parent_of.keys() == self._tokens_of.keys()
        assert self._salt_of.keys() == full
        followers: dict[bytes, list[tuple[bytes, int]]] = {}
        for block, parent in self._parent_of.items():
            followers.setdefault(parent, []).append((self._tokens_of[block], block))
        for found in followers.values():
            found.sort()
        assert followers == self._children


def _num_equal(one: bytes, other: bytes) -> int:
    """How many leading packed tokens two blocks have in common."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter // _TOKEN_BYTES
    return next(i for i in range(shorter) if one[i] != other[i]) // _TOKEN_BYTES
