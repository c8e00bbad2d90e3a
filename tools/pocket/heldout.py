"""What training never sees.

Invariant: whether a string, a name, a pair or a range is held out depends on itself alone (a
hash), never on a seed or an order. Training draws only what is not held out, evaluation only what
is; the two sets cannot meet whatever their seeds and sizes.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache

import lexicon

REPEAT_SHARE = 20
"""One payload of the repeat skill in this many is held out."""
NAME_SHARE = 10
PAIR_SHARE = 10
RANGE_SHARE = 10
TASK_SHARE = 20
MAX_ADDEND = 99
"""Pairs up to this addend are split into trained and held out; larger ones are trained only."""

_LETTER_RUN = re.compile(r"[A-Za-z]{4,}")


def _one_in(share: int, kind: str, text: str) -> bool:
    digest = hashlib.blake2b(f"{kind}\0{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % share == 0


def repeat_held_out(payload: str) -> bool:
    """True for a payload that no training conversation asks to repeat."""
    return _one_in(REPEAT_SHARE, "repeat", payload)


def name_held_out(name: str) -> bool:
    """True for an invented name that appears nowhere in the training text as a word."""
    return _one_in(NAME_SHARE, "name", name.lower())


@cache
def pair_held_out(a: int, b: int) -> bool:
    """True for a sum a + b (in either order) that no training conversation contains."""
    low, high = min(a, b), max(a, b)
    return high <= MAX_ADDEND and _one_in(PAIR_SHARE, "pair", f"{low}+{high}")


def range_held_out(kind: str, first: str, last: str) -> bool:
    """True for a range that no training conversation counts or lists."""
    return _one_in(RANGE_SHARE, "range", f"{kind}:{first}:{last}")


def task_held_out(kind: str, text: str) -> bool:
    """True for a call of a tool, or what it returns, that is in no training conversation."""
    return _one_in(TASK_SHARE, "task", f"{kind}:{text}")


def _invented() -> tuple[str, ...]:
    pairs = [a + c for a in lexicon.ONSETS for c in lexicon.CODAS]
    triples = [a + b + c for a in lexicon.ONSETS for b in lexicon.MIDDLES for c in lexicon.CODAS]
    known = {word.lower() for word in lexicon.WORDS + lexicon.FIRST_NAMES + lexicon.MORE_NAMES}
    return tuple(name for name in dict.fromkeys(pairs + triples) if name.lower() not in known)


NAMES = _invented()
TRAINED_NAMES = tuple(name for name in NAMES if not name_held_out(name))
HELD_OUT_NAMES = tuple(name for name in NAMES if name_held_out(name))
_HELD_OUT_LOWER = frozenset(name.lower() for name in HELD_OUT_NAMES)


def contains_held_out_name(text: str) -> bool:
    """True when a whole run of letters in `text` is a held-out name, whatever its case."""
    return any(run.lower() in _HELD_OUT_LOWER for run in _LETTER_RUN.findall(text))
