"""Exercise 1: attention.

Fill the hole in `attention`. It is the one place of a layer where a token learns of another one.
Look at it with `python course/check.py 1`, as often as you like.
"""

import math

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each token takes from the tokens up to itself, more from those whose key answers its query.

    q: [T, Hq, D]    a query a token and query head
    k: [T, Hkv, D]   a key a token and key head
    v: [T, Hkv, D]   a value a token and key head
    returns [T, Hq, D]

    Hq is a multiple of Hkv. Query heads that stand side by side share a key head: of 4 query heads
    over 2 key heads, 0 and 1 share the first, 2 and 3 the second.

    What you need, in this order:
    1. a key and a value for every query head;
    2. the score of each pair: query times key, summed over D, divided by the square root of D;
    3. no score for a pair whose key comes later than its query: -math.inf;
    4. of each query's scores a softmax over the keys, and the mean of the values by these weights.
    """
    # ---- your code begins ----
    raise NotImplementedError("attention")
    # ---- your code ends ----
