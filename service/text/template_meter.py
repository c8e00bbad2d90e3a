"""Limits of one rendering, and the meter that counts towards them.

Invariant: whatever a template does is counted before it is done, or is linear in what has been
counted. Counted are each text and each container as it is made (an element once for each container
that holds it), the steps, and the processor's time. The size of an operation's result is computed
from the sizes of its arguments; if the operation is not known to be linear, their product is used.
"""

import re
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from string import Formatter
from typing import Any

from quire.service.text.workers import Wanted, check_wanted

_MADE_FOR_EACH_BYTE = 32  # bytes of text that a template may make for each byte of its prompt
_AT_ONCE = 1 << 24  # bytes that one operation may make, however short the prompt
_MAX_BITS = 1 << 14  # of a whole number: as many digits as Python writes
_CHECK_EVERY = 1024  # steps between asking whether anyone still waits
_LOOK_EVERY = 16  # steps between two looks at the clock
# These look through a text or a list, whatever they are given to look for.
_LINEAR = frozenset(
    {
        *("attr", "count", "default", "d", "dictsort", "endswith", "find", "get", "groupby"),
        *("float", "index", "int", "items", "lstrip", "map", "max", "min", "partition", "reject"),
        *("rejectattr", "removeprefix", "removesuffix", "rfind", "rindex", "rpartition", "rsplit"),
        *("rstrip", "select", "selectattr", "sort", "split", "splitlines", "startswith", "strip"),
        *("tojson", "trim", "truncate", "unique"),
    }
)
_QUADRATIC = frozenset({"pprint", "striptags", "sum", "urlize", "wordwrap", "xmlattr"})
_TEXTS = (str, bytes, range)
_EMPTY: dict[Any, Any] = {}
_VIEWS = (type(_EMPTY.keys()), type(_EMPTY.values()), type(_EMPTY.items()))
_HOLDERS = (list, tuple, dict, set, frozenset, *_VIEWS)
VALUES = (int, float, *_TEXTS, *_HOLDERS)  # whose methods may repeat what they are given
_NUMBER = re.compile(r"\d+")
# A field of `%`: flags, width and precision; `*`: a width that is an argument.
_PERCENT_FIELD = re.compile(r"%(?:\([^()]*\))?[-+ #0]*(\d+|\*)?(?:\.(\d+|\*))?")
_NESTED_KEY = re.compile(r"%\([^()]*\(")  # whose end only Python finds


class TooMuch(Exception):
    """The conversation renders to more than is allowed, or takes too many steps."""


class TooManyBytes(TooMuch):
    """Of these, more than is allowed."""


def _still_wanted() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """Limits of one rendering.

    max_bytes: of the text, as UTF-8. max_steps: look-ups, calls, loop iterations, and fields that
    values are put into; each takes about a microsecond or less on short texts. max_seconds: the
    thread's processor time. wanted: called now and then; rendering ends if it returns false.
    """

    max_bytes: int = 1 << 24
    max_steps: int = 4_000_000
    max_seconds: float = 10.0
    wanted: Wanted = _still_wanted


