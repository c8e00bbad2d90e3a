"""One token out of scores, by chance (chapter 12).

Invariant: what is drawn depends on the scores, on temperature, top_k and top_p, on the request's
seed and on the token's place in its text, and on nothing else: not on who is in the same step.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chance:
    """How a request's tokens are drawn. top_k 0 and top_p 1 keep all tokens."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def draw(self, logits: Tensor, place: int) -> int:
        """The token at this place of a text. logits: [V]."""
        if self.temperature == 0:
            return int(logits.argmax())
        kept = keep(logits / self.temperature, self.top_k, self.top_p)
        return int((kept + noise(self.seed, place, len(logits))).argmax())


def keep(scaled: Tensor, top_k: int, top_p: float) -> Tensor:
    """[V] -> [V]: tokens that may not be drawn are -inf. top_p is of what top_k has left."""
    if top_k:
        scaled = scaled.masked_fill(scaled < scaled.topk(top_k).values[-1], -math.inf)
    if top_p < 1:
        chances, order = scaled.softmax(0).sort(descending=True)
        before = chances.cumsum(0) - chances  # what the likelier ones have together
        scaled = scaled.index_fill(0, order[before >= top_p], -math.inf)
    return scaled


def noise(seed: int, place: int, size: int) -> Tensor:
    """[size] numbers of Gumbel's distribution, always the same for a seed and a place: whoever has
    the largest score with them wins as often as a softmax of the scores says."""
    name = hashlib.blake2b(f"{seed}:{place}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(name, "little"))
    uniform = torch.rand(size, generator=generator, dtype=torch.float64)
    return -(-uniform.clamp(min=1e-300).log()).log()
