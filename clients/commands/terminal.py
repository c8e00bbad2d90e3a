"""Writing a model's words, and views of a server, to a terminal.

Invariant: what a model says cannot move the cursor, colour the screen or ring the bell.
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
    """A line on standard error that whoever reads the output should know of, a pipe included."""
    print(f"quire: {text}", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """A line beside the output: on standard error, and only where someone watches."""
    if sys.stderr.isatty():
        print(f"\033[2m{printable(text)}\033[0m", file=sys.stderr, flush=True)


def report(text: str) -> None:
    """Lines that were asked for and are not the model's: on standard error, watched or not."""
    print(printable(text), file=sys.stderr, flush=True)


@contextmanager
def views(
    console: "Console", *, screen: bool = False
) -> "Iterator[Callable[[RenderableType], None]]":
    """Inside it each view takes the place of the one before; below it where nobody watches, for
    whoever reads a pipe. screen: all of the terminal is theirs."""
    if not console.is_terminal:
        yield console.print
        return
    from rich.live import Live

    with Live(console=console, screen=screen, auto_refresh=False) as live:
        yield lambda view: live.update(view, refresh=True)
