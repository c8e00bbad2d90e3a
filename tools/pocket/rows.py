"""Training rows: one text a row, from position 0, cut or padded to the row's length.

Invariant: batch `index` of `seed` depends on (seed, index, size, curriculum) and the tokenizer
alone, whoever makes it: the trainer itself or worker processes running ahead.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import corpus
import numpy as np
from chat import THINK
from draw import Draw
from tokenizers import Tokenizer

LENGTHS = (256, 512, 1024, 2048)
FULL_MIX = ((256, 0.15), (512, 0.25), (1024, 0.25), (2048, 0.35))
SLACK = 1.12
"""Conversations are asked this much longer than their row, so that few rows need padding."""


@dataclass(frozen=True)
class Plan:
    """What decides a batch beside its index: seed, tokens a batch, tokens of curriculum."""

    seed: int
    batch_tokens: int
    curriculum_tokens: float

    def length(self, index: int) -> int:
        """The row length of batch `index`: short rows first, then the full mixture."""
        seen = index * self.batch_tokens
        draw = Draw(self.seed, "length", index)
        if seen < 0.25 * self.curriculum_tokens:
            return LENGTHS[0]
        if seen < self.curriculum_tokens:
            return draw.weighted(((256, 0.4), (512, 0.4), (1024, 0.2)))
        return draw.weighted(FULL_MIX)


@dataclass(frozen=True)
class Batch:
    """tokens: uint16 [rows, length]; targets: int64 [n], flat positions whose next is learnt."""

    index: int
    tokens: np.ndarray
    targets: np.ndarray


class Encoder:
    """Text to ids, and where the assistant speaks."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.im_start = self._id(corpus.IM_START)
        self.im_end = self._id(corpus.IM_END)
        self.think = self._id(THINK)
        self.pad = self._id(corpus.END_OF_TEXT)
        self.header = tokenizer.encode(f"{corpus.IM_START}assistant\n").ids

    def _id(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(f"tokenizer: no token {token!r}")
        return int(found)

    def spoken(self, ids: np.ndarray) -> np.ndarray:
        """bool [length]: True where the NEXT token is the assistant's (its EOS included), or
        anywhere in a plain text. Who asks opens the thoughts: `<think>` is not the assistant's."""
        if ids[0] != self.im_start:
            return np.ones(len(ids), bool)
        starts = ids == self.im_start
        for offset, token in enumerate(self.header[1:], 1):
            starts[:-offset] &= ids[offset:] == token
            starts[len(ids) - offset :] = False
        opened = np.zeros(len(ids) + 1, np.int32)
        opened[np.flatnonzero(starts) + len(self.header) - 1] = 1
        # A turn is open from its header's last token up to the token before its EOS.
        last_open = np.maximum.accumulate(np.where(opened[:-1] > 0, np.arange(len(ids)), -1))
        last_end = np.maximum.accumulate(np.where(ids == self.im_end, np.arange(len(ids)), -1))
        thinks = ids == self.think
        opens = thinks.copy()
        opens[:-1] |= thinks[1:]  # neither the tag nor the line's end behind it
        return (last_open > last_end) & ~opens

    def batch(self, plan: Plan, index: int) -> Batch:
        """Batch `index` of `plan`."""
        length = plan.length(index)
        rows = max(1, plan.batch_tokens // length)
        texts = [
            corpus.conversation_text(plan.seed, index * 65536 + row, int(SLACK * length))
            for row in range(rows)
        ]
        tokens = np.full((rows, length), self.pad, np.uint16)
        spoken = np.zeros((rows, length), bool)
        for row, encoding in enumerate(self.tokenizer.encode_batch_fast(texts)):
            ids = np.asarray(encoding.ids[: length + 1], np.uint16)
            kept = min(length, len(ids))
            tokens[row, :kept] = ids[:kept]
            # The next token must lie in the row: a row's last position has no target.
            spoken[row, : kept - 1] = self.spoken(ids)[: kept - 1]
        return Batch(index, tokens, np.flatnonzero(spoken.reshape(-1)))


def _work(path: str, plan: Plan, first: int, stride: int, queue: Any) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core a worker
    encoder = Encoder(Tokenizer.from_file(path))
    index = first
    while True:
        queue.put(encoder.batch(plan, index))
        index += stride


class Batches:
    """Batches first, first + 1, … in order, made by `workers` processes (0: in this one)."""

    def __init__(self, tokenizer_path: Path, plan: Plan, first: int, workers: int) -> None:
        self._plan, self._first = plan, first
        self._encoder = Encoder(Tokenizer.from_file(str(tokenizer_path)))
        context = multiprocessing.get_context("spawn")
        self._queues = [context.Queue(maxsize=8) for _ in range(workers)]
        self._processes = [
            context.Process(
                target=_work,
                args=(str(tokenizer_path), plan, first + at, workers, queue),
                daemon=True,
            )
            for at, queue in enumerate(self._queues)
        ]
        for process in self._processes:
            process.start()

    def __iter__(self) -> Iterator[Batch]:
        index = self._first
        while True:
            if self._queues:
                yield self._queues[(index - self._first) % len(self._queues)].get()
            else:
                yield self._encoder.batch(self._plan, index)
            index += 1

    def close(self) -> None:
        """Ends the workers."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
