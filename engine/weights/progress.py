"""Who is told how far the filling of a model has come: progress(bytes done, bytes in all)."""

from collections.abc import Callable

Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """Tells nobody."""
    del done, total
