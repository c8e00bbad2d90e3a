"""Attention in tiles (chapter 4): the same numbers, and never more scores at a time than a tile's.

One head. A `Meter` counts what goes between far memory (large, slow) and near memory (small, fast).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Meter:
    """Numbers that were read from far memory, written to it, and how many of them were not the
    arguments or the result: what had to be kept in between."""

    read: int = 0
    written: int = 0
    between: int = 0

    def load(self, *tensors: Tensor) -> None:
        self.read += sum(tensor.numel() for tensor in tensors)

    def store(self, tensor: Tensor) -> None:
        self.written += tensor.numel()

    def keep(self, tensor: Tensor) -> None:
        """Written, and neither argument nor result."""
        self.store(tensor)
        self.between += tensor.numel()

    @property
    def moved(self) -> int:
        return self.read + self.written


def standard(q: Tensor, k: Tensor, v: Tensor, meter: Meter) -> Tensor:
    """Three passes over all scores. q, k, v: [T, D]; far memory holds [T, T] numbers twice."""
    meter.load(q, k)
    scores = q @ k.T / math.sqrt(q.shape[1])
    future = torch.ones_like(scores, dtype=torch.bool).triu(1)
    meter.keep(scores.masked_fill_(future, -math.inf))
    meter.load(scores)
    weights = scores.softmax(-1)
    meter.keep(weights)
    meter.load(weights, v)
    out = weights @ v
    meter.store(out)
    return out


def flash(q: Tensor, k: Tensor, v: Tensor, tile: int, meter: Meter) -> Tensor:
    """One pass, tile by tile (Dao and others, 2022). q, k, v: [T, D], T a multiple of tile."""
    out = torch.empty_like(q)
    for begin in range(0, len(q), tile):
        mine = q[begin : begin + tile]
        meter.load(mine)
        best = torch.full((tile, 1), -math.inf)  # the largest score so far, of each query
        total = torch.zeros(tile, 1)  # the sum of weights so far, relative to `best`
        found = torch.zeros(tile, q.shape[1])  # the sum of weighted values so far, likewise
        for start in range(0, begin + 1, tile):  # tiles of later keys are never read
            keys, values = k[start : start + tile], v[start : start + tile]
            meter.load(keys, values)
            scores = mine @ keys.T / math.sqrt(q.shape[1])
            if start == begin:
                scores.masked_fill_(torch.ones(tile, tile, dtype=torch.bool).triu(1), -math.inf)
            best, total, found = absorb(best, total, found, scores, values)
        out[begin : begin + tile] = found / total
        meter.store(out[begin : begin + tile])
    return out


def absorb(
    best: Tensor, total: Tensor, found: Tensor, scores: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Take one more tile in. Weights are relative to the best score; when a better one comes, all
    that was summed before shrinks by the same factor."""
    better = torch.maximum(best, scores.amax(1, keepdim=True))
    shrink = (best - better).exp()
    weights = (scores - better).exp()
    total = total * shrink + weights.sum(1, keepdim=True)
    return better, total, found * shrink + weights @ values
