"""Exercise 9: half a letter.

Fill the hole in `push`. Look at it with `python course/check.py 9`.
"""

import codecs


def push(held: bytes, piece: bytes) -> tuple[str, bytes]:
    """One more token has come. What can be shown, and what has to wait?

    held: bytes of earlier tokens that were not shown yet; b"" at the beginning
    piece: the bytes of this token

    Returns the text that is certain now, and the bytes to hold back: the beginning of a letter
    whose other bytes have not come. All that stands before it is shown at once.

    In UTF-8 a letter has one to four bytes. Bytes that can never become a letter, whatever comes,
    are not held: each such place is shown as "\\ufffd", as Python's errors="replace" does.
    """
    # ---- your code begins ----
    raise NotImplementedError("push")
    # ---- your code ends ----
