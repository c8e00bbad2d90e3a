"""The five things that a Qwen3 layer is made of. Chapter 1 builds them one by one.

Shapes: T tokens, H hidden numbers, Hq query heads, Hkv key/value heads, D numbers a head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Each row scaled to a mean square of 1, then by a learned weight. x: [..., N], weight: [N]."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotary_table(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's angles. positions: [T] -> two of [T, 1, D / 2].

    Pair i of a head turns by theta ** (-2i / D) radians a position: the first pairs fast, the last
    ones hardly.
    """
    speed = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = positions.float()[:, None, None] * speed
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D / 2]) of each head by its angle. x: [T, heads, D]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each new token looks back at all tokens up to itself. Returns [new, Hq, D].

    q: [new, Hq, D]; k, v: [known, Hkv, D], known >= new: the new tokens are the last of the known.
    Hq / Hkv query heads that stand side by side share one key/value head.
    """
    new, known = q.shape[0], k.shape[0]
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[2])
    future = torch.ones(new, known, dtype=torch.bool).triu(known - new + 1)
    weights = scores.masked_fill(future, -math.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Two products side by side, one through a soft switch; a third brings them back. [T, H]."""
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T
