"""Bounds the memory of answers that are collected and sent whole.

Text is small compared with the log-probabilities that may come with it, so those are counted: an
entry is a token or one of its best alternatives. Streams hold none.

Invariant: `held` is the sum over open shares; a closed share holds nothing.
"""

import contextlib
from collections.abc import Iterator

import grpc

from quire.service.errors import Refusal, invalid_field

MAX_EACH = 1 << 17
MAX_ALL = 1 << 20


class LogprobBudget:
    """The budget of one server."""

    def __init__(self, each: int = MAX_EACH, together: int = MAX_ALL) -> None:
        self._each = each
        self._together = together
        self.held = 0

    @contextlib.contextmanager
    def share(self) -> Iterator["Share"]:
        """The share of one answer."""
        share = Share(self)
        try:
            yield share
        finally:
            self.held -= share.held

    def take(self, share: "Share", entries: int) -> None:
        """Raises Refusal where that is too much, for one answer or for all."""
        share.held += entries
        self.held += entries
        if share.held > self._each:
            raise invalid_field(
                "logprobs",
                f"more than {self._each} of them in an answer sent whole: use stream = true",
            )
        if self.held > self._together:
            raise Refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"answers sent whole hold more than {self._together} log-probabilities: use "
                "stream = true",
                reason="QUEUE_FULL",
                retry_after=1.0,
            )


class Share:
    """The part of it that one answer holds."""

    def __init__(self, budget: LogprobBudget) -> None:
        self._budget = budget
        self.held = 0

    def take(self, entries: int) -> None:
        """Take this many more."""
        self._budget.take(self, entries)
