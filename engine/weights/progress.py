"""The callback that reports a model's loading: progress(bytes done, bytes in all)."""

from collections.abc import Callable

Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """Reports nothing."""
    del done, total
