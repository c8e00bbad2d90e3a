"""What exercise 10 is held against: answers piece by piece, and readers of all speeds."""

from types import ModuleType

from checking import attempt, judge

NEWEST = (
    "you keep the newest piece alone: pieces are not cumulative, and what the reader has not "
    "taken is lost"
)
OLDEST = (
    "you keep what waits and drop the new piece: that is a full queue, and the answer has a hole"
)
BACKWARDS = "you put the new piece before the one that waits: the text is out of order"
NO_END = (
    "you keep the old message's end: the last piece says that the answer is finished, and a "
    "reader that does not hear it waits for ever"
)
EMPTY_LOST = (
    "you pass over an empty piece: the last one may have no text, and it still says that the "
    "answer ends"
)


def check(exercise: ModuleType) -> None:
    """Raises NotYet."""
    for case, waiting, text, finished in (
        ("a reader that has taken all", None, "a fox", False),
        ("a reader that is one piece behind", ("a ", False), "fox", False),
        ("the last piece", ("a ", False), "fox", True),
        ("a last piece without text", ("a fox", False), "", True),
        ("a last piece without text, nothing waits", None, "", True),
    ):
        old, ended = waiting or ("", False)
        suspects = [
            ((text, finished), NEWEST),
            ((text + old, finished), BACKWARDS),
            (waiting if waiting and not text else None, EMPTY_LOST),
            (waiting, OLDEST),
            ((old + text, ended), NO_END),
        ]
        suspects = [pair for pair in suspects if pair[0] is not None]
        got = attempt(exercise.join, waiting, text, finished)
        judge(got, (old + text, finished), suspects, case)
