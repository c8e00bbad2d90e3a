"""Exercise 10: a slow reader.

Fill the hole in `join`. Look at it with `python course/check.py 10`.
"""

Message = tuple[str, bool]


def join(waiting: Message | None, text: str, finished: bool) -> Message:
    """One more piece of an answer has come. What waits for its reader now?

    waiting: the message that the reader has not taken yet, as (text, finished); None if it has
    taken all
    text, finished: the new piece, and whether the answer ends with it. The last piece may be empty.

    Returns the one message that waits from now on. A slow reader gets a longer message, never more
    of them; and what it reads in the end is the whole answer, in order, and its end.
    """
    # ---- your code begins ----
    raise NotImplementedError("join")
    # ---- your code ends ----
