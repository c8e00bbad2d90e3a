"""Exercise 6: fill a step.

Fill the hole in `share_out`. It is the whole of a scheduler without phases. Look at it with
`python course/check.py 6`.
"""


def share_out(missing: list[int], budget: int) -> list[int]:
    """How many tokens each request gets in the next step.

    missing: of each request, in the order of their turn, how many of its tokens have not been
    computed yet. A request that is being answered misses 1. One that has just come misses its whole
    prompt. One that has nothing to compute now misses 0.

    budget: tokens that the step has room for, in all.

    Who is earlier is served first, and gets as much as it misses if there is room. A prompt need
    not fit whole: what is left of it comes in later steps.
    """
    # ---- your code begins ----
    raise NotImplementedError("share_out")
    # ---- your code ends ----
