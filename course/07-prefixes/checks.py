"""What exercise 7 is held against: texts that begin as known ones do, with and without gaps."""

from collections.abc import Callable
from types import ModuleType

from checking import attempt, judge

NO_TOKEN_LEFT = (
    "you take every block that is known, up to the text's end: then no token is left to compute, "
    "and nothing says what comes next"
)
UNCHAINED = (
    "you name each block as if it were the first: the keys in a block depend on all the text "
    "before it, so its name has to go on from the name of the block before"
)
OVER_GAPS = (
    "you go on after a block that is not known: what lies behind the gap cannot be used, since a "
    "beginning ends where the first block is missing"
)
WHOLE_BLOCK_LEFT = (
    "you leave a whole block over: one token is enough, and the block before it may be taken if "
    "it is full"
)
FROM_THE_END = (
    "you stop at the last block that is known, and take all before it for known too: each block "
    "has to be looked up"
)

Name = Callable[[bytes, list[int]], bytes]


def _names(tokens: list[int], size: int, name: Name, root: bytes, *, chained: bool) -> list[bytes]:
    """The names of all full blocks."""
    names: list[bytes] = []
    for begin in range(0, len(tokens) - size + 1, size):
        parent = names[-1] if names and chained else root
        names.append(name(parent, tokens[begin : begin + size]))
    return names


def _until_unknown(names: list[bytes], known: dict[bytes, int]) -> list[int]:
    found = []
    for one in names:
        if one not in known:
            break
        found.append(known[one])
    return found


def check(exercise: ModuleType) -> None:
    """Raises NotYet."""
    size = 4
    text = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3]
    cases: list[tuple[str, list[int], tuple[int, ...]]] = [  # text, and which blocks are forgotten
        ("the known text and a word more", [*text, 2], ()),
        ("a text of which the second block was evicted", [*text, 2], (1,)),
        ("the very text that is known, 16 tokens in blocks of 4", text, ()),
        ("a text that leaves the known one in its third block", [*text[:9], 0, 0, 0, 0, 0], ()),
        ("a text that is shorter than a block", text[:3], ()),
        ("a text of three full blocks, one token less than the fourth", text[:15], ()),
        ("nothing that is known", [7] * 9, ()),
    ]
    every = _names(text, size, exercise.name, exercise.ROOT, chained=True)
    for case, tokens, forgotten in cases:
        known = {one: 40 - 3 * i for i, one in enumerate(every) if i not in forgotten}
        got = attempt(exercise.find, list(tokens), size, dict(known))
        names = _names(tokens, size, exercise.name, exercise.ROOT, chained=True)
        alone = _names(tokens, size, exercise.name, exercise.ROOT, chained=False)
        usable = names[: (len(tokens) - 1) // size]
        last = max((i for i, one in enumerate(usable) if one in known), default=-1)
        suspects = [
            (_until_unknown(names, known), NO_TOKEN_LEFT),
            (_until_unknown(alone[: len(usable)], known), UNCHAINED),
            (_until_unknown(alone, known), UNCHAINED),
            ([known[one] for one in usable if one in known], OVER_GAPS),
            ([known.get(one, -1) for one in usable[: last + 1]], FROM_THE_END),
            (_until_unknown(names[: len(tokens) // size - 1], known), WHOLE_BLOCK_LEFT),
        ]
        judge(got, _until_unknown(usable, known), suspects, case)
