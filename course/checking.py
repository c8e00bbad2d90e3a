"""How an exercise is looked at: by what it does, and by what usually goes wrong.

Invariant: whoever passes has computed the right thing on every case; whoever does not is told,
where the result is one that a known misconception leads to, which misconception that is.
"""

import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch


class NotYet(Exception):
    """The exercise is not right yet. The message says what it seems to believe, or what differs."""


def attempt(fill: Callable[..., Any], *arguments: Any) -> Any:
    """What the learner's function returns. NotYet if it cannot be called."""
    try:
        return fill(*arguments)
    except NotImplementedError as hole:
        raise NotYet(f"the hole is still there: {hole}") from None
    except Exception as error:
        where = _line_of(error, fill)
        raise NotYet(f"your code stopped{where} with {type(error).__name__}: {error}") from error


def _line_of(error: Exception, fill: Callable[..., Any]) -> str:
    """The last line of the learner's own file that was at work, if any was."""
    code = getattr(fill, "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if code is not None and one.filename == code.co_filename]
    return f" in line {own[-1].lineno}, `{own[-1].line}`," if own else ""


def judge(got: Any, right: Any, suspects: Sequence[tuple[Any, str]], case: str) -> None:
    """NotYet unless got is right. suspects: what a misconception leads to, and its name.

    Tensors are equal if they are to 1e-4; all else must be equal. Suspects that are right in this
    case prove nothing, and are passed over.
    """
    if _same(got, right):
        return
    for suspect, misconception in suspects:
        if _same(got, suspect) and not _same(suspect, right):
            raise NotYet(f"{misconception} (seen in: {case})")
    raise NotYet(f"{case}: {_difference(got, right)}")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.allclose(one, other, atol=1e-4)
    return type(one) is type(other) and bool(one == other)


def _difference(got: Any, right: Any) -> str:
    if not isinstance(right, torch.Tensor):
        return f"expected {right!r}, got {got!r}"
    if not isinstance(got, torch.Tensor):
        return f"expected a tensor of {list(right.shape)}, got {type(got).__name__}"
    if got.shape != right.shape:
        return f"expected a tensor of {list(right.shape)}, got one of {list(got.shape)}"
    worst = (got - right).abs()
    where = [int(index) for index in torch.unravel_index(worst.argmax(), worst.shape)]
    return f"differs by up to {worst.max():.3g}, most at {where}"
