"""Exercise 2: attention over what was kept.

Fill the hole in `attend`. Look at it with `python course/check.py 2`.
"""

import math

import torch
from torch import Tensor


def attend(
    q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Let new tokens look back at the kept ones and at themselves.

    q, k, v: [new, H, D]: of the new tokens. There may be several: a prompt comes all at once.
    past_k, past_v: [past, H, D]: what was kept of the tokens before them; past may be 0.

    Returns what the new tokens found, [new, H, D], and all keys and all values to keep from now on,
    [past + new, H, D] each.

    New token i is token past + i of the text, and sees the tokens up to itself. Scores are divided
    by the square root of D, as in exercise 1.
    """
    # ---- your code begins ----
    raise NotImplementedError("attend")
    # ---- your code ends ----
