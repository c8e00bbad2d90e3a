"""Writes a model's text, and views of a server, to a terminal.

Invariant: a model's text cannot move the cursor, colour the screen or ring the bell.
"""

import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_KEPT = "\n\t"


def printable(text: str) -> str:
    """The text without control characters, line ends and tabs kept."""
    return "".join(c for c in text if c in _KEPT or unicodedata.category(c) != "Cc")


def say(text: str) -> None:
    """Writes to standard output at once; control characters pass where it is not a terminal."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def think(text: str) -> None:
    """A model's thoughts, dimmed; only where someone watches, so that a pipe gets the answer."""
    if text and sys.stdout.isatty():
        sys.stdout.write(f"\033[2m{printable(text)}\033[0m")
        sys.stdout.flush()


def warn(text: str) -> None:
    """A line on standard error that matters to whoever reads the output, even in a pipe."""
    print(f"quire: {text}", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """A line about the output: on standard error, and only on a terminal."""
    if sys.stderr.isatty():
        print(f"\033[2m{printable(text)}\033[0m", file=sys.stderr, flush=True)


def report(text: str) -> None:
    """Lines that the user asked for and that are not the model's: on standard error, terminal or
    not."""
    print(printable(text), file=sys.stderr, flush=True)


@contextmanager
def views(
    console: "Console", *, screen: bool = False
) -> "Iterator[Callable[[RenderableType], None]]":
    """Within it each view replaces the one before; if the output is no terminal, it is printed
    below it. screen: use the whole terminal."""
    if not console.is_terminal:
        yield console.print
        return
    from rich.live import Live

    with Live(console=console, screen=screen, auto_refresh=False) as live:
        yield lambda view: live.update(view, refresh=True)
