"""A misconception of a learner, written into the hole of an exercise."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WrongFill:
    """body: what stands in the hole. named: words of the misconception that must be told."""

    name: str
    body: str
    named: str


def changed(body: str, old: str, new: str) -> str:
    """A body with one thing done otherwise."""
    assert body.count(old) == 1, old
    return body.replace(old, new)
