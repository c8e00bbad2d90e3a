"""Exercise 12: who may be drawn, and how often.

Fill the hole in `chances`. Look at it with `python course/check.py 12`.
"""

from torch import Tensor


def chances(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """How often each token is to be drawn.

    logits: [V], the model's scores
    temperature: above 0
    top_p: above 0, at most 1
    returns [V], which sums to 1

    What you need, in this order:
    1. the scores divided by the temperature, and a softmax of them;
    2. of the likeliest tokens as many as it takes to have top_p together: whoever crosses it still
       belongs to them, so one is always left;
    3. all others at 0, and those that are left scaled so that they sum to 1 again.
    """
    # ---- your code begins ----
    found, order = (logits / temperature).softmax(0).sort(descending=True)
    before = found.cumsum(0) - found
    kept = found.masked_fill(before >= top_p, 0.0)
    return kept.new_zeros(len(kept)).index_put((order,), kept / kept.sum())
    # ---- your code ends ----
