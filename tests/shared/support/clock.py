"""A clock that a test turns."""


class Clock:
    """Seconds, as `time.monotonic` gives them: `now` is written to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
