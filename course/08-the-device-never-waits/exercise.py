"""Exercise 8: one step ahead.

Fill the hole in `drive`. Look at it with `python course/check.py 8`.
"""

from collections.abc import Callable


def drive(steps: int, launch: Callable[[int], None], wait: Callable[[int], None]) -> None:
    """Drive a device through steps 0, 1, ..., steps - 1 so that it always has work.

    launch(n) puts step n behind what was launched before, and returns at once.
    wait(n) returns when step n is done: its tokens can be looked at then.

    - When step n is waited for, step n + 1 has been launched already, if there is one.
    - At most two steps are launched and not yet waited for: a request that ended must be noticed.
    - Each step is waited for, in order.
    """
    # ---- your code begins ----
    raise NotImplementedError("drive")
    # ---- your code ends ----