class Meter(threading.local):
    """Counts what the rendering on this thread has done."""

    def __init__(self) -> None:
        self.begin(RenderLimits())

    def begin(self, limits: RenderLimits) -> None:
        """Count from nothing."""
        self._limits = limits
        self._until = time.thread_time() + limits.max_seconds
        self._steps = 0
        self._made = 0
        self._most_made = _MADE_FOR_EACH_BYTE * limits.max_bytes
        self._written = 0
        self._weights: dict[int, tuple[Any, int]] = {}  # of containers, which it keeps

    def step(self) -> None:
        """One look-up, call or round. Raises TooMuch or NotWanted."""
        self._steps += 1
        if self._steps % _LOOK_EVERY == 0:
            self._check_clock()
        if self._steps % _CHECK_EVERY == 0:
            self._check_steps()

    def steps(self, count: int) -> None:
        """Many at once. Raises TooMuch or NotWanted."""
        self._steps += count
        self._check_clock()
        self._check_steps()

    def _check_clock(self) -> None:
        if time.thread_time() > self._until:
            raise TooMuch(f"takes the chat template more than {self._limits.max_seconds:g} s")

    def _check_steps(self) -> None:
        if self._steps > self._limits.max_steps:
            raise TooMuch(f"takes the chat template more than {self._limits.max_steps} steps")
        check_wanted(self._limits.wanted)

    def made(self, characters: int) -> None:
        """Text on its way. Raises TooMuch."""
        self._made += characters
        if self._made > self._most_made:
            raise self._too_long()

    def wrote(self, piece: str) -> None:
        """Text of the prompt. Raises TooMuch."""
        self._written += len(piece) if piece.isascii() else len(piece.encode(errors="replace"))
        if self._written > self._limits.max_bytes:
            raise self._too_long()

    def new(self, value: Any) -> Any:
        """A value that an operation has made, itself."""
        if isinstance(value, str | bytes):
            self.made(len(value))
        elif isinstance(value, _HOLDERS):
            self.weight(value)
        return value

    def weight(self, value: Any) -> int:
        """Characters and places of a value, as often as they are in it: what writing, comparing or
        hashing it takes. Raises TooMuch."""
        if not isinstance(value, _HOLDERS):
            return len(value) if isinstance(value, _TEXTS) else 1
        known = self._weights.get(id(value))
        if known is None:
            self.made(len(value))
            parts = chain.from_iterable(value.items()) if isinstance(value, dict) else value
            known = (value, 1 + sum(map(self.weight, parts)))
            self._fits(known[1])
            self._weights[id(value)] = known
        return known[1]

    def before_call(self, name: str, subject: Any, given: list[Any]) -> None:
        """Before a filter is applied to a subject, or its method called. Raises TooMuch."""
        self.step()
        if name in _LINEAR or not (given or name in _QUADRATIC):
            return
        if name in ("format", "format_map"):
            self._before_braces(str(subject), given)
        elif name == "replace" and all(isinstance(text, str) for text in (subject, *given[:2])):
            self._fits(len(subject) + subject.count(given[0]) * len("".join(given[1:2])))
        else:
            more = self.weight(subject) if name in _QUADRATIC else 0
            sizes = sum(abs(one) if isinstance(one, int) else self.weight(one) for one in given)
            self._fits((1 + self.weight(subject)) * (1 + more + sizes))

    def before_binop(self, operator: str, left: Any, right: Any) -> None:
        """Before `*`, `**` or `%`. Raises TooMuch."""
        if isinstance(left, int) and isinstance(right, int):
            if operator in ("*", "**"):
                self._before_product(operator, left, right)
        elif operator == "*":
            for one, times in ((left, right), (right, left)):
                if isinstance(one, str | bytes | list | tuple) and isinstance(times, int):
                    self._fits(len(one) * times)
        elif operator == "%" and isinstance(left, str | bytes):
            text = left if isinstance(left, str) else left.decode("latin-1")
            self.before_percent(text, [right])

    def before_percent(self, text: str, given: list[Any]) -> None:
        """Before values are put into the fields of `%`, each a step. Raises TooMuch."""
        self.steps(text.count("%"))
        fields = _PERCENT_FIELD.findall(text)
        numbers = [number for field in fields for number in field if number]
        if _NESTED_KEY.search(text):
            numbers += _NUMBER.findall(text)
        widths = _sum_of(numbers)
        if "*" in numbers:
            flat = chain.from_iterable(one if isinstance(one, tuple) else (one,) for one in given)
            widths += sum(abs(one) for one in flat if isinstance(one, int))
        self._fits_filled(text, len(fields), widths, given)

    def _before_braces(self, text: str, given: list[Any]) -> None:
        """Before values are put into the fields of `str.format`, each a step."""
        self.steps(text.count("{"))
        try:
            specs = [spec for _, _, spec, _ in Formatter().parse(text) if spec is not None]
        except ValueError:  # as `str.format` will say
            return
        if any("{" in spec for spec in specs):  # a width that is an argument
            raise self._too_long()
        widths = _sum_of(chain.from_iterable(map(_NUMBER.findall, specs)))
        self._fits_filled(text, len(specs), widths, given)

    def _fits_filled(self, text: str, fields: int, widths: int, given: list[Any]) -> None:
        """Each field may show what is longest, as wide as any number says."""
        self._fits(len(text) + fields * (widths + sum(map(self.weight, given))))

    def _before_product(self, operator: str, left: int, right: int) -> None:
        bits = left.bit_length()
        bits = bits * max(right, 0) if operator == "**" else bits + right.bit_length()
        if bits > _MAX_BITS:
            raise TooMuch(f"makes the chat template compute more than {_MAX_BITS} bits")

    def _fits(self, size: int) -> None:
        if size > max(self._most_made, _AT_ONCE):
            raise self._too_long()

    def _too_long(self) -> TooManyBytes:
        return TooManyBytes(f"renders to more than {self._limits.max_bytes} bytes")


def _sum_of(numbers: Iterable[str]) -> int:
    """Of those that are digits; of longer ones than any limit, their begin."""
    return sum(int(digits[:20]) for digits in numbers if digits != "*")


def listed(value: Any) -> Any:
    """An iterable that can be consumed only once, as a list, so that its size is known."""
    return list(value) if isinstance(value, Iterator) else value
